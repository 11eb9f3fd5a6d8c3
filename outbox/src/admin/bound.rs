//! Bounds on what a person asks and decides: how long it waits for a lock, and for an answer.

use std::time::Duration;

use sqlx::postgres::{PgPool, PgRow};

use crate::statement::{Begin, PgQuery, is_locked};

/// How long a decision waits for a lock, as PostgreSQL reads it.
pub(crate) const LOCK: &str = "10s";
/// How long a decision waits for its answer, the lock included.
const DECIDED: Duration = Duration::from_secs(30);
/// How long an answer may take that does not grow with the backlog.
pub(crate) const ANSWER: Duration = Duration::from_secs(60);
/// How long an answer may take for which the backlog is counted.
pub(crate) const COUNTED: Duration = Duration::from_secs(600);

/// Why a decision was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// Another transaction has what it changes locked. Nothing was changed.
    #[error("another transaction kept it locked for {LOCK}; nothing was changed")]
    Locked(#[source] sqlx::Error),
    /// The database did not answer in time. [`audit()`](super::audit()) says whether it was done.
    #[error("the database did not answer within {}s; the audit says whether it was done", DECIDED.as_secs())]
    Unanswered,
    /// The database's.
    #[error("the database did not answer")]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for AdminError {
    fn from(error: sqlx::Error) -> Self {
        if is_locked(&error) { AdminError::Locked(error) } else { AdminError::Database(error) }
    }
}

/// Runs one statement that decides something, alone; its rows.
pub(crate) async fn decide(pool: &PgPool, query: PgQuery<'_>) -> Result<Vec<PgRow>, AdminError> {
    let decided = async {
        let mut tx = pool.begin_bounded().await?;
        let limit = sqlx::query(include_str!("sql/lock_timeout.sql")).bind(LOCK).persistent(false);
        limit.execute(&mut *tx).await?;
        let rows = query.persistent(false).fetch_all(&mut *tx).await?;
        tx.commit().await?;
        Ok(rows)
    };
    tokio::time::timeout(DECIDED, decided).await.unwrap_or(Err(AdminError::Unanswered))
}
