//! The floor of the inbox: the moment before which no message is admitted, because its row may be gone. What moves it, and
//! how a repair lowers it again after a clock was wrong.

use chrono::{DateTime, DurationRound, NaiveDate, TimeDelta, Utc};
use message::clock_difference;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::day::end_of;
use crate::horizon::{Horizon, MARGIN};
use crate::statement::{self, Begin};

/// A process prunes when it starts and every hour: one that has run for so long has done it.
const PRUNED_WITHIN: TimeDelta = TimeDelta::hours(3);

/// Where the floor of this database's inbox is, and where it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FloorStatus {
    /// Messages made before it are refused as too old.
    pub floor: DateTime<Utc>,
    /// Where the longest horizon of a consumer, with its margin, puts it now.
    pub due: DateTime<Utc>,
    /// The end of the newest day of which rows were removed; `None`: none were.
    pub emptied_before: Option<DateTime<Utc>>,
    /// The database's time.
    pub database_time: DateTime<Utc>,
    /// How far the database's clock is ahead of this process's, if it differs by more than an hour.
    pub clock_difference: Option<TimeDelta>,
    /// Since when a process of a consumer has run; `None`: none runs.
    pub running_since: Option<DateTime<Utc>>,
}

/// Why the floor is not lowered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LowerFloorError {
    /// Where the floor belongs is not known before the clocks agree.
    #[error("clocks of database and process differ by {} s: must be at most an hour", .0.num_seconds())]
    ClocksDiffer(TimeDelta),
    /// It is where it should be, or as low as the rows that were removed allow.
    #[error("nothing to repair: the floor is as low as it can be")]
    NothingToLower,
    /// The database's.
    #[error("floor cannot be lowered")]
    Database(#[from] sqlx::Error),
}

impl FloorStatus {
    /// How low the floor can be: below it, rows are removed, or may be by the next pruning.
    pub fn lowest(&self) -> DateTime<Utc> {
        self.emptied_before.map_or(self.due, |emptied| self.due.max(emptied))
    }

    /// Whether a repair lowers it: messages within the horizon are refused whose rows are all there.
    pub fn can_be_lowered(&self) -> bool {
        self.floor > self.lowest()
    }

    /// Whether rows past the horizon stay although a process runs that should have removed them.
    pub fn is_behind(&self) -> bool {
        let ran = self.running_since.is_some_and(|since| since < self.database_time - PRUNED_WITHIN);
        ran && self.floor < self.due - TimeDelta::days(1)
    }

    /// `asked` and now are this process's times before and after the database said its own.
    pub(crate) fn from_row(row: &PgRow, asked: DateTime<Utc>) -> Result<Self, sqlx::Error> {
        let database_time = row.try_get("now")?;
        let longest = row.try_get::<Option<i64>, _>("horizon")?.and_then(TimeDelta::try_seconds);
        Ok(FloorStatus {
            floor: row.try_get("floor")?,
            due: due(longest, database_time),
            emptied_before: row.try_get::<Option<NaiveDate>, _>("emptied")?.map(end_of),
            database_time,
            clock_difference: clock_difference(database_time, asked, Utc::now()),
            running_since: row.try_get("running_since")?,
        })
    }
}

/// Where the floor of this database's inbox is, and where it should be.
///
/// # Errors
/// The database's.
pub async fn floor(connection: &mut PgConnection) -> Result<FloorStatus, sqlx::Error> {
    read(connection).await
}

pub(crate) async fn read(on: impl Begin<'_>) -> Result<FloorStatus, sqlx::Error> {
    let asked = Utc::now();
    let rows = statement::read(on, sqlx::query(include_str!("sql/floor_status.sql"))).await?;
    FloorStatus::from_row(rows.first().ok_or(sqlx::Error::RowNotFound)?, asked)
}

/// Lowers the floor to where the longest horizon puts it, but not below the end of the newest day of which rows were
/// removed. For a person, after a database's clock was ahead. Answers with what was found.
///
/// # Errors
/// The clocks of database and process differ, the floor is as low as it can be, or the database's.
pub async fn lower_floor(connection: &mut PgConnection) -> Result<FloorStatus, LowerFloorError> {
    let mut tx = connection.begin_bounded(statement::SILENCE).await?;
    // Who removes rows holds the floor meanwhile: what is read after this is all that was removed below it.
    sqlx::query(include_str!("sql/lock_floor.sql")).persistent(false).execute(&mut *tx).await?;
    let asked = Utc::now();
    let query = sqlx::query(include_str!("sql/floor_status.sql")).persistent(false);
    let status = FloorStatus::from_row(&query.fetch_one(&mut *tx).await?, asked)?;
    if let Some(difference) = status.clock_difference {
        return Err(LowerFloorError::ClocksDiffer(difference));
    }
    if !status.can_be_lowered() {
        return Err(LowerFloorError::NothingToLower);
    }
    let lower = sqlx::query(include_str!("sql/lower_floor.sql")).bind(status.lowest()).persistent(false);
    lower.execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(status)
}

/// To the day, so that the floor moves once a day.
fn due(longest: Option<TimeDelta>, now: DateTime<Utc>) -> DateTime<Utc> {
    let least = Horizon::default().length();
    let kept = longest.map_or(least, |longest| longest.max(least)) + MARGIN;
    let due = now.checked_sub_signed(kept).unwrap_or(DateTime::UNIX_EPOCH);
    due.duration_trunc(TimeDelta::days(1)).unwrap_or(due)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn the_floor_follows_the_longest_horizon_to_the_day() {
        let now = at(0);
        let midnight = now.duration_trunc(TimeDelta::days(1)).unwrap();
        assert_eq!(due(None, now), midnight - TimeDelta::days(8));
        assert_eq!(due(Some(TimeDelta::days(1)), now), midnight - TimeDelta::days(8));
        assert_eq!(due(Some(TimeDelta::days(20)), now), midnight - TimeDelta::days(21));
    }

    #[test]
    fn the_floor_is_lowered_to_its_horizon_and_not_below_what_was_removed() {
        let (now, day) = (at(0), TimeDelta::days(1));
        let mut status = FloorStatus {
            floor: now + day * 22,
            due: now - day * 8,
            emptied_before: None,
            database_time: now,
            clock_difference: None,
            running_since: None,
        };
        assert_eq!((status.lowest(), status.can_be_lowered()), (now - day * 8, true));
        status.emptied_before = Some(now - day * 9);
        assert_eq!(status.lowest(), now - day * 8);
        status.emptied_before = Some(now - day * 3);
        assert_eq!((status.lowest(), status.can_be_lowered()), (now - day * 3, true));
        status.floor = now - day * 3;
        assert!(!status.can_be_lowered());
    }

    #[test]
    fn rows_that_stay_are_noticed_when_a_process_should_have_removed_them() {
        let (now, day) = (at(0), TimeDelta::days(1));
        let mut status = FloorStatus {
            floor: now - day * 10,
            due: now - day * 8,
            emptied_before: None,
            database_time: now,
            clock_difference: None,
            running_since: None,
        };
        assert!(!status.is_behind());
        status.running_since = Some(now);
        assert!(!status.is_behind());
        status.running_since = Some(now - day);
        assert!(status.is_behind());
        status.floor = status.due;
        assert!(!status.is_behind());
    }
}
