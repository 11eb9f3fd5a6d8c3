//! What a record holds back: keys, and copies of their messages.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::LogError;
use super::row::LogMessage;
use crate::statement;

/// A key to hold back from now on, and the error that it met.
#[derive(Debug, Clone)]
pub struct NewHold {
    /// The position of the message that failed.
    pub position: i64,
    /// The slot of the key.
    pub slot: i16,
    /// The key; a message without one is held alone.
    pub key: Option<Arc<str>>,
    /// How long until the next attempt; `None`: parked.
    pub retry_in: Option<Duration>,
    /// Attempts made.
    pub attempts: i32,
    /// What the broker said.
    pub error: String,
    /// Why it is held.
    pub reason: HoldReason,
    /// The destination that it waits for, if it waits for one.
    pub destination: Option<Arc<str>>,
}

/// Why a key is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldReason {
    /// Its message was rejected, or not answered.
    Failed,
    /// Its message may have ended the relay's process.
    Suspected,
    /// Its message's destination is unavailable.
    Destination,
    /// Its backlog takes too much of what is read ahead.
    Backlog,
}

impl HoldReason {
    /// As its row says it.
    pub fn as_str(self) -> &'static str {
        match self {
            HoldReason::Failed => "failed",
            HoldReason::Suspected => "suspected",
            HoldReason::Destination => "destination",
            HoldReason::Backlog => "backlog",
        }
    }
}

/// Writes the rows of keys that are held from now on. One whose row the table does not take, for what it holds, keeps no other
/// waiting: its message is parked without the key, which its copy has.
pub(super) async fn hold(
    connection: &mut PgConnection,
    relay: &str,
    holds: &[NewHold],
) -> Result<(), LogError> {
    if holds.is_empty() {
        return Ok(());
    }
    let Some(error) = refused(connection, relay, holds).await? else { return Ok(()) };
    for hold in holds {
        let one = std::slice::from_ref(hold);
        // Alone it is the one that was refused.
        let error = match holds.len() {
            1 => Some(message::error_chain(&error)),
            _ => refused(connection, relay, one).await?.map(|error| message::error_chain(&error)),
        };
        let Some(error) = error else { continue };
        let position = hold.position;
        tracing::error!(
            relay,
            position,
            error,
            "parked without its key: the table of held keys does not take it; it waits for a person"
        );
        let error = format!("outbox.held_key does not take its key: {error}; {}", hold.error);
        let parked = NewHold {
            key: None,
            retry_in: None,
            reason: HoldReason::Failed,
            destination: None,
            error: crate::relay::shorten(&error),
            ..hold.clone()
        };
        write(connection, relay, &[parked]).await?;
    }
    Ok(())
}

/// Writes rows, or none of them; the error, if a value in them is at fault.
async fn refused(
    connection: &mut PgConnection,
    relay: &str,
    holds: &[NewHold],
) -> Result<Option<sqlx::Error>, sqlx::Error> {
    let mut point = connection.begin().await?;
    match write(&mut point, relay, holds).await {
        Ok(()) => point.commit().await.map(|()| None),
        Err(error) if statement::is_values_fault(&error) => {
            point.rollback().await?;
            Ok(Some(error))
        }
        Err(error) => Err(error),
    }
}

async fn write(connection: &mut PgConnection, relay: &str, holds: &[NewHold]) -> Result<(), sqlx::Error> {
    fn column<'h, T>(holds: &'h [NewHold], value: impl Fn(&'h NewHold) -> T) -> Vec<T> {
        holds.iter().map(value).collect()
    }
    sqlx::query(include_str!("sql/hold_keys.sql"))
        .bind(relay)
        .bind(column(holds, |hold| hold.position))
        .bind(column(holds, |hold| hold.slot))
        .bind(column(holds, |hold| hold.key.as_deref()))
        .bind(column(holds, |hold| if hold.retry_in.is_some() { "retrying" } else { "parked" }))
        .bind(column(holds, |hold| hold.attempts))
        .bind(column(holds, |hold| hold.retry_in.map(|delay| delay.as_secs_f64())))
        .bind(column(holds, |hold| &*hold.error))
        .bind(column(holds, |hold| hold.reason.as_str()))
        .bind(column(holds, |hold| hold.destination.as_deref()))
        .persistent(false)
        .execute(connection)
        .await?;
    Ok(())
}

/// Copies messages to their held keys, a bounded number of bytes at a time.
pub(super) async fn copy(
    connection: &mut PgConnection,
    relay: &str,
    copies: &[(i64, LogMessage)],
) -> Result<(), LogError> {
    if copies.is_empty() {
        return Ok(());
    }
    let holds: BTreeSet<i64> = copies.iter().map(|(held, _)| *held).collect();
    sqlx::query(include_str!("sql/lock_holds.sql"))
        .bind(relay)
        .bind(Vec::from_iter(holds))
        .persistent(false)
        .execute(&mut *connection)
        .await?;
    for copies in chunks(copies) {
        copy_chunk(&mut *connection, relay, copies).await?;
    }
    Ok(())
}

async fn copy_chunk(
    connection: &mut PgConnection,
    relay: &str,
    copies: &[(i64, LogMessage)],
) -> Result<(), LogError> {
    fn column<'c, T>(copies: &[&'c (i64, LogMessage)], value: impl Fn(&'c LogMessage) -> T) -> Vec<T> {
        copies.iter().map(|(_, copy)| value(copy)).collect()
    }
    let (copies, unreadable): (Vec<_>, Vec<_>) = copies.iter().partition(|(_, copy)| copy.fault.is_none());
    if !unreadable.is_empty() {
        sqlx::query(include_str!("sql/hold_unreadable.sql"))
            .bind(relay)
            .bind(column(&unreadable, |copy| copy.position))
            .bind(unreadable.iter().map(|(held, _)| *held).collect::<Vec<_>>())
            .persistent(false)
            .execute(&mut *connection)
            .await?;
    }
    if copies.is_empty() {
        return Ok(());
    }
    let copies = copies.as_slice();
    sqlx::query(include_str!("sql/hold_messages.sql"))
        .bind(relay)
        .bind(column(copies, |copy| copy.position))
        .bind(copies.iter().map(|(held, _)| *held).collect::<Vec<_>>())
        .bind(column(copies, |copy| *copy.message.id.as_uuid()))
        .bind(column(copies, |copy| *copy.message.correlation.as_uuid()))
        .bind(column(copies, |copy| copy.message.causation.map(Uuid::from)))
        .bind(column(copies, |copy| copy.message.occurred_at))
        .bind(column(copies, |copy| copy.enqueued_at))
        .bind(column(copies, |copy| copy.message.source.as_deref()))
        .bind(column(copies, |copy| &*copy.message.topic))
        .bind(column(copies, |copy| &*copy.message.kind))
        .bind(column(copies, |copy| copy.message.key.as_deref()))
        .bind(column(copies, |copy| copy.message.headers.to_json()))
        .bind(column(copies, |copy| &*copy.message.payload))
        .persistent(false)
        .execute(connection)
        .await?;
    Ok(())
}

/// Most bytes of payload in one statement, but for its last message: the statement must arrive in the time that the
/// transaction allows for it, and what is encoded stands in memory twice.
const CHUNK: usize = 1 << 20;

/// Copies in parts that one statement may carry.
fn chunks(copies: &[(i64, LogMessage)]) -> Vec<&[(i64, LogMessage)]> {
    let (mut chunks, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (index, (_, copy)) in copies.iter().enumerate() {
        bytes += copy.message.payload.len();
        if bytes >= CHUNK {
            chunks.push(&copies[begin..=index]);
            (begin, bytes) = (index + 1, 0);
        }
    }
    chunks.push(&copies[begin..]);
    chunks.retain(|chunk| !chunk.is_empty());
    chunks
}
