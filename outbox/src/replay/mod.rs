//! Replay: messages that the log still holds are published once more, because a person asks for it.
//!
//! A replay is a job with a name and a [`Filter`]. It publishes what was committed when it began, in order per key, each
//! message marked with the header `outbox-replay` and its own id, so that an inbox discards what it has handled. It can be
//! stopped and killed: run again under its name, it goes on after what it had recorded, and repeats what it had not.
//! [`preview`] says what it would publish, and writes nothing.

mod begin;
mod filter;
mod job;
mod preview;
mod queue;
mod rate;
mod run;

use std::sync::Arc;
use std::time::Duration;

use message::limits::LONGEST;
use message::{MessageId, PublishError, Publisher};
use sqlx::postgres::PgPool;
use tokio_util::sync::CancellationToken;

pub use filter::Filter;
pub(crate) use job::list_within;
pub use job::{CancelError, ReplayStatus, cancel, list};
pub use preview::{Found, Place, Preview, preview};

use crate::admin::AdminError;
use crate::log::{Refusal, clamp_page};
use crate::{Backoff, InvalidRoute, Routes};

/// The settings of a replay, with defaults that suit most.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReplaySettings {
    /// Where topics go, unless the replay has a destination of its own.
    pub routes: Routes,
    /// Most messages a second; `None`: as fast as the broker takes them.
    pub rate: Option<u32>,
    /// A message that the broker rejects is given up and written down, instead of stopping the replay.
    pub skip_rejected: bool,
    /// Messages a page.
    pub page: usize,
    /// Most bytes of payloads a page.
    pub page_bytes: usize,
    /// Most messages handed to the publisher at once.
    pub batch: usize,
    /// How often progress is recorded. A crash repeats what was confirmed since.
    pub record_interval: Duration,
    /// Most messages confirmed and not recorded: what a crash may repeat. While a destination is down, no more than these
    /// are read ahead, nor more than four pages of bytes; others go on so far.
    pub max_unrecorded: usize,
    /// How long a process may be silent before another may go on with its replay.
    pub lease: Duration,
    /// How long a publisher may take for a batch before its outcome counts as unknown.
    pub publish_timeout: Duration,
    /// Waits while the broker is unavailable.
    pub unavailable: Backoff,
}

impl ReplaySettings {
    /// With nothing so large that a sum with it overflows.
    fn clamped(mut self) -> Self {
        (self.page, self.page_bytes) = clamp_page(self.page, self.page_bytes);
        for time in [&mut self.record_interval, &mut self.lease, &mut self.publish_timeout] {
            *time = (*time).min(LONGEST);
        }
        self
    }
}

impl Default for ReplaySettings {
    fn default() -> Self {
        let ms = Duration::from_millis;
        ReplaySettings {
            routes: Routes::default(),
            rate: None,
            skip_rejected: false,
            page: 1000,
            page_bytes: 8 << 20,
            batch: 500,
            record_interval: ms(1000),
            max_unrecorded: 10_000,
            lease: ms(10_000),
            publish_timeout: ms(30_000),
            unavailable: Backoff { first: ms(50), ceiling: ms(5_000) },
        }
    }
}

/// What a replay has done so far, over all processes that worked at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// Messages published, each counted once.
    pub published: i64,
    /// Messages that the broker rejected and that were given up.
    pub skipped: i64,
    /// Everything up to this position is done.
    pub after: i64,
    /// Whether that is all of it; otherwise it was stopped.
    pub finished: bool,
    /// Whether it was finished before: then nothing was published now.
    pub already: bool,
}

/// Why a replay did not go on. What it has recorded is done; run again, it goes on from there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The operator's: the log must not be read as it is.
    #[error("the log is not read")]
    Refused(#[source] Refusal),
    /// The operator's: a replay of this name has not begun, and no filter says what it should publish.
    #[error("no replay of that name has begun, and nothing says what it is to publish")]
    NotBegun,
    /// The operator's: the replay has begun with another filter or another destination.
    #[error(
        "a replay of that name has begun with another filter or destination: leave them out to go on, or take another name"
    )]
    OtherFilter,
    /// The operator's: it was cancelled.
    #[error("the replay was cancelled: take another name")]
    Cancelled,
    /// The operator's: its snapshot means nothing in the cluster that the log was restored into.
    #[error("the replay began before the database was restored: take another name")]
    Restored,
    /// Another process works at it.
    #[error("another process works at the replay")]
    Busy,
    /// The operator's: the broker is not set up so that it keeps what it confirms.
    #[error("broker refused")]
    Broker(#[source] PublishError),
    /// The message's: the broker will not take it. Others of its batch may have been published.
    #[error("the message at position {position} ({id}) is not taken")]
    Rejected {
        /// Where it stands in the log.
        position: i64,
        /// Which it is.
        id: MessageId,
        /// What the broker said.
        source: PublishError,
    },
    /// The broker's: it was sent the message several times, and never answered. It may have been published; run again, the replay
    /// goes on with it. It is not given up, whatever [`skip_rejected`](ReplaySettings::skip_rejected) says.
    #[error("the broker never answers for the message at position {position} ({id})")]
    Unanswered {
        /// Where it stands in the log.
        position: i64,
        /// Which it is.
        id: MessageId,
        /// What was said of the last try.
        source: PublishError,
    },
    /// Another transaction has the replay locked. Nothing was begun or taken over.
    #[error("the replay could not be begun or taken over")]
    Locked(#[source] AdminError),
    /// The database did not answer, or the role may not do this.
    #[error("the database did not answer")]
    Database(#[from] sqlx::Error),
}

impl From<AdminError> for ReplayError {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Database(error) => ReplayError::Database(error),
            AdminError::Unanswered => {
                ReplayError::Database(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
            }
            locked @ AdminError::Locked(_) => ReplayError::Locked(locked),
        }
    }
}

/// Publishes messages of the log once more.
///
/// ```no_run
/// use outbox::replay::{Filter, Replay};
/// use tokio_util::sync::CancellationToken;
///
/// # async fn run(publisher: impl message::Publisher + 'static) -> Result<(), Box<dyn std::error::Error>> {
/// let pool = outbox::pool_options().connect("postgres://localhost/orders").await?;
/// let orders = Filter::default().with_topic("orders.>".parse()?).with_since("2026-01-31T00:00:00Z".parse()?);
/// let done = Replay::new("search-2", pool, publisher, "ada").with_filter(orders).run(CancellationToken::new()).await?;
/// assert!(done.finished);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Replay<P> {
    name: String,
    pool: PgPool,
    publisher: Arc<P>,
    who: String,
    reason: Option<String>,
    filter: Option<Filter>,
    destination: Option<String>,
    settings: ReplaySettings,
}

impl<P: Publisher + 'static> Replay<P> {
    /// The replay `name` of the log behind `pool`, which needs two connections for it, as `who` decides.
    pub fn new(name: impl Into<String>, pool: PgPool, publisher: P, who: impl Into<String>) -> Self {
        Replay {
            name: name.into(),
            pool,
            publisher: Arc::new(publisher),
            who: who.into(),
            reason: None,
            filter: None,
            destination: None,
            settings: ReplaySettings::default(),
        }
    }

    /// What it publishes. One that has begun has a filter already, and goes on without: given again, it must be the same.
    pub fn with_filter(mut self, filter: Filter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// Where it publishes all of it; `{topic}` stands for the topic. One that has begun has that already.
    ///
    /// # Errors
    /// The template means nothing.
    pub fn with_destination(mut self, template: impl Into<String>) -> Result<Self, InvalidRoute> {
        let template = template.into();
        begin::everything_to(&template)?;
        self.destination = Some(template);
        Ok(self)
    }

    /// Why, for the audit.
    pub fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// With other settings altogether.
    pub fn with_settings(mut self, settings: ReplaySettings) -> Self {
        self.settings = settings.clamped();
        self
    }

    /// Publishes until all is published or `stop` is cancelled: then it finishes what is on the wire and records it. Waits
    /// while the broker is unavailable, and for a process that has just died. Of one that is finished it answers that.
    ///
    /// # Errors
    /// See [`ReplayError`].
    pub async fn run(self, stop: CancellationToken) -> Result<Replayed, ReplayError> {
        run::run(self, &stop).await
    }
}
