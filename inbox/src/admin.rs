//! For a person: what each consumer holds back and why, and what is to become of it.
//!
//! Each function takes a connection, so that several can share a transaction. What changes a held key waits for the try
//! under way, at most the consumer's handler timeout. It says who decided it, and stands in [`audit()`] as soon as it is
//! done, in the same transaction. There is no way to change a held message.

mod kinds;

use chrono::{DateTime, Utc};
use message::MessageId;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

pub use self::kinds::{ForgetKindError, ForgottenKind, KindStatus, forget_kind, kinds};
pub use crate::audit::{AuditEntry, audit};
pub use crate::encoding::encoding;
pub use crate::floor::{FloorStatus, LowerFloorError, floor, lower_floor};
use crate::statement::{self, Begin, SILENCE};
pub use crate::stored::{HeldMessage, Unreadable};

/// Whether a held key is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldState {
    /// At its next attempt's time.
    Retrying,
    /// When a person asks for it.
    Parked,
}

/// A key that a consumer holds back, or a message without a key.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HeldKey {
    /// Whose.
    pub consumer: String,
    /// Its number, by which the functions here name it.
    pub hold: i64,
    /// `None`: one message alone.
    pub key: Option<String>,
    /// Whether it is tried again.
    pub state: HeldState,
    /// Tries of its first message.
    pub attempts: i32,
    /// When it is due, unless it is parked.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// Why the last try failed, or why it was refused.
    pub last_error: String,
    /// Since when.
    pub held_at: DateTime<Utc>,
    /// How many messages wait.
    pub messages: i64,
    /// The number of the first message, which [`skip`] names, and of the last one.
    pub first: Option<i64>,
    /// See [`first`](Self::first).
    pub last: Option<i64>,
    /// The first message's id; `None`: it could not be understood.
    pub first_id: Option<MessageId>,
    /// The first message's kind.
    pub first_kind: Option<String>,
}

/// One consumer of this database.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerStatus {
    /// Its name.
    pub consumer: String,
    /// When a process of it started last; `None`: it never ran as a [`Consumer`](crate::Consumer).
    pub started_at: Option<DateTime<Utc>>,
    /// Held keys that are tried again.
    pub retrying: i64,
    /// Held keys that wait for a person.
    pub parked: i64,
    /// Messages of both.
    pub messages: i64,
    /// Since when the oldest of them is held.
    pub oldest_held_at: Option<DateTime<Utc>>,
    /// Processes that are alive.
    pub processes: i64,
}

/// Every consumer that has run here or holds something back, by name.
///
/// # Errors
/// The database's.
pub async fn status(connection: &mut PgConnection) -> Result<Vec<ConsumerStatus>, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/status.sql"));
    let rows = statement::read(connection, query).await?;
    let status = |row: &PgRow| {
        Ok(ConsumerStatus {
            consumer: row.try_get("consumer")?,
            started_at: row.try_get("started_at")?,
            retrying: row.try_get("retrying")?,
            parked: row.try_get("parked")?,
            messages: row.try_get("messages")?,
            oldest_held_at: row.try_get("oldest_held_at")?,
            processes: row.try_get("processes")?,
        })
    };
    rows.iter().map(status).collect()
}

/// What is held back, the oldest first: of one consumer or of all (`None`), at most `limit`.
///
/// # Errors
/// The database's.
pub async fn held_keys(
    connection: &mut PgConnection,
    consumer: Option<&str>,
    limit: i64,
) -> Result<Vec<HeldKey>, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/held_keys.sql")).bind(consumer).bind(limit);
    let rows = statement::read(connection, query).await?;
    let held_key = |row: &PgRow| {
        let state: String = row.try_get("state")?;
        Ok(HeldKey {
            consumer: row.try_get("consumer")?,
            hold: row.try_get("hold")?,
            key: row.try_get("key")?,
            state: if state == "parked" { HeldState::Parked } else { HeldState::Retrying },
            attempts: row.try_get("attempts")?,
            next_attempt_at: row.try_get("next_attempt_at")?,
            last_error: row.try_get("last_error")?,
            held_at: row.try_get("held_at")?,
            messages: row.try_get("messages")?,
            first: row.try_get("first")?,
            last: row.try_get("last")?,
            first_id: row.try_get::<Option<Uuid>, _>("first_id")?.and_then(|id| id.try_into().ok()),
            first_kind: row.try_get("first_kind")?,
        })
    };
    rows.iter().map(held_key).collect()
}

/// The messages of a held key in order, at most `limit`.
///
/// # Errors
/// The database's.
pub async fn held_messages(
    connection: &mut PgConnection,
    consumer: &str,
    hold: i64,
    limit: i64,
) -> Result<Vec<HeldMessage>, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/held_messages.sql")).bind(consumer).bind(hold).bind(limit);
    let rows = statement::read(connection, query).await?;
    rows.iter().map(HeldMessage::from_row).collect()
}

/// Has a held key tried again now, with as many attempts as if it were new. Answers whether it is held. `who` decides it,
/// and perhaps says why.
///
/// # Errors
/// The database's.
pub async fn redrive(
    connection: &mut PgConnection,
    consumer: &str,
    hold: i64,
    who: &str,
    reason: Option<&str>,
) -> Result<bool, sqlx::Error> {
    let mut tx = connection.begin_bounded(SILENCE).await?;
    let held = retry_now(&mut tx, consumer, hold).await?;
    if held {
        write_down(&mut tx, "redrive", consumer, hold, who, reason).await?;
    }
    tx.commit().await?;
    Ok(held)
}

/// Has all parked keys of a consumer tried again now. Answers how many there were. `who` decides it, and perhaps says why.
///
/// # Errors
/// The database's.
pub async fn redrive_all(
    connection: &mut PgConnection,
    consumer: &str,
    who: &str,
    reason: Option<&str>,
) -> Result<u64, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/redrive_all.sql")).bind(consumer).bind(who).bind(reason);
    statement::run(connection, query).await
}

/// Lets the messages of a held key be admitted although they are past the horizon, up to the one numbered `through`
/// ([`HeldKey::last`], when a person looked), and has the key tried again now. Whoever asks for it knows that they were not
/// handled: the inbox does not any more. What has come since then was not looked at, and is refused as before. Answers whether
/// it is held. `who` decides it, and perhaps says why.
///
/// # Errors
/// The database's.
pub async fn admit_late(
    connection: &mut PgConnection,
    consumer: &str,
    hold: i64,
    through: i64,
    who: &str,
    reason: Option<&str>,
) -> Result<bool, sqlx::Error> {
    let mut tx = connection.begin_bounded(SILENCE).await?;
    if !lock(&mut tx, consumer, hold).await? {
        return Ok(false);
    }
    sqlx::query(include_str!("sql/mark_late.sql"))
        .bind(consumer)
        .bind(hold)
        .bind(through)
        .persistent(false)
        .execute(&mut *tx)
        .await?;
    let held = retry_now(&mut tx, consumer, hold).await?;
    write_down(&mut tx, "admit_late", consumer, hold, who, reason).await?;
    tx.commit().await?;
    Ok(held)
}

/// Gives up the message numbered `message` ([`HeldKey::first`]), the first of a held key, and has the others tried now. What was
/// given up is answered, and counts as handled: a later copy of it is a repeat. `None`: it is not the first message of a held
/// key, or not any more, and nothing was changed. `who` decides it, and says why.
///
/// A key's first message changes while a person looks at it, so this names the message, not the key.
///
/// # Errors
/// The database's.
pub async fn skip(
    connection: &mut PgConnection,
    consumer: &str,
    message: i64,
    who: &str,
    reason: &str,
) -> Result<Option<HeldMessage>, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/hold_of.sql")).bind(consumer).bind(message);
    let Some(row) = statement::optional(&mut *connection, query).await? else { return Ok(None) };
    let given_up = GivenUp { hold: row.try_get("hold")?, through: message, alone: true };
    Ok(give_up(connection, consumer, given_up, who, reason).await?.pop())
}

/// Gives up the messages of a held key, like [`skip`] each, up to the one numbered `through` ([`HeldKey::last`], when a person
/// looked). What has come since then is tried now; without any, the key is free at once.
///
/// # Errors
/// The database's.
pub async fn discard(
    connection: &mut PgConnection,
    consumer: &str,
    hold: i64,
    through: i64,
    who: &str,
    reason: &str,
) -> Result<Vec<HeldMessage>, sqlx::Error> {
    give_up(connection, consumer, GivenUp { hold, through, alone: false }, who, reason).await
}

/// Which messages of a hold are given up: those up to a number, or that one alone, if it is the first.
struct GivenUp {
    hold: i64,
    through: i64,
    alone: bool,
}

async fn give_up(
    connection: &mut PgConnection,
    consumer: &str,
    GivenUp { hold, through, alone }: GivenUp,
    who: &str,
    reason: &str,
) -> Result<Vec<HeldMessage>, sqlx::Error> {
    let mut tx = connection.begin_bounded(SILENCE).await?;
    if !lock(&mut tx, consumer, hold).await? {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(include_str!("sql/give_up.sql"))
        .bind(consumer)
        .bind(hold)
        .bind(through)
        .bind(who)
        .bind(reason)
        .bind(alone)
        .persistent(false)
        .fetch_all(&mut *tx)
        .await?;
    let given_up = rows.iter().map(HeldMessage::from_row).collect::<Result<Vec<_>, _>>()?;
    if given_up.is_empty() {
        // Nothing was decided, so nothing is tried.
        tx.rollback().await?;
        return Ok(given_up);
    }
    let released = sqlx::query(include_str!("sql/release.sql"))
        .bind(consumer)
        .bind(hold)
        .persistent(false)
        .execute(&mut *tx);
    if released.await?.rows_affected() == 0 {
        retry_now(&mut tx, consumer, hold).await?;
    }
    tx.commit().await?;
    Ok(given_up)
}

async fn retry_now(connection: &mut PgConnection, consumer: &str, hold: i64) -> Result<bool, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/redrive.sql")).bind(consumer).bind(hold);
    Ok(statement::run(connection, query).await? > 0)
}

async fn write_down(
    connection: &mut PgConnection,
    action: &str,
    consumer: &str,
    hold: i64,
    who: &str,
    reason: Option<&str>,
) -> Result<(), sqlx::Error> {
    let query = sqlx::query(include_str!("sql/write_down.sql")).bind(consumer).bind(hold);
    statement::run(connection, query.bind(action).bind(who).bind(reason)).await?;
    Ok(())
}

/// Waits for the try under way and keeps appenders out.
async fn lock(connection: &mut PgConnection, consumer: &str, hold: i64) -> Result<bool, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/release_lock.sql")).bind(consumer).bind(hold);
    Ok(statement::optional(connection, query).await?.is_some())
}
