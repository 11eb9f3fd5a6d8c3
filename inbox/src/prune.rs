//! Removes rows that no horizon needs any more: a day at a time by truncation, undated ids row by row.
//!
//! First the floor rises, for good, and then the rows go. A message made before the floor is refused whether its row is
//! still there or not, so no interruption and no later setting lets a copy through. What is removed is told by the rows
//! and by the floor, never by today's date: a row lives until the floor has passed the date of its own id, also if that
//! lay in the future when it was written.

use chrono::{DateTime, TimeDelta, Utc};
use message::MessageId;
use sqlx::{AssertSqlSafe, PgPool, PgTransaction, Row};
use uuid::Uuid;

use crate::day::{RING, UNDATED, lowest_id};
use crate::floor;
use crate::horizon::MARGIN;
use crate::statement::{self, Begin, SILENCE, is_locked};

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// How far the database's clock is ahead of this process's, if it differs by more than an hour: nothing was removed.
    pub clock_difference: Option<TimeDelta>,
    /// Whether a transaction kept the floor from rising: the next time.
    pub floor_locked: bool,
    /// Days that were truncated.
    pub days: u32,
    /// Partitions that another transaction had locked: the next time.
    pub locked: u32,
    /// Rows of undated ids that were deleted.
    pub undated: u64,
    /// Rows that were deleted because they lay in one partition with an id from the future.
    pub dated: u64,
}

/// Rows a transaction deletes, so that none is long.
const BATCH: i64 = 5_000;
/// Pages of undated ids that a transaction reads, so that none is long: a megabyte, some 9,000 rows.
const PAGES: i64 = 128;
/// How often the floor is to be raised: transactions above read committed lock it, each for its own time.
const RAISES: u32 = 20;

/// Removes what is older than the longest horizon of any consumer of this database (at least the default one), and a
/// day. A consumer does it when it starts and every hour; nobody else needs to. Its role needs TRUNCATE and DELETE on the
/// partitions of `inbox.message`.
///
/// A partition that is locked for more than 50 milliseconds is left for the next time, and so is a floor that is locked
/// for more than a second. If the clocks of the database and of this process differ by more than an hour, nothing is
/// removed: the floor would not come down again.
///
/// # Errors
/// The database could not be reached, or its role may not truncate.
pub async fn prune(pool: &PgPool) -> Result<Pruned, sqlx::Error> {
    let mut pruned = Pruned::default();
    let status = floor::read(pool).await?;
    if status.clock_difference.is_some() {
        pruned.clock_difference = status.clock_difference;
        return Ok(pruned);
    }
    pruned.floor_locked = status.due > status.floor && !raise(pool, status.due).await?;
    for slot in 0..UNDATED.end {
        let emptied = match slot {
            0..RING => empty_day(pool, slot, status.database_time, &mut pruned).await,
            _ => empty_undated(pool, slot, &mut pruned).await,
        };
        match emptied {
            Ok(()) => {}
            Err(error) if is_locked(&error) => pruned.locked += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(pruned)
}

/// Whether it could be raised.
async fn raise(pool: &PgPool, to: DateTime<Utc>) -> Result<bool, sqlx::Error> {
    for _ in 0..RAISES {
        let mut tx = begin(pool).await?;
        let raise = sqlx::query(include_str!("sql/raise_floor.sql")).bind(to).persistent(false);
        match raise.execute(&mut *tx).await {
            Ok(_) => {
                tx.commit().await?;
                return Ok(true);
            }
            Err(error) if is_locked(&error) => tx.rollback().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

async fn empty_day(
    pool: &PgPool,
    slot: usize,
    now: DateTime<Utc>,
    pruned: &mut Pruned,
) -> Result<(), sqlx::Error> {
    let mut tx = begin(pool).await?;
    let (floor, newest) = (keep_floor(&mut tx).await?, newest(&mut tx, slot).await?);
    tx.commit().await?;
    match newest {
        Some(newest) if newest < floor => pruned.days += u32::from(truncate(pool, slot).await?),
        // It is truncated when its newest row is past the floor, and that takes too long.
        Some(newest) if newest > now + MARGIN => while delete_before(pool, slot, pruned).await? {},
        _ => {}
    }
    Ok(())
}

/// Empties a day's partition if all of it is past the floor.
async fn truncate(pool: &PgPool, slot: usize) -> Result<bool, sqlx::Error> {
    let mut tx = begin(pool).await?;
    sqlx::raw_sql(sql(include_str!("sql/lock_slot.sql"), slot)).execute(&mut *tx).await?;
    // Another transaction may have written to it until now, or lowered the floor.
    let (floor, newest) = (keep_floor(&mut tx).await?, newest(&mut tx, slot).await?);
    let Some(newest) = newest.filter(|newest| *newest < floor) else {
        tx.rollback().await?;
        return Ok(false);
    };
    sqlx::raw_sql(sql(include_str!("sql/truncate_slot.sql"), slot)).execute(&mut *tx).await?;
    write_down(&mut tx, slot, newest).await?;
    tx.commit().await?;
    Ok(true)
}

/// Deletes some rows past the floor from a partition that holds a row from the future; whether there may be more.
async fn delete_before(pool: &PgPool, slot: usize, pruned: &mut Pruned) -> Result<bool, sqlx::Error> {
    let mut tx = begin(pool).await?;
    let floor = keep_floor(&mut tx).await?;
    let row = sqlx::query(sql(include_str!("sql/prune_day.sql"), slot))
        .bind(lowest_id(floor))
        .bind(BATCH)
        .persistent(false)
        .fetch_one(&mut *tx)
        .await?;
    let removed: i64 = row.try_get("removed")?;
    if let Some(newest) = row.try_get::<Option<Uuid>, _>("newest")?.and_then(made_at) {
        write_down(&mut tx, slot, newest).await?;
    }
    tx.commit().await?;
    pruned.dated += removed.unsigned_abs();
    Ok(removed == BATCH)
}

async fn empty_undated(pool: &PgPool, slot: usize, pruned: &mut Pruned) -> Result<(), sqlx::Error> {
    let size = sqlx::query(sql(include_str!("sql/pages.sql"), slot));
    // What is written meanwhile is not past the floor.
    let pages: i64 = statement::row(pool, size).await?.try_get("pages")?;
    let mut first = 0;
    while first < pages {
        let next = pages.min(first + PAGES);
        let mut tx = begin(pool).await?;
        let floor = keep_floor(&mut tx).await?;
        let delete =
            sqlx::query(sql(include_str!("sql/prune_slot.sql"), slot)).bind(floor).bind(first).bind(next);
        pruned.undated += delete.persistent(false).execute(&mut *tx).await?.rows_affected();
        tx.commit().await?;
        first = next;
    }
    Ok(())
}

/// A transaction that waits for no lock longer than 50 milliseconds.
async fn begin(pool: &PgPool) -> Result<PgTransaction<'_>, sqlx::Error> {
    let mut tx = pool.begin_bounded(SILENCE).await?;
    sqlx::raw_sql(include_str!("sql/lock_timeout.sql")).execute(&mut *tx).await?;
    Ok(tx)
}

async fn keep_floor(tx: &mut PgTransaction<'_>) -> Result<DateTime<Utc>, sqlx::Error> {
    let keep = sqlx::query_scalar(include_str!("sql/keep_floor.sql")).persistent(false);
    keep.fetch_one(&mut **tx).await
}

/// When the newest message of a partition was made; `None`: it is empty.
async fn newest(tx: &mut PgTransaction<'_>, slot: usize) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    let newest = sqlx::query_scalar(sql(include_str!("sql/newest.sql"), slot)).persistent(false);
    Ok(newest.fetch_optional(&mut **tx).await?.and_then(made_at))
}

/// Writes down the newest day of which rows are removed.
async fn write_down(
    tx: &mut PgTransaction<'_>,
    slot: usize,
    newest: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let emptied = sqlx::query(include_str!("sql/emptied.sql"))
        .bind(i16::try_from(slot).unwrap_or_default())
        .bind(newest.date_naive());
    emptied.persistent(false).execute(&mut **tx).await?;
    Ok(())
}

fn made_at(id: Uuid) -> Option<DateTime<Utc>> {
    MessageId::try_from(id).ok()?.made_at()
}

/// A partition's name is no parameter of a statement.
fn sql(template: &'static str, slot: usize) -> AssertSqlSafe<String> {
    AssertSqlSafe(template.replace("{slot}", &slot.to_string()))
}
