//! The consumer's loop: deliveries in, tasks out, keys side by side, one key in order, until it is told to stop.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use message::{Delivery, SubscribeError, Subscriber};
use migrations::Schema;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::admit::check_consumer;
use crate::apply::{Applied, deliver};
use crate::attempt::Setback;
use crate::backoff::{Backoff, chance};
use crate::caution::HEARTBEAT;
use crate::consumer::{Consumer, ConsumerError, Core, Settings, within};
use crate::encoding::check_encoding;
use crate::horizon::Horizon;
use crate::kinds;
use crate::lanes::{Lane, Lanes};
use crate::outcome::{Blame, blame};
use crate::patience::Patience;
use crate::prune::{Pruned, prune};
use crate::report::report;
use crate::retry::{Claim, claim, drain};
use crate::statement;

const PRUNE_EVERY: Duration = Duration::from_secs(3_600);
/// A broker that takes longer to hear that we are still at work will not be waited for.
const EXTEND_TIMEOUT: Duration = Duration::from_secs(5);
/// After the first failure; doubled with each further one.
const RECEIVE_BACKOFF: Duration = Duration::from_millis(100);

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
            let error = match register(&core).await {
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
        if let Err(error) = within(HEARTBEAT, work.core.last_word(work.core.caution.goodbye())).await {
            // Then it is taken for dead, and others are cautious for a while.
            debug!(consumer = %work.core.name, error = report(&error), "could not say goodbye");
        }
        info!(consumer = %work.core.name, "consumer stopped");
        ended
    }
}

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

async fn beat(core: &Core) -> Result<(), sqlx::Error> {
    let dead = core.in_time(core.caution.beat(&core.pool, &core.name)).await?;
    if dead > 0 {
        warn!(consumer = %core.name, dead, "a process has died; first tries are counted before they begin for a while");
    }
    Ok(())
}

/// What a task answers.
enum Ended {
    Delivered(Applied),
    Claimed(Vec<Claim>),
    Drained,
    Pruned,
    Beaten,
}

struct Work {
    core: Arc<Core>,
    lanes: Lanes<(Delivery, std::time::Instant)>,
    /// Owned here: none outlives the loop.
    tasks: JoinSet<Ended>,
    /// The tasks that work at a delivery.
    under_way: HashMap<Id, Lane>,
    /// Tasks that try held keys. Their number has a limit of its own, so that neither starves the other.
    drains: usize,
    most_drains: usize,
    claiming: bool,
    next_claim: Instant,
    claim_every: Duration,
    beating: bool,
}

impl Work {
    fn new(core: Arc<Core>, settings: &Settings) -> Self {
        let claim_every =
            core.backoff.delay(1, 0).clamp(Duration::from_millis(20), Duration::from_millis(500));
        Work {
            core,
            lanes: Lanes::default(),
            tasks: JoinSet::new(),
            under_way: HashMap::new(),
            drains: 0,
            most_drains: (settings.concurrency / 4).max(1),
            claiming: false,
            next_claim: Instant::now(),
            claim_every,
            beating: false,
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
        let stop = self.core.stop.clone();
        while !stop.is_cancelled() && refused.is_none() {
            self.begin(settings.concurrency);
            let room = settings.prefetch.saturating_sub(self.lanes.len() + self.under_way.len());
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
                () = tokio::time::sleep_until(self.next_claim), if self.may_claim() => self.claim(),
                _ = extend.tick() => self.extend().await,
                _ = prune.tick() => self.prune(),
                _ = heartbeat.tick() => self.beat(),
            }
        }
        self.finish(settings, &mut extend).await;
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
    fn begin(&mut self, concurrency: usize) {
        while self.under_way.len() < concurrency {
            let Some((lane, (delivery, received))) = self.lanes.next() else { return };
            let core = self.core.clone();
            let task =
                self.tasks.spawn(async move { Ended::Delivered(deliver(&core, delivery, received).await) });
            self.under_way.insert(task.id(), lane);
        }
    }

    async fn settle(&mut self, ended: Result<(Id, Ended), JoinError>) {
        match ended {
            Ok((id, Ended::Delivered(applied))) => {
                let Some(lane) = self.under_way.remove(&id) else { return };
                match applied {
                    Applied::Done => self.lanes.done(lane),
                    // What waits behind it must not pass it.
                    Applied::GivenUp => give_back(self.lanes.close(&lane)).await,
                }
            }
            Ok((_, Ended::Claimed(claims))) => {
                self.claiming = false;
                // A full hand may have left some behind.
                let full = self.drains + claims.len() >= self.most_drains;
                self.next_claim = Instant::now() + if full { Duration::ZERO } else { self.claim_every };
                for claim in claims {
                    self.drains += 1;
                    let core = self.core.clone();
                    self.tasks.spawn(async move {
                        drain(&core, claim).await;
                        Ended::Drained
                    });
                }
            }
            Ok((_, Ended::Drained)) => self.drains = self.drains.saturating_sub(1),
            Ok((_, Ended::Beaten)) => self.beating = false,
            Ok((_, Ended::Pruned)) => {}
            Err(failed) => {
                // Ours, not a handler's: those are caught. Unanswered, its delivery comes again.
                error!(consumer = %self.core.name, error = %failed, "a task of the consumer panicked");
                match self.under_way.remove(&failed.id()) {
                    Some(lane) => drop(self.lanes.close(&lane)),
                    None => {
                        (self.claiming, self.beating) = (false, false);
                        self.drains = self.drains.saturating_sub(1);
                    }
                }
            }
        }
    }

    fn may_claim(&self) -> bool {
        !self.claiming && self.drains < self.most_drains
    }

    fn claim(&mut self) {
        self.claiming = true;
        let (core, limit) = (self.core.clone(), self.most_drains - self.drains);
        self.tasks.spawn(async move {
            Ended::Claimed(core.in_time(claim(&core, limit)).await.unwrap_or_else(|error| {
                debug!(consumer = %core.name, error = report(&error), "held keys could not be claimed");
                Vec::new()
            }))
        });
    }

    fn prune(&mut self) {
        let core = self.core.clone();
        self.tasks.spawn(async move {
            match within(PRUNE_EVERY, prune(&core.pool)).await {
                Ok(Pruned { clock_difference: Some(difference), .. }) => {
                    let ahead_by_seconds = difference.num_seconds();
                    warn!(
                        consumer = %core.name, ahead_by_seconds,
                        "the database's clock differs from this process's; nothing is pruned until they agree"
                    )
                }
                Ok(pruned) => debug!(consumer = %core.name, ?pruned, "pruned"),
                Err(error) => {
                    warn!(consumer = %core.name, error = report(&error), "could not prune; rows past the horizon stay")
                }
            }
            Ended::Pruned
        });
    }

    fn beat(&mut self) {
        if std::mem::replace(&mut self.beating, true) {
            return;
        }
        let core = self.core.clone();
        self.tasks.spawn(async move {
            if let Err(error) = beat(&core).await {
                debug!(consumer = %core.name, error = report(&error), "no heartbeat could be written");
            }
            kinds::refresh(&core).await;
            Ended::Beaten
        });
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
    async fn finish(&mut self, settings: &Settings, extend: &mut tokio::time::Interval) {
        self.core.stop.cancel();
        let grace = Instant::now() + settings.grace;
        let end = grace + self.core.try_time();
        loop {
            self.begin(settings.concurrency);
            if self.tasks.is_empty() {
                return;
            }
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.settle(ended).await,
                _ = extend.tick() => self.extend().await,
                () = tokio::time::sleep_until(grace), if self.lanes.len() > 0 => give_back(self.lanes.clear()).await,
                () = tokio::time::sleep_until(end) => {
                    warn!(consumer = %self.core.name, tasks = self.tasks.len(), "stopped without an answer from the database");
                    return;
                }
            }
        }
    }
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

/// A broker that does not answer.
struct Outage {
    errors: u32,
    until: Instant,
}

impl Default for Outage {
    fn default() -> Self {
        Outage { errors: 0, until: Instant::now() }
    }
}

impl Outage {
    fn is_over(&self) -> bool {
        self.until <= Instant::now()
    }

    fn go_on(&mut self, core: &Core, error: &SubscribeError) {
        if self.errors == 0 {
            warn!(consumer = %core.name, %error, "the broker does not answer; trying again");
        }
        self.errors = self.errors.saturating_add(1);
        let backoff = Backoff::default().with_first(RECEIVE_BACKOFF).with_ceiling(Duration::from_secs(5));
        self.until = Instant::now() + backoff.delay(self.errors, chance());
    }

    fn end(&mut self, core: &Core) {
        if self.errors > 0 {
            info!(consumer = %core.name, "the broker answers again");
        }
        self.errors = 0;
    }
}
