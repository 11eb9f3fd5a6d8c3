//! A relay of several processes as one writes it in an afternoon, on the same terms as [`naive`](super::naive): each takes
//! the free shard that waits longest, under a lease, publishes a page of its window, counts it as done, and gives the shard back.
//! With the epoch in that count it is right.
//!
//! The count is relative, and that is the point: a late record that says all of where a cursor stands only repeats, since
//! what it says is true for ever. One that says a part of it, and means another window by now, skips what nobody has
//! published.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use brokers::file::FilePublisher;
use message::publish_all;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::Plant;
use super::naive::{outgoing, proven_snapshot};

/// How long a shard is another's when its process says nothing.
pub(super) const LEASE: Duration = Duration::from_millis(300);
/// Few, so that a window mostly takes several pages.
const PAGE: i64 = 5;
/// Between publishing and counting, where a real one waits for its broker.
const UNCOUNTED: Duration = Duration::from_millis(6);
const POLL: Duration = Duration::from_millis(2);

/// A shard in hand.
struct Claim {
    shard: i16,
    epoch: i64,
    seen: String,
    bound: i64,
    until: Option<String>,
    done: i64,
}

/// Runs until it is killed.
pub(super) async fn run(plant: Plant, database: &str, file: &Path) -> Result<()> {
    let mut connection = PgConnection::connect(database).await?;
    let publisher = FilePublisher::new(file).without_sync();
    let process = Uuid::new_v4();
    loop {
        if let Some(claim) = claim(plant, &mut connection, process).await? {
            match &claim.until {
                None => open(&mut connection, &claim).await?,
                Some(until) => publish(plant, &mut connection, &publisher, &claim, until).await?,
            }
            let release = sqlx::query(include_str!("sql/naive_release.sql"));
            release.bind(claim.shard).bind(claim.epoch).execute(&mut connection).await?;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn claim(plant: Plant, connection: &mut PgConnection, process: Uuid) -> Result<Option<Claim>> {
    let query = match plant {
        Plant::NoTakeover => sqlx::query(include_str!("sql/naive_claim_given_up.sql")),
        _ => sqlx::query(include_str!("sql/naive_claim.sql")),
    };
    let query = query.bind(process).bind(LEASE.as_secs_f64());
    let Some(row) = query.fetch_optional(connection).await? else { return Ok(None) };
    Ok(Some(Claim {
        shard: row.try_get("shard")?,
        epoch: row.try_get("epoch")?,
        seen: row.try_get("seen")?,
        bound: row.try_get("bound")?,
        until: row.try_get("until")?,
        done: row.try_get("done")?,
    }))
}

async fn open(connection: &mut PgConnection, claim: &Claim) -> Result<()> {
    let (bound, until) = proven_snapshot(connection).await?;
    let open = sqlx::query(include_str!("sql/naive_open.sql")).bind(claim.shard).bind(claim.epoch);
    open.bind(until).bind(bound).execute(connection).await?;
    Ok(())
}

async fn publish(
    plant: Plant,
    connection: &mut PgConnection,
    publisher: &FilePublisher,
    claim: &Claim,
    until: &str,
) -> Result<()> {
    let page = sqlx::query(include_str!("sql/naive_page.sql"))
        .bind(&claim.seen)
        .bind(until)
        .bind(claim.bound)
        .bind(claim.shard)
        .bind(claim.done)
        .bind(PAGE)
        .persistent(false)
        .fetch_all(&mut *connection)
        .await?;
    let batch = page.iter().map(outgoing).collect::<Result<Vec<_>>>()?;
    for outcome in publish_all(publisher, &batch).await {
        outcome.context("the file takes everything")?;
    }
    tokio::time::sleep(UNCOUNTED).await;
    let published = batch.len() as i64;
    let count = match plant {
        Plant::UnfencedRecord => {
            sqlx::query(include_str!("sql/naive_count_unfenced.sql")).bind(claim.shard).bind(published)
        }
        _ => sqlx::query(include_str!("sql/naive_count.sql"))
            .bind(claim.shard)
            .bind(published)
            .bind(claim.epoch),
    };
    count.execute(&mut *connection).await?;
    if published < PAGE {
        let close = sqlx::query(include_str!("sql/naive_close.sql"));
        close.bind(claim.shard).bind(claim.epoch).execute(connection).await?;
    }
    Ok(())
}
