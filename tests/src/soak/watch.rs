//! Watches who owns the shards, by the database's clock, for as long as it is not stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::Result;
use sqlx::{PgConnection, PgPool, Row};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::unowned::{Owned, Owners, Stretch, most_of_one};

const EVERY: Duration = Duration::from_millis(50);

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pub(super) samples: u64,
    /// Between two samples: what the longest stretch may be too short by.
    pub(super) longest_gap_ms: u64,
    pub(super) longest_unowned: Stretch,
    /// Samples while all processes were at work and had their places, and the most shards that one had then.
    pub(super) settled_samples: u64,
    pub(super) most_of_one_while_settled: u64,
    pub(super) clock: Option<Clock>,
}

/// What the database's clock says when ours says something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    at: Instant,
    database: f64,
    /// How long asking took: the less, the better it is known.
    took: Duration,
}

impl Clock {
    /// The database's time, in seconds, at a moment of ours.
    pub(super) fn of_database(&self, at: Instant) -> f64 {
        let since = at.saturating_duration_since(self.at).as_secs_f64();
        self.database + since - self.at.saturating_duration_since(at).as_secs_f64()
    }
}

/// Samples with the query `owners` until it is stopped. `settled`: whether all processes are at work and nobody is about to
/// disturb them.
pub(super) async fn watch(
    pool: PgPool,
    owners_of: &'static str,
    settled: Arc<AtomicBool>,
    stop: CancellationToken,
) -> Result<Watched> {
    let mut connection = pool.acquire().await?;
    let (mut watched, mut owners) = (Watched::default(), Owners::default());
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<Instant> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        let (before, asked) = (settled.load(SeqCst), Instant::now());
        let sample = sample(&mut connection, owners_of).await?;
        let (after, answered) = (settled.load(SeqCst), Instant::now());
        let Some(first) = sample.first() else { continue };
        let clock = Clock { at: answered, database: first.now, took: answered - asked };
        if watched.clock.is_none_or(|known| clock.took < known.took) {
            watched.clock = Some(clock);
        }
        let gap = last.replace(answered).map_or(Duration::ZERO, |last| answered - last);
        watched.longest_gap_ms = watched.longest_gap_ms.max(gap.as_millis() as u64);
        watched.samples += 1;
        owners.see(&sample);
        if before && after {
            watched.settled_samples += 1;
            watched.most_of_one_while_settled = watched.most_of_one_while_settled.max(most_of_one(&sample));
        }
    }
    watched.longest_unowned = owners.longest_unowned();
    Ok(watched)
}

async fn sample(connection: &mut PgConnection, owners_of: &'static str) -> Result<Vec<Owned>> {
    let rows = sqlx::query(owners_of).fetch_all(connection).await?;
    let owned = rows.iter().map(|row| {
        Ok(Owned {
            shard: row.try_get("shard")?,
            epoch: row.try_get("epoch")?,
            owner: row.try_get("owner")?,
            expires_at: row.try_get("expires_at")?,
            now: row.try_get("now")?,
        })
    });
    owned.collect()
}
