//! The publisher that a broker's URL stands for.

use async_trait::async_trait;
use brokers::file::FilePublisher;
use brokers::memory::Discard;
use brokers::nats::{Access, ConnectError, Connection, NatsPublisher, StreamPolicy};
use brokers::postgres::PostgresPublisher;
use message::{Outcomes, Outgoing, Pipelining, PublishError, Publisher};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::{Broker, Config, NatsAccess, NatsStream};
use crate::exit::{Failure, chain};
use crate::secret::SecretUrl;
use crate::{database, text_file};

/// Batches under way at once in a broker database.
const BROKER_CONNECTIONS: u32 = 8;
/// Longest file with credentials or a seed.
const NATS_FILE_BYTES: usize = 65_536;

/// Any broker's publisher, and what it publishes to.
pub(crate) struct AnyPublisher(Box<dyn Publisher>, String);

/// The publisher of the configuration's broker. One that is down is no failure, the relay waits for it; one that does not let
/// us in is. `stop` is
/// cancelled when waiting has no sense: standard output does not come back.
pub(crate) async fn of(config: &Config, stop: &CancellationToken) -> Result<AnyPublisher, Failure> {
    let publisher: Box<dyn Publisher> = match &config.broker {
        Broker::File(path) => Box::new(FilePublisher::new(path)),
        Broker::StandardOutput => {
            Box::new(Pipe { stop: stop.clone(), output: FilePublisher::standard_output() })
        }
        Broker::Memory => Box::new(Discard),
        Broker::Nats(url) => {
            let publisher =
                NatsPublisher::new(nats(url, &config.nats_access).await?).with_relay(&config.relay);
            Box::new(match &config.nats_stream {
                None => publisher,
                Some(stream) => publisher.with_stream(policy(stream)),
            })
        }
        Broker::Postgres(url) => {
            let purpose = format!("relay {}", config.relay);
            let options = database::options(url, &purpose)?;
            database::first_try(url, &purpose).await.map_err(|failure| failure.within("broker"))?;
            let pool = outbox::pool_options().max_connections(BROKER_CONNECTIONS).connect_lazy_with(options);
            Box::new(PostgresPublisher::new(pool))
        }
    };
    let address = publisher.describe().unwrap_or_else(|| config.broker.to_string());
    Ok(AnyPublisher(publisher, address))
}

/// A connection to NATS, with what the files hold.
async fn nats(url: &SecretUrl, files: &NatsAccess) -> Result<Connection, Failure> {
    let usage = |error: ConnectError| Failure::usage(format!("broker {url}: {}", chain(&error)));
    let mut access = Access::parse(url.expose()).map_err(usage)?;
    if let Some(path) = &files.credentials {
        access = access.with_credentials(text_file::read(path, NATS_FILE_BYTES)?);
    }
    if let Some(path) = &files.nkey {
        access = access.with_nkey(text_file::read(path, NATS_FILE_BYTES)?);
    }
    if let Some(path) = &files.ca {
        access = access.with_root_certificates(path);
    }
    if let Some((certificate, key)) = &files.certificate {
        access = access.with_client_certificate(certificate, key);
    }
    access.connect().await.map_err(|error| match error {
        ConnectError::Refused { reason, .. } => Failure::unreachable(format!("broker {url}: {reason}")),
        error => usage(error),
    })
}

fn policy(NatsStream { name, subjects }: &NatsStream) -> StreamPolicy {
    if subjects.is_empty() { StreamPolicy::check(name) } else { StreamPolicy::create(name, subjects) }
}

#[async_trait]
impl Publisher for AnyPublisher {
    fn pipelining(&self) -> Pipelining {
        self.0.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        self.0.publish(batch, outcomes).await;
    }

    async fn check(&self) -> Result<(), PublishError> {
        self.0.check().await
    }

    async fn log(&self) -> Result<Option<String>, PublishError> {
        self.0.log().await
    }

    fn describe(&self) -> Option<String> {
        Some(self.1.clone())
    }
}

/// Standard output, whose reader may have had enough: `outbox relay --broker file:- | head -3` ends.
struct Pipe {
    stop: CancellationToken,
    output: FilePublisher,
}

impl Pipe {
    /// The text is all that a publisher's error tells.
    fn has_no_reader(result: &Result<(), PublishError>) -> bool {
        let broken = std::io::Error::from_raw_os_error(BROKEN_PIPE).to_string();
        matches!(result, Err(PublishError::Unavailable(text) | PublishError::Unknown(text)) if text.contains(&broken))
    }
}

/// EPIPE, the same on every system that has pipes.
const BROKEN_PIPE: i32 = 32;

#[async_trait]
impl Publisher for Pipe {
    fn pipelining(&self) -> Pipelining {
        self.output.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let (sender, mut results) = mpsc::unbounded_channel();
        self.output.publish(batch, Outcomes::new(0, sender)).await;
        while let Some(outcome) = results.recv().await {
            if Pipe::has_no_reader(&outcome.result) && !self.stop.is_cancelled() {
                tracing::info!("nobody reads standard output any more: stopping");
                self.stop.cancel();
            }
            match (outcome.index, outcome.result) {
                (Some(index), result) => outcomes.report(index, result),
                // The rest of the batch: nothing follows.
                (None, Ok(())) => return outcomes.confirm_all(),
                (None, Err(error)) => return outcomes.fail_all(error),
            }
        }
    }

    async fn check(&self) -> Result<(), PublishError> {
        self.output.check().await
    }

    fn describe(&self) -> Option<String> {
        self.output.describe()
    }
}
