//! One delivery: admitted, handled and committed in one transaction, or held, or parked; then acknowledged.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use message::{Delivery, Malformed, MalformedReason, Message, SubscribeError, Subscriber};
use sqlx::Row;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::admit::comes_from_another_source;
use crate::attempt::{Admitted, Failure, Setback, abandon, attempt, commit};
use crate::backoff::chance;
use crate::consumer::Core;
use crate::day::ByDay;
use crate::handler::Handle;
use crate::hold::{Found, Hold, append, hold, microseconds_since};
use crate::horizon::{Refusal, Unfit};
use crate::kinds;
use crate::measure;
use crate::patience::{self, Patience};
use crate::postpone::{lost_each_time, suspect};
use crate::report::bounded;
use crate::statement::{begin_on_pool, is_named};
use crate::stored::Body;
use crate::unstorable;

static RECEIVE: LazyLock<ByDay> = LazyLock::new(|| ByDay::new(include_str!("sql/receive.sql")));

/// A broker that does not answer for so long has not heard.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that a stop waits for a subscriber.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether the lane may go on to its next delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// What the delivery asked for is durable.
    Done,
    /// The consumer stops while the database does not answer.
    GivenUp,
}

/// What is in the database now.
enum Step {
    Handled(Duration),
    Repeat,
    Held,
    /// The key was held and is no longer: ask again.
    Again,
    /// It was in hand when a process died: to be held, and tried alone.
    Quarantined,
    Refused(Refusal),
}

/// Applies one delivery and answers it, keeping it from being delivered elsewhere meanwhile.
pub(crate) async fn deliver(core: &Core, delivery: Delivery, received: Instant) -> Applied {
    let applied = {
        // Side by side: a broker that is slow to hear takes no time from a handler.
        let (apply, extend) = (pin!(apply(core, &delivery, received)), pin!(extend(core, &delivery)));
        match select(apply, extend).await {
            Either::Left((applied, _)) => applied,
            Either::Right((never, _)) => match never {},
        }
    };
    let answered = match applied {
        Applied::Done => heard(delivery.acknowledge()).await,
        Applied::GivenUp => heard(delivery.retry_after(Duration::ZERO)).await,
    };
    if let Err(error) = answered {
        // Durable all the same: another copy will be a repeat.
        debug!(consumer = %core.name, %error, "the broker did not take an answer");
    }
    applied
}

/// Tells the broker again and again that a delivery is still worked at.
async fn extend(core: &Core, delivery: &Delivery) -> Infallible {
    let mut ticks = tokio::time::interval(core.extend_every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Err(error) = heard(delivery.extend()).await {
            debug!(consumer = %core.name, %error, "a delivery could not be extended");
        }
    }
}

/// What the broker says to what it is told, unless it says nothing: then it delivers again what it may not have heard of.
pub(crate) async fn heard(
    told: impl Future<Output = Result<(), SubscribeError>>,
) -> Result<(), SubscribeError> {
    let late = |_| Err(SubscribeError::Unavailable("no answer in time".to_owned()));
    tokio::time::timeout(ANSWER_TIMEOUT, told).await.unwrap_or_else(late)
}

/// Closes a subscriber. One that does not end is left as if its process had died.
pub(crate) async fn close(core: &Core, subscriber: &mut dyn Subscriber) {
    if tokio::time::timeout(CLOSE_TIMEOUT, subscriber.close()).await.is_err() {
        warn!(consumer = %core.name, "the subscriber did not close in time");
    }
}

async fn apply(core: &Core, delivery: &Delivery, received: Instant) -> Applied {
    let message = match &delivery.received {
        Ok(message) => message,
        Err(malformed) => return park_malformed(core, malformed, received).await,
    };
    if let Err(limit) = message.validate_relayed() {
        // From a broker without a wire form, or a subscriber that does not check.
        let reason = MalformedReason::Limit(limit);
        let malformed = Malformed::new(reason, &*message.topic, message.payload.clone());
        return park_malformed(core, &malformed, received).await;
    }
    let Some(handler) = core.handlers.get(&*message.kind) else {
        return kinds::unhandled(core, message, received).await;
    };
    let span = info_span!(
        "handle",
        consumer = %core.name,
        message = %message.id,
        correlation = %message.correlation,
        kind = %message.kind,
        attempt = 1,
    );
    handle(core, &**handler, message, received).instrument(span).await
}

async fn handle(core: &Core, handler: &dyn Handle, message: &Message, received: Instant) -> Applied {
    let mut patience = Patience::default();
    loop {
        match once(core, handler, message, received).await {
            Ok(Step::Handled(taken)) => {
                measure::handled(&core.name, taken);
                return Applied::Done;
            }
            Ok(Step::Repeat) => {
                measure::count(&core.name, measure::REPEAT);
                return Applied::Done;
            }
            Ok(Step::Held) => {
                measure::count(&core.name, measure::HELD);
                return Applied::Done;
            }
            Ok(Step::Again) => {}
            Ok(Step::Quarantined) => return hold_quarantined(core, message, received).await,
            Ok(Step::Refused(refusal)) => return park_refused(core, message, refusal, received).await,
            Err(Setback::Failed(failure)) => return hold_failed(core, message, &failure, received).await,
            Err(Setback::Unstorable(error)) => {
                let held = Hold::parked(message.key.as_deref(), "");
                return unstorable::park(core, &held, Body::Message(message), &error, received).await;
            }
            Err(setback) => {
                patience::count(core, &setback);
                if patience.is_suspicious(&setback) && suspect(core, message.id).await {
                    return hold_suspect(core, message, &setback, received).await;
                }
                if patience.is_over(&setback) {
                    return hold_postponed(core, message, &setback, received).await;
                }
                if !patience.wait(core, &setback).await {
                    return Applied::GivenUp;
                }
            }
        }
    }
}

/// One transaction: whether the message is held, its admission, its handler, the commit.
async fn once(
    core: &Core,
    handler: &dyn Handle,
    message: &Message,
    received: Instant,
) -> Result<Step, Setback> {
    let begun = Instant::now();
    let made_at = match core.horizon.date_by(message.id, core.process.clocks()) {
        Ok(made_at) => made_at,
        Err(Unfit::Refused(refusal)) => return Ok(Step::Refused(refusal)),
        Err(Unfit::Clocks) => return Err(Setback::clocks()),
    };
    // A handler may be silent for as long as it may take; a process that stands still, not longer.
    let mut tx = core.in_time(begin_on_pool(core.pool.clone(), core.try_time(), core.isolation)).await?;
    let receive = sqlx::query(RECEIVE.of(made_at))
        .bind(&*core.name)
        .bind(message.id.as_uuid())
        .bind(made_at)
        .bind(message.key.as_deref())
        .bind(microseconds_since(received))
        .bind(message.source.as_deref())
        .persistent(is_named(&tx));
    let row = core.in_time(receive.fetch_one(&mut *tx)).await?;
    if !row.try_get::<bool, _>("first")? {
        let step = if row.try_get("message_held")? {
            Step::Held
        } else if row.try_get("another_source")? {
            Step::Refused(Refusal::AnotherSource)
        } else if row.try_get("too_old")? {
            Step::Refused(Refusal::TooOld)
        } else if row.try_get("key_held")? {
            match core.in_time(append(core, &mut tx, message, received)).await? {
                Some(Found::Held) => Step::Held,
                Some(Found::Handled) => Step::Repeat,
                Some(Found::AnotherSource) => Step::Refused(Refusal::AnotherSource),
                None => Step::Again,
            }
        } else if row.try_get("quarantined")? {
            Step::Quarantined
        } else if core.in_time(comes_from_another_source(&mut tx, &core.name, message)).await? {
            Step::Refused(Refusal::AnotherSource)
        } else {
            Step::Repeat
        };
        core.in_time(tx.commit()).await?;
        return Ok(step);
    }
    let (transaction, backend) = (row.try_get("transaction")?, row.try_get("backend")?);
    let admitted = Admitted { transaction, backend, settings: None };
    match attempt(core, handler, &mut tx, message, &admitted).await {
        Ok(_) => {
            commit(core, tx).await?;
            Ok(Step::Handled(begun.elapsed()))
        }
        Err(broken) => {
            abandon(core, tx, broken.backend).await;
            Err(broken.setback)
        }
    }
}

/// Holds the key of a message that may kill its process: each of its tries is counted before it begins, and made alone.
async fn hold_quarantined(core: &Core, message: &Message, received: Instant) -> Applied {
    measure::count(&core.name, measure::QUARANTINED);
    info!(consumer = %core.name, message = %message.id, "message was in hand when a process died; it is tried alone");
    let error = "in hand when a process died; tried alone";
    let held = Hold { delay: Some(Duration::ZERO), ..Hold::parked(message.key.as_deref(), error) };
    insist(core, &held, Body::Message(message), received).await
}

/// Holds the key of a message each of whose tries has lost its connection. From now on they are made alone, and count.
async fn hold_suspect(core: &Core, message: &Message, setback: &Setback, received: Instant) -> Applied {
    measure::count(&core.name, measure::QUARANTINED);
    let error = lost_each_time(setback);
    warn!(consumer = %core.name, message = %message.id, error, "message may end its connections; it is tried alone");
    let held = Hold { delay: Some(Duration::ZERO), ..Hold::parked(message.key.as_deref(), &error) };
    insist(core, &held, Body::Message(message), received).await
}

/// Holds the key of a message whose first try failed.
async fn hold_failed(core: &Core, message: &Message, failure: &Failure, received: Instant) -> Applied {
    measure::count(&core.name, failure.result);
    let parks = failure.parks || core.max_attempts <= 1;
    let delay = (!parks).then(|| core.backoff.delay(1, chance()));
    if parks {
        measure::count(&core.name, measure::PARKED);
        warn!(consumer = %core.name, message = %message.id, error = failure.error, "message parked");
    } else {
        warn!(consumer = %core.name, message = %message.id, error = failure.error, ?delay, "message failed, its key is held");
    }
    let held = Hold { attempts: 1, delay, ..Hold::parked(message.key.as_deref(), &failure.error) };
    insist(core, &held, Body::Message(message), received).await
}

/// Holds the key of a message that nobody is to blame for, so that others have its place. Nothing is counted.
async fn hold_postponed(core: &Core, message: &Message, setback: &Setback, received: Instant) -> Applied {
    measure::count(&core.name, measure::POSTPONED);
    let (error, delay) = (setback.error(), core.backoff.as_long_again(received.elapsed(), chance()));
    warn!(
        consumer = %core.name, message = %message.id, error, ?delay,
        "no end of setbacks that are not the message's: its key is held, nothing is counted"
    );
    let held = Hold { delay: Some(delay), ..Hold::parked(message.key.as_deref(), error) };
    insist(core, &held, Body::Message(message), received).await
}

/// A copy past the horizon is parked alone: it is nearly always a repeat, and its key shall not wait for a person. So is
/// one whose id is known from another source: no decision lets it be handled. The others hold their key, since they have
/// not been handled.
pub(crate) async fn park_refused(
    core: &Core,
    message: &Message,
    refusal: Refusal,
    received: Instant,
) -> Applied {
    measure::count(&core.name, measure::REFUSED);
    warn!(consumer = %core.name, message = %message.id, %refusal, "message refused and parked");
    let alone = matches!(refusal, Refusal::TooOld | Refusal::AnotherSource);
    let key = message.key.as_deref().filter(|_| !alone);
    let error = refusal.to_string();
    let another_source = refusal == Refusal::AnotherSource;
    let held = Hold { another_source, ..Hold::parked(key, &error) };
    insist(core, &held, Body::Message(message), received).await
}

async fn park_malformed(core: &Core, malformed: &Malformed, received: Instant) -> Applied {
    measure::count(&core.name, measure::MALFORMED);
    let reason = malformed.reason.to_string();
    warn!(consumer = %core.name, destination = malformed.destination, reason, "malformed message parked");
    let reason = bounded(&reason);
    let held = Hold::parked(None, &reason);
    insist(core, &held, Body::Malformed(malformed), received).await
}

/// Holds it, however long the database takes to answer; alone, parked, if its id is known from another source.
pub(crate) async fn insist(core: &Core, held: &Hold<'_>, body: Body<'_>, received: Instant) -> Applied {
    let (mut held, refused) = (*held, Refusal::AnotherSource.to_string());
    let mut patience = Patience::default();
    loop {
        match core.in_time(hold(core, &held, body, received)).await {
            Ok(Found::AnotherSource) => {
                measure::count(&core.name, measure::REFUSED);
                warn!(consumer = %core.name, message = body.id(), refusal = refused, "message refused and parked");
                held = Hold { another_source: true, ..Hold::parked(None, &refused) };
            }
            Ok(Found::Held | Found::Handled) => return Applied::Done,
            Err(Setback::Unstorable(error)) => {
                return unstorable::park(core, &held, body, &error, received).await;
            }
            Err(setback) => {
                patience::count(core, &setback);
                if !patience.wait(core, &setback).await {
                    return Applied::GivenUp;
                }
            }
        }
    }
}
