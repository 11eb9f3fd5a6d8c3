//! Attempts at held keys are counted before they are made: if one ends the process, the next one knows.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::holds::{Due, Holds};
use crate::statement::{Begin, SPEECH, within};

/// How long the database may take to count attempts and to send the messages, which may be long.
const ANSWER: Duration = Duration::from_secs(60);
/// Bytes of payload after which a try takes no more messages.
const BYTES: i64 = 8 << 20;

/// Attempts that may have been counted and were not made, because the answer to their COMMIT did not come: by the position
/// that names the hold, how many were counted before.
#[derive(Debug, Default)]
pub(super) struct Unmade(Mutex<HashMap<i64, i32>>);

impl Unmade {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<i64, i32>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many attempts at each of these keys were made, if one more may have been counted.
    fn made(&self, keys: impl Iterator<Item = i64>) -> Vec<Option<i32>> {
        self.with(|unmade| keys.map(|key| unmade.get(&key).copied()).collect())
    }

    /// One more attempt at each of these is counted when COMMIT is answered, or may be if it is not.
    fn count(&self, counted: &[(i64, i32)]) {
        self.with(|unmade| unmade.extend(counted.iter().copied()));
    }

    /// COMMIT is answered: these attempts are made now. A key of the same batch that is not tried this time stays as it was.
    fn are_made(&self, counted: &[(i64, i32)]) {
        self.with(|unmade| {
            for (key, _) in counted {
                unmade.remove(key);
            }
        });
    }
}

impl<P> Holds<P> {
    /// Counts an attempt at each key, and answers their first messages (`begin_attempts.sql`): of each key at most so many. One
    /// that was counted and not made is not counted again.
    pub(super) async fn claim(
        &self,
        keys: &[Due],
        again: Duration,
        messages: usize,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        within(ANSWER, self.count(keys, again, messages)).await
    }

    async fn count(&self, keys: &[Due], again: Duration, messages: usize) -> Result<Vec<PgRow>, sqlx::Error> {
        let made = self.unmade.made(keys.iter().map(|key| key.position));
        let query = sqlx::query(include_str!("sql/begin_attempts.sql"))
            .bind(&self.relay)
            .bind(keys.iter().map(|key| key.position).collect::<Vec<_>>())
            .bind(keys.iter().map(|key| key.shard).collect::<Vec<_>>())
            .bind(keys.iter().map(|key| key.epoch).collect::<Vec<_>>())
            .bind(again.as_secs_f64())
            .bind(i32::try_from(self.settings.max_attempts).unwrap_or(i32::MAX))
            .bind(i64::try_from(messages).unwrap_or(i64::MAX))
            .bind(BYTES)
            .bind(made);
        let mut tx = self.pool.begin_bounded().await?;
        // The answer may be long, and so may the way.
        sqlx::raw_sql(SPEECH).execute(&mut *tx).await?;
        let rows = query.persistent(false).fetch_all(&mut *tx).await?;
        let counted =
            rows.iter().map(|row| Ok((row.try_get("held")?, row.try_get::<i32, _>("attempts")? - 1)));
        let counted: Vec<(i64, i32)> = counted.collect::<Result<_, sqlx::Error>>()?;
        self.unmade.count(&counted);
        tx.commit().await?;
        self.unmade.are_made(&counted);
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_was_counted_and_not_made_is_remembered_while_others_of_its_batch_are_made() {
        let unmade = Unmade::default();
        // The answer to this COMMIT is lost.
        unmade.count(&[(1, 4), (2, 0)]);
        assert_eq!(unmade.made([1, 2, 3].into_iter()), [Some(4), Some(0), None]);
        // The second key has no place in the next batch: the first has taken all the bytes.
        unmade.count(&[(1, 4)]);
        unmade.are_made(&[(1, 4)]);
        assert_eq!(unmade.made([1, 2].into_iter()), [None, Some(0)]);
        unmade.are_made(&[(2, 0)]);
        assert_eq!(unmade.made([2].into_iter()), [None]);
    }
}
