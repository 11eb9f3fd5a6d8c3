//! The way out of the log of a broker database, for one group.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use message::limits::LONGEST;
use message::{Delivery, SubscribeError, Subscriber};
use outbox::Pattern;
use outbox::log::Start;
use sqlx::postgres::PgPool;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::answer::delivery;
use super::desk::{Desk, Said};
use super::group::Group;
use super::session::Session;

/// Receives from the log of a broker database for one group, from its first message on.
///
/// **Subscribers of a group share its shards** fairly, wherever they run: at most
/// [`with_shards`](Self::with_shards) of them work at a time, and a key is in one subscriber's hands. One that
/// [closes](Subscriber::close), or is dropped while its runtime lives, hands its shards over at once; one that dies is
/// replaced when its [lease](Self::with_lease) ends.
///
/// **A delivery is waited for as long as it lives**: a slow handler makes no duplicate. One that is dropped without an
/// answer comes again [after a while](Self::with_redelivery_after), as does one that is sent back; the later messages of
/// its key that were not handed out wait behind it. Both are remembered in memory: when the shard moves to another
/// subscriber, the message comes at once.
///
/// **Progress is recorded a few times a second**, so a crash repeats what was acknowledged just before it. Close a
/// subscriber when its work is done, or its pool; that repeats nothing. An acknowledgement fails if the message has gone
/// to another subscriber meanwhile.
///
/// A topic is the destination that the publisher was given. Messages of topics that are not asked for are passed over. While the
/// database fails, [`receive`](Subscriber::receive) answers `Unavailable` after each attempt to go on.
///
/// The broker database needs the schema `outbox` (`outbox migrate --schema outbox` there), and the role what
/// `outbox_relay` may do in it; the pool, four connections, and to be made with
/// [`outbox::pool_options`].
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use brokers::postgres::PostgresSubscriber;
/// use message::Subscriber;
///
/// let broker = outbox::pool_options().connect("postgres://localhost/broker").await?;
/// let mut subscriber = PostgresSubscriber::new(broker, "shipping".parse()?).with_topics(["orders.>".parse()?]);
/// for delivery in subscriber.receive(100).await? {
///     delivery.acknowledge().await?;
/// }
/// subscriber.close().await;
/// # Ok(()) }
/// ```
pub struct PostgresSubscriber {
    pool: PgPool,
    group: Group,
    settings: Settings,
    begun: Option<Begun>,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) topics: Vec<Pattern>,
    pub(super) start: Start,
    pub(super) shards: i16,
    pub(super) lease: Duration,
    pub(super) retention: Duration,
    pub(super) poll_ceiling: Duration,
    pub(super) record_interval: Duration,
    pub(super) redelivery_after: Duration,
    pub(super) max_unanswered: usize,
}

/// A subscriber at work.
struct Begun {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// What the subscriber, its deliveries and its session share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<Shown>,
    /// There may be something to receive.
    pub(super) arrived: Notify,
    /// There may be room, or a shard without messages in hands.
    pub(super) answered: Notify,
}

#[derive(Debug, Default)]
pub(super) struct Shown {
    pub(super) desk: Desk,
    /// What the next call of `subscribe` or `receive` is told.
    pub(super) trouble: Option<SubscribeError>,
    /// The group has its cursors: it receives what is committed from now on, whoever of it works.
    pub(super) joined: bool,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Shown> {
        // No code panics while it holds the lock, so what a poisoned one holds is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn answer(&self, position: i64, delivery: u64, said: Said) -> bool {
        let taken = self.lock().desk.answer(position, delivery, said);
        self.answered.notify_one();
        if said != Said::Acknowledged {
            self.arrived.notify_one();
        }
        taken
    }
}

impl PostgresSubscriber {
    /// Receives everything for `group` from the log of the broker database behind `pool`. The group is made at the first
    /// [`receive`](Subscriber::receive) of its first subscriber.
    pub fn new(pool: PgPool, group: Group) -> Self {
        let ms = Duration::from_millis;
        let settings = Settings {
            topics: Vec::new(),
            start: Start::Beginning,
            shards: 16,
            lease: ms(10_000),
            retention: ms(3 * 86_400_000),
            poll_ceiling: ms(150),
            record_interval: ms(100),
            redelivery_after: ms(1_000),
            max_unanswered: 1_000,
        };
        PostgresSubscriber { pool, group, settings, begun: None }
    }

    /// Receives these topics only: `orders`, `orders.*`, `orders.>`.
    pub fn with_topics(mut self, topics: impl IntoIterator<Item = Pattern>) -> Self {
        self.settings.topics = topics.into_iter().collect();
        self
    }

    /// Where a new group begins: with the oldest message the log holds, by default.
    pub fn with_start(mut self, start: Start) -> Self {
        self.settings.start = start;
        self
    }

    /// Into how many shards a new group divides the log, so at most how many subscribers share the work: 16 by default,
    /// 1 to 1024.
    pub fn with_shards(mut self, shards: u16) -> Self {
        self.settings.shards = i16::try_from(shards.clamp(1, 1024)).unwrap_or(1024);
        self
    }

    /// How long a subscriber may be silent before others take its shards: 10 seconds by default, at least 200 ms.
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease.clamp(Duration::from_millis(200), LONGEST);
        self
    }

    /// How long messages stay in the log when every group has acknowledged them, at most until the log comes round to their
    /// place ([`outbox::prune`]): 3 days by default. The longest of all groups counts.
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.settings.retention = retention.min(LONGEST);
        self
    }

    /// Longest pause between looks at an idle log, which bounds the latency while there is little to do: 150 ms by
    /// default. Each look is one small statement.
    pub fn with_poll_ceiling(mut self, ceiling: Duration) -> Self {
        self.settings.poll_ceiling = ceiling.clamp(Duration::from_millis(1), LONGEST);
        self
    }

    /// How often progress is recorded: 100 ms by default. A crash repeats what was acknowledged since.
    pub fn with_record_interval(mut self, interval: Duration) -> Self {
        self.settings.record_interval = interval.clamp(Duration::from_millis(1), LONGEST);
        self
    }

    /// When a delivery comes again that was dropped without an answer: a second later by default.
    pub fn with_redelivery_after(mut self, wait: Duration) -> Self {
        self.settings.redelivery_after = wait.min(LONGEST);
        self
    }

    /// How many unanswered messages there may be before nothing more is read: 1,000 by default. Those that wait behind
    /// a message of their key count, too.
    pub fn with_max_unanswered(mut self, messages: usize) -> Self {
        self.settings.max_unanswered = messages.max(1);
        self
    }

    fn begin(&mut self) -> Arc<Shared> {
        let begun = self.begun.get_or_insert_with(|| {
            let shared = Arc::new(Shared::default());
            shared.lock().desk = Desk::new(self.settings.topics.clone());
            let stop = CancellationToken::new();
            let (pool, group, settings) = (self.pool.clone(), self.group.clone(), self.settings.clone());
            let session = Session::new(pool, group, settings, Arc::clone(&shared), stop.clone());
            let mut tasks = JoinSet::new();
            tasks.spawn(session.run());
            Begun { shared, stop, tasks }
        });
        Arc::clone(&begun.shared)
    }
}

impl Drop for PostgresSubscriber {
    fn drop(&mut self) {
        if let Some(mut begun) = self.begun.take() {
            begun.stop.cancel();
            // The one task that outlives its owner, and only to record and hand over, in bounded time: aborted, it would
            // make duplicates and leave its shards to nobody for as long as the lease lasts.
            begun.tasks.detach_all();
        }
    }
}

impl std::fmt::Debug for PostgresSubscriber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresSubscriber").field("group", &self.group).finish_non_exhaustive()
    }
}

#[async_trait]
impl Subscriber for PostgresSubscriber {
    /// A paused group is joined when it is resumed.
    async fn subscribe(&mut self) -> Result<(), SubscribeError> {
        let shared = self.begin();
        loop {
            {
                let mut shown = shared.lock();
                if shown.joined {
                    return Ok(());
                }
                if self.pool.is_closed() {
                    return Err(SubscribeError::Refused("its pool is closed".to_owned()));
                }
                if let Some(trouble) = shown.trouble.take() {
                    return Err(trouble);
                }
            }
            shared.arrived.notified().await;
        }
    }

    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscribeError> {
        let shared = self.begin();
        loop {
            let wakes_at = {
                let mut shown = shared.lock();
                let handed_out = shown.desk.take(max.max(1), Instant::now());
                if !handed_out.is_empty() {
                    let redelivery = self.settings.redelivery_after;
                    return Ok(handed_out
                        .into_iter()
                        .map(|one| delivery(&shared, redelivery, one))
                        .collect());
                }
                if self.pool.is_closed() {
                    return Err(SubscribeError::Refused("its pool is closed".to_owned()));
                }
                if let Some(trouble) = shown.trouble.take() {
                    return Err(trouble);
                }
                shown.desk.wakes_at()
            };
            // A notice since the look is kept until somebody waits for it.
            match wakes_at {
                Some(at) => tokio::select! {
                    () = shared.arrived.notified() => {}
                    () = sleep_until(at) => {}
                },
                None => shared.arrived.notified().await,
            }
        }
    }

    /// Whatever is not answered by then goes to another subscriber of the group.
    async fn close(&mut self) {
        if let Some(mut begun) = self.begun.take() {
            begun.stop.cancel();
            while begun.tasks.join_next().await.is_some() {}
        }
    }
}
