//! What a soak of several processes has counted beside the rest: what was done to them, who owned the shards, and what the
//! copies on the wire are owed to.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::disturber::Disturbances;
use super::relay::SHARED_UNRECORDED;
use super::repeats::{Acquisition, Explained, Repeat, Warning, explain};
use super::run::say;
use super::watch::Watched;
use super::wire::Wire;

/// Of copies that nothing explains, so many are named.
const MOST_SAID: usize = 10;
/// With what happened to the shard and the processes in so many seconds before.
const BEFORE: f64 = 8.0;

/// Counted only with several processes.
#[derive(Debug, Default, Serialize)]
pub(super) struct Sharing {
    pub(super) relays: u64,
    pub(super) lease_ms: u64,
    pub(super) max_unrecorded: u64,
    /// The first of each process included.
    pub(super) starts: u64,
    pub(super) polite_stops: u64,
    pub(super) freezes: u64,
    pub(super) freezes_outliving_the_lease: u64,
    /// Shards that a process took from another that had not given them up.
    pub(super) takeovers: u64,
    /// Processes that nobody had touched and that were too slow for their lease.
    pub(super) leases_lost_by_slowness: u64,
    pub(super) most_shards_of_one_while_settled: u64,
    pub(super) settled_samples: u64,
    pub(super) samples: u64,
    pub(super) longest_gap_between_samples_ms: u64,
    pub(super) longest_unowned_ms: u64,
    /// Kills, freezes and leases lost by slowness, each with all that it may repeat.
    pub(super) duplicates_bound: u64,
    pub(super) most_duplicates_of_one_loss: u64,
    pub(super) duplicates_unexplained: u64,
}

impl Sharing {
    /// Counts. Naive relays leave no trace of who owned what, so all of their copies are unexplained.
    pub(super) async fn count(
        relays: usize,
        lease: Duration,
        disturbances: &Disturbances,
        warnings: &[Warning],
        watched: &Watched,
        wire: &Wire,
        producer: &PgPool,
    ) -> Result<Sharing> {
        let acquisitions = acquisitions(producer).await?;
        let repeats = repeats(watched, wire, producer).await?;
        let Explained { takeovers, slow, unexplained, most_of_one_loss } =
            explain(&acquisitions, &disturbances.blows, warnings, &repeats);
        for repeat in unexplained.iter().take(MOST_SAID) {
            say(&format!("a copy that nothing explains: {repeat:?}"))?;
            let about = repeat.enqueued_at - BEFORE..=repeat.at + 1.0;
            for acquisition in
                acquisitions.iter().filter(|it| it.shard == repeat.shard && about.contains(&it.at))
            {
                say(&format!("  {acquisition:?}"))?;
            }
            for warning in warnings.iter().filter(|warning| about.contains(&warning.at)) {
                say(&format!("  {warning:?}"))?;
            }
            for blow in disturbances.blows.iter().filter(|blow| about.contains(&blow.at)) {
                say(&format!("  {blow:?}"))?;
            }
        }
        say(&format!("longest without an owner: {:?}", watched.longest_unowned))?;
        let blows = disturbances.kills.all + disturbances.freezes;
        Ok(Sharing {
            relays: relays as u64,
            lease_ms: lease.as_millis() as u64,
            max_unrecorded: SHARED_UNRECORDED,
            starts: disturbances.starts,
            polite_stops: disturbances.polite_stops,
            freezes: disturbances.freezes,
            freezes_outliving_the_lease: disturbances.freezes_outliving_the_lease,
            takeovers,
            leases_lost_by_slowness: slow,
            most_shards_of_one_while_settled: watched.most_of_one_while_settled,
            settled_samples: watched.settled_samples,
            samples: watched.samples,
            longest_gap_between_samples_ms: watched.longest_gap_ms,
            longest_unowned_ms: watched.longest_unowned.ms(),
            duplicates_bound: (blows + slow) * SHARED_UNRECORDED,
            most_duplicates_of_one_loss: most_of_one_loss,
            duplicates_unexplained: unexplained.len() as u64,
        })
    }

    /// A shard was nobody's for longer than a dead process's lease and a second. Whoever disturbs the processes leaves one at
    /// work that has long had its place ([`Roster`](super::roster::Roster)), so there is always somebody who could have taken
    /// it, and nothing has to be forgiven.
    pub(super) fn unowned_too_long(&self) -> bool {
        self.longest_unowned_ms > self.lease_ms + 1000
    }

    /// Copies that may not be there: owed to nothing, or too many for what they are owed to.
    pub(super) fn forbidden_duplicates(&self, duplicates: u64) -> u64 {
        self.duplicates_unexplained
            + self.most_duplicates_of_one_loss.saturating_sub(self.max_unrecorded)
            + duplicates.saturating_sub(self.duplicates_bound)
    }
}

async fn acquisitions(producer: &PgPool) -> Result<Vec<Acquisition>> {
    let rows = sqlx::query(include_str!("sql/acquisitions.sql")).fetch_all(producer).await?;
    let acquisitions = rows.iter().map(|row| {
        Ok(Acquisition {
            shard: row.try_get("shard")?,
            previous: row.try_get("previous")?,
            owner: row.try_get("owner")?,
            label: row.try_get("label")?,
            at: row.try_get("at")?,
        })
    });
    acquisitions.collect()
}

async fn repeats(watched: &Watched, wire: &Wire, producer: &PgPool) -> Result<Vec<Repeat>> {
    let repeats = wire.repeats();
    let ids: Vec<Uuid> = repeats.iter().map(|(id, _)| *id).collect();
    let rows: Vec<(Uuid, Option<i16>, f64)> =
        sqlx::query_as(include_str!("sql/places.sql")).bind(&ids).fetch_all(producer).await?;
    let places: HashMap<Uuid, (Option<i16>, f64)> =
        rows.into_iter().map(|(id, shard, enqueued_at)| (id, (shard, enqueued_at))).collect();
    let repeats = repeats.into_iter().map(|(message, at)| {
        // A naive relay's copies are in no shard, and at no time that anybody knows.
        let (shard, enqueued_at) = places.get(&message).copied().unwrap_or_default();
        let at = watched.clock.map_or(0.0, |clock| clock.of_database(at));
        Repeat { message, shard: shard.unwrap_or(-1), enqueued_at, at }
    });
    Ok(repeats.collect())
}
