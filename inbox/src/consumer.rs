//! A consumer: what it handles, and how patient it is.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use message::{SubscribeError, Subscriber};
use migrations::SchemaError;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::handler::{Handle, IntoHandler};
use crate::horizon::{Horizon, InvalidHorizon};
use crate::kinds::Kinds;
use crate::process::Process;
use crate::ready::Ready;
use crate::seldom::Seldom;
use crate::statement::{self, Isolation, PgQuery};

/// Receives messages and has them handled, each once, those of a key in order.
///
/// Each message has one transaction: its admission, what its handler writes, what the handler enqueues. It is
/// acknowledged to the broker when that has committed. A message that fails holds back its key, and only its key: its
/// copies are kept in the database, tried again with growing waits, and parked in the end for a person
/// ([`admin`](crate::admin)).
///
/// A message of a kind that no process of this name handles is acknowledged and counted. One that another process handles,
/// of a newer build perhaps, is kept for it, in its key's place. So start the consumers of a new kind first, and its
/// producers when those are [`ready`](Consumer::ready): then no message is dropped.
///
/// Several processes may run a consumer of the same name; they share the work as their broker divides it. The pool needs
/// a connection for each message under way (the concurrency, which retries share) and three to spare. Make it with
/// `outbox::pool_options()`: another may hand on a connection that is inside a transaction of nobody's, in which what the
/// service writes is lost, and keeps those that a network has swallowed.
///
/// ```no_run
/// # async fn example(pool: sqlx::PgPool, subscriber: impl message::Subscriber + 'static)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// use inbox::{Consumer, HandlerError};
/// use message::Message;
/// use sqlx::PgTransaction;
///
/// async fn ship(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
///     sqlx::query("insert into shipment (message) values ($1)").bind(message.id.as_uuid()).execute(&mut **tx).await?;
///     Ok(())
/// }
///
/// let stop = tokio_util::sync::CancellationToken::new();
/// Consumer::new("shipping", pool, subscriber).on("order.paid", ship).run(stop).await?;
/// # Ok(()) }
/// ```
pub struct Consumer {
    pub(crate) core: Core,
    pub(crate) subscriber: Box<dyn Subscriber>,
    pub(crate) settings: Settings,
    pub(crate) ready: watch::Sender<bool>,
}

/// What every task of a consumer needs.
pub(crate) struct Core {
    pub(crate) name: Arc<str>,
    pub(crate) pool: PgPool,
    pub(crate) handlers: HashMap<Box<str>, Arc<dyn Handle>>,
    /// The handlers' kinds.
    pub(crate) kinds: Vec<String>,
    pub(crate) horizon: Horizon,
    pub(crate) max_attempts: u32,
    pub(crate) backoff: Backoff,
    pub(crate) handler_timeout: Duration,
    pub(crate) isolation: Isolation,
    pub(crate) extend_every: Duration,
    /// Between tries of transactions that met others.
    pub(crate) contention: Backoff,
    /// Between tries while the database does not answer.
    pub(crate) outage: Backoff,
    /// What is said of that.
    pub(crate) database_lines: Seldom,
    pub(crate) process: Process,
    /// What is known about the kinds that only other processes handle.
    pub(crate) other_kinds: Kinds,
    pub(crate) stop: CancellationToken,
}

/// What only the loop needs.
pub(crate) struct Settings {
    pub(crate) concurrency: usize,
    pub(crate) prefetch: usize,
    pub(crate) horizon: Option<Duration>,
    pub(crate) undated: bool,
    pub(crate) grace: Duration,
}

/// Why a consumer does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// The set-up's: the consumer's name.
    #[error("consumer: must be 1 to 100 bytes without NUL")]
    Name,
    /// The set-up's: how far back it remembers.
    #[error(transparent)]
    Horizon(#[from] InvalidHorizon),
    /// The database's schema is not one that this build works with.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The database's encoding does not hold every text that a message may carry.
    #[error(
        "the database's encoding is {0}, not UTF8: it cannot store what messages carry; move it to a database made with encoding 'UTF8'"
    )]
    Encoding(String),
    /// Another transaction's: for a minute it has kept locked what the start reads or writes.
    #[error("another transaction keeps the inbox locked: the consumer cannot register")]
    Locked(#[source] sqlx::Error),
    /// The database could not be reached or used at the start.
    #[error("database cannot be used")]
    Database(#[from] sqlx::Error),
    /// The broker's: it will not serve this subscription until a person changes something.
    #[error("broker refuses")]
    Subscription(#[source] SubscribeError),
}

/// The longest there is.
const A_YEAR: Duration = Duration::from_secs(365 * 86_400);
/// Beyond the handler's timeout, a try is taken for lost.
const SLACK: Duration = Duration::from_secs(10);
/// A held key is tried again in its place only if the try then ends before others take it for lost.
pub(crate) const IN_PLACE: Duration = Duration::from_secs(5);

impl Core {
    /// For how long a claim on a held key keeps others away.
    pub(crate) fn try_time(&self) -> Duration {
        self.handler_timeout + SLACK
    }

    /// What the database answers, unless it does not: a network can swallow a connection without a word, and the driver would
    /// wait for ever. A try may first wait for that of another process, and no longer than it lasts.
    pub(crate) async fn in_time<T, E: From<sqlx::Error>>(
        &self,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        within(2 * self.try_time(), answer).await
    }
}

impl Core {
    /// Runs one statement alone, also when the pool is closed: then on a connection of its own.
    pub(crate) async fn last_word(&self, query: PgQuery<'_>) -> Result<u64, sqlx::Error> {
        let said = async {
            if !self.pool.is_closed() {
                return statement::run(&self.pool, query).await;
            }
            let mut own = PgConnection::connect_with(&self.pool.connect_options()).await?;
            let done = statement::run(&mut own, query).await?;
            own.close().await?;
            Ok(done)
        };
        self.in_time(said).await
    }
}

/// An error of the network's if there is no answer by then.
pub(crate) async fn within<T, E: From<sqlx::Error>>(
    limit: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let late = |_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()).into());
    tokio::time::timeout(limit, answer).await.unwrap_or_else(late)
}

impl Consumer {
    /// A consumer of that name, which is the scope of "once": under another name every message is handled again. Effects
    /// go to the database of `pool`, messages come from `subscriber`.
    pub fn new(name: &str, pool: PgPool, subscriber: impl Subscriber + 'static) -> Self {
        Consumer {
            core: Core {
                name: name.into(),
                pool,
                handlers: HashMap::new(),
                kinds: Vec::new(),
                horizon: Horizon::default(),
                max_attempts: 10,
                backoff: Backoff::default(),
                handler_timeout: Duration::from_secs(30),
                isolation: Isolation::default(),
                extend_every: Duration::from_secs(10),
                contention: Backoff::default()
                    .with_first(Duration::from_millis(5))
                    .with_ceiling(Duration::from_secs(1)),
                outage: Backoff::default()
                    .with_first(Duration::from_millis(100))
                    .with_ceiling(Duration::from_secs(5)),
                database_lines: Seldom::default(),
                process: Process::default(),
                other_kinds: Kinds::default(),
                stop: CancellationToken::new(),
            },
            subscriber: Box::new(subscriber),
            settings: Settings {
                concurrency: 8,
                prefetch: 256,
                horizon: None,
                undated: false,
                grace: Duration::from_secs(20),
            },
            ready: watch::Sender::new(false),
        }
    }

    /// Tells when this consumer is ready: for a health check, and for a deployment that starts producers of new kinds
    /// after their consumers.
    pub fn ready(&self) -> Ready {
        Ready(self.ready.subscribe())
    }

    /// Has messages of `kind` handled by `handler`, in place of an earlier one.
    pub fn on<By>(mut self, kind: &str, handler: impl IntoHandler<By>) -> Self {
        self.core.handlers.insert(kind.into(), handler.into_handler().0);
        self
    }

    /// How far back copies are recognised; older ones are refused and parked. 7 days unless told otherwise, at most 29
    /// ([`Horizon`]). Rows are kept that long.
    pub fn with_horizon(mut self, horizon: Duration) -> Self {
        self.settings.horizon = Some(horizon);
        self
    }

    /// Takes messages whose id is no UUIDv7 too, without the promise past the horizon
    /// ([`Horizon::with_undated`]).
    pub fn with_undated(mut self) -> Self {
        self.settings.undated = true;
        self
    }

    /// How often a message is tried before it is parked. 10 unless told otherwise, at least 1.
    pub fn with_max_attempts(mut self, attempts: u32) -> Self {
        self.core.max_attempts = attempts.max(1);
        self
    }

    /// How long a failed message waits.
    pub fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.core.backoff = backoff;
        self
    }

    /// How long one try of a handler may take; then it is rolled back and counted. 30 seconds unless told otherwise.
    /// A database that has not answered after twice as long and 20 seconds is asked again, on another connection.
    pub fn with_handler_timeout(mut self, timeout: Duration) -> Self {
        self.core.handler_timeout = timeout.min(A_YEAR);
        self
    }

    /// What a handler's transaction sees of others. [`Isolation::ReadCommitted`] by default, whatever
    /// `default_transaction_isolation` says.
    pub fn with_isolation(mut self, isolation: Isolation) -> Self {
        self.core.isolation = isolation;
        self
    }

    /// How many messages are handled at once, of different keys. 8 unless told otherwise, at least 1. Retries of held keys
    /// share them: all while no first try waits, at most half otherwise.
    pub fn with_concurrency(mut self, messages: usize) -> Self {
        self.settings.concurrency = messages.max(1);
        self
    }

    /// How many deliveries are in hand at most, under way or waiting behind their key. 256 unless told otherwise. One
    /// slow key can fill it, and others then wait.
    pub fn with_prefetch(mut self, deliveries: usize) -> Self {
        self.settings.prefetch = deliveries.max(1);
        self
    }

    /// How often the broker is told that a delivery in hand is still worked at: less than the time after which it
    /// delivers to another. 10 seconds unless told otherwise.
    pub fn with_extend_every(mut self, interval: Duration) -> Self {
        self.core.extend_every = interval.clamp(Duration::from_millis(1), A_YEAR);
        self
    }

    /// When stopped, how long deliveries in hand may still begin; then they are left to be delivered again. 20 seconds
    /// unless told otherwise.
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace.min(A_YEAR);
        self
    }
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("name", &self.core.name)
            .field("kinds", &self.core.handlers.keys())
            .finish_non_exhaustive()
    }
}
