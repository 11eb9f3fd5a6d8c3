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
    /// Its producer's clock is wrong: its row would outlive the horizon.
    #[error("id: made more than an hour from now")]
    Future,
    /// Not a UUIDv7: how old it is cannot be told, and the consumer did not opt in.
    #[error("id: not a UUIDv7, so without a date")]
    Undated,
    /// The id is known already, for a message from another source: another event, or the same from a source that was
    /// renamed. Its effect cannot happen under this id.
    #[error("id: known already from another source")]
    AnotherSource,
}

/// What the time is by the clock of this process and by the database's, by which rows are filed and removed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocks {
    pub(crate) own: DateTime<Utc>,
    pub(crate) database: DateTime<Utc>,
}

/// Why a message is not tried now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// It will not be, whatever the time is.
    Refused(Refusal),
    /// One of the clocks is wrong, which is not the message's fault: by the database's it comes from the future, by the other
    /// not.
    Clocks,
}

/// Longest horizon. With [`MARGIN`] and [`SKEW`] the days in use leave one of the ring's 32 free for most of each day, so
/// that each is truncated before its partition is used again.
const LONGEST: TimeDelta = TimeDelta::days(29);
const SHORTEST: TimeDelta = TimeDelta::minutes(1);
/// Rows are kept that much longer than the horizon: the clocks of the consumer and of its database may differ by it.
pub(crate) const MARGIN: TimeDelta = TimeDelta::days(1);
/// How far a producer's clock may be ahead.
const SKEW: TimeDelta = TimeDelta::hours(1);

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

    pub(crate) fn length(&self) -> TimeDelta {
        self.length
    }

    pub(crate) fn seconds(&self) -> i64 {
        self.length.num_seconds()
    }

    fn is_ahead(&self, id: MessageId, now: DateTime<Utc>) -> bool {
        id.made_at().is_some_and(|made_at| made_at > now + SKEW)
    }

    /// Whether the message comes from the future: it is not admitted before its time, not by a redrive either.
    pub(crate) fn not_ahead(&self, id: MessageId, clocks: Clocks) -> Result<(), Unfit> {
        match (self.is_ahead(id, clocks.own), self.is_ahead(id, clocks.database)) {
            (_, false) => Ok(()),
            (true, true) => Err(Unfit::Refused(Refusal::Future)),
            (false, true) => Err(Unfit::Clocks),
        }
    }

    /// When the message was made, if it says so and it may be tried. It is too old if both clocks say so: what a clock that is
    /// behind lets through is judged by the floor, below which the database has removed rows.
    pub(crate) fn date_by(&self, id: MessageId, clocks: Clocks) -> Result<Option<DateTime<Utc>>, Unfit> {
        self.not_ahead(id, clocks)?;
        match (self.date(id, clocks.own), self.date(id, clocks.database)) {
            (Err(refusal), Err(same)) if refusal == same => Err(Unfit::Refused(refusal)),
            _ => Ok(id.made_at()),
        }
    }

    /// When the message was made, if it says so and that is neither too long ago nor ahead.
    pub(crate) fn date(&self, id: MessageId, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, Refusal> {
        match id.made_at() {
            None if self.undated => Ok(None),
            None => Err(Refusal::Undated),
            Some(made_at) if made_at < now - self.length => Err(Refusal::TooOld),
            Some(_) if self.is_ahead(id, now) => Err(Refusal::Future),
            made_at => Ok(made_at),
        }
    }
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
    fn one_clock_that_is_wrong_refuses_nothing() {
        let horizon = Horizon::default();
        let days = TimeDelta::days;
        let date = |moment, own, database| {
            let clocks = Clocks { own: now() + own, database: now() + database };
            horizon.date_by(MessageId::at(now() + moment), clocks)
        };
        let none = TimeDelta::zero();
        assert_eq!(date(none, none, none), Ok(Some(now())));
        // Its own clock: neither too old nor ahead.
        assert_eq!(
            (date(none, days(30), none), date(none, days(-2), none)),
            (Ok(Some(now())), Ok(Some(now())))
        );
        // The database's: rows are removed by it, so what is ahead of it waits.
        assert_eq!(
            (date(none, none, days(30)), date(none, none, days(-2))),
            (Ok(Some(now())), Err(Unfit::Clocks))
        );
        assert_eq!(date(days(2), days(2), none), Err(Unfit::Clocks));
        assert_eq!(date(days(2), none, none), Err(Unfit::Refused(Refusal::Future)));
        assert_eq!(date(days(-8), none, none), Err(Unfit::Refused(Refusal::TooOld)));
        let undated = Clocks { own: now(), database: now() };
        let foreign = horizon.date_by(MessageId::foreign("/a", "1"), undated);
        assert_eq!(foreign, Err(Unfit::Refused(Refusal::Undated)));
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
    fn the_longest_horizon_leaves_a_day_of_the_ring_free_at_some_hour_of_each_day() {
        let midnight = DateTime::from_timestamp(1_800_057_600, 0).unwrap();
        let (oldest, newest) = (midnight - LONGEST - MARGIN, midnight + SKEW);
        assert!((newest.date_naive() - oldest.date_naive()).num_days() + 1 < crate::day::RING as i64);
    }
}
