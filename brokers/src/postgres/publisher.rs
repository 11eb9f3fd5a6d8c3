//! The way into the log of a broker database.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use message::{Message, Outcomes, Outgoing, Pipelining, PublishError, Publisher};
use outbox::log::{self, append, check_appendable};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgPool, Postgres};

use super::fault::{self, Fault};
use super::reach;

/// Appends to the log of the broker database behind a pool: what arrives is what was sent, byte for byte, with the
/// destination as its topic.
///
/// A batch is one statement and one transaction, and is confirmed when that is on the disk of the broker database. A
/// message that the database refuses is `Rejected` and the others of its batch go; those of its key wait
/// (`NotSent`), so that none passes it. A commit whose answer is lost is `Unknown`, and a second copy may follow: the
/// log does not compare ids, the inbox does.
///
/// The role needs what `outbox_publisher` may do in the broker database.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use brokers::postgres::PostgresPublisher;
/// use message::Publisher;
///
/// let broker = outbox::pool_options().connect("postgres://localhost/broker").await?;
/// let publisher = PostgresPublisher::new(broker);
/// publisher.check().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct PostgresPublisher {
    pool: PgPool,
}

impl PostgresPublisher {
    /// Appends through `pool`, which is the broker database's and made with [`outbox::pool_options`]: one connection for
    /// each batch under way.
    pub fn new(pool: PgPool) -> Self {
        PostgresPublisher { pool }
    }

    async fn connection(&self) -> Result<PoolConnection<Postgres>, PublishError> {
        reach::acquire(&self.pool).await.map_err(|unreachable| PublishError::Unavailable(unreachable.text))
    }

    /// Appends what is valid, and reports what is not taken. What came of those not reported is the answer.
    async fn append(&self, batch: &[Outgoing], outcomes: &Outcomes) -> Result<(), PublishError> {
        let mut failed = Failed { outcomes, keys: HashSet::new() };
        let mut messages = Vec::with_capacity(batch.len());
        let mut places = Vec::with_capacity(batch.len());
        for (index, outgoing) in batch.iter().enumerate() {
            match message(outgoing) {
                Ok(message) if failed.may_go(index, &message) => {
                    messages.push(message);
                    places.push(index);
                }
                Ok(_) => {}
                Err(reason) => failed.reject(index, &outgoing.message, reason),
            }
        }
        if messages.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection().await?;
        match append(&mut connection, &messages).await.map_err(|error| fault::of(&error)) {
            Ok(()) => return Ok(()),
            Err(Fault::Batch(error)) => return Err(error),
            Err(Fault::Message(_)) => {}
        }
        // One of them is at fault, and the database does not say which.
        for (index, message) in places.into_iter().zip(&messages) {
            if !failed.may_go(index, message) {
                continue;
            }
            let one = append(&mut connection, std::slice::from_ref(message)).await;
            match one.map_err(|error| fault::of(&error)) {
                Ok(()) => outcomes.report(index, Ok(())),
                Err(Fault::Message(reason)) => failed.reject(index, message, reason),
                Err(Fault::Batch(error)) => {
                    // Those after it were not sent.
                    let text = error.to_string();
                    outcomes.report(index, Err(error));
                    return Err(PublishError::Unavailable(text));
                }
            }
        }
        Ok(())
    }
}

/// The keys of which a message of the batch was rejected.
struct Failed<'a> {
    outcomes: &'a Outcomes,
    keys: HashSet<Arc<str>>,
}

impl Failed<'_> {
    /// Whether no earlier message of its key was rejected. If one was, this one is reported.
    fn may_go(&self, index: usize, message: &Message) -> bool {
        let behind = message.key.as_ref().is_some_and(|key| self.keys.contains(key));
        if behind {
            let reason = "an earlier message of its key was rejected".to_owned();
            self.outcomes.report(index, Err(PublishError::NotSent(reason)));
        }
        !behind
    }

    fn reject(&mut self, index: usize, message: &Message, reason: String) {
        self.keys.extend(message.key.clone());
        self.outcomes.report(index, Err(PublishError::Rejected(reason)));
    }
}

/// The message as the broker's log has it, if it may stand there.
fn message(outgoing: &Outgoing) -> Result<Message, String> {
    if let Err(fault) = message::limits::topic(&outgoing.destination) {
        return Err(format!("destination: {}", fault.limit));
    }
    let mut message = (*outgoing.message).clone();
    message.topic = outgoing.destination.clone();
    message.validate_relayed().map_err(|fault| fault.to_string())?;
    Ok(message)
}

#[async_trait]
impl Publisher for PostgresPublisher {
    /// A batch is a transaction.
    fn pipelining(&self) -> Pipelining {
        Pipelining::PerBatch
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        match self.append(batch, &outcomes).await {
            Ok(()) => outcomes.confirm_all(),
            Err(error) => outcomes.fail_all(error),
        }
    }

    /// Whether the log is there, fits this build, and keeps what it is given. A server that does not wait for its disk
    /// is named in a warning and taken: whoever turned that off knew.
    async fn check(&self) -> Result<(), PublishError> {
        let mut connection = self.connection().await?;
        match check_appendable(&mut connection).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                tracing::warn!(
                    "the broker database has fsync or full_page_writes off: a crash of the machine loses messages"
                );
                Ok(())
            }
            Err(refusal) if refusal.is_passing() => Err(PublishError::Unavailable(chain(&refusal))),
            Err(refusal) => Err(PublishError::Rejected(chain(&refusal))),
        }
    }

    async fn log(&self) -> Result<Option<String>, PublishError> {
        let mut connection = self.connection().await?;
        log::name(&mut connection).await.map(Some).map_err(|error| fault::unavailable(&error))
    }

    fn describe(&self) -> Option<String> {
        let options = self.pool.connect_options();
        let host = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => options.get_host().to_owned(),
        };
        let database = options.get_database().unwrap_or("?");
        Some(format!("postgres://{host}:{}/{database}", options.get_port()))
    }
}

/// An error and what caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    message::error_chain(error)
}
