//! What a subscriber does in the background: holds its share of the group's shards, reads, records. Whatever goes wrong
//! with the log, it begins again from the recorded cursors.

use std::sync::Arc;
use std::time::Duration;

use message::SubscribeError;
use outbox::log::{
    Cursor, CursorRecord, Destination, Lease, LogConnection, LogError, Move, Page, Progress, ReadSettings,
    Reader, Record, RecordCommand, Refusal, Share, Store, group_topics,
};
use outbox::{Backoff, Pattern, Upkeep};
use sqlx::postgres::PgPool;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::group::Group;
use super::publisher::chain;
use super::reach::{self, Unreachable};
use super::subscriber::{Settings, Shared};
use crate::pace::Pace;

/// Messages read at a time.
const PAGE: usize = 500;
/// How often a process without shards looks whether there are some for it.
const STANDBY: Duration = Duration::from_millis(250);
/// How long a step on the way to shards, and from them, may take.
const ANSWER: Duration = Duration::from_secs(10);
/// A new topic is known to the processes at work this long after it was registered, at the latest.
const TOLD: Duration = Duration::from_secs(5);
/// The pattern of all topics.
const ALL: &str = ">";
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long to wait between attempts while the database fails.
const RETRY: Backoff = Backoff { first: Duration::from_millis(50), ceiling: Duration::from_secs(5) };

pub(super) struct Session {
    pool: PgPool,
    group: Group,
    process: Uuid,
    settings: Settings,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

/// How one membership in the group ended, if not by an error.
enum Ended {
    Stopped,
    LeaseLost,
}

/// Why a membership did not begin, or broke off.
struct Trouble {
    text: String,
    /// It may be over without anybody changing something.
    passes: bool,
}

impl From<Unreachable> for Trouble {
    fn from(Unreachable { text, is_final }: Unreachable) -> Self {
        Trouble { text, passes: !is_final }
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        let passes = refusal.is_passing() || matches!(refusal, Refusal::Paused);
        Trouble { text: chain(&refusal), passes }
    }
}

/// Whether the lease was lost, or why it could not be kept.
type LeaseEnd = Result<(), sqlx::Error>;

impl Session {
    pub(super) fn new(
        pool: PgPool,
        group: Group,
        settings: Settings,
        shared: Arc<Shared>,
        stop: CancellationToken,
    ) -> Self {
        Session { pool, group, process: Uuid::now_v7(), settings, shared, stop }
    }

    /// Works until it is told to stop, or its pool is closed, and not much longer, whether or not the database answers.
    pub(super) async fn run(self) {
        let (closed, closing) = (self.pool.close_event(), self.stop.clone());
        let mut listening = JoinSet::new();
        listening.spawn(async move {
            closed.await;
            closing.cancel();
        });
        let over = self.stop.child_token();
        let mut upkeep = JoinSet::new();
        upkeep.spawn(self.upkeep().run(over.clone()));
        let stopped_long_since = async {
            self.stop.cancelled().await;
            tokio::time::sleep(GOODBYE).await;
        };
        tokio::select! {
            () = self.work() => {}
            () = stopped_long_since => {
                tracing::warn!(group = %self.group, "the database does not answer: shards are free when the lease ends");
            }
        }
        self.shared.lock().desk.end();
        self.shared.arrived.notify_one();
        over.cancel();
        let _ = tokio::time::timeout(GOODBYE, upkeep.join_next()).await;
    }

    /// Nobody but the groups works at a broker's log.
    fn upkeep(&self) -> Upkeep {
        let Settings { retention, lease, .. } = self.settings;
        Upkeep::new(self.pool.clone(), self.group.as_str(), retention, lease)
    }

    async fn work(&self) {
        let (mut begun, mut failures, mut lines) = (false, 0, Pace::default());
        loop {
            // First of all, and with its cause: what is read with would only say that the pool timed out.
            let reached = reach::acquire(&self.pool).await.map(drop).map_err(Trouble::from);
            let ended = match reached {
                Ok(()) => self.take_part(&mut begun, &mut failures).await.map_err(Trouble::from),
                Err(trouble) => Err(trouble),
            };
            let trouble = match ended {
                Ok(Ended::Stopped) => return,
                Ok(Ended::LeaseLost) => {
                    tracing::warn!(group = %self.group, "lease lost: others of the group have the shards");
                    self.shared.lock().desk.close();
                    continue;
                }
                Err(_) if self.stop.is_cancelled() => return,
                Err(trouble) => trouble,
            };
            if failures == 0 {
                lines.reset();
            }
            failures += 1;
            let pause = RETRY.after(failures, chance());
            if lines.is_due(std::time::Instant::now()) {
                tracing::warn!(group = %self.group, error = trouble.text, "the subscription failed, starting over");
            }
            self.show_trouble(begun, trouble);
            if self.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    fn show_trouble(&self, begun: bool, trouble: Trouble) {
        let mut shown = self.shared.lock();
        // Somebody else may take the shards while we cannot see it.
        shown.desk.close();
        // A group that works already waits, for a paused one to go on or a replica to become the primary.
        let error = trouble.text;
        shown.trouble = Some(if begun || trouble.passes {
            SubscribeError::Unavailable(error)
        } else {
            SubscribeError::Refused(error)
        });
        drop(shown);
        self.shared.arrived.notify_one();
    }

    /// Joins the group and serves its share of the shards until something goes wrong.
    async fn take_part(&self, begun: &mut bool, failures: &mut u32) -> Result<Ended, Refusal> {
        let mut log = LogConnection::open(&self.pool).await?;
        let (mut store, kept) = in_time(self.join(&mut log)).await?;
        let mut share = kept.shares();
        let mut leases = JoinSet::new();
        let keeping = Arc::clone(&kept);
        leases.spawn(async move { keeping.keep().await });
        loop {
            let fair = share.borrow_and_update().fair();
            let cursors = in_time(store.acquire(log.connection(), fair)).await?;
            let owned: Vec<i16> = cursors.iter().map(|cursor| cursor.shard).collect();
            self.shared.lock().desk.open(taken(&cursors), store.shards());
            (*begun, *failures) = (true, 0);
            self.shared.lock().trouble = None;
            if cursors.is_empty() {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => {}
                    ended = leases.join_next() => return lease_ended(ended),
                    free = self.free_shards(&mut log, &kept, &mut share) => {
                        free?;
                        continue;
                    }
                }
            } else {
                tracing::info!(group = %self.group, shards = ?owned, "shards acquired");
                // Before anything is read: others may have asked for more while this process stood by.
                let changes = share.borrow().changes;
                in_time(self.follow_topics()).await?;
                let reader =
                    in_time(Reader::new(log, store, &cursors, self.read_settings(), Arc::clone(&kept)))
                        .await?;
                match self.serve(reader, &mut leases, &mut share, changes).await? {
                    Some(ended) => (log, store) = ended,
                    None => return Ok(Ended::LeaseLost),
                }
            }
            if self.stop.is_cancelled() {
                store.leave(log.connection()).await?;
                tracing::info!(group = %self.group, "stopped: shards handed over");
                return Ok(Ended::Stopped);
            }
        }
    }

    /// Joins the group, as a process that owns nothing yet.
    async fn join(&self, log: &mut LogConnection) -> Result<(Store, Arc<Lease>), Refusal> {
        let Settings { start, shards, lease, .. } = self.settings;
        let store = Store::join(log, self.group.as_str(), self.process, shards, start, lease).await?;
        self.register(&store, log).await?;
        let topics = store.ask_topics(log.connection(), &self.patterns()).await?;
        let name = self.group.as_str().to_owned();
        let kept = Lease::begin(self.pool.clone(), name, self.process, lease).await?;
        // Thought dead between two statements: it must join again.
        let kept = kept.ok_or(LogError::ConnectionReplaced)?;
        let ready = Instant::now() + if topics.is_news { TOLD } else { Duration::ZERO };
        self.shared.lock().joined.get_or_insert(ready);
        self.shared.arrived.notify_one();
        Ok((store, Arc::new(kept)))
    }

    /// The topics that this process asks for.
    fn patterns(&self) -> Vec<String> {
        if self.settings.topics.is_empty() {
            return vec![ALL.to_owned()];
        }
        let mut patterns: Vec<String> = self.settings.topics.iter().map(ToString::to_string).collect();
        patterns.sort();
        patterns
    }

    /// Reads from now on what any process of the group has asked for.
    async fn follow_topics(&self) -> Result<(), sqlx::Error> {
        let patterns = group_topics(&self.pool, self.group.as_str()).await?;
        // What cannot be read, a newer build has written: then everything is.
        let topics = patterns.iter().map(|pattern| pattern.parse().ok()).collect::<Option<Vec<Pattern>>>();
        self.shared.lock().desk.ask_for(topics.unwrap_or_default());
        Ok(())
    }

    /// Says which topics this process asks for, and names processes of the group that ask for others: each receives what
    /// any of them does.
    async fn register(&self, store: &Store, log: &mut LogConnection) -> Result<(), sqlx::Error> {
        let topics = match self.settings.topics.is_empty() {
            true => "all topics".to_owned(),
            false => self.patterns().join(", "),
        };
        let asks = Destination::of_group(&format!("consumer group, {topics}"));
        for other in store.publishes_to(log.connection(), &asks).await? {
            tracing::warn!(
                group = %self.group,
                asks = asks.as_str(),
                process = other.process,
                elsewhere = other.destination,
                "another process of this group asks for other topics: each receives what any of them asks for"
            );
        }
        Ok(())
    }

    /// Waits until there are shards for this process.
    async fn free_shards(
        &self,
        log: &mut LogConnection,
        lease: &Lease,
        share: &mut watch::Receiver<Share>,
    ) -> Result<(), LogError> {
        while share.borrow_and_update().next(0) != Move::Take {
            tokio::select! {
                _ = share.changed() => {}
                () = sleep(STANDBY) => {
                    let asked = Instant::now();
                    lease.has_seen(log.look(self.group.as_str()).await?.changes, asked);
                }
            }
        }
        Ok(())
    }

    fn read_settings(&self) -> ReadSettings {
        ReadSettings { page: PAGE, poll_ceiling: self.settings.poll_ceiling, ..ReadSettings::default() }
    }

    /// Reads and records until it is stopped or the shards are to be shared anew. `None`: the lease was lost.
    async fn serve(
        &self,
        reader: Reader,
        leases: &mut JoinSet<LeaseEnd>,
        share: &mut watch::Receiver<Share>,
        mut changes: i64,
    ) -> Result<Option<(LogConnection, Store)>, Refusal> {
        let (page_sender, mut pages) = mpsc::channel(1);
        let (records, record_receiver) = mpsc::channel(1);
        let mut reading = JoinSet::new();
        reading.spawn(reader.run(page_sender, record_receiver));
        let mut record = Recording { records, writing: None };
        let mut tick = tokio::time::interval(self.settings.record_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leaves_by: Option<Instant> = None;
        let mut ending = false;
        while !ending || record.writing.is_some() {
            let room = self.shared.lock().desk.has_room(self.settings.max_unanswered);
            let deadline = leaves_by.unwrap_or_else(|| Instant::now() + self.settings.lease);
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if !ending => ending = true,
                ended = reading.join_next() => return read_ended(ended),
                ended = leases.join_next() => return lease_ended(ended).map(|_| None),
                lost = record.written() => {
                    self.shared.lock().desk.recorded(&lost);
                    if !lost.is_empty() {
                        tracing::warn!(group = %self.group, shards = ?lost, "leases lost");
                        ending = true;
                    }
                }
                Some(page) = pages.recv(), if room && !ending => self.take_page(page),
                () = self.shared.answered.notified() => {}
                _ = tick.tick() => record.write(|| self.shared.lock().desk.record()),
                Ok(()) = share.changed(), if leaves_by.is_none() && !ending => {
                    let seen = share.borrow().changes;
                    if seen != changes {
                        in_time(self.follow_topics()).await?;
                        changes = seen;
                    }
                    let mut shown = self.shared.lock();
                    match share.borrow_and_update().next(shown.desk.shards()) {
                        Move::Give(shards) => {
                            shown.desk.leave(shards);
                            leaves_by = Some(Instant::now() + self.settings.lease);
                        }
                        Move::Take => ending = true,
                        Move::Stay => {}
                    }
                }
                () = sleep_until(deadline), if leaves_by.is_some() => ending = true,
            }
            ending |= leaves_by.is_some() && self.shared.lock().desk.has_left();
        }
        let mut leaving = Vec::new();
        record.write(|| {
            let desk = &mut self.shared.lock().desk;
            let cursors = desk.record();
            // At once: what is answered from now on is not recorded any more, and must not be taken as if it were.
            leaving = desk.leaving();
            desk.forget(&leaving);
            if self.stop.is_cancelled() {
                desk.end();
            }
            cursors
        });
        let hand_over = async {
            let lost = record.last().await;
            self.shared.lock().desk.recorded(&lost);
            // Nobody sends records or takes pages any more: the reader gives back its connection.
            drop((record, pages));
            let Some((mut log, mut store)) = read_ended(reading.join_next().await)? else { return Ok(None) };
            if !leaving.is_empty() {
                store.release(log.connection(), &leaving).await?;
                tracing::info!(group = %self.group, shards = ?leaving, "shards handed over");
            }
            Ok(Some((log, store)))
        };
        in_time(hand_over).await
    }

    fn take_page(&self, page: Page) {
        self.shared.lock().desk.take_page(page);
        self.shared.arrived.notify_one();
    }
}

/// What the database answers, unless it does not: a network can swallow a connection without a word. Otherwise the lease
/// tells.
async fn in_time<T, E: From<sqlx::Error>>(answer: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let late = |_| Err(sqlx::Error::PoolTimedOut.into());
    tokio::time::timeout(ANSWER, answer).await.unwrap_or_else(late)
}

/// The way to the reader for records, one at a time.
struct Recording {
    records: mpsc::Sender<RecordCommand>,
    writing: Option<oneshot::Receiver<Vec<i16>>>,
}

impl Recording {
    /// Hands the reader what to record, unless it is still writing the last record.
    fn write(&mut self, cursors: impl FnOnce() -> Vec<CursorRecord>) {
        if self.writing.is_some() {
            return;
        }
        let record = Record { cursors: cursors(), ..Record::default() };
        if record.is_empty() {
            return;
        }
        let (answer, writing) = oneshot::channel();
        // Full only while the reader has a record to write, which `writing` rules out; gone if the reader is, which its
        // task tells.
        let _ = self.records.try_send((record, answer));
        self.writing = Some(writing);
    }

    /// The shards whose lease is lost, when a record is written; never, if none is.
    async fn written(&mut self) -> Vec<i16> {
        if let Some(writing) = &mut self.writing
            && let Ok(lost) = writing.await
        {
            self.writing = None;
            return lost;
        }
        // The reader's own task tells of its end.
        std::future::pending().await
    }

    /// The same for the last record, whether or not there is one.
    async fn last(&mut self) -> Vec<i16> {
        match self.writing.take() {
            Some(writing) => writing.await.unwrap_or_default(),
            None => Vec::new(),
        }
    }
}

type Read = Result<(LogConnection, Store), LogError>;

fn read_ended(
    ended: Option<Result<Read, tokio::task::JoinError>>,
) -> Result<Option<(LogConnection, Store)>, Refusal> {
    match ended {
        Some(Ok(read)) => Ok(Some(read?)),
        // A panic of ours: nothing in memory can be relied on.
        Some(Err(error)) => Err(broken(error)),
        None => Ok(None),
    }
}

fn lease_ended(ended: Option<Result<LeaseEnd, tokio::task::JoinError>>) -> Result<Ended, Refusal> {
    match ended {
        Some(Ok(Ok(()))) | None => Ok(Ended::LeaseLost),
        Some(Ok(Err(error))) => Err(error.into()),
        Some(Err(error)) => Err(broken(error)),
    }
}

fn broken(error: tokio::task::JoinError) -> Refusal {
    Refusal::Log(LogError::Database(sqlx::Error::Io(std::io::Error::other(error))))
}

/// Shards as the desk knows them.
fn taken(cursors: &[Cursor]) -> Vec<(i16, i64, Progress)> {
    let progress = Reader::progress(cursors);
    cursors.iter().zip(progress).map(|(cursor, progress)| (cursor.shard, cursor.epoch, progress)).collect()
}

/// A number from 0 to 1 that nobody can tell beforehand.
fn chance() -> f64 {
    let (_, low) = Uuid::new_v4().as_u64_pair();
    (low & u64::from(u32::MAX)) as f64 / f64::from(u32::MAX)
}
