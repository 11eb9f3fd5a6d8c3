//! What was decided, by whom and why: written with each decision, never changed.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};
use uuid::Uuid;

use super::ANSWER;
use crate::statement::{self, within};

/// One decision.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AuditEntry {
    /// Its number; later decisions have higher ones, but for those of the same moment.
    pub id: i64,
    /// When, by the database's clock.
    pub at: DateTime<Utc>,
    /// Who, as they said; a relay names itself.
    pub who: String,
    /// The database's role that did it, as the server knows it.
    pub role: String,
    /// `redrive`, `skip`, `pause`, `resume`, `retire`, `replay`, `cancel` or `repair`.
    pub action: String,
    /// Of which relay.
    pub relay: Option<String>,
    /// Of which replay.
    pub replay: Option<String>,
    /// Of a redrive: what names the hold. Of a skip: where the message stands in the log. Of a repair: where the new era
    /// begins.
    pub position: Option<i64>,
    /// The message, or the first that was held.
    pub message_id: Option<Uuid>,
    /// Why.
    pub reason: Option<String>,
}

/// The latest decisions, at most `limit`, the latest first; of one relay or of all (`None`).
///
/// # Errors
/// The database does not answer within a minute.
pub async fn audit(pool: &PgPool, relay: Option<&str>, limit: i64) -> Result<Vec<AuditEntry>, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/audit.sql")).bind(relay).bind(limit);
    within(ANSWER, statement::read(pool, query)).await?.iter().map(entry).collect()
}

fn entry(row: &PgRow) -> Result<AuditEntry, sqlx::Error> {
    Ok(AuditEntry {
        id: row.try_get("id")?,
        at: row.try_get("at")?,
        who: row.try_get("who")?,
        role: row.try_get("role")?,
        action: row.try_get("action")?,
        relay: row.try_get("relay")?,
        replay: row.try_get("replay")?,
        position: row.try_get("position")?,
        message_id: row.try_get("message_id")?,
        reason: row.try_get("reason")?,
    })
}
