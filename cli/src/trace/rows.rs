//! What the databases hold of a workflow, row by row, as [`load`](super::load) reads it.

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// What one database answered.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// What the database is called here; no two have the same name.
    pub(super) database: String,
    /// Whether it has a log.
    pub(super) outbox: bool,
    /// Whether it has an inbox.
    pub(super) inbox: bool,
    /// Whether there was more than the limit.
    pub(super) cut: bool,
    pub(super) logged: Vec<Logged>,
    pub(super) held: Vec<HeldRow>,
    pub(super) handled: Vec<HandledRow>,
}

/// What every copy of a message says of itself.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) id: Uuid,
    pub(super) correlation: Option<Uuid>,
    pub(super) causation: Option<Uuid>,
    pub(super) source: Option<String>,
    pub(super) topic: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) key: Option<String>,
    pub(super) occurred_at: Option<DateTime<Utc>>,
    /// Only the log's side knows it.
    pub(super) enqueued_at: Option<DateTime<Utc>>,
}

/// A row of the log.
#[derive(Debug, Clone)]
pub(super) struct Logged {
    pub(super) said: Said,
    pub(super) position: i64,
    /// The relays that will not send it again: published, skipped, or before their start.
    pub(super) passed: Vec<String>,
    /// The relays that have not recorded it.
    pub(super) pending: Vec<String>,
}

/// Which side holds a message back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Holder {
    Relay,
    Consumer,
}

/// A message that a relay or a consumer holds back.
#[derive(Debug, Clone)]
pub(super) struct HeldRow {
    pub(super) said: Said,
    pub(super) by: Holder,
    pub(super) name: String,
    pub(super) parked: bool,
    /// Another message of its key failed, and it waits behind that one.
    pub(super) behind: bool,
    pub(super) attempts: i32,
    pub(super) next_attempt_at: Option<DateTime<Utc>>,
    pub(super) last_error: String,
    pub(super) held_at: DateTime<Utc>,
}

/// A message whose effect at a consumer is committed.
#[derive(Debug, Clone)]
pub(super) struct HandledRow {
    pub(super) id: Uuid,
    pub(super) consumer: String,
    pub(super) received_at: DateTime<Utc>,
    pub(super) handled_at: DateTime<Utc>,
    pub(super) attempts: i32,
}
