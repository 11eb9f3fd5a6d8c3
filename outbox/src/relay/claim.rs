//! Attempts at held keys are counted before they are made: if one ends the process, the next one knows.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::holds::{Due, Holds};
use crate::statement::{self, Begin, within};

/// How long the database may take to count attempts.
const COUNTED: Duration = Duration::from_secs(10);
/// How long it may take to send the messages, which may be long.
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

/// A key whose attempt was counted.
#[derive(Debug)]
pub(super) struct Claimed {
    /// The position that names the hold.
    pub(super) held: i64,
    /// Attempts counted, with this one.
    pub(super) attempts: i32,
}

impl<P> Holds<P> {
    /// Counts an attempt at each key, and answers those of which one is to be made, and their first messages, those of each key in
    /// order: of each at most so many. One that was counted and not made is not counted again.
    pub(super) async fn claim(
        &self,
        keys: &[Due],
        again: Duration,
        messages: usize,
    ) -> Result<(Vec<Claimed>, Vec<PgRow>), sqlx::Error> {
        let (claimed, positions) = within(COUNTED, self.count(keys, again, messages)).await?;
        // Not in the transaction that counts: its locks would be kept until they have arrived.
        let query = sqlx::query(include_str!("sql/messages_to_try.sql")).bind(&self.relay).bind(positions);
        let rows = within(ANSWER, statement::read(&self.pool, query)).await?;
        let counted: Vec<(i64, i32)> =
            claimed.iter().map(|claimed| (claimed.held, claimed.attempts)).collect();
        self.unmade.are_made(&counted);
        Ok((claimed, rows))
    }

    async fn count(
        &self,
        keys: &[Due],
        again: Duration,
        messages: usize,
    ) -> Result<(Vec<Claimed>, Vec<i64>), sqlx::Error> {
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
        let rows = query.persistent(false).fetch_all(&mut *tx).await?;
        let (mut claimed, mut positions) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in &rows {
            claimed.push(Claimed { held: row.try_get("held")?, attempts: row.try_get("attempts")? });
            positions.extend(row.try_get::<Vec<Option<i64>>, _>("positions")?.into_iter().flatten());
        }
        let counted: Vec<(i64, i32)> =
            claimed.iter().map(|claimed| (claimed.held, claimed.attempts - 1)).collect();
        self.unmade.count(&counted);
        tx.commit().await?;
        Ok((claimed, positions))
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
