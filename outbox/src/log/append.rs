//! Writing to the log of a broker's database: the other end of a relay, not of a business transaction.

use message::{Message, sqlstate};
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::{Connection, Executor, Row};

use super::Refusal;
use crate::statement::{BEGIN_LONG, alone};
use crate::{bell, enqueue};

/// Why messages are not known to be appended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// None was: COMMIT was not sent, or the server says that it rolled back.
    #[error("the messages were not appended")]
    NotAppended(#[source] sqlx::Error),
    /// COMMIT was sent, and its answer is lost, or is of a server that may have committed before it went away.
    #[error("whether the messages were appended is unknown")]
    Unknown(#[source] sqlx::Error),
}

/// Appends messages in the order given, in one statement that is a transaction of its own: all or none. When it answers
/// `Ok`, they are on disk, whatever `synchronous_commit` says by default.
///
/// # Errors
/// See [`AppendError`].
pub async fn append(connection: &mut PgConnection, messages: &[Message]) -> Result<(), AppendError> {
    let insert = async {
        let arguments = enqueue::bind(PgArguments::default(), messages)?;
        // Without a bound on silence, which a long statement on a slow line would break: it locks nothing that others wait
        // for.
        let mut tx = Connection::begin_with(connection, BEGIN_LONG).await?;
        let query = sqlx::query_with(include_str!("sql/append.sql"), arguments);
        query.persistent(false).execute(&mut *tx).await?;
        Ok(tx)
    };
    let tx = insert.await.map_err(AppendError::NotAppended)?;
    tx.commit().await.map_err(|error| {
        let code = error.as_database_error().and_then(|error| error.code());
        let rolled_back = code.is_some_and(|code| sqlstate::is_rolled_back(&code));
        if rolled_back { AppendError::NotAppended(error) } else { AppendError::Unknown(error) }
    })?;
    bell::ring();
    Ok(())
}

/// A name for the log behind a connection that no other log has, until its server is started again. Any role may ask.
///
/// # Errors
/// The database does not answer.
pub async fn name(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    connection.fetch_one(sqlx::raw_sql(alone(include_str!("sql/name.sql")))).await?.try_get(0)
}

/// Whether the log keeps what is appended to it, and its readers will see it in order. `Ok(false)`: as long as the
/// machine does not crash, because the server does not wait for its disk (`fsync` or `full_page_writes` is off).
///
/// # Errors
/// The log must not be appended to, or cannot be looked at.
pub async fn check_appendable(connection: &mut PgConnection) -> Result<bool, Refusal> {
    migrations::Schema::Outbox.check(connection).await?;
    let row = connection.fetch_one(sqlx::raw_sql(alone(include_str!("sql/appendable.sql")))).await?;
    for (fact, reason) in [
        ("replica", Refusal::Replica),
        ("other_encoding", Refusal::OtherEncoding),
        ("cached_positions", Refusal::CachedPositions),
        ("unlogged", Refusal::Unlogged),
    ] {
        if row.try_get::<bool, _>(fact)? {
            return Err(reason);
        }
    }
    Ok(row.try_get("waits_for_disk")?)
}
