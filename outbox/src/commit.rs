//! A commit that answers honestly: committed, not committed, or unknown.

use std::io;
use std::time::Duration;

use message::sqlstate;
use sqlx::{AssertSqlSafe, Executor, PgExecutor, PgTransaction, Row};
use tokio::time::{Instant, timeout_at};

use crate::statement::{fill, literal};

const TOUCH: &str = include_str!("sql/touch.sql");
const TRANSACTION_STATUS: &str = include_str!("sql/transaction_status.sql");

/// Why [`commit`] cannot say that the transaction committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// It did not: nothing of it is there, and nothing will be published.
    #[error("the transaction did not commit")]
    NotCommitted(#[source] sqlx::Error),
    /// The answer was lost. Do not report failure, and do not simply do it again: ask [`transaction_status`] on the same
    /// cluster, or do the whole operation again under the same unique business key.
    #[error("whether the transaction committed is unknown")]
    Unknown {
        /// The transaction's id; `None`: it had written nothing, so there is nothing to lose.
        transaction: Option<u64>,
        /// How the answer was lost.
        source: sqlx::Error,
    },
}

/// Commits, and returns `Ok` only if the transaction committed.
///
/// The driver's own `commit` answers `Ok` for a transaction in which a statement failed and the error was ignored, though
/// the server rolls it back (sqlx 0.9.0). This one touches the transaction first, at the price of a round trip; where the
/// last statement is [`enqueue`](crate::enqueue) and its error is not ignored, the driver's is as safe.
///
/// It waits for as long as the server takes. Do not put it under a time limit of your own, which would throw the answer
/// away, and the transaction's id with it: [`commit_within`] has one.
///
/// # Errors
/// See [`CommitError`].
pub async fn commit(tx: PgTransaction<'_>) -> Result<(), CommitError> {
    commit_by(tx, None).await
}

/// As [`commit`], for no longer than `limit`: a commit that is not answered by then is
/// [`Unknown`](CommitError::Unknown), because it may still happen.
///
/// # Errors
/// See [`CommitError`].
///
/// ```no_run
/// # async fn finish(tx: sqlx::PgTransaction<'_>, pool: sqlx::PgPool) -> Result<bool, Box<dyn std::error::Error>> {
/// use outbox::{CommitError, TransactionStatus};
///
/// match outbox::commit_within(tx, std::time::Duration::from_secs(5)).await {
///     Ok(()) => Ok(true),
///     Err(CommitError::NotCommitted(error)) => Err(error.into()),
///     Err(CommitError::Unknown { transaction: Some(id), .. }) => {
///         Ok(outbox::transaction_status(&pool, id).await? == TransactionStatus::Committed)
///     }
///     Err(error) => Err(error.into()),
/// }
/// # }
/// ```
pub async fn commit_within(tx: PgTransaction<'_>, limit: Duration) -> Result<(), CommitError> {
    // Longer than a clock can tell is without end.
    commit_by(tx, Instant::now().checked_add(limit)).await
}

async fn commit_by(mut tx: PgTransaction<'_>, deadline: Option<Instant>) -> Result<(), CommitError> {
    let touch = async { tx.fetch_one(sqlx::raw_sql(TOUCH)).await?.try_get::<Option<String>, _>(0) };
    // Whatever became of this, COMMIT was not sent.
    let id = by(deadline, touch).await.map_err(CommitError::NotCommitted)?;
    let transaction = id.and_then(|id| id.parse().ok());
    by(deadline, tx.commit()).await.map_err(|source| {
        if rolled_back(&source) {
            CommitError::NotCommitted(source)
        } else {
            CommitError::Unknown { transaction, source }
        }
    })
}

async fn by<T>(
    deadline: Option<Instant>,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let Some(deadline) = deadline else { return answer.await };
    let late = |_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()));
    timeout_at(deadline, answer).await.unwrap_or_else(late)
}

/// What became of a transaction whose commit was answered with [`CommitError::Unknown`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransactionStatus {
    /// It committed.
    Committed,
    /// It did not.
    NotCommitted,
    /// It is still open: ask again.
    InProgress,
    /// So long ago that the server has forgotten.
    Forgotten,
}

/// Asks the server what became of a transaction. Only on the same cluster, and not across a failover: ids mean nothing
/// elsewhere.
///
/// # Errors
/// The database could not be asked.
pub async fn transaction_status(
    executor: impl PgExecutor<'_>,
    transaction: u64,
) -> Result<TransactionStatus, sqlx::Error> {
    let sql = fill(TRANSACTION_STATUS, &[literal(&transaction.to_string())]);
    let row = executor.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    let status: Option<String> = row.try_get(0)?;
    Ok(match status.as_deref() {
        Some("committed") => TransactionStatus::Committed,
        Some("aborted") => TransactionStatus::NotCommitted,
        Some(_) => TransactionStatus::InProgress,
        None => TransactionStatus::Forgotten,
    })
}

/// Whether an error in answer to COMMIT says that the server rolled back. A server that is going away
/// (class 57, 08) may have committed before; so may one that does not answer.
fn rolled_back(error: &sqlx::Error) -> bool {
    let Some(code) = error.as_database_error().and_then(|error| error.code()) else {
        return false;
    };
    sqlstate::is_rolled_back(&code)
}
