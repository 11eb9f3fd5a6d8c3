//! An attempt at a held key is counted before it is made: if it ends the process, the next one knows.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use message::Publisher;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::holds::{Due, Holds};
use crate::statement::{Begin, SPEECH, within};

/// How long the database may take to count an attempt and to send the message, which may be long.
const ANSWER: Duration = Duration::from_secs(60);

/// Attempts that may have been counted and were not made, because the answer to their COMMIT did not come: by the position
/// that names the hold, how many were counted before.
#[derive(Debug, Default)]
pub(super) struct Unmade(Mutex<HashMap<i64, i32>>);

impl Unmade {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<i64, i32>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<P: Publisher> Holds<P> {
    /// Counts an attempt and answers its message (`begin_attempt.sql`). One that was counted and not made is not counted again.
    pub(super) async fn claim(&self, due: &Due, again: Duration) -> Result<Option<PgRow>, sqlx::Error> {
        within(ANSWER, self.count(due, again)).await
    }

    async fn count(&self, due: &Due, again: Duration) -> Result<Option<PgRow>, sqlx::Error> {
        let query = sqlx::query(include_str!("sql/begin_attempt.sql"))
            .bind(&self.relay)
            .bind(due.position)
            .bind(due.shard)
            .bind(due.epoch)
            .bind(again.as_secs_f64())
            .bind(i32::try_from(self.settings.max_attempts).unwrap_or(i32::MAX))
            .bind(self.unmade.with(|unmade| unmade.get(&due.position).copied()));
        let mut tx = self.pool.begin_bounded().await?;
        // The answer may be long, and so may the way.
        sqlx::raw_sql(SPEECH).execute(&mut *tx).await?;
        let row = query.persistent(false).fetch_optional(&mut *tx).await?;
        let before = row.as_ref().map(|row| row.try_get::<i32, _>("attempts")).transpose()?;
        if let Some(counted) = before {
            self.unmade.with(|unmade| unmade.insert(due.position, counted - 1));
        }
        tx.commit().await?;
        self.unmade.with(|unmade| unmade.remove(&due.position));
        Ok(row)
    }
}
