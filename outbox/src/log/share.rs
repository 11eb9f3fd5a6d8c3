//! How the shards of a relay are spread over its processes: each takes its fair share and gives back what is more.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool};

use super::LogError;
use super::store::{Cursor, Store, cursor};

/// How many processes work for a relay, and what there is to share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Processes that are alive.
    pub processes: i64,
    /// Shards of the relay.
    pub shards: i64,
    /// Shards that nobody alive owns.
    pub free: i64,
}

impl Share {
    /// The most shards that one process should own: so many that all processes together can own all.
    pub fn fair(&self) -> usize {
        let processes = self.processes.max(1);
        usize::try_from((self.shards + processes - 1) / processes).unwrap_or_default()
    }

    /// Reads how the shards of a relay are shared now.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn read(pool: &PgPool, relay: &str) -> Result<Self, LogError> {
        let row = sqlx::query(include_str!("sql/share.sql")).bind(relay).fetch_one(pool).await?;
        Ok(Share {
            processes: row.try_get("processes")?,
            shards: row.try_get("shards")?,
            free: row.try_get("free")?,
        })
    }
}

impl Store {
    /// Takes again the shards that this process owned before it lost sight of them, and of those that nobody alive owns
    /// as many as make up `most`. Answers the cursors of all that it owns then.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn acquire_share(
        &mut self,
        connection: &mut PgConnection,
        most: usize,
    ) -> Result<Vec<Cursor>, LogError> {
        let rows = sqlx::query(include_str!("sql/acquire_share.sql"))
            .bind(&self.relay)
            .bind(self.process)
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .fetch_all(&mut *connection)
            .await?;
        let mut cursors = rows.iter().map(cursor).collect::<Result<Vec<_>, _>>()?;
        cursors.sort_by_key(|cursor| cursor.shard);
        self.own(&cursors);
        self.bury(connection).await?;
        Ok(cursors)
    }

    /// Hands over some of this process's shards, so that another takes them at once. What it has delivered of them must
    /// be recorded before.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn release(&mut self, connection: &mut PgConnection, shards: &[i16]) -> Result<(), LogError> {
        sqlx::query(include_str!("sql/release_some.sql"))
            .bind(&self.relay)
            .bind(self.process)
            .bind(shards)
            .execute(connection)
            .await?;
        self.owned.retain(|owned| !shards.contains(&owned.0));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fair_shares_together_cover_all_shards_and_nobody_has_more_than_one_above_the_average() {
        for shards in 1..=64 {
            for processes in 0..=80 {
                let fair = i64::try_from(Share { processes, shards, free: 0 }.fair()).unwrap();
                assert!(fair * processes.max(1) >= shards, "{shards} over {processes}");
                assert!((fair - 1) * processes.max(1) < shards, "{shards} over {processes}");
            }
        }
    }
}
