//! How old a copy may be. Within the horizon the inbox remembers every message it has handled; past it, it refuses the
//! copy, which turns a window into a guarantee. Pure: the clock is an argument.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use message::MessageId;

/// How far back a consumer remembers: 7 days unless told otherwise, at most 29, because rows live in a ring of 32 days.
///
/// It must exceed the longest time in which a copy may arrive again: the longest time that a message stays parked here
/// or at the producer, the longest outage, the oldest replay.
///
/// ```
/// use std::time::Duration;
/// use inbox::Horizon;
/// let fortnight = Horizon::new(Duration::from_secs(14 * 86_400))?;
/// assert!(Horizon::new(Duration::from_secs(30 * 86_400)).is_err());
/// # assert_ne!(fortnight, Horizon::default());
/// # Ok::<(), inbox::InvalidHorizon>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Horizon {
    length: TimeDelta,
    undated: bool,
}

/// A horizon that the ring of days cannot hold: the fault is in the consumer's set-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("horizon: must be at least a minute and at most 29 days")]
pub struct InvalidHorizon;

/// Why a copy is not admitted, whatever else is known about it. It is for a person to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Whether it is a repeat cannot be told any more.
    #[error("id: made before the horizon")]
    TooOld,
    /// Its producer's clock is wrong: its row would outlive the horizon, or be pruned before.
    #[error("id: made more than an hour from now")]
    Future,
    /// Not a UUIDv7: how old it is cannot be told, and the consumer did not opt in.
    #[error("id: not a UUIDv7, so without a date")]
    Undated,
}

/// Longest horizon. With [`MARGIN`] and [`SKEW`] the days in use leave one of the ring's 32 free for most of each day.
const LONGEST: TimeDelta = TimeDelta::days(29);
const SHORTEST: TimeDelta = TimeDelta::minutes(1);
/// Rows are kept that much longer than the horizon: the clocks of the consumer and of its database may differ by it.
pub(crate) const MARGIN: TimeDelta = TimeDelta::days(1);
/// How far a producer's clock may be ahead.
const SKEW: TimeDelta = TimeDelta::hours(1);
const RING: i64 = 32;

impl Default for Horizon {
    fn default() -> Self {
        Horizon { length: TimeDelta::days(7), undated: false }
    }
}

impl Horizon {
    /// As far back as `length`.
    ///
    /// # Errors
    /// Less than a minute or more than 29 days.
    pub fn new(length: Duration) -> Result<Self, InvalidHorizon> {
        let length = TimeDelta::from_std(length).map_err(|_| InvalidHorizon)?;
        if length < SHORTEST || length > LONGEST {
            return Err(InvalidHorizon);
        }
        Ok(Horizon { length, undated: false })
    }

    /// Takes ids without a date too (no UUIDv7: another producer's, or made from a foreign event). Their rows are kept
    /// as long, but a copy that comes later than that is not recognised.
    pub fn with_undated(mut self) -> Self {
        self.undated = true;
        self
    }

    pub(crate) fn seconds(&self) -> i64 {
        self.length.num_seconds()
    }

    /// When the message was made, if it says so and that is neither too long ago nor ahead.
    pub(crate) fn date(&self, id: MessageId, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, Refusal> {
        match id.made_at() {
            None if self.undated => Ok(None),
            None => Err(Refusal::Undated),
            Some(made_at) if made_at < now - self.length => Err(Refusal::TooOld),
            Some(made_at) if made_at > now + SKEW => Err(Refusal::Future),
            made_at => Ok(made_at),
        }
    }
}

/// The ring's partitions that hold no message made since `floor`, nor one that may still come.
pub(crate) fn free_slots(floor: DateTime<Utc>, now: DateTime<Utc>) -> Vec<i64> {
    let day = |moment: DateTime<Utc>| moment.timestamp_millis().div_euclid(86_400_000);
    let (first, last) = (day(floor), day(now + SKEW));
    if last - first >= RING {
        return Vec::new();
    }
    (last + 1..first + RING).map(|day| day.rem_euclid(RING)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    #[test]
    fn the_horizon_and_the_skew_are_sharp() {
        let horizon = Horizon::default();
        let date = |moment| horizon.date(MessageId::at(moment), now());
        let (oldest, newest) = (now() - TimeDelta::days(7), now() + TimeDelta::hours(1));
        assert_eq!(date(oldest), Ok(Some(oldest)));
        assert_eq!(date(oldest - TimeDelta::milliseconds(1)), Err(Refusal::TooOld));
        assert_eq!(date(newest), Ok(Some(newest)));
        assert_eq!(date(newest + TimeDelta::milliseconds(1)), Err(Refusal::Future));
    }

    #[test]
    fn an_undated_id_needs_the_consumers_consent() {
        let id = MessageId::foreign("/a", "1");
        assert_eq!(Horizon::default().date(id, now()), Err(Refusal::Undated));
        assert_eq!(Horizon::default().with_undated().date(id, now()), Ok(None));
    }

    #[test]
    fn no_horizon_outgrows_the_ring() {
        let days = |days: u64| Horizon::new(Duration::from_secs(days * 86_400));
        assert!(days(29).is_ok());
        assert_eq!(Horizon::new(Duration::from_secs(29 * 86_400 + 1)), Err(InvalidHorizon));
        assert_eq!(Horizon::new(Duration::ZERO), Err(InvalidHorizon));
        assert_eq!(Horizon::new(Duration::MAX), Err(InvalidHorizon));
    }

    #[test]
    fn a_free_slot_holds_no_day_that_is_in_use() {
        let slot = |moment: DateTime<Utc>| moment.timestamp().div_euclid(86_400).rem_euclid(RING);
        for hour in 0..(40 * 24) {
            let now = now() + TimeDelta::hours(hour);
            for days in [1, 8, 29, 30, 31, 40, 20_000] {
                let floor = now - TimeDelta::days(days);
                let free = free_slots(floor, now);
                let mut moment = floor;
                while moment <= now + SKEW && days < 50 {
                    assert!(!free.contains(&slot(moment)), "{moment} from {floor} to {now}");
                    moment += TimeDelta::hours(1);
                }
                assert!(!free.contains(&slot(now + SKEW)));
                assert_eq!(free.is_empty(), days > 31 || (days > 29 && free.is_empty()), "{days} at {now}");
            }
        }
    }

    #[test]
    fn the_longest_horizon_leaves_a_slot_free_at_some_hour_of_each_day() {
        let midnight = DateTime::from_timestamp(1_800_057_600, 0).unwrap();
        assert_eq!(free_slots(midnight - LONGEST - MARGIN, midnight).len(), 1);
    }
}
