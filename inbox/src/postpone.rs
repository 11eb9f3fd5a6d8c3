//! The end of a held key's try that did not succeed: when the next one is made, and whether beside others.

use std::time::Duration;

use chrono::{DateTime, Utc};
use message::MessageId;
use tracing::{debug, warn};

use crate::attempt::{Failure, Setback};
use crate::backoff::chance;
use crate::consumer::Core;
use crate::hold::milliseconds;
use crate::measure;
use crate::patience::Patience;
use crate::report::{bounded, report};
use crate::retry::Claim;
use crate::statement;
use crate::unstorable::plain;

/// Sends a message to the quarantine, so that its tries are made alone. Whether that was written.
pub(crate) async fn suspect(core: &Core, message: MessageId) -> bool {
    let query =
        sqlx::query(include_str!("sql/suspect.sql")).bind(core.name.to_string()).bind(*message.as_uuid());
    match core.in_time(statement::run(&core.pool, query)).await {
        Ok(_) => true,
        Err(error) => {
            debug!(consumer = %core.name, error = report(&error), "a message could not be sent to the quarantine");
            false
        }
    }
}

/// Why it is sent there.
pub(crate) fn lost_each_time(setback: &Setback) -> String {
    bounded(&format!("the connection was lost in each try; tried alone: {}", setback.error()))
}

/// How a try ends that did not succeed.
pub(crate) enum Postponed<'f> {
    /// Not counted; tried alone from now on, because of this.
    Suspected(&'f str),
    Retrying(&'f Failure),
    Parked(&'f Failure),
    /// Parked, and its handler was not called.
    Refused(&'f Failure),
    /// More tries than are granted have begun, and the last one did not end.
    UsedUp,
    /// No end of setbacks that are nobody's fault, for a message that has waited since then: not counted.
    Again(&'f Setback, DateTime<Utc>),
    /// The try did not come to an end: it is not counted.
    Uncounted(Duration),
}

/// Ends a try that did not succeed.
pub(crate) async fn postpone(core: &Core, claim: &Claim, next: Postponed<'_>) {
    let attempts = claim.attempts;
    let used_up = format!("attempts used up, or the last one did not end; before it: {}", claim.last_error);
    let used_up = Failure::new(measure::FAILED, &used_up);
    let (kept, state, delay, error) = match &next {
        Postponed::Retrying(failure) => {
            let delay = core.backoff.delay(u32::try_from(attempts).unwrap_or(0), chance());
            warn!(consumer = %core.name, hold = claim.hold, attempts, error = failure.error, ?delay, "message failed again");
            measure::count(&core.name, failure.result);
            (attempts, "retrying", Some(delay), Some(failure.error.as_str()))
        }
        Postponed::Parked(failure) | Postponed::Refused(failure) => {
            warn!(consumer = %core.name, hold = claim.hold, attempts, error = failure.error, "message parked");
            measure::count(&core.name, failure.result);
            measure::count(&core.name, measure::PARKED);
            (attempts, "parked", None, Some(failure.error.as_str()))
        }
        Postponed::UsedUp => {
            let error = used_up.error.as_str();
            warn!(consumer = %core.name, hold = claim.hold, attempts = attempts - 1, error, "message parked");
            measure::count(&core.name, used_up.result);
            measure::count(&core.name, measure::PARKED);
            (attempts - 1, "parked", None, Some(error))
        }
        Postponed::Again(setback, since) => {
            let waited = (Utc::now() - since).to_std().unwrap_or_default();
            let (error, delay) = (setback.error(), core.backoff.as_long_again(waited, chance()));
            warn!(consumer = %core.name, hold = claim.hold, error, ?delay, "no end of setbacks that are not the message's");
            measure::count(&core.name, measure::POSTPONED);
            (attempts - 1, "retrying", Some(delay), Some(error))
        }
        Postponed::Suspected(error) => {
            warn!(consumer = %core.name, hold = claim.hold, error, "message may end its connections; it is tried alone");
            measure::count(&core.name, measure::QUARANTINED);
            (attempts - 1, "retrying", Some(Duration::ZERO), Some(*error))
        }
        Postponed::Uncounted(delay) => (attempts - 1, "retrying", Some(*delay), None),
    };
    // A try that ended did not kill its process. One that was refused says nothing of that, and one that ended its connection
    // would do so again.
    let ended = match next {
        Postponed::Retrying(failure) | Postponed::Parked(failure) => failure.result != measure::LOST,
        Postponed::Again(..) => true,
        Postponed::Refused(_) | Postponed::Suspected(_) | Postponed::UsedUp | Postponed::Uncounted(_) => {
            false
        }
    };
    let cleared = claim.first.as_ref().filter(|_| ended).and_then(|first| first.received.as_ref().ok());
    let mut patience = Patience::default();
    let mut error = error.map(str::to_owned);
    loop {
        let query = sqlx::query(include_str!("sql/postpone.sql"))
            .bind(&*core.name)
            .bind(claim.hold)
            .bind(attempts)
            .bind(kept)
            .bind(state)
            .bind(delay.map(milliseconds))
            .bind(error.as_deref())
            .bind(core.process.id)
            .bind(cleared.map(|message| *message.id.as_uuid()))
            .bind(claim.first.as_ref().map(|first| first.arrival));
        // If it cannot be written, the key is due when the time of this try has passed.
        match core.last_word(query).await.map_err(Setback::from) {
            Ok(_) => return,
            // The text of the error is the one value here that a database may refuse.
            Err(Setback::Unstorable(_)) if error.as_deref().is_some_and(|text| *text != plain(text)) => {
                error = error.as_deref().map(plain);
            }
            Err(setback) => {
                if !patience.wait(core, &setback).await {
                    return;
                }
            }
        }
    }
}
