//! A held key, whichever side holds it.

use std::fmt;

use chrono::{DateTime, Utc};
use migrations::Schema;
use serde::Serialize;
use sqlx::postgres::{PgConnection, PgPool};
use uuid::Uuid;

use crate::exit::Failure;
use crate::schema::Present;
use crate::secret::SecretUrl;
use crate::{database, suggest};

/// Who holds a key back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Holder {
    Relay(String),
    Consumer(String),
}

impl Holder {
    /// Where it keeps what it holds.
    pub(super) fn schema(&self) -> Schema {
        match self {
            Holder::Relay(_) => Schema::Outbox,
            Holder::Consumer(_) => Schema::Inbox,
        }
    }

    /// Whoever misspells a name must not read that nothing is parked.
    pub(super) async fn must_exist(
        &self,
        pool: &PgPool,
        connection: &mut PgConnection,
        url: &SecretUrl,
    ) -> Result<(), Failure> {
        let names = match self {
            Holder::Relay(_) => relays(pool).await,
            Holder::Consumer(_) => consumers(connection).await,
        };
        let names = names.map_err(|error| database::failed(&format!("database {url}"), &error))?;
        let (Holder::Relay(name) | Holder::Consumer(name)) = self;
        if names.contains(name) {
            return Ok(());
        }
        let hint = suggest::hint(name, names.iter().map(String::as_str));
        Err(Failure::failed(format!("database {url}: no {self} has run here{hint}")))
    }
}

/// The names of the relays. Not their status: that counts the backlog, and a list of what is parked must not wait for it.
async fn relays(pool: &PgPool) -> Result<Vec<String>, sqlx::Error> {
    let mut tx = pool.begin_with(database::BEGIN_READING).await?;
    let names =
        sqlx::query_scalar(include_str!("sql/relays.sql")).persistent(false).fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(names)
}

async fn consumers(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let consumers = inbox::admin::status(connection).await?;
    Ok(consumers.into_iter().map(|status| status.consumer).collect())
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Relay(name) => write!(f, "relay {name}"),
            Holder::Consumer(name) => write!(f, "consumer {name}"),
        }
    }
}

/// A key that is held, or a message without a key that is held alone.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Held {
    #[serde(flatten)]
    pub(super) holder: Holder,
    /// Names the hold: a relay's `--position`, a consumer's `--hold`.
    pub(super) number: i64,
    /// Names its first message: a relay's by its position, a consumer's by its number.
    pub(super) first: Option<i64>,
    /// The number of a consumer's last message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<i64>,
    pub(super) key: Option<String>,
    pub(super) parked: bool,
    pub(super) attempts: i32,
    pub(super) messages: i64,
    pub(super) first_id: Option<Uuid>,
    pub(super) first_kind: Option<String>,
    pub(super) held_at: DateTime<Utc>,
    pub(super) next_attempt_at: Option<DateTime<Utc>>,
    pub(super) last_error: String,
    /// The destination that a relay's key waits for.
    pub(super) destination: Option<String>,
}

/// Everything that one relay or consumer holds, oldest first.
pub(super) async fn of(
    pool: &PgPool,
    connection: &mut PgConnection,
    holder: &Holder,
) -> Result<Vec<Held>, sqlx::Error> {
    match holder {
        Holder::Relay(name) => of_relay(pool, name).await,
        Holder::Consumer(name) => of_consumers(connection, Some(name)).await,
    }
}

/// Everything that relays and consumers hold, where there are any.
pub(super) async fn of_all(
    pool: &PgPool,
    connection: &mut PgConnection,
    present: Present,
) -> Result<Vec<Held>, sqlx::Error> {
    let mut held = Vec::new();
    if present.outbox {
        for relay in relays(pool).await? {
            held.extend(of_relay(pool, &relay).await?);
        }
    }
    if present.inbox {
        held.extend(of_consumers(connection, None).await?);
    }
    Ok(held)
}

/// What one relay holds.
async fn of_relay(pool: &PgPool, relay: &str) -> Result<Vec<Held>, sqlx::Error> {
    let held = outbox::admin::held_keys(pool, relay).await?;
    let held = held.into_iter().map(|held| Held {
        parked: held.is_parked(),
        holder: Holder::Relay(relay.to_owned()),
        number: held.position,
        first: held.first_position,
        last: None,
        key: held.key,
        attempts: held.attempts,
        messages: held.messages,
        first_id: held.first.map(Into::into),
        first_kind: held.kind,
        held_at: held.held_at,
        next_attempt_at: held.next_attempt_at,
        last_error: held.last_error,
        destination: held.destination,
    });
    Ok(held.collect())
}

/// What one consumer, or all of them, hold.
async fn of_consumers(
    connection: &mut PgConnection,
    consumer: Option<&str>,
) -> Result<Vec<Held>, sqlx::Error> {
    let held = inbox::admin::held_keys(connection, consumer, i64::MAX).await?;
    let held = held.into_iter().map(|held| Held {
        holder: Holder::Consumer(held.consumer),
        number: held.hold,
        first: held.first,
        last: held.last,
        key: held.key,
        parked: held.state == inbox::admin::HeldState::Parked,
        attempts: held.attempts,
        messages: held.messages,
        first_id: held.first_id.map(Into::into),
        first_kind: held.first_kind,
        held_at: held.held_at,
        next_attempt_at: held.next_attempt_at,
        last_error: held.last_error,
        destination: None,
    });
    Ok(held.collect())
}
