//! What is scheduled and not yet in the log.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgPool;
use sqlx::{Executor, Row};

use super::ANSWER;
use crate::statement::{alone, within};

/// So many are counted.
const COUNTED: i64 = 10_000;

/// The scheduled messages that wait to be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Scheduled {
    /// How many, up to 10,000.
    pub waiting: i64,
    /// There are more than that.
    pub more: bool,
    /// When the next one is due; long past: no relay runs that would move it into the log.
    pub next_due: Option<DateTime<Utc>>,
}

/// How many messages are scheduled, and when the next one is due.
///
/// # Errors
/// The database does not answer within a minute.
pub async fn scheduled(pool: &PgPool) -> Result<Scheduled, sqlx::Error> {
    let row = pool.fetch_one(sqlx::raw_sql(alone(include_str!("sql/scheduled.sql"))));
    let row = within(ANSWER, row).await?;
    let waiting: i64 = row.try_get("waiting")?;
    Ok(Scheduled {
        waiting: waiting.min(COUNTED),
        more: waiting > COUNTED,
        next_due: row.try_get("next_due")?,
    })
}
