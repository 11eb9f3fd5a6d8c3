//! Removes rows that no horizon needs any more: a day at a time by truncation, undated ids row by row.
//!
//! First the floor rises, for good, and then the rows go. A message made before the floor is refused whether its row is
//! still there or not, so no interruption and no later setting lets a copy through.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::horizon::{Horizon, MARGIN, free_slots};
use crate::statement::{self, Begin, SILENCE};

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// Days that were truncated.
    pub days: u32,
    /// Days that should have been and were locked by someone: the next time.
    pub locked: u32,
    /// Rows of undated ids that were deleted.
    pub undated: u64,
}

/// The partitions of undated ids.
const UNDATED: std::ops::RangeInclusive<i64> = 32..=35;
/// Rows a transaction deletes, so that none is long.
const BATCH: i64 = 5_000;

/// Removes what is older than the longest horizon of any consumer of this database (at least the default one), and a
/// day. A consumer does it when it starts and every hour; nobody else needs to. Its role needs TRUNCATE on the partitions
/// of `inbox.message`.
///
/// It never waits: a partition that is locked for more than 50 milliseconds is left for the next time.
///
/// # Errors
/// The database could not be reached, or its role may not truncate.
pub async fn prune(pool: &PgPool) -> Result<Pruned, sqlx::Error> {
    let raise = sqlx::query(include_str!("sql/raise_floor.sql"))
        .bind(Horizon::default().seconds())
        .bind(MARGIN.num_seconds());
    let row = statement::row(pool, raise).await?;
    let (floor, now): (DateTime<Utc>, DateTime<Utc>) = (row.try_get("floor")?, row.try_get("now")?);
    let mut pruned = Pruned::default();
    for slot in free_slots(floor, now) {
        let in_use = sqlx::query(sql(include_str!("sql/slot_in_use.sql"), slot));
        if !statement::row(pool, in_use).await?.try_get::<bool, _>(0)? {
            continue;
        }
        match truncate(pool, slot).await {
            Ok(()) => pruned.days += 1,
            Err(error) if is_locked(&error) => pruned.locked += 1,
            Err(error) => return Err(error),
        }
    }
    for slot in UNDATED {
        loop {
            let delete = sqlx::query(sql(include_str!("sql/prune_slot.sql"), slot)).bind(floor).bind(BATCH);
            let deleted = statement::run(pool, delete).await?;
            pruned.undated += deleted;
            if deleted < BATCH.unsigned_abs() {
                break;
            }
        }
    }
    Ok(pruned)
}

async fn truncate(pool: &PgPool, slot: i64) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin_bounded(SILENCE).await?;
    sqlx::raw_sql(include_str!("sql/lock_timeout.sql")).execute(&mut *tx).await?;
    sqlx::raw_sql(sql(include_str!("sql/truncate_slot.sql"), slot)).execute(&mut *tx).await?;
    tx.commit().await
}

/// A partition's name is no parameter of a statement.
fn sql(template: &'static str, slot: i64) -> AssertSqlSafe<String> {
    AssertSqlSafe(template.replace("{slot}", &slot.to_string()))
}

fn is_locked(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().is_some_and(|code| code == "55P03"))
}
