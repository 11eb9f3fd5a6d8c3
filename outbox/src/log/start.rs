//! Where a relay that has no cursors yet begins, as the cursor that each of its shards is given.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::Refusal;
use super::connection::LogConnection;
use super::eras::Eras;
use super::snapshot::Snapshot;
use super::window::Seen;
use crate::statement;

/// Where a relay that has no cursors yet begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// With the oldest message that the log holds.
    #[default]
    Beginning,
    /// With what commits from now on.
    Now,
    /// With the message at this position: what is committed now and stands below it counts as delivered. A transaction that
    /// is still open is delivered when it commits, wherever its messages stand, as by every relay.
    AtPosition(i64),
    /// With the first message that was enqueued at or after this moment, as [at its position](Start::AtPosition).
    AtTime(DateTime<Utc>),
}

/// A cursor without its shard.
pub(super) struct Place {
    pub(super) seen: Seen,
    pub(super) until: Option<Seen>,
    pub(super) after: i64,
}

impl Start {
    /// The cursor that stands there.
    pub(super) async fn place(
        self,
        log: &mut LogConnection,
        relay: &str,
        eras: &Eras,
    ) -> Result<Place, Refusal> {
        if self == Start::Beginning {
            return Ok(Place { seen: eras.beginning(), until: None, after: 0 });
        }
        let bound = log.prove_bound().await?;
        // Before a time is looked up: what commits in between is not visible here, hence not passed over.
        let look = log.look(relay).await?;
        let now = Seen { era: eras.present(), snapshot: look.snapshot, bound };
        let position = match self {
            Start::AtPosition(position) => position,
            Start::AtTime(moment) => {
                let place = position_at(log.connection(), moment).await?;
                if place.ahead {
                    return Err(Refusal::StartAhead);
                }
                place.position.unwrap_or(look.last_position + 1)
            }
            _ => return Ok(Place { seen: now, until: None, after: 0 }),
        };
        if position > look.last_position + 1 {
            return Err(Refusal::StartAhead);
        }
        // As if a relay had begun at the beginning of that era and had delivered up to there what is visible now, or, of an
        // era that has ended, all that there is.
        let era = eras.of(position);
        let seen = Seen { era, snapshot: Snapshot::nothing(), bound: eras.edge(era) };
        let until = match eras.end(era) {
            Some(end) => Seen { era, snapshot: Snapshot::everything(), bound: end },
            None => now,
        };
        Ok(Place { seen, until: Some(until), after: position.saturating_sub(1).max(0) })
    }
}

/// The place of a moment in the log.
#[derive(Debug)]
pub(crate) struct Moment {
    /// The position of the first visible message that was enqueued at or after it; `None`: there is none.
    pub(crate) position: Option<i64>,
    /// A position below which none was, visible or not.
    pub(crate) floor: i64,
    /// Whether it is yet to come.
    pub(crate) ahead: bool,
}

/// The moment, or the nearest that stands in every calendar here: PostgreSQL's begins in 4713 BC, and sums with it must not
/// overflow. No message was enqueued before or after.
pub(crate) fn within_calendar(moment: DateTime<Utc>) -> DateTime<Utc> {
    const YEAR_10000: i64 = 253_402_300_800;
    match moment.timestamp() {
        ..0 => DateTime::UNIX_EPOCH,
        0..YEAR_10000 => moment,
        YEAR_10000.. => DateTime::from_timestamp(YEAR_10000, 0).unwrap_or(DateTime::UNIX_EPOCH),
    }
}

/// Looks a moment up.
pub(crate) async fn position_at(
    connection: &mut PgConnection,
    moment: DateTime<Utc>,
) -> Result<Moment, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/position_at.sql")).bind(within_calendar(moment));
    let row = statement::row(connection, query).await?;
    Ok(Moment {
        position: row.try_get("position")?,
        floor: row.try_get("floor")?,
        ahead: row.try_get("ahead")?,
    })
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_moment_has_a_place_in_every_calendar(seconds in any::<i64>(), nanos in 0..1_000_000_000_u32) {
            let moment = DateTime::from_timestamp(seconds, nanos);
            for moment in moment.into_iter().chain([DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC]) {
                let within = within_calendar(moment);
                let year = 1970..=10_000;
                prop_assert!(year.contains(&chrono::Datelike::year(&within)));
                prop_assert!(within == moment || moment < DateTime::UNIX_EPOCH || moment > within);
                prop_assert!(within.checked_add_signed(TimeDelta::days(365)).is_some());
            }
        }
    }
}
