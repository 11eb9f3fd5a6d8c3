//! Statements before which a pooler in transaction mode may stand.
//!
//! The driver sends a statement in two parts: the first parses it, the second binds and runs it, and each is a transaction
//! unless one is open. Such a pooler may send the second to another server connection than the first, where a name means
//! nothing, and no name means whatever statement another client has left. Inside a transaction it does not; but a
//! statement that was named there stays behind, and the next client's of that name fails. So what runs alone runs in a
//! transaction and unnamed ([`run`], [`rows`], …), and what runs in a handler's transaction is named if the handler's
//! statements are ([`is_named`]).

use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{Acquire, Connection, PgConnection};

pub(crate) type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// Runs one statement alone; how many rows it changed.
pub(crate) async fn run(
    on: impl Acquire<'_, Database = Postgres>,
    query: PgQuery<'_>,
) -> Result<u64, sqlx::Error> {
    let mut tx = on.begin().await?;
    let done = query.persistent(false).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(done.rows_affected())
}

/// Runs one statement alone; its rows.
pub(crate) async fn rows(
    on: impl Acquire<'_, Database = Postgres>,
    query: PgQuery<'_>,
) -> Result<Vec<PgRow>, sqlx::Error> {
    let mut tx = on.begin().await?;
    let rows = query.persistent(false).fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(rows)
}

/// Runs one statement alone; its row, if there is one.
pub(crate) async fn optional(
    on: impl Acquire<'_, Database = Postgres>,
    query: PgQuery<'_>,
) -> Result<Option<PgRow>, sqlx::Error> {
    Ok(rows(on, query).await?.into_iter().next())
}

/// Runs one statement alone; its row.
pub(crate) async fn row(
    on: impl Acquire<'_, Database = Postgres>,
    query: PgQuery<'_>,
) -> Result<PgRow, sqlx::Error> {
    optional(on, query).await?.ok_or(sqlx::Error::RowNotFound)
}

/// Whether a statement of ours may be named on somebody else's connection: as theirs are, which saves a round trip and the
/// planning. Somebody whose statements must not be named, because of a pooler, has none there.
pub(crate) fn is_named(connection: &PgConnection) -> bool {
    connection.cached_statements_size() > 0
}
