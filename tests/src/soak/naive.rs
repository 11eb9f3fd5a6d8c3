//! A relay as one writes it in an afternoon, with one bug in it: the soak's own child process. It reads from where it
//! stands, publishes, records. Nothing of it is in what is shipped.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use brokers::file::FilePublisher;
use message::{Message, MessageId, Outgoing, publish_all};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use std::sync::Arc;
use uuid::Uuid;

use super::Plant;

/// Between two reads: long enough that several transactions of a key may fall into one window.
const POLL: Duration = Duration::from_millis(10);

/// Where it stands.
struct Cursor {
    seen: String,
    bound: i64,
    tx: String,
    position: i64,
}

struct Read {
    tx: String,
    position: i64,
    message: Message,
}

impl Read {
    fn outgoing(self) -> Outgoing {
        Outgoing { destination: "soak".into(), message: Arc::new(self.message) }
    }
}

/// Runs until it is killed.
pub(crate) async fn run(plant: Plant, database: &str, file: &Path) -> Result<()> {
    match plant {
        Plant::UnfencedRecord | Plant::NoTakeover | Plant::FencedRecord => {
            super::naive_team::run(plant, database, file).await
        }
        Plant::ParallelClaims => in_parallel(database, file).await,
        _ => alone(plant, database, file).await,
    }
}

async fn alone(plant: Plant, database: &str, file: &Path) -> Result<()> {
    let mut connection = PgConnection::connect(database).await?;
    let publisher = FilePublisher::new(file).without_sync();
    let row = sqlx::query(include_str!("sql/naive_cursor.sql")).fetch_one(&mut connection).await?;
    let mut cursor = cursor(&row)?;
    loop {
        let (read, next) = match plant {
            Plant::PositionCursor | Plant::XidHorizon => in_line(plant, &mut connection, &cursor).await?,
            _ => between_snapshots(plant, &mut connection, &cursor).await?,
        };
        if publish(&publisher, read).await? {
            record(&mut connection, &next).await?;
        }
        cursor = next;
        tokio::time::sleep(POLL).await;
    }
}

/// One of several that share a cursor: it claims what is new by moving the cursor past it, and publishes it then. Others
/// claim and publish what follows meanwhile: every second time the way to the broker is long enough for that.
async fn in_parallel(database: &str, file: &Path) -> Result<()> {
    let mut claims = PgConnection::connect(database).await?;
    let mut connection = PgConnection::connect(database).await?;
    let publisher = FilePublisher::new(file).without_sync();
    for slow in [true, false].into_iter().cycle() {
        let mut claim = claims.begin().await?;
        let row = sqlx::query(include_str!("sql/naive_lock_cursor.sql")).fetch_one(&mut *claim).await?;
        // Beside the claim's transaction, which proves no bound while it is open.
        let (read, next) = between_snapshots(Plant::ParallelClaims, &mut connection, &cursor(&row)?).await?;
        record(&mut claim, &next).await?;
        claim.commit().await?;
        if slow {
            tokio::time::sleep(2 * POLL).await;
        }
        publish(&publisher, read).await?;
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn cursor(row: &PgRow) -> Result<Cursor> {
    Ok(Cursor {
        seen: row.try_get("seen")?,
        bound: row.try_get("bound")?,
        tx: row.try_get("tx")?,
        position: row.try_get("position")?,
    })
}

/// Whether there was something to publish.
async fn publish(publisher: &FilePublisher, read: Vec<Read>) -> Result<bool> {
    let batch: Vec<Outgoing> = read.into_iter().map(Read::outgoing).collect();
    for outcome in publish_all(publisher, &batch).await {
        outcome.context("the file takes everything")?;
    }
    Ok(!batch.is_empty())
}

/// A cursor that is a place in an order, and what lies beyond it.
async fn in_line(
    plant: Plant,
    connection: &mut PgConnection,
    cursor: &Cursor,
) -> Result<(Vec<Read>, Cursor)> {
    let query = match plant {
        Plant::PositionCursor => sqlx::query(include_str!("sql/naive_by_position.sql")),
        _ => sqlx::query(include_str!("sql/naive_by_horizon.sql")).bind(&cursor.tx),
    };
    let rows = query.bind(cursor.position).persistent(false).fetch_all(connection).await?;
    let read = rows.iter().map(decode).collect::<Result<Vec<Read>>>()?;
    let (tx, position) = match read.last() {
        Some(last) => (last.tx.clone(), last.position),
        None => (cursor.tx.clone(), cursor.position),
    };
    Ok((read, Cursor { seen: cursor.seen.clone(), bound: cursor.bound, tx, position }))
}

/// A cursor that is what was seen, and what is seen beyond it.
async fn between_snapshots(
    plant: Plant,
    connection: &mut PgConnection,
    cursor: &Cursor,
) -> Result<(Vec<Read>, Cursor)> {
    let (bound, until) = match plant {
        Plant::BoundAtSnapshot => (bound(connection).await?, snapshot(connection).await?),
        _ => proven_snapshot(connection).await?,
    };
    let rows = sqlx::query(include_str!("sql/naive_window.sql"))
        .bind(&cursor.seen)
        .bind(&until)
        .bind(cursor.bound)
        // Planned each time: a plan from when the table was empty would scan it whole for ever.
        .persistent(false)
        .fetch_all(connection)
        .await?;
    let mut read = rows.iter().map(decode).collect::<Result<Vec<Read>>>()?;
    if plant == Plant::OrderByTx {
        let by_tx = |read: &Read| (read.tx.parse::<u64>().unwrap_or_default(), read.position);
        read.sort_by_key(by_tx);
    }
    Ok((read, Cursor { seen: until, bound, tx: cursor.tx.clone(), position: cursor.position }))
}

/// A lower bound of what is not visible in a snapshot, and the snapshot.
pub(super) async fn proven_snapshot(connection: &mut PgConnection) -> Result<(i64, String)> {
    let bound = bound(connection).await?;
    sqlx::query(include_str!("sql/take_id.sql")).execute(&mut *connection).await?;
    Ok((bound, snapshot(connection).await?))
}

async fn bound(connection: &mut PgConnection) -> Result<i64> {
    Ok(sqlx::query_scalar(include_str!("sql/naive_bound.sql")).fetch_one(connection).await?)
}

async fn snapshot(connection: &mut PgConnection) -> Result<String> {
    Ok(sqlx::query_scalar(include_str!("sql/naive_snapshot.sql")).fetch_one(connection).await?)
}

async fn record(connection: &mut PgConnection, cursor: &Cursor) -> Result<()> {
    sqlx::query(include_str!("sql/naive_record.sql"))
        .bind(&cursor.seen)
        .bind(cursor.bound)
        .bind(&cursor.tx)
        .bind(cursor.position)
        .execute(connection)
        .await?;
    Ok(())
}

/// A message that was read, to be published.
pub(super) fn outgoing(row: &PgRow) -> Result<Outgoing> {
    Ok(decode(row)?.outgoing())
}

fn decode(row: &PgRow) -> Result<Read> {
    let (id, key, payload): (Uuid, String, Vec<u8>) =
        (row.try_get("id")?, row.try_get("key")?, row.try_get("payload")?);
    let id = MessageId::try_from(id)?;
    let message = Message::new("soak", "soak.fact", payload).with_id(id).with_key(key).with_source("/soak");
    Ok(Read { tx: row.try_get("tx")?, position: row.try_get("position")?, message })
}
