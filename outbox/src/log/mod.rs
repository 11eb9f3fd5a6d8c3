//! The log and its readers (design: an append-only table, and cursors that remember snapshots).
//!
//! Everything here but [`LogConnection`], [`Store`] and [`Reader`] is without I/O. The relay stands on it, and so does the
//! PostgreSQL broker, whose subscribers read a log of the same kind; services need nothing of it.

mod append;
mod connection;
mod destination;
mod eras;
mod holding;
mod lease;
mod pace;
mod progress;
mod reader;
mod readings;
pub(crate) mod rest;
mod row;
mod share;
mod snapshot;
mod start;
mod store;
mod window;

use std::time::Duration;

use message::limits::LONGEST;

pub use append::{AppendError, append, check_appendable, name};
pub use connection::{LogConnection, LogError};
pub use destination::{Destination, Elsewhere};
pub use eras::{Era, Eras};
pub use holding::{HoldReason, NewHold};
pub use lease::Lease;
pub use progress::{CursorRecord, Progress};
pub use reader::{Reader, RecordCommand};
pub use readings::Page;
#[cfg(test)]
pub(crate) use readings::Readings;
pub use row::LogMessage;
pub(crate) use row::{Names, decode_row, moment_in};
pub use share::{Move, Share};
pub(crate) use snapshot::{LEAVES, leaf, leaf_end};
pub use snapshot::{NotSnapshot, Snapshot};
pub use start::Start;
pub(crate) use start::{position_at, within_calendar};
pub use store::{Cursor, Record, Store};
pub(crate) use store::{faults, preflight};
pub use window::{Look, PageRange, Reading, Seen, Window};

/// How a log is read.
#[derive(Debug, Clone)]
pub struct ReadSettings {
    /// Messages a page.
    pub page: usize,
    /// Bytes of payload a page, about: a page of longer messages is shorter.
    pub page_bytes: usize,
    /// Pause between looks that find something, but not a full page.
    pub busy_poll: Duration,
    /// Longest pause between looks that find nothing.
    pub poll_ceiling: Duration,
    /// The same while a doorbell would be heard, unless `poll_ceiling` is longer.
    pub doorbell_ceiling: Duration,
    /// How often the lower bound may be proven anew while little is read: each time spends a transaction id.
    pub proof_interval: Duration,
}

impl ReadSettings {
    /// As they can be: a page of at least one message, and nothing so large that a sum with it overflows.
    pub(crate) fn clamped(mut self) -> Self {
        (self.page, self.page_bytes) = clamp_page(self.page, self.page_bytes);
        for time in [
            &mut self.busy_poll,
            &mut self.poll_ceiling,
            &mut self.doorbell_ceiling,
            &mut self.proof_interval,
        ] {
            *time = (*time).min(LONGEST);
        }
        self
    }
}

/// Messages and bytes of a page, as they can be: memory for so many messages is reserved at once.
pub(crate) fn clamp_page(messages: usize, bytes: usize) -> (usize, usize) {
    (messages.clamp(1, 100_000), bytes.min(1 << 30))
}

impl Default for ReadSettings {
    fn default() -> Self {
        ReadSettings {
            page: 1000,
            page_bytes: 8 << 20,
            busy_poll: Duration::from_millis(5),
            // An idle reader with its lease stays below ten statements a second.
            poll_ceiling: Duration::from_millis(150),
            doorbell_ceiling: Duration::from_millis(2500),
            proof_interval: Duration::from_millis(100),
        }
    }
}

/// Why a log is not read: reading it would lose messages, repeat them for ever, or not see them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No schema, or one that does not fit this build.
    #[error(transparent)]
    Schema(#[from] migrations::SchemaError),
    /// The server is a read replica: cursors cannot be recorded there.
    #[error("the server is a read replica: read the primary")]
    Replica,
    /// One text that is no UTF-8 would stop every reader.
    #[error("the database's encoding is not UTF8")]
    OtherEncoding,
    /// Row-level security would hide messages without a word.
    #[error("row-level security is active on outbox.message for this role: it would hide messages")]
    HiddenRows,
    /// Positions would not be drawn in order.
    #[error("the sequence of outbox.message.position has a cache above 1: positions would be out of order")]
    CachedPositions,
    /// A crash would empty the log.
    #[error("outbox.message has an unlogged leaf: a crash would empty it")]
    Unlogged,
    /// The database was restored into another cluster, where its transaction ids mean nothing.
    #[error(
        "the log was written in another cluster (a restored dump?), its transaction ids mean nothing here: `outbox repair`"
    )]
    OtherCluster,
    /// The broker is the log that is read.
    #[error("the broker is the log that is read: its messages would be published into it once more")]
    Itself,
    /// A new relay was to begin with something that is yet to come.
    #[error("the relay is to start beyond the end of the log")]
    StartAhead,
    /// The cluster gives out again the transaction ids that the log and its cursors rest on.
    #[error("the cluster's transaction ids are behind the log or a cursor (a restore?): `outbox repair`")]
    IdsBehind,
    /// The sequence gives out again positions that the log holds.
    #[error(
        "the sequence of outbox.message.position is behind the log (a restore in part?): `outbox repair`"
    )]
    PositionsBehind,
    /// The relay is retired.
    #[error("the relay is retired")]
    Retired,
    /// The relay is paused.
    #[error("the relay is paused")]
    Paused,
    /// The log cannot be read now.
    #[error("the log cannot be read now")]
    Log(#[from] LogError),
}

impl Refusal {
    /// Whether it may be over without anybody changing something: the database did not answer.
    pub fn is_passing(&self) -> bool {
        matches!(self, Refusal::Log(_) | Refusal::Schema(migrations::SchemaError::Unreadable { .. }))
    }

    /// Whether the database was reached and has hung up, as it does on who stands still in the middle of a transaction, or the
    /// statement met another transaction: neither says anything of the set-up.
    pub(crate) fn is_hung_up(&self) -> bool {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut};
        match self {
            Refusal::Log(LogError::Database(sqlx::Error::Database(error))) => {
                matches!(error.code().as_deref(), Some("25P03" | "40001" | "40P01" | "55P03"))
            }
            Refusal::Log(LogError::Database(sqlx::Error::Io(error))) => {
                matches!(error.kind(), BrokenPipe | ConnectionReset | TimedOut)
            }
            _ => false,
        }
    }
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Refusal::Log(LogError::Database(error))
    }
}
