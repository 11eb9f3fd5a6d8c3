//! The consumer's loop: deliveries in, tasks out, keys side by side, one key in order, until it is told to stop.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use message::{Delivery, SubscribeError, Subscriber};
use migrations::Schema;
use tokio::sync::Mutex;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use crate::admit::check_consumer;
use crate::apply::{Applied, deliver};
use crate::attempt::Setback;
use crate::consumer::{Consumer, ConsumerError, Core, Settings, within};
use crate::declared::Declared;
use crate::encoding::check_encoding;
use crate::horizon::Horizon;
use crate::jobs::{self, Ended, Job, beat};
use crate::kinds;
use crate::lanes::Lanes;
use crate::outage::Outage;
use crate::outcome::{Blame, blame};
use crate::patience::Patience;
use crate::process::HEARTBEAT;
use crate::report::report;
use crate::retry::{Claim, Claimed, Tried, drain, release};
use crate::slots::{Due, Slots};
use crate::statement;

/// Less than the time after which the kinds of a process count as handled by none.
const REFRESH_KINDS_EVERY: Duration = Duration::from_secs(30);
/// How often rows past the horizon are removed.
const PRUNE_EVERY: Duration = Duration::from_secs(3_600);
/// A broker that takes longer to hear that we are still at work will not be waited for.
const EXTEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a stop waits to leave the other processes in good order.
const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// The most held keys that one transaction releases.
const RELEASED_TOGETHER: usize = 200;
/// Between two claims, and between two releases, while there are many of them: each is a transaction, which more keys share.
const CLAIM_PAUSE: Duration = Duration::from_millis(3);
const RELEASE_PAUSE: Duration = Duration::from_millis(20);
/// How long a lone try waits for that of another consumer in the same process.
const ANOTHER_ALONE: Duration = Duration::from_millis(100);

/// Consumers that run in one process make their lone tries one at a time: a message that kills it would be taken for
/// another consumer's.
static ALONE: Mutex<()> = Mutex::const_new(());

impl Consumer {
    /// Runs until `stop`, or until its pool is closed: then it receives no more, finishes and acknowledges what is in hand, as
    /// far as the database lets it, and returns.
    ///
    /// # Errors
    /// The set-up is not valid, the database cannot be used at the start, or the broker refuses the subscription. An
    /// outage of either later on is waited for.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ConsumerError> {
        let Consumer { mut core, mut subscriber, settings, ready } = self;
        check_consumer(&core.name).map_err(|_| ConsumerError::Name)?;
        if let Some(length) = settings.horizon {
            core.horizon = Horizon::new(length)?;
        }
        if settings.undated {
            core.horizon = core.horizon.with_undated();
        }
        core.kinds = core.handlers.keys().map(|kind| kind.to_string()).collect();
        // A child: when the broker refuses, only this consumer stops.
        core.stop = stop.child_token();
        let (closed, closing) = (core.pool.close_event(), core.stop.clone());
        // Aborted when this ends.
        let mut listening = JoinSet::new();
        listening.spawn(async move {
            closed.await;
            closing.cancel();
        });
        let mut patience = Patience::default();
        let is_new = loop {
            let error = match within(REGISTERED, register(&core)).await {
                Ok(is_new) => break is_new,
                Err(error) => error,
            };
            let ConsumerError::Database(met) = &error else { return Err(error) };
            let setback = match blame(met) {
                Blame::Contention if !core.stop.is_cancelled() => Setback::Contention(report(met)),
                _ => return Err(error),
            };
            if patience.is_over(&setback) || !patience.wait(&core, &setback).await {
                return Err(error);
            }
        };
        listening.spawn(kinds::report_ready(ready.clone(), core.name.clone(), is_new));
        info!(consumer = %core.name, kinds = ?core.kinds, "consumer started");
        let mut work = Work::new(Arc::new(core), &settings);
        let ended = work.run(&mut *subscriber, &settings).await;
        // In this order: what reports that it is ready has ended when its last sender goes.
        listening.shutdown().await;
        drop(ready);
        subscriber.close().await;
        if let Err(error) =
            within(DEREGISTER_TIMEOUT, work.core.last_word(work.core.process.deregister())).await
        {
            // Then it is taken for dead, and the others declare what they try for a while.
            debug!(consumer = %work.core.name, error = report(&error), "could not deregister");
        }
        info!(consumer = %work.core.name, "consumer stopped");
        ended
    }
}

/// How long the database may take at the start: one that does not answer then is told as an error.
const REGISTERED: Duration = Duration::from_secs(15);

/// Registers the consumer, this process and its kinds; whether one of the kinds is new. Tried again when it meets another
/// transaction, which says nothing of the set-up.
async fn register(core: &Core) -> Result<bool, ConsumerError> {
    let mut connection = core.pool.acquire().await?;
    Schema::Inbox.check(&mut connection).await?;
    check_encoding(&mut connection).await?;
    let register =
        sqlx::query(include_str!("sql/register.sql")).bind(&*core.name).bind(core.horizon.seconds());
    statement::run(&mut *connection, register).await?;
    drop(connection);
    beat(core).await?;
    Ok(kinds::register(core).await?)
}

struct Work {
    core: Arc<Core>,
    lanes: Lanes<(Delivery, std::time::Instant)>,
    /// Owned here: none outlives the loop.
    tasks: JoinSet<Ended>,
    jobs: HashMap<Id, Job>,
    slots: Slots,
    /// How many retries are to end after the message they are at.
    yields: Arc<AtomicUsize>,
    next_claim: Instant,
    claim_every: Duration,
    more_due: bool,
    /// Held keys in which nothing waits.
    emptied: Vec<i64>,
    next_release: Instant,
    declared: Declared,
    declares: bool,
}

impl Work {
    fn new(core: Arc<Core>, settings: &Settings) -> Self {
        let claim_every =
            core.backoff.delay(1, 0).clamp(Duration::from_millis(20), Duration::from_millis(500));
        Work {
            core,
            lanes: Lanes::default(),
            tasks: JoinSet::new(),
            jobs: HashMap::new(),
            slots: Slots::new(settings.concurrency),
            yields: Arc::default(),
            next_claim: Instant::now(),
            claim_every,
            more_due: false,
            emptied: Vec::new(),
            next_release: Instant::now(),
            declared: Declared::new(settings.concurrency),
            declares: false,
        }
    }

    async fn run(
        &mut self,
        subscriber: &mut dyn Subscriber,
        settings: &Settings,
    ) -> Result<(), ConsumerError> {
        let mut outage = Outage::default();
        let mut refused = None;
        let mut extend = tokio::time::interval(self.core.extend_every);
        extend.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut prune = tokio::time::interval(PRUNE_EVERY);
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        let mut kinds = tokio::time::interval(REFRESH_KINDS_EVERY);
        let stop = self.core.stop.clone();
        while !stop.is_cancelled() && refused.is_none() {
            self.begin();
            let room = settings.prefetch.saturating_sub(self.lanes.len() + self.slots.first_tries());
            let claims = self.slots.retries_may_begin(self.lanes.peek().is_some());
            let receives = room > 0 && outage.is_over();
            // Told to stop, it does not even look.
            let receive = async {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Ok(Vec::new()),
                    received = subscriber.receive(room) => received,
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.settle(ended).await,
                received = receive, if receives => match received {
                    Ok(deliveries) => {
                        outage.end(&self.core);
                        self.take(deliveries);
                    }
                    Err(error @ SubscribeError::Refused(_)) => refused = Some(error),
                    Err(error) => outage.go_on(&self.core, &error),
                },
                () = tokio::time::sleep_until(outage.until), if !outage.is_over() => {}
                () = tokio::time::sleep_until(self.next_claim), if claims > 0 => self.claim(claims),
                // `begin` does it.
                () = tokio::time::sleep_until(self.next_release), if self.may_release() => {}
                _ = extend.tick() => self.extend().await,
                _ = prune.tick() => self.prune(),
                _ = heartbeat.tick() => self.beat(),
                _ = kinds.tick() => self.refresh_kinds(),
            }
        }
        self.finish(settings, &mut extend, &mut heartbeat).await;
        // A subscriber on the same pool may say first that it is closed.
        let refused = refused.filter(|_| !self.core.pool.is_closed());
        refused.map_or(Ok(()), |error| Err(ConsumerError::Subscription(error)))
    }

    fn take(&mut self, deliveries: Vec<Delivery>) {
        let received = std::time::Instant::now();
        for delivery in deliveries {
            let key = delivery.received.as_ref().ok().and_then(|message| message.key.clone());
            self.lanes.push(key, (delivery, received));
        }
    }

    /// Begins what may begin.
    fn begin(&mut self) {
        if self.slots.lone_may_begin() {
            self.try_alone();
        }
        let declares = self.core.process.declares();
        if declares != self.declares {
            self.declares = declares;
            self.declared.clear();
        }
        let due = match self.more_due {
            // None is claimed any more.
            _ if self.core.stop.is_cancelled() => Due::No,
            true => Due::Many,
            false if self.next_claim <= Instant::now() => Due::Perhaps,
            false => Due::No,
        };
        while self.slots.first_may_begin(due)
            && let Some(next) = self.lanes.peek()
        {
            let message = id(next);
            if self.declares && message.is_some_and(|message| !self.declared.contains(&message)) {
                break;
            }
            let Some((lane, (delivery, received))) = self.lanes.next() else { break };
            self.slots.begin_first();
            self.spawn(Job::Delivery(lane, message), async move |core| {
                Ended::Delivered(deliver(&core, delivery, received).await)
            });
        }
        if self.declares {
            self.declare();
        }
        self.release();
        self.yields.store(self.slots.retries_to_yield(self.lanes.peek().is_some()), Ordering::Relaxed);
    }

    fn spawn<F: Future<Output = Ended> + Send + 'static>(
        &mut self,
        job: Job,
        work: impl FnOnce(Arc<Core>) -> F,
    ) {
        let task = self.tasks.spawn(work(Arc::clone(&self.core)));
        self.jobs.insert(task.id(), job);
    }

    fn is_under_way(&self, wanted: fn(&Job) -> bool) -> bool {
        self.jobs.values().any(wanted)
    }

    async fn settle(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (job, ended) = match ended {
            Ok((id, ended)) => (self.jobs.remove(&id), Ok(ended)),
            Err(failed) => (self.jobs.remove(&failed.id()), Err(failed)),
        };
        let Some(job) = job else { return };
        match job {
            Job::Delivery(..) => self.slots.end_first(),
            Job::Retry => self.slots.end_retry(),
            Job::Claim => self.slots.end_claim(),
            Job::Alone => self.slots.end_lone(std::time::Instant::now()),
            Job::Release | Job::Declare | Job::Beat | Job::Refresh | Job::Prune => {}
        }
        match (job, ended) {
            (Job::Delivery(lane, _), Ok(Ended::Delivered(Applied::Done))) => self.lanes.done(lane),
            // What waits behind it must not pass it.
            (Job::Delivery(lane, _), Ok(_)) => give_back(self.lanes.close(&lane)).await,
            (_, Ok(Ended::Claimed(claimed))) => self.claimed(claimed),
            (_, Ok(Ended::Drained(emptied))) => self.emptied.extend(emptied),
            (_, Ok(Ended::Alone(tried))) => match tried {
                Some(Tried::Next(claim)) => self.retry(*claim),
                Some(Tried::Emptied(hold)) => self.emptied.push(hold),
                Some(Tried::Ended) | None => {}
            },
            (_, Ok(Ended::Declared(written))) => {
                self.declared.end(written);
                if !written && self.core.stop.is_cancelled() {
                    give_back(self.lanes.clear()).await;
                }
            }
            (
                _,
                Ok(Ended::Delivered(_) | Ended::Released | Ended::Pruned | Ended::Refreshed | Ended::Beaten),
            ) => {}
            (job, Err(failed)) => {
                // Ours, not a handler's: those are caught. Unanswered, its delivery comes again.
                error!(consumer = %self.core.name, error = %failed, "a task of the consumer panicked");
                match job {
                    Job::Delivery(lane, _) => drop(self.lanes.close(&lane)),
                    Job::Declare => self.declared.end(false),
                    _ => {}
                }
            }
        }
    }

    fn claim(&mut self, limit: usize) {
        self.slots.begin_claim(limit);
        self.spawn(Job::Claim, async move |core| jobs::claim(&core, limit).await);
    }

    fn claimed(&mut self, claimed: Claimed) {
        let now = Instant::now();
        self.more_due = claimed.more;
        self.next_claim = now + if claimed.more { CLAIM_PAUSE } else { self.claim_every };
        if claimed.quarantined
            && let Some(later) = self.slots.await_lone(now.into_std())
        {
            self.next_claim = self.next_claim.min(later.into());
        }
        for claim in claimed.claims {
            self.retry(claim);
        }
    }

    fn retry(&mut self, claim: Claim) {
        self.slots.begin_retry();
        let yields = Arc::clone(&self.yields);
        self.spawn(Job::Retry, async move |core| Ended::Drained(drain(&core, claim, &yields).await));
    }

    /// Tries a message in quarantine while nothing else is under way.
    fn try_alone(&mut self) {
        let Ok(alone) = ALONE.try_lock() else {
            self.slots.end_lone(std::time::Instant::now());
            self.next_claim = Instant::now() + ANOTHER_ALONE;
            return;
        };
        self.slots.begin_lone();
        // There may be another.
        self.next_claim = Instant::now();
        self.spawn(Job::Alone, async move |core| {
            let ended = jobs::try_alone(&core).await;
            drop(alone);
            ended
        });
    }

    fn may_release(&self) -> bool {
        !self.emptied.is_empty() && !self.is_under_way(|job| matches!(job, Job::Release))
    }

    fn release(&mut self) {
        let now = Instant::now();
        if !self.may_release() || now < self.next_release && !self.core.stop.is_cancelled() {
            return;
        }
        self.next_release = now + RELEASE_PAUSE;
        let rest = self.emptied.split_off(self.emptied.len().min(RELEASED_TOGETHER));
        let holds = std::mem::replace(&mut self.emptied, rest);
        self.spawn(Job::Release, async move |core| {
            release(&core, &holds).await;
            Ended::Released
        });
    }

    /// Declares what comes next, so that it may begin.
    fn declare(&mut self) {
        let jobs = || self.jobs.values();
        let lanes = jobs().filter_map(|job| if let Job::Delivery(lane, _) = job { Some(lane) } else { None });
        let in_hand =
            jobs().filter_map(|job| if let Job::Delivery(_, message) = job { *message } else { None });
        let in_hand: Vec<Uuid> = in_hand.collect();
        let upcoming: Vec<Uuid> = self.lanes.upcoming(self.declared.ahead(), lanes).filter_map(id).collect();
        if let Some(messages) = self.declared.begin(&in_hand, &upcoming) {
            self.spawn(Job::Declare, async move |core| jobs::declare(&core, &messages).await);
        }
    }

    fn prune(&mut self) {
        self.spawn(Job::Prune, async |core| jobs::prune(&core).await);
    }

    /// Whether a task is under way that others could take for unfinished.
    fn is_at_work(&self) -> bool {
        self.is_under_way(|job| !matches!(job, Job::Beat | Job::Refresh | Job::Prune))
    }

    fn refresh_kinds(&mut self) {
        if !self.is_under_way(|job| matches!(job, Job::Refresh)) {
            self.spawn(Job::Refresh, async |core| jobs::refresh_kinds(&core).await);
        }
    }

    fn beat(&mut self) {
        if !self.is_under_way(|job| matches!(job, Job::Beat)) {
            self.spawn(Job::Beat, async |core| jobs::beat_again(&core).await);
        }
    }

    /// The broker shall not deliver to another what waits here, least of all a message whose key is under way.
    async fn extend(&self) {
        let waiting = self.lanes.iter().map(|(delivery, _)| delivery.extend());
        if tokio::time::timeout(EXTEND_TIMEOUT, join_all(waiting)).await.is_err() {
            debug!(consumer = %self.core.name, "deliveries could not be extended in time");
        }
    }

    /// Finishes what is in hand. What has not begun within the grace is left to be delivered again; what has begun ends
    /// by the handler's timeout.
    async fn finish(
        &mut self,
        settings: &Settings,
        extend: &mut tokio::time::Interval,
        heartbeat: &mut tokio::time::Interval,
    ) {
        self.core.stop.cancel();
        self.slots.give_up_lone();
        let grace = Instant::now() + settings.grace;
        let end = grace + self.core.try_time();
        loop {
            self.begin();
            if self.tasks.is_empty() {
                return give_back(self.lanes.clear()).await;
            }
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.settle(ended).await,
                _ = extend.tick() => self.extend().await,
                // Otherwise others would take it for dead, and what it finishes for what has killed it.
                _ = heartbeat.tick(), if self.is_at_work() => self.beat(),
                () = tokio::time::sleep_until(grace), if self.lanes.len() > 0 => give_back(self.lanes.clear()).await,
                () = tokio::time::sleep_until(end) => {
                    warn!(consumer = %self.core.name, tasks = self.tasks.len(), "stopped without an answer from the database");
                    return;
                }
            }
        }
    }
}

/// What the message of a delivery is called; `None`: it is none, and is not tried.
fn id((delivery, _): &(Delivery, std::time::Instant)) -> Option<Uuid> {
    delivery.received.as_ref().ok().map(|message| *message.id.as_uuid())
}

async fn give_back(deliveries: impl IntoIterator<Item = (Delivery, std::time::Instant)>) {
    // In order, so that the broker has them in order.
    for (delivery, _) in deliveries {
        if delivery.retry_after(Duration::ZERO).await.is_err() {
            // Then it comes again when the broker has waited enough, and so do those after it.
            return;
        }
    }
}
