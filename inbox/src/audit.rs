//! What was decided about held messages, by whom and why: written with each decision, never changed.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::moment::moment;
use crate::statement;

/// One decision.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AuditEntry {
    /// Its number; later decisions have higher ones, but for those of the same moment.
    pub id: i64,
    /// When, by the database's clock.
    pub at: DateTime<Utc>,
    /// Who, as they said.
    pub who: String,
    /// The database's role that did it, as the server knows it.
    pub role: String,
    /// `redrive`, `admit_late`, `skip` or `forget_kind`.
    pub action: String,
    /// Of which consumer.
    pub consumer: String,
    /// The number of the hold; `None`: it is about a kind.
    pub hold: Option<i64>,
    /// The message, or the first that was held; `None`: it could not be understood, or it is about a kind.
    pub message_id: Option<Uuid>,
    /// The kind that was forgotten.
    pub kind: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

/// The latest decisions, at most `limit`, the latest first; of one consumer or of all (`None`).
///
/// # Errors
/// The database's.
pub async fn audit(
    connection: &mut PgConnection,
    consumer: Option<&str>,
    limit: i64,
) -> Result<Vec<AuditEntry>, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/audit.sql")).bind(consumer).bind(limit);
    statement::read(connection, query).await?.iter().map(entry).collect()
}

fn entry(row: &PgRow) -> Result<AuditEntry, sqlx::Error> {
    Ok(AuditEntry {
        id: row.try_get("id")?,
        at: moment(row, "at")?,
        who: row.try_get("who")?,
        role: row.try_get("role")?,
        action: row.try_get("action")?,
        consumer: row.try_get("consumer")?,
        hold: row.try_get("hold")?,
        message_id: row.try_get("message_id")?,
        kind: row.try_get("kind")?,
        reason: row.try_get("reason")?,
    })
}
