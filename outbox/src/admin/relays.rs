//! Relays as an operator's: paused, resumed, retired.

use sqlx::Row;
use sqlx::postgres::PgPool;

use crate::statement;

/// A relay's state was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Nobody has ever run a relay of that name here.
    #[error("no such relay")]
    Unknown,
    /// What it would have published may be gone.
    #[error("the relay is retired, for good")]
    Retired,
    /// The database's.
    #[error("the database did not answer")]
    Database(#[from] sqlx::Error),
}

/// Has a relay publish nothing until it is [resumed](resume): its processes stop as if they were told to, and wait. The
/// log keeps what waits for it. `false`: it is paused already.
///
/// # Errors
/// See [`StateError`].
pub async fn pause(pool: &PgPool, relay: &str, who: &str, reason: Option<&str>) -> Result<bool, StateError> {
    change(pool, relay, "paused", "pause", who, reason).await
}

/// Has a paused relay go on where it was. `false`: it is not paused.
///
/// # Errors
/// See [`StateError`].
pub async fn resume(pool: &PgPool, relay: &str, who: &str, reason: Option<&str>) -> Result<bool, StateError> {
    change(pool, relay, "running", "resume", who, reason).await
}

/// Gives a relay up, for good: no process runs it any more, and the log keeps nothing for it. Deletes nothing: what it
/// holds stays listed until it is [skipped](super::skip). `false`: it is retired already.
///
/// # Errors
/// See [`StateError`].
pub async fn retire(pool: &PgPool, relay: &str, who: &str, reason: Option<&str>) -> Result<bool, StateError> {
    match change(pool, relay, "retired", "retire", who, reason).await {
        Err(StateError::Retired) => Ok(false),
        changed => changed,
    }
}

async fn change(
    pool: &PgPool,
    relay: &str,
    state: &str,
    action: &str,
    who: &str,
    reason: Option<&str>,
) -> Result<bool, StateError> {
    let query = sqlx::query(include_str!("sql/change_state.sql")).bind(relay).bind(state);
    let row = statement::optional(pool, query.bind(action).bind(who).bind(reason)).await?;
    let row = row.ok_or(StateError::Unknown)?;
    match (row.try_get("changed")?, row.try_get::<&str, _>("was")?) {
        (false, "retired") => Err(StateError::Retired),
        (changed, _) => Ok(changed),
    }
}
