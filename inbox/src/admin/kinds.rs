//! The kinds of a consumer: which processes have registered them, and giving up one that no process handles any more.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::moment::moment_if_any;
use crate::statement::{self, Begin, SILENCE, is_locked};

/// Processes register their kinds again every minute.
const HANDLED: Duration = Duration::from_secs(120);

/// A time that lies farther ahead was written by a clock that was.
const AHEAD: Duration = Duration::from_secs(60);

/// A kind that processes of a consumer have registered, or of which messages are held.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct KindStatus {
    /// Whose.
    pub consumer: String,
    /// The kind.
    pub kind: String,
    /// When a process that handles it registered it last, to the minute; `None`: it is not registered.
    pub last_seen_at: Option<DateTime<Utc>>,
    /// How long ago that is, by the database's clock; `None` also if that clock was ahead then.
    pub unseen: Option<Duration>,
    /// How many messages of this kind are held.
    pub messages: i64,
}

impl KindStatus {
    /// Whether a process handles it, or did in the last two minutes: then it is not forgotten.
    pub fn is_handled(&self) -> bool {
        self.last_seen_at.is_some() && self.unseen.is_some_and(|unseen| unseen <= HANDLED)
    }

    /// Whether no process has registered it for that long, or at all.
    pub fn is_unhandled(&self, since: Duration) -> bool {
        self.unseen.is_none_or(|unseen| unseen >= since)
    }
}

/// What came of forgetting a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForgottenKind {
    /// Whether it was registered.
    pub registered: bool,
    /// How many held messages of it were given up.
    pub messages: i64,
    /// How many keys are free because of that.
    pub keys: i64,
}

/// Why a kind was not forgotten.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForgetKindError {
    /// The caller's: messages of it would be lost while a process waits for them.
    #[error("a process of the consumer handles this kind, or did in the last two minutes: stop it first")]
    Handled,
    /// The caller's: its transaction is above read committed, and does not see which process has registered the kind since it
    /// began.
    #[error(
        "the transaction's isolation level must be read committed: it does not see who has registered the kind meanwhile"
    )]
    Isolation,
    /// Another transaction's: a try that takes long, or another decision. Nothing was changed.
    #[error("another transaction keeps it locked: nothing was changed; try again")]
    Locked(#[source] sqlx::Error),
    /// The database's.
    #[error(transparent)]
    Database(sqlx::Error),
}

impl From<sqlx::Error> for ForgetKindError {
    fn from(error: sqlx::Error) -> Self {
        if is_locked(&error) { ForgetKindError::Locked(error) } else { ForgetKindError::Database(error) }
    }
}

/// The kinds of one consumer or of all (`None`), by name.
///
/// # Errors
/// The database's.
pub async fn kinds(
    connection: &mut PgConnection,
    consumer: Option<&str>,
) -> Result<Vec<KindStatus>, sqlx::Error> {
    let query = sqlx::query(include_str!("../sql/kinds.sql")).bind(consumer);
    let status = |row: &PgRow| {
        let unseen: Option<f64> = row.try_get("unseen_seconds")?;
        Ok(KindStatus {
            consumer: row.try_get("consumer")?,
            kind: row.try_get("kind")?,
            last_seen_at: moment_if_any(row, "last_seen_at")?,
            unseen: unseen
                .filter(|seconds| *seconds >= -AHEAD.as_secs_f64())
                .map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
            messages: row.try_get("messages")?,
        })
    };
    statement::read(connection, query).await?.iter().map(status).collect()
}

/// Forgets a kind that no process of the consumer handles any more. Later messages of it are acknowledged; those that are
/// held are given up, like [`skip`](super::skip) each, and their keys go on. `who` decides it, and says why.
///
/// # Errors
/// See [`ForgetKindError`].
pub async fn forget_kind(
    connection: &mut PgConnection,
    consumer: &str,
    kind: &str,
    who: &str,
    reason: &str,
) -> Result<ForgottenKind, ForgetKindError> {
    // Each statement sees what the lock has waited for.
    let mut tx = connection.begin_bounded(SILENCE).await?;
    let sees_all = sqlx::query_scalar(include_str!("../sql/sees_all.sql")).persistent(false);
    if !sees_all.fetch_one(&mut *tx).await? {
        return Err(ForgetKindError::Isolation);
    }
    let locked = sqlx::query_scalar(include_str!("../sql/lock_kind.sql")).bind(consumer).bind(kind);
    let holds: Vec<i64> = locked.persistent(false).fetch_all(&mut *tx).await?;
    let row = sqlx::query(include_str!("../sql/forget_kind.sql"))
        .bind(consumer)
        .bind(kind)
        .bind(&holds)
        .bind(who)
        .bind(reason)
        .bind(HANDLED.as_secs_f64())
        .persistent(false)
        .fetch_one(&mut *tx)
        .await?;
    if row.try_get("handled")? {
        tx.rollback().await?;
        return Err(ForgetKindError::Handled);
    }
    let heads: Vec<i64> = row.try_get("heads")?;
    let released = sqlx::query_scalar(include_str!("../sql/release_emptied.sql")).bind(consumer).bind(&holds);
    let keys: i64 = released.persistent(false).fetch_one(&mut *tx).await?;
    let redriven = sqlx::query(include_str!("../sql/redrive_these.sql")).bind(consumer).bind(&heads);
    redriven.persistent(false).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(ForgottenKind { registered: row.try_get("registered")?, messages: row.try_get("messages")?, keys })
}
