//! The broker of a run: a log in a database, or a NATS stream; made at the start and gone at the end.

use std::time::{Duration, Instant};

use brokers::nats::{self, NatsPublisher, StreamPolicy};
use message::{PublishError, Publisher};
use migrations::Schema;
use servers::Nats;
use tokio::time::sleep;

use super::arguments::BrokerChoice;
use super::databases::Databases;
use super::tally;

/// How long a broker may take to answer.
const CONNECT: Duration = Duration::from_secs(10);
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// In its two minutes NATS would remove the copies that a killed relay sends again; the demo wants to see the inbox do it.
const WINDOW: Duration = Duration::from_millis(200);

/// A broker that is there.
pub(super) enum Carrier {
    /// The log in the broker's database.
    Log { url: String },
    /// A stream of that name.
    Stream { server: String, name: String, own: Option<Nats> },
}

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub(super) enum CarrierError {
    #[error("no NATS")]
    Start(#[from] servers::nats::StartError),
    #[error("NATS cannot be reached")]
    Connect(#[from] nats::ConnectError),
    #[error("NATS: the stream cannot be made")]
    Stream(#[from] PublishError),
    #[error("NATS: the stream cannot be counted")]
    Count(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("NATS: the stream cannot be removed")]
    Remove(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the broker's database cannot be used")]
    Database(#[from] sqlx::Error),
    #[error("the broker's database cannot be migrated")]
    Migrate(#[from] migrations::MigrateError),
}

impl Carrier {
    /// Starts it, or finds it; the databases are created.
    pub(super) async fn start(choice: &BrokerChoice, databases: &Databases) -> Result<Carrier, CarrierError> {
        let (server, own) = match choice {
            BrokerChoice::Postgres | BrokerChoice::PostgresAt(_) => {
                let mut connection = databases.broker.pool.acquire().await?;
                Schema::Outbox.migrate(&mut connection).await?;
                return Ok(Carrier::Log { url: databases.broker.url.clone() });
            }
            BrokerChoice::Nats => {
                let own = Nats::start()?;
                (own.url(), Some(own))
            }
            BrokerChoice::NatsAt(server) => (server.0.trim_end_matches('/').to_owned(), None),
        };
        let name = format!("outbox-demo-{}", std::process::id());
        let policy = StreamPolicy::create(&name, [format!("{name}.>")]).with_duplicate_window(WINDOW);
        let publisher = NatsPublisher::new(nats::connect(&server).await?).with_stream(policy);
        made(&publisher).await?;
        Ok(Carrier::Stream { server, name, own })
    }

    /// The address that the services take.
    pub(super) fn url(&self) -> String {
        match self {
            Carrier::Log { url } => url.clone(),
            Carrier::Stream { server, name, .. } => format!("{server}/{name}"),
        }
    }

    /// How many messages it was given: those of the services, and copies of them.
    pub(super) async fn published(&self, databases: &Databases) -> Result<i64, CarrierError> {
        match self {
            Carrier::Log { .. } => Ok(tally::copies(databases).await?.0),
            Carrier::Stream { server, name, .. } => {
                let count = |error| CarrierError::Count(Box::new(error));
                let context = async_nats::jetstream::new(nats::connect(server).await?.client());
                let stream = context.get_stream(name).await.map_err(count)?;
                Ok(i64::try_from(stream.cached_info().state.messages).unwrap_or(i64::MAX))
            }
        }
    }

    /// Whether it is a log, whose messages can be compared.
    pub(super) fn is_a_log(&self) -> bool {
        matches!(self, Carrier::Log { .. })
    }

    /// One line about it, without an address that may hold a password.
    pub(super) fn describe(&self) -> String {
        match self {
            Carrier::Log { .. } => "a log in a database of its own".to_owned(),
            Carrier::Stream { name, own: Some(nats), .. } => format!("stream {name}, {}", nats.describe()),
            Carrier::Stream { name, .. } => format!("stream {name} at the NATS server given"),
        }
    }

    /// Removes the stream from a server that outlives the demo.
    pub(super) async fn remove(self) -> Result<(), CarrierError> {
        if let Carrier::Stream { server, name, own } = self
            && own.is_none_or(|nats| nats.is_given())
        {
            let context = async_nats::jetstream::new(nats::connect(&server).await?.client());
            context.delete_stream(name).await.map_err(|error| CarrierError::Remove(Box::new(error)))?;
        }
        Ok(())
    }
}

/// A client connects in the background, so a server that is there may not have answered yet.
async fn made(publisher: &NatsPublisher) -> Result<(), PublishError> {
    let started = Instant::now();
    loop {
        match publisher.check().await {
            Err(PublishError::Unavailable(_)) if started.elapsed() < CONNECT => sleep(BETWEEN_TRIES).await,
            answered => return answered,
        }
    }
}
