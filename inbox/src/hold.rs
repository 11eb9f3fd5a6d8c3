//! Holding a message back: its key, and what arrives behind it, are kept in the database so that the broker may forget
//! them and other keys go on.

use std::time::{Duration, Instant};

use message::Message;
use sqlx::postgres::PgRow;
use sqlx::{PgTransaction, Row};

use crate::attempt::Setback;
use crate::consumer::Core;
use crate::statement::{Begin, SILENCE, is_named};
use crate::stored::Body;

/// How a message is held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hold<'h> {
    /// The key to hold with it; `None`: the message alone.
    pub(crate) key: Option<&'h str>,
    /// Tries that have failed.
    pub(crate) attempts: u32,
    /// Until the next try; `None`: parked.
    pub(crate) delay: Option<Duration>,
    /// Why.
    pub(crate) error: &'h str,
    /// Whether it is held although its id is known from another source: alone, since no decision lets it be handled.
    pub(crate) another_source: bool,
}

impl<'h> Hold<'h> {
    /// Parked before a try was counted.
    pub(crate) fn parked(key: Option<&'h str>, error: &'h str) -> Self {
        Hold { key, attempts: 0, delay: None, error, another_source: false }
    }
}

/// What was found when a message was to be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is held now, once.
    Held,
    /// Another process has handled it meanwhile.
    Handled,
    /// Its id is known from another source, handled or held, and nothing was done.
    AnotherSource,
}

/// Holds a message. Committed on return.
pub(crate) async fn hold(
    core: &Core,
    hold: &Hold<'_>,
    body: Body<'_>,
    received: Instant,
) -> Result<Found, Setback> {
    loop {
        let query = sqlx::query(include_str!("sql/hold.sql"))
            .bind(core.name.to_string())
            .bind(hold.key.map(str::to_owned))
            .bind(if hold.delay.is_some() { "retrying" } else { "parked" })
            .bind(i32::try_from(hold.attempts).unwrap_or(i32::MAX))
            .bind(hold.delay.map(milliseconds))
            .bind(hold.error.to_owned());
        let query = body
            .bind(query)
            .bind(microseconds_since(received))
            .bind(body.source().map(str::to_owned))
            .bind(hold.another_source);
        let mut tx = core.pool.begin_bounded(SILENCE).await?;
        let row = query.persistent(false).fetch_one(&mut *tx).await?;
        let found = if row.try_get("handled")? {
            Found::Handled
        } else if row.try_get("held")? {
            Found::Held
        } else if row.try_get("another_source")? {
            Found::AnotherSource
        } else {
            // Between the statement's snapshot and its insert another transaction opened or released the key, or held a copy: a
            // key that was opened for it would be empty.
            tx.rollback().await?;
            continue;
        };
        tx.commit().await?;
        return Ok(found);
    }
}

/// Appends a message to its held key, in the transaction that saw it held. `None`: held no longer.
pub(crate) async fn append(
    core: &Core,
    tx: &mut PgTransaction<'_>,
    message: &Message,
    received: Instant,
) -> Result<Option<Found>, sqlx::Error> {
    let row = sqlx::query(include_str!("sql/append.sql"))
        .bind(core.name.to_string())
        .bind(message.key.as_deref().map(str::to_owned))
        .bind(*message.id.as_uuid())
        .bind(*message.correlation.as_uuid())
        .bind(message.causation.map(uuid::Uuid::from))
        .bind(message.occurred_at)
        .bind(message.source.as_deref().map(str::to_owned))
        .bind(message.topic.to_string())
        .bind(message.kind.to_string())
        .bind(message.headers.to_json())
        .bind(message.payload.to_vec())
        .bind(microseconds_since(received))
        .persistent(is_named(tx))
        .fetch_optional(&mut **tx)
        .await?;
    let found = |row: PgRow| {
        Ok(match (row.try_get("handled")?, row.try_get("another_source")?) {
            (true, _) => Found::Handled,
            (false, true) => Found::AnotherSource,
            (false, false) => Found::Held,
        })
    };
    row.map(found).transpose()
}

pub(crate) fn microseconds_since(moment: Instant) -> i64 {
    i64::try_from(moment.elapsed().as_micros()).unwrap_or(i64::MAX)
}

/// For `interval`s; a year is for ever here, and no more than an `interval` holds.
pub(crate) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(365 * 86_400_000)
}
