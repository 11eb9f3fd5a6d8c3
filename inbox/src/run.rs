//! The consumer's loop: deliveries in, tasks out, keys side by side, one key in order, until it is told to stop.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use message::{Delivery, SubscribeError, Subscriber};
use tokio::sync::oneshot;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use crate::admit::check_consumer;
use crate::apply::{Applied, close, deliver};
use crate::backoff::chance;
use crate::consumer::{Consumer, ConsumerError, Core, Settings, within};
use crate::declared::Declared;
use crate::horizon::Horizon;
use crate::jobs::{self, Ended, Job};
use crate::kinds;
use crate::lanes::Lanes;
use crate::outage::Outage;
use crate::process::HEARTBEAT;
use crate::registration::registered;
use crate::report::report;
use crate::retry::{Claim, Claimed, Tried, drain, release};
use crate::slots::{Due, Slots};
use crate::turn::{self, Turn};
use crate::waiting::{Waiting, give_back};

/// Less than the time after which the kinds of a process count as handled by none.
const REFRESH_KINDS_EVERY: Duration = Duration::from_secs(30);
/// How often rows past the horizon are removed.
const PRUNE_EVERY: Duration = Duration::from_secs(3_600);
/// A broker that takes longer to hear that we are still at work will not be waited for.
const EXTEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a stop waits for a start that is under way, and to leave the other processes in good order.
const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// The most held keys that one transaction releases.
const RELEASED_TOGETHER: usize = 200;
/// Between two claims, and between two releases, while there are many of them: each is a transaction, which more keys share.
const CLAIM_PAUSE: Duration = Duration::from_millis(1);
const RELEASE_PAUSE: Duration = Duration::from_millis(20);

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
        let stopped_long_since = async {
            stop.cancelled().await;
            tokio::time::sleep(DEREGISTER_TIMEOUT).await;
        };
        let is_new = tokio::select! {
            registered = registered(&core) => registered.map(Some),
            // It waits for another transaction.
            () = stopped_long_since => Ok(None),
        };
        let is_new = match is_new {
            Ok(Some(is_new)) => is_new,
            Ok(None) => {
                leave(&core).await;
                return Ok(());
            }
            Err(error) => {
                leave(&core).await;
                return Err(error);
            }
        };
        let (subscribed, is_subscribed) = oneshot::channel();
        listening.spawn(kinds::report_ready(ready.clone(), core.name.clone(), is_new, is_subscribed));
        info!(consumer = %core.name, kinds = ?core.kinds, "consumer started");
        let mut work = Work::new(Arc::new(core), &settings, subscribed);
        let ended = work.run(&mut *subscriber, &settings).await;
        // In this order: what reports that it is ready has ended when its last sender goes.
        listening.shutdown().await;
        drop(ready);
        // Nothing is in hand any more, however long the broker takes.
        leave(&work.core).await;
        close(&work.core, &mut *subscriber).await;
        info!(consumer = %work.core.name, "consumer stopped");
        ended
    }
}

/// This process ends in good order, if it has written that it runs.
async fn leave(core: &Core) {
    if !core.process.is_written() {
        return;
    }
    if let Err(error) = within(DEREGISTER_TIMEOUT, core.last_word(core.process.deregister())).await {
        // Then it is taken for dead, and the others declare what they try for a while.
        debug!(consumer = %core.name, error = report(&error), "could not deregister");
    }
}

struct Work {
    core: Arc<Core>,
    lanes: Lanes<Waiting>,
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
    /// For the lone try that waits until nothing else is under way.
    turn: Option<Turn>,
    /// Lone tries in a row that found nothing to try.
    misses: u32,
    /// To be told when the subscriber has its place in its group; `None`: it has.
    subscribed: Option<oneshot::Sender<()>>,
}

impl Work {
    fn new(core: Arc<Core>, settings: &Settings, subscribed: oneshot::Sender<()>) -> Self {
        let claim_every =
            core.backoff.delay(1, 0).clamp(Duration::from_millis(20), Duration::from_millis(500));
        let slots = Slots::new(settings.concurrency).with_longest_wait(core.try_time());
        Work {
            core,
            lanes: Lanes::default(),
            tasks: JoinSet::new(),
            jobs: HashMap::new(),
            slots,
            yields: Arc::default(),
            next_claim: Instant::now(),
            claim_every,
            more_due: false,
            emptied: Vec::new(),
            next_release: Instant::now(),
            declared: Declared::new(settings.concurrency),
            declares: false,
            turn: None,
            misses: 0,
            subscribed: Some(subscribed),
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
            let is_subscribed = self.subscribed.is_none();
            let lone_until = self.slots.lone_waits_until().map(Instant::from);
            // Told to stop, it does not even look. `None`: it has subscribed.
            let receive = stop.run_until_cancelled(async {
                match is_subscribed {
                    true => subscriber.receive(room).await.map(Some),
                    false => subscriber.subscribe().await.map(|()| None),
                }
            });
            tokio::select! {
                () = stop.cancelled() => {}
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.settle(ended),
                Some(received) = receive, if receives => match received {
                    Ok(received) => {
                        outage.end(&self.core);
                        match received {
                            Some(deliveries) => self.take(deliveries),
                            None => drop(self.subscribed.take().map(|subscribed| subscribed.send(()))),
                        }
                    }
                    Err(error @ SubscribeError::Refused(_)) => refused = Some(error),
                    Err(error) => outage.go_on(&self.core, &error),
                },
                () = tokio::time::sleep_until(outage.until), if !outage.is_over() => {}
                () = tokio::time::sleep_until(self.next_claim), if claims > 0 => self.claim(claims),
                // `begin` does it.
                () = tokio::time::sleep_until(self.next_release), if self.may_release() => {}
                // It goes on with the others.
                () = tokio::time::sleep_until(lone_until.unwrap_or_else(Instant::now)), if lone_until.is_some() => {}
                _ = extend.tick() => self.extend(),
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
            self.lanes.push(key, Waiting::new(delivery, received));
        }
    }

    /// Begins what may begin.
    fn begin(&mut self) {
        if self.slots.stops_waiting(std::time::Instant::now()) {
            self.turn = None;
        }
        // A declaration under way would name others beside it.
        if self.slots.lone_may_begin() && !self.is_under_way(|job| matches!(job, Job::Declare)) {
            self.try_alone();
        }
        self.declares = self.core.process.declares();
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
            let message = next.id();
            if self.declares && message.is_some_and(|message| !self.declared.contains(&message)) {
                break;
            }
            let Some((lane, waiting)) = self.lanes.next() else { break };
            self.slots.begin_first();
            self.spawn(Job::Delivery(lane, message), async move |core| match waiting.take().await {
                Some((delivery, received)) => Ended::Delivered(deliver(&core, delivery, received).await),
                None => Ended::Delivered(Applied::Done),
            });
        }
        if !self.slots.is_exclusive() {
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

    fn settle(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (job, ended) = match ended {
            Ok((id, ended)) => (self.jobs.remove(&id), Ok(ended)),
            Err(failed) => (self.jobs.remove(&failed.id()), Err(failed)),
        };
        let Some(job) = job else { return };
        match job {
            Job::Delivery(..) => self.slots.end_first(),
            Job::Retry => self.slots.end_retry(),
            Job::Claim => self.slots.end_claim(),
            Job::Alone => self.end_lone(matches!(ended, Ok(Ended::Alone(Some(_))))),
            Job::Turn
            | Job::Release
            | Job::Declare
            | Job::Beat
            | Job::Refresh
            | Job::Prune
            | Job::Extend
            | Job::GiveBack => {}
        }
        match (job, ended) {
            (Job::Delivery(lane, _), Ok(Ended::Delivered(Applied::Done))) => self.lanes.done(lane),
            // What waits behind it must not pass it.
            (Job::Delivery(lane, _), Ok(_)) => {
                let behind = self.lanes.close(&lane);
                self.give_back(behind);
            }
            (_, Ok(Ended::Claimed(claimed))) => self.claimed(claimed),
            (_, Ok(Ended::Drained(emptied))) => self.emptied.extend(emptied),
            (_, Ok(Ended::Turn(turn))) => self.take_turn(turn),
            (_, Ok(Ended::Alone(tried))) => match tried {
                Some(Tried::Next(claim)) => self.retry(*claim),
                Some(Tried::Emptied(hold)) => self.emptied.push(hold),
                Some(Tried::Ended) | None => {}
            },
            (_, Ok(Ended::Declared(written))) => {
                self.declared.end(written);
                if !written && self.core.stop.is_cancelled() {
                    let waiting = self.lanes.clear();
                    self.give_back(waiting);
                }
            }
            (_, Ok(Ended::Delivered(_) | Ended::Done)) => {}
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
        if claimed.quarantined {
            self.await_turn();
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

    /// A message in quarantine is due. Everything else goes on until the turn of this consumer has come.
    fn await_turn(&mut self) {
        if self.turn.is_some() || self.is_under_way(|job| matches!(job, Job::Turn)) {
            return;
        }
        match turn::if_free() {
            Some(turn) => self.take_turn(Some(turn)),
            None => self.spawn(Job::Turn, async |core| {
                Ended::Turn(core.stop.run_until_cancelled(turn::wait()).await)
            }),
        }
    }

    /// From now on nothing else begins, unless the others still have their time.
    fn take_turn(&mut self, turn: Option<Turn>) {
        let Some(turn) = turn.filter(|_| !self.core.stop.is_cancelled()) else { return };
        match self.slots.await_lone(std::time::Instant::now()) {
            Some(later) => self.next_claim = self.next_claim.min(later.into()),
            None => self.turn = Some(turn),
        }
    }

    /// Tries a message in quarantine while nothing else is under way.
    fn try_alone(&mut self) {
        let turn = self.turn.take();
        self.slots.begin_lone();
        // The claim empties the row of this process: a death during the try is of this message alone.
        self.declared.clear();
        // There may be another.
        self.next_claim = Instant::now();
        self.spawn(Job::Alone, async move |core| {
            let ended = jobs::try_alone(&core).await;
            drop(turn);
            ended
        });
    }

    /// A lone try has ended. If it `found` nothing, though something is due, others have it: the next one waits longer.
    fn end_lone(&mut self, found: bool) {
        self.misses = if found { 0 } else { self.misses.saturating_add(1) };
        let least = if found { Duration::ZERO } else { self.core.outage.delay(self.misses, chance()) };
        self.slots.end_lone(std::time::Instant::now(), least);
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
            Ended::Done
        });
    }

    /// While a death is recent, declares what is in hand, and what comes next, so that it may begin. Afterwards what was declared
    /// and is in hand stays declared until it ends.
    fn declare(&mut self) {
        let jobs = || self.jobs.values();
        let lanes = jobs().filter_map(|job| if let Job::Delivery(lane, _) = job { Some(lane) } else { None });
        let in_hand =
            jobs().filter_map(|job| if let Job::Delivery(_, message) = job { *message } else { None });
        let messages = if self.declares {
            let in_hand: Vec<Uuid> = in_hand.collect();
            let upcoming = self.lanes.upcoming(self.declared.ahead(), lanes);
            let upcoming: Vec<Uuid> = upcoming.filter_map(Waiting::id).collect();
            self.declared.begin(&in_hand, &upcoming)
        } else if self.declared.is_empty() {
            None
        } else {
            self.declared.narrow(&in_hand.collect::<Vec<Uuid>>())
        };
        self.core.process.keep_declared(!self.declared.is_empty());
        if let Some(messages) = messages {
            self.spawn(Job::Declare, async move |core| jobs::declare(&core, &messages).await);
        }
    }

    fn prune(&mut self) {
        self.spawn(Job::Prune, async |core| jobs::prune(&core).await);
    }

    /// Whether anything is under way but a heartbeat.
    fn is_at_work(&self) -> bool {
        self.is_under_way(|job| !matches!(job, Job::Beat))
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

    /// The broker shall not deliver to another what waits here, least of all a message whose key is under way. Not in the loop:
    /// a broker may take its time to answer.
    fn extend(&mut self) {
        if self.lanes.len() == 0 || self.is_under_way(|job| matches!(job, Job::Extend)) {
            return;
        }
        let extended = join_all(self.lanes.iter().map(Waiting::extend));
        self.spawn(Job::Extend, async move |core| {
            if tokio::time::timeout(EXTEND_TIMEOUT, extended).await.is_err() {
                debug!(consumer = %core.name, "deliveries could not be extended in time");
            }
            Ended::Done
        });
    }

    /// Leaves deliveries to be delivered again.
    fn give_back(&mut self, waiting: impl IntoIterator<Item = Waiting, IntoIter: Send> + Send + 'static) {
        self.spawn(Job::GiveBack, async move |_| {
            give_back(waiting).await;
            Ended::Done
        });
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
        self.turn = None;
        let grace = Instant::now() + settings.grace;
        let end = grace + self.core.try_time();
        loop {
            self.begin();
            if self.tasks.is_empty() {
                if self.lanes.len() == 0 {
                    return;
                }
                let waiting = self.lanes.clear();
                self.give_back(waiting);
            }
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.settle(ended),
                _ = extend.tick() => self.extend(),
                // Otherwise others would take it for dead, and what it finishes for what has killed it.
                _ = heartbeat.tick(), if self.is_at_work() => self.beat(),
                () = tokio::time::sleep_until(grace), if self.lanes.len() > 0 => {
                    let waiting = self.lanes.clear();
                    self.give_back(waiting);
                }
                () = tokio::time::sleep_until(end) => {
                    warn!(consumer = %self.core.name, tasks = self.tasks.len(), "stopped without an answer from the database");
                    return;
                }
            }
        }
    }
}
