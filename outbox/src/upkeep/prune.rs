//! Empties the leaves of the log that no relay needs any more, each by one truncation. Two who do it at once lose nothing:
//! what decides is looked at again when nobody else can be in the leaf.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use message::clock_difference;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Connection, PgTransaction, Row};
use tokio_util::sync::CancellationToken;

use crate::log::{LEAVES, leaf};
use crate::statement::BEGIN_LONG;

/// Which leaves of the log were emptied, by number, and why others were not that had come of age.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// Emptied.
    pub emptied: Vec<i64>,
    /// Some relay has not delivered all of it yet ([`admin::status`](crate::admin::status) says which).
    pub pinned: Vec<i64>,
    /// Somebody else is in it: the next time.
    pub locked: Vec<i64>,
}

/// So many leaves after the next one are emptied before their time, so that the log goes round in its ring: the messages
/// that are kept are the last twelve million or so, however long they should have been kept.
const NEEDED_SOON: i64 = 2;

/// Empties the leaves of the log in which every message is delivered by every relay that is not retired, and either is
/// older than any of them wants it kept, or lies where the log will be written soon. A process that runs a relay does it
/// every few seconds; nobody else needs to. Its role needs TRUNCATE on the leaves of `outbox.message`.
///
/// It never waits: a leaf that is locked for more than 50 milliseconds is left for the next time. While the clocks of the
/// database and of this process differ by more than an hour, no leaf counts as old.
///
/// # Errors
/// The database could not be reached, or its role may not truncate.
pub async fn prune(pool: &PgPool) -> Result<Pruned, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    Ok(sweep(&mut connection, &CancellationToken::new()).await?.pruned)
}

/// What a look over all leaves came to.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    pub(super) pruned: Pruned,
    /// The last position drawn, if any leaf holds anything.
    pub(super) last_position: Option<i64>,
}

/// As [`prune`], but begins no further leaf once it is told to stop.
pub(super) async fn sweep(
    connection: &mut PgConnection,
    stop: &CancellationToken,
) -> Result<Sweep, sqlx::Error> {
    let mut sweep = Sweep::default();
    let mut ripe = Vec::new();
    let all: Vec<i64> = (0..LEAVES).collect();
    let mut seen = looks(&mut *connection, &all).await;
    if seen.as_ref().is_err_and(gave_way) {
        // Somebody has a leaf to himself: the others are looked at without it.
        let mut one_by_one = Vec::new();
        for leaf in all {
            match looks(&mut *connection, &[leaf]).await {
                Ok(look) => one_by_one.extend(look),
                Err(error) if gave_way(&error) => sweep.pruned.locked.push(leaf),
                Err(error) => return Err(error),
            }
        }
        seen = Ok(one_by_one);
    }
    for (leaf, last, aged) in seen? {
        sweep.last_position = Some(last);
        if is_ripe(leaf, last, aged) {
            ripe.push((ahead(leaf, last), leaf));
        }
    }
    // Those that will be written first, first.
    ripe.sort_unstable();
    for (_, leaf) in ripe {
        if stop.is_cancelled() {
            break;
        }
        let pruned = &mut sweep.pruned;
        match prune_leaf(&mut *connection, leaf).await {
            Ok(Fate::Emptied) => {
                metrics::counter!("outbox_emptied_leaves_total").increment(1);
                pruned.emptied.push(leaf);
            }
            Ok(Fate::Pinned) => pruned.pinned.push(leaf),
            Ok(Fate::Changed) => {}
            Err(error) if gave_way(&error) => pruned.locked.push(leaf),
            Err(error) => return Err(error),
        }
    }
    Ok(sweep)
}

/// How old leaves are, and where the log stands.
async fn looks(connection: &mut PgConnection, leaves: &[i64]) -> Result<Vec<(i64, i64, bool)>, sqlx::Error> {
    let all: Vec<String> = leaves.iter().map(|leaf| sql(include_str!("sql/leaf.sql"), *leaf)).collect();
    let mut tx = begin(connection).await?;
    let asked = Utc::now();
    // Unnamed, as everything that looks into a leaf: a plan kept from when it was empty would scan it whole for ever.
    let looks = sqlx::query(AssertSqlSafe(all.join("\nunion all\n"))).persistent(false);
    let rows = looks.fetch_all(&mut *tx).await?;
    tx.commit().await?;
    rows.iter().map(|row| look(row, asked)).collect()
}

/// What became of a leaf that was ripe.
enum Fate {
    Emptied,
    Pinned,
    /// Emptied by another meanwhile, or written to.
    Changed,
}

async fn prune_leaf(connection: &mut PgConnection, leaf: i64) -> Result<Fate, sqlx::Error> {
    // First without a lock, in a transaction of its own: whoever shares the leaf and wants it alone waits for the other
    // who does the same.
    let mut tx = begin(connection).await?;
    let pinned = !pin(&mut tx, leaf, Some(1)).await?.is_empty();
    tx.commit().await?;
    if pinned {
        return Ok(Fate::Pinned);
    }
    let mut tx = begin(connection).await?;
    sqlx::raw_sql(AssertSqlSafe(sql(include_str!("sql/lock_leaf.sql"), leaf))).execute(&mut *tx).await?;
    // Everything again: what was committed since the first look is seen now, and nothing more can come.
    let asked = Utc::now();
    let found = sqlx::query(AssertSqlSafe(sql(include_str!("sql/leaf.sql"), leaf))).persistent(false);
    let found = found.fetch_optional(&mut *tx).await?.as_ref().map(|row| look(row, asked)).transpose()?;
    let fate = if found.is_none_or(|(leaf, last, aged)| !is_ripe(leaf, last, aged)) {
        Fate::Changed
    } else if !pin(&mut tx, leaf, Some(1)).await?.is_empty() {
        Fate::Pinned
    } else {
        sqlx::raw_sql(AssertSqlSafe(sql(include_str!("sql/empty_leaf.sql"), leaf))).execute(&mut *tx).await?;
        Fate::Emptied
    };
    tx.commit().await?;
    Ok(fate)
}

/// A transaction in which each statement sees what was committed before it, and none waits or works for long.
async fn begin(connection: &mut PgConnection) -> Result<PgTransaction<'_>, sqlx::Error> {
    let mut tx = connection.begin_with(BEGIN_LONG).await?;
    sqlx::raw_sql(include_str!("sql/patience.sql")).execute(&mut *tx).await?;
    sqlx::raw_sql(include_str!("sql/interpret.sql")).execute(&mut *tx).await?;
    Ok(tx)
}

/// The relays that pin a leaf.
async fn pin(
    connection: &mut PgConnection,
    leaf: i64,
    most: Option<i64>,
) -> Result<Vec<String>, sqlx::Error> {
    let query = sqlx::query_scalar(AssertSqlSafe(sql(include_str!("sql/pins.sql"), leaf))).bind(most);
    query.persistent(false).fetch_all(connection).await
}

/// The leaves that each relay pins.
pub(crate) async fn pins(tx: &mut PgTransaction<'_>) -> Result<BTreeMap<String, Vec<i64>>, sqlx::Error> {
    sqlx::query(include_str!("sql/interpret.sql")).persistent(false).execute(&mut **tx).await?;
    let mut pins: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for leaf in 0..LEAVES {
        for relay in pin(tx, leaf, None).await? {
            pins.entry(relay).or_default().push(leaf);
        }
    }
    Ok(pins)
}

/// Has the block range indexes of the leaf that is written, and of the one before it, know their newest blocks, if this
/// role may. Nobody is waited for: what is not summarized is only scanned.
pub(super) async fn summarize(connection: &mut PgConnection, last_position: i64) -> Result<(), sqlx::Error> {
    let written = leaf(last_position);
    let names: Vec<String> = [written, (written - 1).rem_euclid(LEAVES)]
        .iter()
        .map(|leaf| format!("outbox.message_{leaf}"))
        .collect();
    let mut tx = connection.begin_with(BEGIN_LONG).await?;
    sqlx::raw_sql(include_str!("sql/patience.sql")).execute(&mut *tx).await?;
    match sqlx::query(include_str!("sql/summarize.sql")).bind(names).persistent(false).execute(&mut *tx).await
    {
        Ok(_) => tx.commit().await,
        Err(error) if gave_way(&error) => tx.rollback().await,
        Err(error) => Err(error),
    }
}

/// The leaf's number, the last position drawn, and whether the leaf is older than any relay wants it kept, by a clock that
/// can be believed. It was asked at `asked`.
fn look(row: &sqlx::postgres::PgRow, asked: DateTime<Utc>) -> Result<(i64, i64, bool), sqlx::Error> {
    let now: DateTime<Utc> = row.try_get("now")?;
    let aged = row.try_get::<bool, _>("aged")? && clock_difference(now, asked, Utc::now()).is_none();
    Ok((row.try_get("leaf")?, row.try_get("last_position")?, aged))
}

/// Whether a leaf is one to empty, as far as its place and its age tell.
fn is_ripe(leaf: i64, last_position: i64, aged: bool) -> bool {
    let ahead = ahead(leaf, last_position);
    // Not the one that is written, nor the next: who writes there must not wait.
    ahead > 1 && (aged || ahead <= 1 + NEEDED_SOON)
}

/// How many leaves after the one that is written.
fn ahead(other: i64, last_position: i64) -> i64 {
    (other - leaf(last_position)).rem_euclid(LEAVES)
}

/// A leaf's name is no parameter of a statement.
fn sql(template: &'static str, leaf: i64) -> String {
    template.replace("/*leaf*/", &leaf.to_string())
}

/// Whether the database says that somebody else has the leaf, or that it took us too long to decide: a lock that is not
/// available, a deadlock, a statement cancelled in time.
fn gave_way(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| matches!(&*code, "55P03" | "40P01" | "57014"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leaf_that_is_written_and_the_next_are_never_emptied_and_those_after_them_before_their_time() {
        let size = 1 << 20;
        for lap in [0, 1, 1000] {
            for written in 0..LEAVES {
                let last = (lap * LEAVES + written) * size + 5;
                let ripe = |aged| -> Vec<i64> {
                    let ripe = (0..LEAVES).filter(|leaf| is_ripe(*leaf, last, aged));
                    ripe.map(|leaf| (leaf - written).rem_euclid(LEAVES)).collect()
                };
                let (mut old, mut young) = (ripe(true), ripe(false));
                old.sort_unstable();
                young.sort_unstable();
                assert_eq!((old, young), ((2..LEAVES).collect(), vec![2, 3]));
            }
        }
    }
}
