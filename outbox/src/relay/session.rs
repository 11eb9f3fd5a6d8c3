//! One life of a relay process between two failures of the database: from the recorded cursors on, everything is in
//! memory, and when anything about the log goes wrong all of it is thrown away.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use message::{Outcome, Outcomes, Outgoing, PublishError, Publisher};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::holds::{Holds, Notice, shorten};
use super::lanes::{After, Item, Lanes, Resting};
use super::routes::Router;
use super::{Relay, Settings, backoff};
use crate::log::{
    LogConnection, LogError, LogMessage, NewHold, Page, Progress, Reader, Record, RecordCommand, Refusal,
    Store, heartbeat, keep_lease,
};

/// How a session ended, if not by an error.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Stopped,
    LeaseLost,
}

/// What a task of the session ended with.
enum Task {
    Reader(Result<(LogConnection, Store), LogError>),
    Heartbeat(Result<(), sqlx::Error>),
    Holds,
}

/// A message that was sent so often without an answer is held back, so that the cursor need not wait for it: one that is
/// never answered would stop its shard's cursor, and in the end the relay.
const UNANSWERED: u32 = 5;
/// How often the cursors of shards without messages are recorded, too, while others have some: a takeover need not read
/// again what they have long passed.
const QUIET: Duration = Duration::from_secs(10);

/// A batch on the wire; a message leaves it when its outcome is known.
struct Batch {
    items: Vec<Option<Item>>,
    left: usize,
}

pub(super) struct Session<'a, P> {
    relay: &'a Relay<P>,
    settings: &'a Settings,
    shards: i16,
    lanes: Lanes,
    router: Router,
    progress: BTreeMap<i16, Progress>,
    batches: HashMap<u64, Batch>,
    last_batch: u64,
    on_wire: usize,
    outcomes: (mpsc::UnboundedSender<Outcome>, mpsc::UnboundedReceiver<Outcome>),
    pages: Option<mpsc::Receiver<Page>>,
    records: Option<mpsc::Sender<RecordCommand>>,
    notices: mpsc::Receiver<Notice>,
    /// The record being written.
    writing: Option<oneshot::Receiver<Vec<i16>>>,
    new_holds: Vec<NewHold>,
    copies: Vec<(i64, LogMessage)>,
    /// Held keys by the position that names the hold, and those about to be released.
    held: BTreeMap<i64, Option<Arc<str>>>,
    releasing: BTreeSet<i64>,
    held_count: watch::Sender<usize>,
    /// Confirmed since the last record, and whether any was since quiet shards were recorded, and when that was.
    confirmed: u64,
    moved: bool,
    quiet_since: Instant,
    resting: Vec<(Instant, Resting)>,
    paused_until: Option<Instant>,
    failures: u32,
    publishing: JoinSet<()>,
    tasks: JoinSet<Task>,
    /// No further attempt at a held message begins; and its task has ended.
    holds_stop: CancellationToken,
    holds_ended: bool,
}

impl<'a, P: Publisher + 'static> Session<'a, P> {
    /// Joins the relay and takes shards, waiting for them if others own all. `None`: stopped while waiting.
    pub(super) async fn open(
        relay: &'a Relay<P>,
        process: Uuid,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, Refusal> {
        let settings = &relay.settings;
        let mut log = LogConnection::open(&relay.pool).await?;
        let mut store =
            Store::join(&mut log, &relay.name, process, settings.shards, settings.start, settings.lease)
                .await?;
        let cursors = loop {
            let cursors = store.acquire(log.connection()).await?;
            if !cursors.is_empty() {
                break cursors;
            }
            tokio::select! {
                () = stop.cancelled() => {
                    store.leave(log.connection()).await?;
                    return Ok(None);
                }
                () = tokio::time::sleep(settings.lease / 4) => {}
            }
            if !heartbeat(&relay.pool, process, settings.lease).await? {
                // Buried: it must join again before it may own anything.
                return Err(LogError::ConnectionReplaced.into());
            }
        };
        let owned: Vec<i16> = cursors.iter().map(|cursor| cursor.shard).collect();
        tracing::info!(relay = relay.name, shards = ?owned, "shards acquired");
        let shards = store.shards();
        let progress = cursors.iter().map(|cursor| cursor.shard).zip(Reader::progress(&cursors)).collect();
        let epochs = cursors.iter().map(|cursor| (cursor.shard, cursor.epoch)).collect();
        let mut lanes = Lanes::new(relay.publisher.pipelining());
        let held: BTreeMap<_, _> =
            Holds::<P>::load(&relay.pool, &relay.name, shards, &owned).await?.into_iter().collect();
        for (position, key) in &held {
            key.iter().for_each(|key| lanes.hold(Arc::clone(key), *position));
        }

        let (page_sender, pages) = mpsc::channel(1);
        let (records, record_receiver) = mpsc::channel(1);
        let (notice_sender, notices) = mpsc::channel(1);
        let (held_count, held_receiver) = watch::channel(held.len());
        let holds_stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let reader = Reader::new(log, store, &cursors, settings.read.clone()).await?;
        tasks.spawn(async move { Task::Reader(reader.run(page_sender, record_receiver).await) });
        let holds = Holds {
            relay: relay.name.clone(),
            pool: relay.pool.clone(),
            publisher: Arc::clone(&relay.publisher),
            settings: settings.clone(),
            shards,
            epochs,
            notices: notice_sender,
            stop: holds_stop.clone(),
        };
        tasks.spawn(async move {
            holds.run(held_receiver).await;
            Task::Holds
        });
        let (pool, lease) = (relay.pool.clone(), settings.lease);
        tasks.spawn(async move { Task::Heartbeat(keep_lease(pool, process, lease).await) });
        Ok(Some(Session {
            relay,
            settings,
            shards,
            lanes,
            router: Router::new(settings.routes.clone()),
            progress,
            batches: HashMap::new(),
            last_batch: 0,
            on_wire: 0,
            outcomes: mpsc::unbounded_channel(),
            pages: Some(pages),
            records: Some(records),
            notices,
            writing: None,
            new_holds: Vec::new(),
            copies: Vec::new(),
            held,
            releasing: BTreeSet::new(),
            held_count,
            confirmed: 0,
            moved: false,
            quiet_since: Instant::now(),
            resting: Vec::new(),
            paused_until: None,
            failures: 0,
            publishing: JoinSet::new(),
            tasks,
            holds_stop,
            holds_ended: false,
        }))
    }

    /// Publishes until it is stopped, the lease is lost, or the database fails.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Result<Ended, LogError> {
        let mut tick = tokio::time::interval(self.settings.record_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut outcomes = Vec::new();
        let mut drained_by: Option<Instant> = None;
        loop {
            let wake_at = self.wake_at();
            let room = self.lanes.len() + self.unrecorded() < self.settings.max_unrecorded;
            tokio::select! {
                biased;
                () = stop.cancelled(), if drained_by.is_none() => {
                    // Nothing more is read or sent; what is on the wire is waited for.
                    self.pages = None;
                    self.holds_stop.cancel();
                    drained_by = Some(Instant::now() + self.settings.drain);
                }
                Some(task) = self.tasks.join_next() => match task {
                    Ok(Task::Reader(Err(error))) => return Err(error),
                    Ok(Task::Heartbeat(Err(error))) => return Err(error.into()),
                    Ok(Task::Heartbeat(Ok(()))) => return Ok(Ended::LeaseLost),
                    Ok(Task::Holds) => self.holds_ended = true,
                    // Nothing in memory can be relied on.
                    Ok(Task::Reader(Ok(_))) | Err(_) => return Err(LogError::ReaderEnded),
                },
                Some(published) = self.publishing.join_next() => if let Err(error) = published {
                    // It has let go of its batch, whose outcome is unknown by that.
                    tracing::error!(relay = self.relay.name, %error, "the publisher panicked");
                },
                Some(lost) = answer(&mut self.writing) => {
                    self.writing = None;
                    if !lost.is_empty() {
                        return Ok(Ended::LeaseLost);
                    }
                }
                _ = self.outcomes.1.recv_many(&mut outcomes, 1024) => {
                    for outcome in outcomes.drain(..) {
                        self.take_outcome(outcome);
                    }
                }
                Some(notice) = self.notices.recv() => self.take_notice(notice),
                Some(page) = next(&mut self.pages), if room => self.take_page(page),
                () = tokio::time::sleep_until(wake_at) => {}
                _ = tick.tick() => self.record(false),
            }
            self.wake();
            if let Some(deadline) = drained_by {
                if self.batches.is_empty() || Instant::now() >= deadline {
                    return self.leave().await;
                }
                continue;
            }
            self.send();
            if !self.new_holds.is_empty() || self.unrecorded() >= self.settings.max_unrecorded / 2 {
                self.record(false);
            }
        }
    }

    fn take_page(&mut self, page: Page) {
        for shard in page.shards.iter() {
            if let Some(progress) = self.progress.get_mut(shard) {
                progress.read(&page.window, page.read_to, page.last);
            }
        }
        let mut held = Vec::new();
        for log in page.messages {
            let shard = log.slot % self.shards;
            let Some(progress) = self.progress.get_mut(&shard) else { continue };
            progress.begin(log.position);
            if log.message.key.is_none() && self.held.contains_key(&log.position) {
                // Held alone before this session began: its copy was written with the hold.
                held.push((shard, log.position));
                continue;
            }
            let destination = self.router.route(&log.message.topic);
            let outgoing = Outgoing { destination, message: Arc::clone(&log.message) };
            self.lanes.push(Item { log, window: page.window.id, outgoing, unanswered: 0 });
        }
        for (shard, position) in held {
            if let Some(progress) = self.progress.get_mut(&shard) {
                progress.finish(page.window.id, position);
            }
        }
        for shard in page.shards.iter() {
            if let Some(progress) = self.progress.get_mut(shard) {
                progress.settle();
            }
        }
    }

    fn send(&mut self) {
        if self.paused_until.is_some_and(|until| until > Instant::now()) {
            return;
        }
        while self.lanes.is_ready() && self.on_wire < self.settings.max_on_wire {
            let room = self.settings.max_on_wire - self.on_wire;
            let items = self.lanes.batch(self.settings.batch.min(room));
            self.copies_from_lanes();
            if items.is_empty() {
                continue;
            }
            self.last_batch += 1;
            let batch: Vec<Outgoing> = items.iter().map(|item| item.outgoing.clone()).collect();
            let outcomes = Outcomes::new(self.last_batch, self.outcomes.0.clone());
            let (publisher, timeout) = (Arc::clone(&self.relay.publisher), self.settings.publish_timeout);
            self.publishing.spawn(async move {
                // Dropped in time, the publisher's outcomes count as unknown.
                let _ = tokio::time::timeout(timeout, publisher.publish(&batch, outcomes)).await;
            });
            self.on_wire += items.len();
            let items: Vec<_> = items.into_iter().map(Some).collect();
            self.batches.insert(self.last_batch, Batch { left: items.len(), items });
        }
    }

    fn take_outcome(&mut self, outcome: Outcome) {
        let Some(batch) = self.batches.get_mut(&outcome.batch) else { return };
        let places = match outcome.index {
            Some(index) => index..index + 1,
            None => 0..batch.items.len(),
        };
        let items: Vec<Item> =
            batch.items.get_mut(places).into_iter().flatten().filter_map(Option::take).collect();
        batch.left -= items.len();
        if batch.left == 0 {
            self.batches.remove(&outcome.batch);
        }
        self.on_wire -= items.len();
        for item in items {
            self.finish(item, &outcome.result);
        }
    }

    fn finish(&mut self, mut item: Item, result: &Result<(), PublishError>) {
        let after = match result {
            Ok(()) => {
                self.failures = 0;
                self.confirmed += 1;
                self.pass(&item);
                self.lanes.confirm(&item)
            }
            Err(PublishError::Rejected(reason)) => self.lanes.reject(item, reason.clone()),
            Err(PublishError::Unavailable(reason)) => {
                self.pause(reason);
                self.lanes.fail(item)
            }
            Err(error) => {
                item.unanswered += 1;
                tracing::warn!(relay = self.relay.name, id = %item.log.message.id, %error, "published again");
                if item.unanswered < UNANSWERED {
                    self.lanes.fail(item)
                } else {
                    self.lanes.reject(item, error.to_string())
                }
            }
        };
        match after {
            After::Nothing => {}
            After::Rest(resting) => {
                let rest = self.settings.unavailable.after(1, backoff::chance());
                let until = self.paused_until.unwrap_or_else(Instant::now).max(Instant::now() + rest);
                self.resting.push((until, resting));
            }
            After::Held { items, error } => self.hold(items, &error),
        }
    }

    /// The broker is unavailable: nobody is sent to it for a while.
    fn pause(&mut self, reason: &str) {
        if self.paused_until.is_some_and(|until| until > Instant::now()) {
            return;
        }
        self.failures += 1;
        let pause = self.settings.unavailable.after(self.failures, backoff::chance());
        tracing::warn!(relay = self.relay.name, reason, ?pause, "the broker is unavailable");
        self.paused_until = Some(Instant::now() + pause);
    }

    /// A message need not be waited for any more: it is confirmed, or about to be recorded as held.
    fn pass(&mut self, item: &Item) {
        self.moved = true;
        if let Some(progress) = self.progress.get_mut(&(item.log.slot % self.shards)) {
            progress.finish(item.window, item.log.position);
        }
    }

    fn hold(&mut self, items: Vec<Item>, error: &str) {
        let Some(first) = items.first() else { return };
        let (position, key) = (first.log.position, first.log.message.key.clone());
        // Without an answer nobody is to blame, so no attempt counts.
        let attempts = if first.unanswered < UNANSWERED { 1 } else { 0 };
        let parked = attempts >= self.settings.max_attempts;
        let retry = self.settings.retry.after(1, backoff::chance());
        tracing::warn!(
            relay = self.relay.name, id = %first.log.message.id, position, error, behind = items.len() - 1,
            "a message is rejected, or not answered: its key is held back"
        );
        self.new_holds.push(NewHold {
            position,
            slot: first.log.slot,
            key: key.clone(),
            retry_in: (!parked).then_some(retry),
            attempts: i32::try_from(attempts).unwrap_or(1),
            error: shorten(error).to_owned(),
        });
        self.held.insert(position, key);
        for item in items {
            self.pass(&item);
            self.copies.push((position, item.log));
        }
    }

    fn copies_from_lanes(&mut self) {
        let releasing = &self.releasing;
        for (position, item) in self.lanes.take_copies(|position| !releasing.contains(&position)) {
            self.pass(&item);
            self.copies.push((position, item.log));
        }
    }

    fn take_notice(&mut self, notice: Notice) {
        match notice {
            Notice::MayRelease(position, answer) => {
                let on_the_way = self.copies.iter().any(|(held, _)| *held == position)
                    || self.lanes.has_copies(position)
                    || self.writing.is_some();
                if !on_the_way {
                    self.releasing.insert(position);
                }
                let _ = answer.send(!on_the_way);
            }
            Notice::Released(position, gone) => {
                self.releasing.remove(&position);
                if gone {
                    tracing::info!(relay = self.relay.name, position, "the key is free again");
                    if let Some(Some(key)) = self.held.remove(&position) {
                        self.lanes.release(&key);
                    }
                    self.held_count.send_replace(self.held.len());
                }
            }
            Notice::Published => {
                metrics::counter!("outbox_published_total", "relay" => self.relay.name.clone()).increment(1)
            }
        }
    }

    /// Messages finished that a crash would repeat.
    fn unrecorded(&self) -> usize {
        self.progress.values().map(Progress::unrecorded).sum()
    }

    /// Hands the reader what to record, unless it is still writing the last record; of all shards if that is due, or
    /// with `all`.
    fn record(&mut self, all: bool) {
        if self.writing.is_some() {
            return;
        }
        self.copies_from_lanes();
        let all = self.moved && (all || self.quiet_since.elapsed() >= QUIET);
        if all {
            (self.moved, self.quiet_since) = (false, Instant::now());
        }
        // A shard in which something is held takes part though its cursor has not moved: holds and copies are written
        // under its epoch, or not at all.
        let held = self.new_holds.iter().map(|hold| hold.slot);
        let held = held.chain(self.copies.iter().map(|(_, copy)| copy.slot));
        let held: BTreeSet<i16> = held.map(|slot| slot % self.shards).collect();
        let cursors = self.progress.iter_mut().filter_map(|(shard, progress)| {
            progress.record().or_else(|| (all || held.contains(shard)).then(|| progress.cursor()))
        });
        let record = Record {
            cursors: cursors.collect(),
            holds: std::mem::take(&mut self.new_holds),
            copies: std::mem::take(&mut self.copies),
        };
        if record.is_empty() {
            return;
        }
        let confirmed = std::mem::take(&mut self.confirmed);
        metrics::counter!("outbox_published_total", "relay" => self.relay.name.clone()).increment(confirmed);
        let (answer, writing) = oneshot::channel();
        // Full only while the reader has a record to write, which `writing` rules out; gone if the reader is, which
        // its task tells.
        if let Some(records) = &self.records {
            let _ = records.try_send((record, answer));
        }
        self.writing = Some(writing);
        self.held_count.send_replace(self.held.len());
    }

    fn wake_at(&self) -> Instant {
        let soonest = self.resting.iter().map(|(until, _)| *until).min();
        let far = Instant::now() + Duration::from_secs(3600);
        match (soonest, self.paused_until.filter(|until| *until > Instant::now())) {
            (Some(rest), Some(pause)) => rest.min(pause),
            (rest, pause) => rest.or(pause).unwrap_or(far),
        }
    }

    fn wake(&mut self) {
        if self.resting.is_empty() {
            return;
        }
        let now = Instant::now();
        let (over, still) =
            std::mem::take(&mut self.resting).into_iter().partition(|(until, _)| *until <= now);
        self.resting = still;
        for (_, resting) in Vec::into_iter(over) {
            self.lanes.wake(resting);
        }
    }

    /// Records what was confirmed and hands the shards over, in bounded time: after it, the lease ends by itself.
    async fn leave(mut self) -> Result<Ended, LogError> {
        match tokio::time::timeout(self.settings.drain, self.hand_over()).await {
            Ok(ended) => {
                ended.map(|()| tracing::info!(relay = self.relay.name, "stopped: shards handed over"))?
            }
            Err(_) => tracing::warn!(relay = self.relay.name, "stopped: the database did not answer in time"),
        }
        Ok(Ended::Stopped)
    }

    async fn hand_over(&mut self) -> Result<(), LogError> {
        // A held message that is being published is recorded by its own task, while the shard is still ours.
        while !self.holds_ended {
            tokio::select! {
                Some(notice) = self.notices.recv() => self.take_notice(notice),
                Some(task) = self.tasks.join_next() => match task {
                    Ok(Task::Holds) => self.holds_ended = true,
                    Ok(Task::Reader(Err(error))) => return Err(error),
                    _ => return Err(LogError::ReaderEnded),
                },
            }
        }
        for _ in 0..2 {
            if let Some(writing) = self.writing.take() {
                let _ = writing.await;
            }
            self.record(true);
        }
        if let Some(writing) = self.writing.take() {
            let _ = writing.await;
        }
        // The reader gives back its connection when nobody sends records any more.
        self.records = None;
        while let Some(task) = self.tasks.join_next().await {
            if let Ok(Task::Reader(reader)) = task {
                let (mut log, mut store) = reader?;
                return store.leave(log.connection()).await;
            }
        }
        Ok(())
    }
}

/// The answer to the record being written; never, if there is none.
async fn answer(writing: &mut Option<oneshot::Receiver<Vec<i16>>>) -> Option<Vec<i16>> {
    match writing {
        // The reader's own task tells of its end.
        Some(receiver) => receiver.await.ok(),
        None => std::future::pending().await,
    }
}

async fn next(pages: &mut Option<mpsc::Receiver<Page>>) -> Option<Page> {
    match pages {
        Some(pages) => pages.recv().await,
        None => std::future::pending().await,
    }
}
