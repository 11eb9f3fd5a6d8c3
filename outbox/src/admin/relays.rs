//! Relays as an operator's: paused, resumed, retired.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgPool;

use super::{AdminError, decide, status};

/// A relay's state was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// No relay of that name has run here.
    #[error("no such relay")]
    Unknown,
    /// What it would have published may be gone.
    #[error("the relay is retired, for good")]
    Retired,
    /// It could not be asked, or changed.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

impl From<sqlx::Error> for StateError {
    fn from(error: sqlx::Error) -> Self {
        StateError::Admin(error.into())
    }
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

/// What retiring a relay would give up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Retirement {
    /// Its name.
    pub relay: String,
    /// Whether it is a consumer group of this log.
    pub is_group: bool,
    /// What its processes registered last as the place they publish to, without a secret.
    pub destination: Option<String>,
    /// `running`, `paused` or `retired`.
    pub state: String,
    /// Messages of the log that it has not published.
    pub pending: i64,
    /// Messages that it holds back.
    pub held: i64,
    /// Processes that are alive.
    pub processes: i64,
    /// When its last process stopped; `None` while one is running.
    pub unattended_since: Option<DateTime<Utc>>,
    /// Every other relay of the database is retired, or there is none.
    pub is_last: bool,
}

impl Retirement {
    /// Messages that would go unpublished by it, or that a group would not receive.
    pub fn unpublished(&self) -> i64 {
        self.pending + self.held
    }
}

/// Says what retiring a relay would give up. Changes nothing.
///
/// # Errors
/// [`StateError::Unknown`], or the database's.
pub async fn retirement(pool: &PgPool, relay: &str) -> Result<Retirement, StateError> {
    let relays = status(pool).await?;
    let is_last = relays.iter().all(|other| other.relay == relay || other.state == "retired");
    let found = relays.into_iter().find(|status| status.relay == relay).ok_or(StateError::Unknown)?;
    Ok(Retirement {
        relay: found.relay,
        is_group: found.is_group,
        destination: found.destination,
        state: found.state,
        pending: found.pending,
        held: found.held_messages,
        processes: found.processes,
        unattended_since: found.unattended_since,
        is_last,
    })
}

/// Gives a relay up, for good: no process runs it any more, and the log keeps nothing for it. What it has not published is
/// not published by it ([`retirement`] counts that). Deletes nothing: what it holds stays listed until it is
/// [skipped](super::skip). `false`: it is retired already.
///
/// # Errors
/// See [`StateError`].
pub async fn retire(pool: &PgPool, relay: &str, who: &str, reason: &str) -> Result<bool, StateError> {
    match change(pool, relay, "retired", "retire", who, Some(reason)).await {
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
    let rows = decide(pool, query.bind(action).bind(who).bind(reason)).await?;
    let row = rows.first().ok_or(StateError::Unknown)?;
    match (row.try_get("changed")?, row.try_get::<&str, _>("was")?) {
        (false, "retired") => Err(StateError::Retired),
        (changed, _) => Ok(changed),
    }
}
