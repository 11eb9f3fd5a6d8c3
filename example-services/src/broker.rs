//! Which broker carries the events: chosen by the scheme of its address, so that moving to another one is a setting.

use std::time::Duration;

use brokers::nats::{self, NatsSubscriber};
use brokers::postgres::{self, Pattern, PostgresSubscriber};
use inbox::Consumer;
use sqlx::PgPool;

use crate::service::reached;

/// A broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broker {
    /// A log in a PostgreSQL database.
    Postgres {
        /// The database's address.
        url: String,
    },
    /// NATS JetStream. A topic is the subject `STREAM.topic`.
    Nats {
        /// The server's address.
        server: String,
        /// The stream.
        stream: String,
    },
}

/// Why a broker cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// The operator's: its address.
    #[error("broker: must begin with postgres:// or nats://")]
    Scheme,
    /// The operator's: its address, or it does not let us in.
    #[error("broker: NATS cannot be used")]
    Nats(#[from] nats::ConnectError),
    /// Ours: a consumer's name that is no group.
    #[error(transparent)]
    Group(#[from] postgres::InvalidGroup),
    /// Ours: a topic that is none.
    #[error(transparent)]
    Topic(#[from] postgres::InvalidRoute),
    /// The operator's: its address, or the database is not there.
    #[error("broker: the database cannot be reached")]
    Database(#[from] sqlx::Error),
}

/// What reads a log needs: the reader's connection, its records, its heartbeat.
const LOG_CONNECTIONS: u32 = 5;
/// The stream of an address that names none.
const STREAM: &str = "shop";
/// A service that was killed has its messages delivered to the next one after so long.
const ACK_WAIT: Duration = Duration::from_secs(6);
/// As long as it works on one, it says so this often.
const EXTEND_EVERY: Duration = Duration::from_secs(2);
/// And another subscriber takes its place after so long.
const TAKEOVER: Duration = Duration::from_secs(2);

impl Broker {
    /// From its address: `postgres://…/DATABASE` or `nats://HOST:PORT/STREAM`.
    ///
    /// # Errors
    /// The scheme is none that we know.
    pub fn parse(url: &str) -> Result<Broker, BrokerError> {
        match url.split_once("://") {
            Some(("postgres" | "postgresql", _)) => Ok(Broker::Postgres { url: url.to_owned() }),
            Some((scheme @ ("nats" | "tls"), rest)) => {
                let (host, stream) = rest.split_once('/').unwrap_or((rest, ""));
                let stream = if stream.is_empty() { STREAM } else { stream };
                Ok(Broker::Nats { server: format!("{scheme}://{host}"), stream: stream.to_owned() })
            }
            _ => Err(BrokerError::Scheme),
        }
    }

    /// A consumer of `name` that receives `topics`, and whose effects go to the database of `pool`. It has no handlers yet.
    ///
    /// # Errors
    /// The broker cannot be reached.
    pub async fn consumer(&self, name: &str, pool: PgPool, topics: &[&str]) -> Result<Consumer, BrokerError> {
        match self {
            Broker::Postgres { url } => {
                let options = outbox::connect_options(url)?;
                reached("broker", &options).await?;
                let log = outbox::pool_options().max_connections(LOG_CONNECTIONS).connect_lazy_with(options);
                let topics = topics.iter().map(|topic| topic.parse()).collect::<Result<Vec<Pattern>, _>>()?;
                let subscriber =
                    PostgresSubscriber::new(log, name.parse()?).with_topics(topics).with_lease(TAKEOVER);
                Ok(Consumer::new(name, pool, subscriber))
            }
            Broker::Nats { server, stream } => {
                let subscriber = NatsSubscriber::new(nats::connect(server).await?, stream, name)
                    .with_subjects(topics.iter().map(|topic| format!("{stream}.{topic}")))
                    .with_ack_wait(ACK_WAIT)
                    .with_takeover_after(TAKEOVER);
                Ok(Consumer::new(name, pool, subscriber).with_extend_every(EXTEND_EVERY))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_which_broker_and_which_stream() {
        let nats = |server: &str, stream: &str| Broker::Nats { server: server.into(), stream: stream.into() };
        assert_eq!(Broker::parse("nats://h:1/demo").unwrap(), nats("nats://h:1", "demo"));
        assert_eq!(Broker::parse("nats://h:1").unwrap(), nats("nats://h:1", "shop"));
        assert!(matches!(Broker::parse("postgres://h/d").unwrap(), Broker::Postgres { .. }));
        assert!(matches!(Broker::parse("kafka://h"), Err(BrokerError::Scheme)));
    }
}
