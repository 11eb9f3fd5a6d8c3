//! How the shards of a relay are spread over its processes. No I/O but the renewal that reads it.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgPool;
use tokio::time::Instant;
use uuid::Uuid;

use crate::statement;

/// How a process stands among those of its relay, as of its last renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The relay is neither paused nor retired.
    pub running: bool,
    /// How often the sharing has changed: a look that sees another number is reason to renew at once.
    pub changes: i64,
    /// Processes that are alive, and how many of them began before this one.
    pub processes: i64,
    /// See [`processes`](Self::processes).
    pub rank: i64,
    /// Shards of the relay.
    pub shards: i64,
    /// Shards that nobody alive owns.
    pub free: i64,
    /// Those of them that nobody has taken for half a lease: whoever they are left to may be dead already, and as long as one
    /// process after another dies, there is always somebody who seems to be about to take them.
    pub overdue: i64,
    /// The shards that this process owns, and at which epochs.
    pub owned: Vec<(i16, i64)>,
    /// When another process will be dead if it is not heard of.
    pub expires_in: Option<Duration>,
    /// By the local clock, just before the database was asked: the lease lasts at least from then on.
    pub renewed: Instant,
}

/// What a process should do about its shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// It has its share.
    Stay,
    /// It has so many too many.
    Give(usize),
    /// It has too few, and some are free; or some are overdue.
    Take,
}

impl Share {
    /// How many shards this process should own. Over all processes that is every shard, and no two differ by more than
    /// one; one process more or less changes it by as little.
    pub fn fair(&self) -> usize {
        let processes = self.processes.max(1);
        let one_more = i64::from(self.rank < self.shards % processes);
        usize::try_from(self.shards / processes + one_more).unwrap_or_default()
    }

    /// What to do with so many shards in hand.
    pub fn next(&self, owned: usize) -> Move {
        let fair = self.fair();
        if (owned < fair && self.free > 0) || self.overdue > 0 {
            Move::Take
        } else if owned > fair {
            Move::Give(owned - fair)
        } else {
            Move::Stay
        }
    }

    /// How many shards to own after a [`Move::Take`]: its fair share, or, if it has that, its part of what is overdue more.
    pub fn most(&self) -> usize {
        let overdue = usize::try_from(self.overdue).unwrap_or_default();
        if self.goes_beyond() {
            self.owned.len() + overdue.div_ceil(usize::try_from(self.processes).unwrap_or(1).max(1))
        } else {
            self.fair()
        }
    }

    /// Whether what it takes now is more than its fair share.
    pub fn goes_beyond(&self) -> bool {
        self.overdue > 0 && self.owned.len() >= self.fair()
    }

    /// Whether a process that has had so many shards for so long should share them anew. What it took `beyond` its fair share
    /// it keeps for half a lease: given back at once, it would be nobody's again as long as whom it is left to is dead.
    pub fn is_due(&self, owned: usize, had_for: Duration, beyond: bool, lease: Duration) -> bool {
        match self.next(owned) {
            Move::Stay => false,
            Move::Take => owned < self.fair() || had_for >= lease / 4,
            Move::Give(_) => !beyond || had_for >= lease / 2,
        }
    }

    /// Whether this process still owns a shard as it did.
    pub fn owns(&self, shard: i16, epoch: i64) -> bool {
        self.owned.contains(&(shard, epoch))
    }

    /// Renews a process's lease and reads how it stands. `None`: it was thought dead, and must join again.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn renew(
        pool: &PgPool,
        relay: &str,
        process: Uuid,
        lease: Duration,
    ) -> Result<Option<Self>, sqlx::Error> {
        let ask = async || {
            let query = sqlx::query(include_str!("sql/renew.sql")).bind(relay).bind(process);
            statement::optional(pool, query.bind(lease.as_secs_f64())).await
        };
        let mut renewed = Instant::now();
        let Some(mut row) = ask().await? else { return Ok(None) };
        if row.try_get("was_dead")? {
            // Once more: what was taken of it until it was alive again is committed now.
            renewed = Instant::now();
            let Some(again) = ask().await? else { return Ok(None) };
            row = again;
        }
        let (shards, epochs): (Vec<i16>, Vec<i64>) = (row.try_get("owned")?, row.try_get("epochs")?);
        let expires_in: Option<f64> = row.try_get("expires_in")?;
        Ok(Some(Share {
            running: row.try_get::<&str, _>("state")? == "running",
            changes: row.try_get("changes")?,
            processes: row.try_get("processes")?,
            rank: row.try_get("rank")?,
            shards: row.try_get("shards")?,
            free: row.try_get("free")?,
            overdue: row.try_get("overdue")?,
            owned: shards.into_iter().zip(epochs).collect(),
            expires_in: expires_in.map(|left| Duration::try_from_secs_f64(left).unwrap_or_default()),
            renewed,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(shards: i64, processes: i64, rank: i64) -> Share {
        let (owned, expires_in, renewed) = (Vec::new(), None, Instant::now());
        Share {
            running: true,
            changes: 0,
            processes,
            rank,
            shards,
            free: 1,
            overdue: 0,
            owned,
            expires_in,
            renewed,
        }
    }

    #[test]
    fn fair_shares_together_are_all_shards_and_no_two_differ_by_more_than_one() {
        for shards in 1..=64 {
            for processes in 1..=80 {
                let fair: Vec<usize> =
                    (0..processes).map(|rank| share(shards, processes, rank).fair()).collect();
                assert_eq!(fair.iter().sum::<usize>(), usize::try_from(shards).unwrap());
                assert!(fair.iter().max().unwrap() - fair.iter().min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn who_has_too_many_gives_and_who_has_too_few_takes_only_what_is_free() {
        let mut share = share(16, 2, 0);
        assert_eq!((share.next(16), share.next(8), share.next(7)), (Move::Give(8), Move::Stay, Move::Take));
        share.free = 0;
        assert_eq!(share.next(7), Move::Stay);
    }

    #[test]
    fn what_is_overdue_is_taken_beyond_the_fair_share_and_kept_for_a_while() {
        let (lease, long) = (Duration::from_secs(8), Duration::from_secs(4));
        let mut share = share(16, 4, 0);
        share.owned = (0..4).map(|shard| (shard, 1)).collect();
        assert!(!share.is_due(4, long, false, lease));
        share.overdue = 5;
        assert_eq!((share.next(4), share.most()), (Move::Take, 6));
        assert!(share.is_due(4, long / 2, false, lease) && !share.is_due(4, long / 4, false, lease));
        share.owned.pop();
        assert_eq!((share.next(3), share.most()), (Move::Take, 4));
        assert!(share.is_due(3, Duration::ZERO, false, lease));
        share.overdue = 0;
        assert_eq!(share.next(6), Move::Give(2));
        assert!(share.is_due(6, Duration::ZERO, false, lease) && share.is_due(6, long, true, lease));
        assert!(!share.is_due(6, long / 2, true, lease));
    }
}
