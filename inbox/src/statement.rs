//! Statements before which a pooler in transaction mode may stand.
//!
//! The driver sends a statement in two parts: the first parses it, the second binds and runs it, and each is a transaction
//! unless one is open. Such a pooler may send the second to another server connection than the first, where a name means
//! nothing, and no name means whatever statement another client has left. Inside a transaction it does not; but a
//! statement that was named there stays behind, and the next client's of that name fails. So what runs alone runs in a
//! transaction and unnamed ([`run`], [`rows`], …), and what runs in a handler's transaction is named if the handler's
//! statements are ([`is_named`]).

use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, PgTransaction};

pub(crate) type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// What stands still for so long while it runs a statement alone is gone. The server counts a long message that is still
/// coming, or going, over a slow line as silence, too.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);
/// The server's longest, in milliseconds.
const MOST: u128 = i32::MAX as u128;

const SETTINGS: &str = include_str!("sql/settings.sql");

/// In one message, so for no round trip more.
fn begin(begin: &str, settings: &str, silence: Duration) -> AssertSqlSafe<String> {
    let milliseconds = format!("'{}'", silence.as_millis().min(MOST));
    AssertSqlSafe(format!("{begin};\n{}", settings.replace("$1", &milliseconds)))
}

fn begin_writing(silence: Duration) -> AssertSqlSafe<String> {
    begin(include_str!("sql/begin.sql"), SETTINGS, silence)
}

fn begin_reading() -> AssertSqlSafe<String> {
    begin(include_str!("sql/begin_reading.sql"), SETTINGS, SILENCE)
}

/// What a handler's transaction sees of others, whatever the role or the database has set. Above the first level, a try that
/// fails because of what others committed meanwhile is made again and not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Each statement sees what was committed before it.
    #[default]
    ReadCommitted,
    /// All statements see the same.
    RepeatableRead,
    /// As if no other transaction ran beside it.
    Serializable,
}

/// Where a transaction can begin whose locks a client that stands still does not keep for ever: others would wait for them,
/// and no lease ends a transaction. The server ends it when nothing is heard of it for so long.
pub(crate) trait Begin<'c> {
    /// Begins one; within a transaction, a savepoint of it.
    fn begin_bounded(self, silence: Duration) -> BoxFuture<'c, Result<PgTransaction<'c>, sqlx::Error>>;
    /// Begins one that cannot write; within a transaction, a savepoint of it.
    fn begin_reading(self) -> BoxFuture<'c, Result<PgTransaction<'c>, sqlx::Error>>;
}

/// One for a handler, on a connection of its own.
pub(crate) fn begin_on_pool(
    pool: PgPool,
    silence: Duration,
    isolation: Isolation,
) -> BoxFuture<'static, Result<PgTransaction<'static>, sqlx::Error>> {
    let level = match isolation {
        Isolation::ReadCommitted => include_str!("sql/begin.sql"),
        Isolation::RepeatableRead => include_str!("sql/begin_repeatable_read.sql"),
        Isolation::Serializable => include_str!("sql/begin_serializable.sql"),
    };
    let begin = begin(level, include_str!("sql/handler_settings.sql"), silence);
    Box::pin(async move { pool.begin_with(begin).await })
}

impl<'c> Begin<'c> for &'c PgPool {
    fn begin_bounded(self, silence: Duration) -> BoxFuture<'c, Result<PgTransaction<'c>, sqlx::Error>> {
        Box::pin(async move { self.begin_with(begin_writing(silence)).await })
    }

    fn begin_reading(self) -> BoxFuture<'c, Result<PgTransaction<'c>, sqlx::Error>> {
        Box::pin(async move { self.begin_with(begin_reading()).await })
    }
}

impl<'c> Begin<'c> for &'c mut PgConnection {
    fn begin_bounded(self, silence: Duration) -> BoxFuture<'c, Result<PgTransaction<'c>, sqlx::Error>> {
        Box::pin(async move {
            if self.is_in_transaction() {
                Connection::begin(self).await
            } else {
                self.begin_with(begin_writing(silence)).await
            }
        })
    }

    fn begin_reading(self) -> BoxFuture<'c, Result<PgTransaction<'c>, sqlx::Error>> {
        Box::pin(async move {
            if self.is_in_transaction() {
                Connection::begin(self).await
            } else {
                self.begin_with(begin_reading()).await
            }
        })
    }
}

/// Runs one statement alone; how many rows it changed.
pub(crate) async fn run(on: impl Begin<'_>, query: PgQuery<'_>) -> Result<u64, sqlx::Error> {
    let mut tx = on.begin_bounded(SILENCE).await?;
    let done = query.persistent(false).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(done.rows_affected())
}

/// Runs one statement alone; its rows.
pub(crate) async fn rows(on: impl Begin<'_>, query: PgQuery<'_>) -> Result<Vec<PgRow>, sqlx::Error> {
    let mut tx = on.begin_bounded(SILENCE).await?;
    let rows = query.persistent(false).fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(rows)
}

/// Runs one statement alone; its row, if there is one.
pub(crate) async fn optional(on: impl Begin<'_>, query: PgQuery<'_>) -> Result<Option<PgRow>, sqlx::Error> {
    Ok(rows(on, query).await?.into_iter().next())
}

/// Runs one statement alone; its row.
pub(crate) async fn row(on: impl Begin<'_>, query: PgQuery<'_>) -> Result<PgRow, sqlx::Error> {
    optional(on, query).await?.ok_or(sqlx::Error::RowNotFound)
}

/// Runs one statement alone that only reads, on a replica as well; its rows.
pub(crate) async fn read(on: impl Begin<'_>, query: PgQuery<'_>) -> Result<Vec<PgRow>, sqlx::Error> {
    let mut tx = on.begin_reading().await?;
    let rows = query.persistent(false).fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(rows)
}

/// A statement before one whose commit need not wait for the disk.
pub(crate) const NO_FLUSH: &str = include_str!("sql/no_flush.sql");

/// Begins a transaction whose commit does not wait for the disk: for what a crash of the server may forget.
pub(crate) async fn begin_without_flush(pool: &PgPool) -> Result<PgTransaction<'static>, sqlx::Error> {
    let AssertSqlSafe(begin) = begin_writing(SILENCE);
    pool.begin_with(AssertSqlSafe(format!("{begin};\n{NO_FLUSH}"))).await
}

/// Runs one statement alone, without a wait for the disk; its rows.
pub(crate) async fn rows_without_flush(pool: &PgPool, query: PgQuery<'_>) -> Result<Vec<PgRow>, sqlx::Error> {
    let mut tx = begin_without_flush(pool).await?;
    let rows = query.persistent(false).fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(rows)
}

/// The same, of a statement that is to read few of many rows, in the order of an index.
pub(crate) async fn first_rows_without_flush(
    pool: &PgPool,
    query: PgQuery<'_>,
) -> Result<Vec<PgRow>, sqlx::Error> {
    let AssertSqlSafe(begin) = begin_writing(SILENCE);
    let begin = format!("{begin};\n{NO_FLUSH};\n{}", include_str!("sql/by_index.sql"));
    let mut tx = pool.begin_with(AssertSqlSafe(begin)).await?;
    let rows = query.persistent(false).fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(rows)
}

/// Runs one statement alone, without a wait for the disk; its row.
pub(crate) async fn row_without_flush(pool: &PgPool, query: PgQuery<'_>) -> Result<PgRow, sqlx::Error> {
    rows_without_flush(pool, query).await?.into_iter().next().ok_or(sqlx::Error::RowNotFound)
}

/// Whether a statement of ours may be named on somebody else's connection: as theirs are, which saves a round trip and the
/// planning. Somebody whose statements must not be named, because of a pooler, has none there.
pub(crate) fn is_named(connection: &PgConnection) -> bool {
    connection.cached_statements_size() > 0
}
