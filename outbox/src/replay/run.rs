//! Works at a replay: a page of the log, batches to the broker, a record now and then.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use message::{Outcomes, Outgoing, PublishError, Publisher, limits};
use sqlx::AssertSqlSafe;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::begin::{Begun, begin, keep, lost, refuse_itself};
use super::job::{self, Job, Progress, Then};
use super::queue::{Done, Item, Queue};
use super::rate::Rate;
use super::{Filter, Replay, ReplayError, ReplaySettings, Replayed};
use crate::admin::ANSWER as ANSWERED;
use crate::log::{LogMessage, Names, decode_row, leaf, leaf_end};
use crate::relay::{Availability, Router, chance, shorten};
use crate::statement::{BEGIN_READING, within};

/// How long the database may take to answer with the next message.
const ANSWER: Duration = Duration::from_secs(300);
/// Pages of bytes that are kept while some of what was read waits for destinations.
const PAGES: usize = 4;
/// How often it says how far it is.
const TELL: Duration = Duration::from_secs(10);

/// Works at the replay until it is finished or stopped.
pub(super) async fn run<P: Publisher + 'static>(
    replay: Replay<P>,
    stop: &CancellationToken,
) -> Result<Replayed, ReplayError> {
    let (filter, routes) = match begin(&replay).await? {
        Begun::Running(filter, routes) => (filter, routes),
        Begun::Finished(replayed) => return Ok(Replayed { already: true, ..replayed }),
    };
    let job = job::claim(&replay.pool, &replay.name, replay.settings.lease).await?;
    let (epoch, now) = (job.epoch, Instant::now());
    let mut worker = Worker {
        progress: Progress { after: job.after, ..Progress::default() },
        read_to: job.after,
        length: 0,
        rate: replay.settings.rate.map(|rate| Rate::new(rate, now)),
        router: Router::new(routes),
        names: Names::default(),
        recorded_at: now,
        told_at: now,
        failures: 0,
        availability: Availability::new(replay.settings.unavailable),
        replay: &replay,
        filter,
        job,
        stop,
    };
    let worked = tokio::select! {
        worked = worker.work() => worked,
        () = keep(&replay, epoch) => return Err(lost(&replay).await),
    };
    match &worked {
        Ok(true) => worker.record(Then::Finishes).await?,
        Ok(false) => worker.record(Then::Stops(None)).await?,
        Err(ReplayError::Rejected { source, .. } | ReplayError::Unanswered { source, .. }) => {
            let reason = source.to_string();
            worker.record(Then::Stops(Some(&shorten(&reason)))).await?;
        }
        // Nothing more can be recorded; whoever goes on waits for the lease.
        Err(_) => {}
    }
    let Job { published, skipped, after, .. } = worker.job;
    worked.map(|finished| Replayed { published, skipped, after, finished, already: false })
}

struct Worker<'a, P> {
    replay: &'a Replay<P>,
    filter: Filter,
    job: Job,
    progress: Progress,
    /// The log is read up to here.
    read_to: i64,
    /// How long messages were of late.
    length: usize,
    rate: Option<Rate>,
    router: Router,
    names: Names,
    recorded_at: Instant,
    told_at: Instant,
    failures: u32,
    /// Which destinations are down, and when they are probed.
    availability: Availability,
    stop: &'a CancellationToken,
}

impl<P: Publisher + 'static> Worker<'_, P> {
    /// Whether all is published; `false`: stopped.
    async fn work(&mut self) -> Result<bool, ReplayError> {
        if !self.broker_is_ready().await? {
            return Ok(false);
        }
        let mut queue = Queue::new(self.replay.publisher.pipelining());
        let most = self.replay.settings.batch.max(1);
        while !queue.is_empty() || self.read_to < self.job.to_position {
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            let batch = queue.next(most, &self.availability, Instant::now());
            let goes_on = if !batch.is_empty() {
                self.publish(&mut queue, batch).await?
            } else if self.read_to < self.job.to_position && self.has_room(&queue) {
                // What waits for a destination keeps no other from being read.
                queue.extend(self.page().await?);
                true
            } else {
                let now = Instant::now();
                let probe = queue.next_probe_at(&self.availability, now);
                let first = self.replay.settings.unavailable.first;
                !self.rests(probe.map_or(first, |at| at.saturating_duration_since(now))).await
            };
            if !goes_on {
                return Ok(false);
            }
            if queue.is_empty() {
                self.progress.after = self.read_to;
            }
            self.record_if_due().await?;
        }
        Ok(true)
    }

    /// Whether more may be read while some of what was read waits for destinations.
    fn has_room(&self, queue: &Queue) -> bool {
        let ReplaySettings { max_unrecorded, page_bytes, .. } = self.replay.settings;
        queue.is_empty() || queue.len() < max_unrecorded && queue.bytes() < page_bytes.saturating_mul(PAGES)
    }

    async fn broker_is_ready(&mut self) -> Result<bool, ReplayError> {
        loop {
            let publisher = &self.replay.publisher;
            let asked = async {
                publisher.check().await?;
                publisher.log().await
            };
            match asked.await {
                Ok(log) => {
                    refuse_itself(self.replay, log).await?;
                    return Ok(true);
                }
                Err(error @ PublishError::Rejected(_)) => return Err(ReplayError::Broker(error)),
                Err(error) => {
                    if !self.waits(&error.to_string()).await {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Reads the next messages of one leaf.
    async fn page(&mut self) -> Result<Vec<Item>, ReplayError> {
        let end = leaf_end(self.read_to + 1).min(self.job.to_position);
        // Not many more than a page's bytes hold, if they go on as they were.
        let ReplaySettings { page, page_bytes, .. } = self.replay.settings;
        let limit = (page_bytes / self.length.max(1) + 1).clamp(1, page.max(1));
        let sql = include_str!("sql/page.sql").replace("/*leaf*/", &leaf(end).to_string());
        let query = sqlx::query(AssertSqlSafe(sql)).bind(&self.job.seen).bind(self.job.seen_from);
        let query = self.filter.bind(query.bind(self.read_to).bind(end));
        let query = query.bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let mut tx = within(ANSWERED, self.replay.pool.begin_with(BEGIN_READING)).await?;
        let mut rows = query.persistent(false).fetch(&mut *tx);
        let (mut messages, mut bytes): (Vec<LogMessage>, usize) = (Vec::new(), 0);
        while let Some(row) = within(ANSWER, rows.try_next()).await? {
            let log = decode_row(&row, &mut self.names)?;
            bytes += log.message.payload.len();
            messages.push(log);
            if bytes >= page_bytes {
                break;
            }
        }
        drop(rows);
        within(ANSWERED, tx.commit()).await?;
        let more = messages.len() >= limit || bytes >= page_bytes;
        self.read_to = messages.last().filter(|_| more).map_or(end, |last| last.position);
        self.length = bytes / messages.len().max(1);
        Ok(messages.into_iter().map(|log| self.item(log)).collect())
    }

    fn item(&mut self, log: LogMessage) -> Item {
        let mut message = (*log.message).clone();
        message.headers.insert(limits::REPLAY, &*self.replay.name);
        let destination = self.router.route(&message.topic);
        let mut item = Item::new(log.position, Outgoing { destination, message: Arc::new(message) });
        item.fault = log.fault;
        item
    }

    /// Publishes a batch, or as much of it as the rate allows. `false`: stopped meanwhile.
    async fn publish(&mut self, queue: &mut Queue, mut batch: Vec<usize>) -> Result<bool, ReplayError> {
        let now = Instant::now();
        match self.rate.as_mut().map(|rate| rate.take(batch.len(), now)) {
            Some(Ok(allowed)) => batch.truncate(allowed),
            Some(Err(wait)) => return Ok(!self.rests(wait).await),
            None => {}
        }
        let settings = &self.replay.settings;
        queue.probe(&batch, &mut self.availability, now, settings.publish_timeout);
        let results = self.send(queue, &batch).await;
        let settled = queue.settle(&batch, results, &mut self.availability, Instant::now(), chance());
        // What it says of a place means nothing once others are passed.
        let unanswered = settled.unanswered.map(|(place, source)| {
            let item = queue.at(place);
            (item.position, item.outgoing.message.id, source)
        });
        for (place, error) in settled.rejected {
            let position = queue.at(place).position;
            if !settings.skip_rejected {
                let id = queue.at(place).outgoing.message.id;
                self.pass(queue);
                return Err(ReplayError::Rejected { position, id, source: error });
            }
            tracing::warn!(replay = self.replay.name, position, %error, "given up");
            queue.skip(place, shorten(&error.to_string()));
        }
        self.pass(queue);
        if let Some((position, id, source)) = unanswered {
            return Err(ReplayError::Unanswered { position, id, source });
        }
        for (destination, reason) in settled.down {
            tracing::warn!(
                replay = self.replay.name, %destination, reason,
                "a destination is unavailable: its messages wait, others go on"
            );
        }
        for destination in settled.back {
            tracing::info!(replay = self.replay.name, %destination, "the destination is available again");
        }
        self.record_if_due().await?;
        match settled.unavailable {
            None => self.failures = 0,
            Some(reason) if !self.waits(&reason).await => return Ok(false),
            Some(_) => {}
        }
        Ok(true)
    }

    async fn send(&self, queue: &Queue, places: &[usize]) -> Vec<Result<(), PublishError>> {
        let readable = places.iter().filter(|place| queue.at(**place).fault.is_none());
        let batch: Vec<Outgoing> = readable.map(|place| queue.at(*place).outgoing.clone()).collect();
        let (sender, mut outcomes) = mpsc::unbounded_channel();
        if !batch.is_empty() {
            let publish = self.replay.publisher.publish(&batch, Outcomes::new(0, sender));
            // Dropped in time, what the publisher has not reported counts as unknown.
            let _ = tokio::time::timeout(self.replay.settings.publish_timeout, publish).await;
        }
        let unknown = || Err(PublishError::Unknown("the publisher did not say".to_owned()));
        let mut results: Vec<Option<Result<(), PublishError>>> = vec![None; batch.len()];
        while let Ok(outcome) = outcomes.try_recv() {
            let reported = outcome.index.map_or(0..batch.len(), |index| index..index + 1);
            for result in results.get_mut(reported).into_iter().flatten() {
                result.get_or_insert_with(|| outcome.result.clone());
            }
        }
        let mut results = results.into_iter().map(|result| result.unwrap_or_else(unknown));
        let result = |place: &usize| match &queue.at(*place).fault {
            Some(fault) => {
                Err(PublishError::Rejected(format!("the row cannot be read as a message: {fault}")))
            }
            None => results.next().unwrap_or_else(unknown),
        };
        places.iter().map(result).collect()
    }

    /// Counts what is done up to the first message that is not.
    fn pass(&mut self, queue: &mut Queue) {
        let mut published = 0;
        for (item, done) in queue.passed() {
            self.progress.after = item.position;
            match done {
                Done::Published => published += 1,
                Done::Skipped(reason) => {
                    self.progress.skipped.push((item.position, item.outgoing.message.id, reason));
                }
            }
        }
        self.progress.published += published;
        metrics::counter!("outbox_replayed_total", "replay" => self.replay.name.clone())
            .increment(published.unsigned_abs());
    }

    /// Waits while the broker is unavailable, longer each time. `false`: stopped meanwhile.
    async fn waits(&mut self, reason: &str) -> bool {
        self.failures += 1;
        let pause = self.replay.settings.unavailable.after(self.failures, chance());
        // More and more seldom.
        if self.failures.is_power_of_two() {
            tracing::warn!(
                replay = self.replay.name,
                reason,
                ?pause,
                failures = self.failures,
                "the broker is unavailable, or does not say"
            );
        }
        !self.rests(pause).await
    }

    /// Whether it was stopped meanwhile.
    async fn rests(&self, pause: Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => true,
            () = tokio::time::sleep(pause) => false,
        }
    }

    async fn record_if_due(&mut self) -> Result<(), ReplayError> {
        let settings = &self.replay.settings;
        let many = usize::try_from(self.progress.published).unwrap_or(usize::MAX) >= settings.max_unrecorded;
        let moved = self.progress.after > self.job.after;
        if moved && (many || self.recorded_at.elapsed() >= settings.record_interval) {
            self.record(Then::Goes(settings.lease)).await?;
        }
        Ok(())
    }

    async fn record(&mut self, then: Then<'_>) -> Result<(), ReplayError> {
        let Replay { name, pool, who, .. } = self.replay;
        if !self.job.record(pool, name, who, &self.progress, then).await? {
            return Err(lost(self.replay).await);
        }
        self.progress.published = 0;
        self.progress.skipped.clear();
        self.recorded_at = Instant::now();
        if self.told_at.elapsed() >= TELL {
            self.told_at = self.recorded_at;
            let Job { published, skipped, after, to_position, .. } = self.job;
            tracing::info!(replay = name, published, skipped, after, to_position, "goes on");
        }
        Ok(())
    }
}
