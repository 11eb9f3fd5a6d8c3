//! Statements before which a pooler in transaction mode may stand.
//!
//! The driver sends a statement in two parts: the first parses it, the second binds and runs it, and each is a transaction
//! unless one is open. Such a pooler may send the second to another server connection than the first, where a name means
//! nothing, and no name means whatever statement another client has left. Inside a transaction it does not; but a
//! statement that was named there stays behind, and the next client's of that name fails. So:
//!
//! * what runs alone runs in a transaction and unnamed ([`run`], [`rows`], …), for three round trips more;
//! * what cannot afford those is sent as text, with its parameters [filled in](fill): one part, one round trip;
//! * what runs in the service's own transaction is named if the service's statements are ([`is_named`]).

use std::io;
use std::time::Duration;

use futures_util::future::BoxFuture;
use message::sqlstate::{self, Fault};
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, PgTransaction};

pub(crate) type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// Whether a value that the statement carries is at fault: the same again fails again, and others are not concerned. Not a
/// reference to a row that is missing, or to one that has come (23503): other transactions bring that about.
pub(crate) fn is_values_fault(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code != "23503" && sqlstate::fault(&code) == Fault::Value)
}

/// Within a transaction: the next statement may take long to arrive.
pub(crate) const SPEECH: &str = include_str!("sql/speech.sql");
/// Within a transaction: no statement does from here on.
pub(crate) const SILENCE: &str = include_str!("sql/silence.sql");

/// In one message, so for no round trip more.
const BEGIN: &str = concat!(include_str!("sql/begin.sql"), ";\n", include_str!("sql/settings.sql"));
/// The same, without a bound on silence.
pub(crate) const BEGIN_LONG: &str =
    concat!(include_str!("sql/begin.sql"), ";\n", include_str!("sql/settings_long.sql"));
/// The same, for what only reads: a replica takes it, too.
pub(crate) const BEGIN_READING: &str =
    concat!(include_str!("admin/sql/look_only.sql"), ";\n", include_str!("sql/settings_long.sql"));
/// The same, for a statement that is to read few of many rows, in the order of an index.
const BEGIN_BY_INDEX: &str = concat!(
    include_str!("sql/begin.sql"),
    ";\n",
    include_str!("sql/settings.sql"),
    ";\n",
    include_str!("sql/by_index.sql")
);
/// In front of a statement that is sent as text.
const ALONE: &str = include_str!("sql/alone.sql");

/// A statement to be sent as text, whose transaction does not take its isolation level from the role.
pub(crate) fn alone(sql: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!("{ALONE};\n{sql}"))
}

/// Where a transaction can begin whose locks a client that stands still does not keep for ever. What processes share, others
/// would wait for, or pass over as if it were being worked at; and no lease ends a transaction.
pub(crate) trait Begin<'c> {
    /// Begins one; within a transaction, a savepoint of it.
    fn begin_bounded(self) -> BoxFuture<'c, Result<PgTransaction<'c>, sqlx::Error>>;
    /// Begins one that cannot write; within a transaction, a savepoint of it.
    fn begin_reading(self) -> BoxFuture<'c, Result<PgTransaction<'c>, sqlx::Error>>;
}

impl<'c> Begin<'c> for &'c PgPool {
    fn begin_bounded(self) -> BoxFuture<'c, Result<PgTransaction<'c>, sqlx::Error>> {
        Box::pin(async move { self.begin_with(BEGIN).await })
    }

    fn begin_reading(self) -> BoxFuture<'c, Result<PgTransaction<'c>, sqlx::Error>> {
        Box::pin(async move { self.begin_with(BEGIN_READING).await })
    }
}

impl<'c> Begin<'c> for &'c mut PgConnection {
    fn begin_bounded(self) -> BoxFuture<'c, Result<PgTransaction<'c>, sqlx::Error>> {
        Box::pin(async move {
            if self.is_in_transaction() {
                Connection::begin(self).await
            } else {
                self.begin_with(BEGIN).await
            }
        })
    }

    fn begin_reading(self) -> BoxFuture<'c, Result<PgTransaction<'c>, sqlx::Error>> {
        Box::pin(async move {
            if self.is_in_transaction() {
                Connection::begin(self).await
            } else {
                self.begin_with(BEGIN_READING).await
            }
        })
    }
}

/// What the database answers, or an error of the network's if it does not by then: a network can swallow a connection without
/// a word, and the driver would wait for ever.
pub(crate) async fn within<T, E: From<sqlx::Error>>(
    limit: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let late = |_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()).into());
    tokio::time::timeout(limit, answer).await.unwrap_or_else(late)
}

/// Whether a lock was not to be had in time (`lock_not_available`).
pub(crate) fn is_locked(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("55P03"))
}

/// Runs one statement alone; how many rows it changed.
pub(crate) async fn run(on: impl Begin<'_>, query: PgQuery<'_>) -> Result<u64, sqlx::Error> {
    let mut tx = on.begin_bounded().await?;
    let done = query.persistent(false).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(done.rows_affected())
}

/// Runs one statement alone; its rows.
pub(crate) async fn rows(on: impl Begin<'_>, query: PgQuery<'_>) -> Result<Vec<PgRow>, sqlx::Error> {
    let mut tx = on.begin_bounded().await?;
    let rows = query.persistent(false).fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(rows)
}

/// Runs one statement alone that is to read few of many rows, in the order of an index; its rows.
pub(crate) async fn first_rows(pool: &PgPool, query: PgQuery<'_>) -> Result<Vec<PgRow>, sqlx::Error> {
    let mut tx = pool.begin_with(BEGIN_BY_INDEX).await?;
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

/// Runs one statement alone that only reads; its row.
pub(crate) async fn read_row(on: impl Begin<'_>, query: PgQuery<'_>) -> Result<PgRow, sqlx::Error> {
    read(on, query).await?.into_iter().next().ok_or(sqlx::Error::RowNotFound)
}

/// Whether a statement of ours may be named on somebody else's connection: as theirs are, which saves a round trip and the
/// planning. Somebody whose statements must not be named, because of a pooler, has none there.
pub(crate) fn is_named(connection: &PgConnection) -> bool {
    connection.cached_statements_size() > 0
}

/// A statement with its parameters filled in, `$1` first; each must be a literal already.
pub(crate) fn fill(sql: &str, literals: &[String]) -> String {
    let mut filled = sql.to_owned();
    // From the last one: `$1` also begins `$10`.
    for (number, literal) in literals.iter().enumerate().rev() {
        filled = filled.replace(&format!("${}", number + 1), literal);
    }
    filled
}

/// A text as a literal of SQL.
pub(crate) fn literal(text: &str) -> String {
    // As with E'…', so that it does not depend on a setting of the server's what a backslash is.
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Numbers as the literal of an array.
pub(crate) fn array<N: ToString>(numbers: impl IntoIterator<Item = N>) -> String {
    let numbers: Vec<String> = numbers.into_iter().map(|number| number.to_string()).collect();
    format!("'{{{}}}'", numbers.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_filled_in_by_their_whole_number() {
        let literals: Vec<String> = (1..=11).map(|number| format!("<{number}>")).collect();
        assert_eq!(fill("$1 $11 $2::text $10", &literals), "<1> <11> <2>::text <10>");
    }

    #[test]
    fn a_literal_is_one_literal() {
        assert_eq!(literal(r"a'b\c"), r"E'a''b\\c'");
        assert_eq!(array([1, 2]), "'{1,2}'");
    }
}
