//! What the result of a publish says of the broker and of the message's destination, and the line in the log for it.

use std::sync::Arc;

use message::PublishError;
use tokio::time::Instant;

use super::availability::{Outage, SharedAvailability};
use super::backoff;

/// What was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing new of the destination.
    Nothing,
    /// The destination is down.
    Down,
    /// The destination was down and is back.
    Back,
}

/// Learns from the result for the message at a position.
pub(super) fn hear(
    availability: &SharedAvailability,
    relay: &str,
    destination: &Arc<str>,
    position: i64,
    result: &Result<(), PublishError>,
) -> Heard {
    let now = Instant::now();
    match result {
        // A destination that rejects a message takes others.
        Ok(()) | Err(PublishError::Rejected(_)) => {
            if availability.with(|state| state.answered(destination, position, now)) {
                tracing::info!(relay, %destination, "the destination is available again");
                return Heard::Back;
            }
        }
        Err(PublishError::DestinationUnavailable(reason)) => {
            let chance = backoff::chance();
            let outage = availability.with(|state| state.failed(destination, position, reason, now, chance));
            if let Outage::New(pause) = outage {
                tracing::warn!(
                    relay, %destination, reason, ?pause,
                    "a destination is unavailable: its messages wait, others go on"
                );
                return Heard::Down;
            }
        }
        Err(PublishError::Unavailable(reason)) => {
            let chance = backoff::chance();
            let pause = availability.with(|state| {
                state.unanswered(destination, position, now, chance);
                state.pause(now, chance).map(|pause| (pause, state.failures()))
            });
            // More and more seldom.
            if let Some((pause, failures)) = pause
                && failures.is_power_of_two()
            {
                tracing::warn!(relay, reason, ?pause, failures, "the broker is unavailable");
            }
        }
        Err(_) => availability.with(|state| state.unanswered(destination, position, now, backoff::chance())),
    }
    Heard::Nothing
}
