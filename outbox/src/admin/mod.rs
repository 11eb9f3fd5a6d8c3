//! What an operator asks and does: how far relays are, which keys are held, redrive and skip, pause, resume and
//! retire, repair after a restore.
//!
//! Whatever changes something says who decided it, and stands in [`audit()`] as soon as it is done, in the same transaction.
//! There is no way to change a held message: it is published as it was enqueued, or skipped.

mod audit;
mod bound;
mod doctor;
mod relays;
mod repair;
mod scheduled;

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use message::MessageId;
use sqlx::postgres::{PgPool, PgRow};
use sqlx::{PgTransaction, Row};
use uuid::Uuid;

use crate::statement::{self, BEGIN_READING, within};
use crate::upkeep;
pub use audit::{AuditEntry, audit};
pub use bound::AdminError;
pub(crate) use bound::{ANSWER, COUNTED, LOCK, decide};
pub use doctor::{Finding, Severity, examine};
pub use relays::{Retirement, StateError, pause, resume, retire, retirement};
pub use repair::{RepairError, Survey, repair, survey};
pub use scheduled::{Scheduled, scheduled};

/// How far one relay is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RelayStatus {
    /// Its name.
    pub relay: String,
    /// `running`, `paused` or `retired`.
    pub state: String,
    /// Messages committed and not recorded as delivered, without those that are held.
    pub pending: i64,
    /// When the oldest of them was written, by the database's clock.
    pub oldest: Option<DateTime<Utc>>,
    /// How old that one is, by the database's clock, in seconds; 0 if nothing is pending.
    pub lag_seconds: f64,
    /// Processes that are alive.
    pub processes: i64,
    /// Processes that wait for their broker before they take part, and what it answered the last of them.
    pub waiting: i64,
    /// See [`waiting`](Self::waiting).
    pub waiting_for: Option<String>,
    /// Shards, and how many of them have a living owner.
    pub shards: i16,
    /// Shards with a living owner.
    pub owned_shards: i64,
    /// Keys tried again in their time.
    pub retrying: i64,
    /// Keys that wait for a person.
    pub parked: i64,
    /// Keys set aside because their backlog takes more than half of what the relay reads ahead; they count as retried.
    pub set_aside: i64,
    /// The destinations that keys wait for; these count as retried, too.
    pub waits: Vec<Wait>,
    /// Messages of the keys that wait for a person.
    pub parked_messages: i64,
    /// Messages of all these keys.
    pub held_messages: i64,
    /// Bytes of payload of these.
    pub held_bytes: i64,
    /// Leaves of the log that hold messages it has not delivered, by number: they are not emptied.
    pub pins: Vec<i64>,
    /// When its last process stopped; `None` while one is running, or waits for its broker.
    pub unattended_since: Option<DateTime<Utc>>,
    /// Whether it is a consumer group of this log.
    pub is_group: bool,
    /// What its processes registered last as the place they publish to, without a secret.
    pub destination: Option<String>,
    /// Where living processes publish to, each with its name, if that is not the same place or not by the same routes.
    pub split: Vec<String>,
}

impl RelayStatus {
    /// Whether it should run and no process of it is alive, or waits for its broker.
    pub fn is_stopped(&self) -> bool {
        self.state == "running" && self.processes == 0 && self.waiting == 0
    }
}

/// A destination that takes nothing now, and the keys that wait for it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wait {
    /// The destination.
    pub destination: String,
    /// How many keys, or messages without a key, wait.
    pub keys: i64,
    /// Since when the first of them is held.
    pub since: DateTime<Utc>,
    /// What the broker said.
    pub error: String,
}

/// How far each relay of the database is.
///
/// # Errors
/// The database does not answer within ten minutes.
pub async fn status(pool: &PgPool) -> Result<Vec<RelayStatus>, sqlx::Error> {
    let status = async {
        let mut tx = pool.begin_with(BEGIN_READING).await?;
        let status = status_within(&mut tx).await?;
        tx.commit().await?;
        Ok(status)
    };
    within(COUNTED, status).await
}

/// The same, in a transaction.
async fn status_within(tx: &mut PgTransaction<'_>) -> Result<Vec<RelayStatus>, sqlx::Error> {
    let mut pins = upkeep::pins(tx).await?;
    sqlx::query(include_str!("sql/no_jit.sql")).persistent(false).execute(&mut **tx).await?;
    let mut waits: HashMap<String, Vec<Wait>> = HashMap::new();
    for row in sqlx::query(include_str!("sql/waits.sql")).persistent(false).fetch_all(&mut **tx).await? {
        waits.entry(row.try_get("relay")?).or_default().push(Wait {
            destination: row.try_get("destination")?,
            keys: row.try_get("keys")?,
            since: row.try_get("since")?,
            error: row.try_get("error")?,
        });
    }
    let rows = sqlx::query(include_str!("sql/status.sql")).persistent(false).fetch_all(&mut **tx).await?;
    rows.iter()
        .map(|row| {
            let relay: String = row.try_get("relay")?;
            Ok(RelayStatus {
                pins: pins.remove(&relay).unwrap_or_default(),
                waits: waits.remove(&relay).unwrap_or_default(),
                relay,
                state: row.try_get("state")?,
                pending: row.try_get("pending")?,
                oldest: row.try_get("oldest")?,
                lag_seconds: row.try_get("lag_seconds")?,
                processes: row.try_get("processes")?,
                waiting: row.try_get("waiting")?,
                waiting_for: row.try_get("waiting_for")?,
                shards: row.try_get("shards")?,
                owned_shards: row.try_get("owned_shards")?,
                retrying: row.try_get("retrying")?,
                parked: row.try_get("parked")?,
                set_aside: row.try_get("set_aside")?,
                parked_messages: row.try_get("parked_messages")?,
                held_messages: row.try_get("held_messages")?,
                held_bytes: row.try_get("held_bytes")?,
                unattended_since: row.try_get("unattended_since")?,
                is_group: row.try_get("is_group")?,
                destination: row.try_get("destination")?,
                split: row.try_get("split")?,
            })
        })
        .collect()
}

/// A key that a relay holds back, or a message without a key that it holds alone.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HeldKey {
    /// Names the hold: the position of the message that failed first. Its first message is another one once that is done with.
    pub position: i64,
    /// The key.
    pub key: Option<String>,
    /// `retrying` or `parked`.
    pub state: String,
    /// `failed`, `suspected` (of having ended the relay's process), `destination` (which is unavailable), or `backlog`.
    pub reason: String,
    /// The destination that it waits for.
    pub destination: Option<String>,
    /// Attempts at its first message.
    pub attempts: i32,
    /// When the next one is due; parked keys have none.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// What the broker said last.
    pub last_error: String,
    /// Since when it is held.
    pub held_at: DateTime<Utc>,
    /// Messages held.
    pub messages: i64,
    /// Where the first of them stands in the log: what [`skip`] names.
    pub first_position: Option<i64>,
    /// The first of them.
    pub first: Option<MessageId>,
    /// Its topic.
    pub topic: Option<String>,
    /// Its kind.
    pub kind: Option<String>,
}

impl HeldKey {
    /// Whether it waits for a person.
    pub fn is_parked(&self) -> bool {
        self.state == "parked"
    }
}

/// The keys that a relay holds, oldest first.
///
/// # Errors
/// The database does not answer within a minute.
pub async fn held_keys(pool: &PgPool, relay: &str) -> Result<Vec<HeldKey>, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/held_keys.sql")).bind(relay);
    let rows = within(ANSWER, statement::read(pool, query)).await?;
    rows.iter().map(held_key).collect()
}

/// Has a held key tried again, now and afresh; its messages follow in order. `false`: no such key is held, or the relay is
/// retired. Twice is once. `who` decides it, and perhaps says why.
///
/// # Errors
/// See [`AdminError`].
pub async fn redrive(
    pool: &PgPool,
    relay: &str,
    position: i64,
    who: &str,
    reason: Option<&str>,
) -> Result<bool, AdminError> {
    let query = sqlx::query(include_str!("sql/redrive.sql")).bind(relay).bind(position);
    Ok(!decide(pool, query.bind(who).bind(reason)).await?.is_empty())
}

/// Gives up the message at `position`, the first of a parked key, and has the next one tried: the message will not be published
/// by this relay. Of a retired relay it gives up the first message of any held key, once no process of it is alive. `false`: it is not the first message of such
/// a key, or not any more, and nothing was changed. `who` decides it, and says why.
///
/// A key's first message changes while a person looks at it: another person redrives the key, and its next message parks. So
/// this names the message ([`HeldKey::first_position`]), not the key.
///
/// # Errors
/// See [`AdminError`].
pub async fn skip(
    pool: &PgPool,
    relay: &str,
    position: i64,
    who: &str,
    reason: &str,
) -> Result<bool, AdminError> {
    let query = sqlx::query(include_str!("sql/skip.sql")).bind(relay).bind(position).bind(who).bind(reason);
    Ok(!decide(pool, query).await?.is_empty())
}

fn held_key(row: &PgRow) -> Result<HeldKey, sqlx::Error> {
    Ok(HeldKey {
        position: row.try_get("position")?,
        key: row.try_get("key")?,
        state: row.try_get("state")?,
        reason: row.try_get("reason")?,
        destination: row.try_get("destination")?,
        attempts: row.try_get("attempts")?,
        next_attempt_at: row.try_get("next_attempt_at")?,
        last_error: row.try_get("last_error")?,
        held_at: row.try_get("held_at")?,
        messages: row.try_get("messages")?,
        first_position: row.try_get("first_position")?,
        first: row.try_get::<Option<Uuid>, _>("first")?.and_then(|id| MessageId::try_from(id).ok()),
        topic: row.try_get("topic")?,
        kind: row.try_get("kind")?,
    })
}
