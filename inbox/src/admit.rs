//! Admission: the first copy of a message counts, a later one is a repeat, one past the horizon is refused.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use message::{Message, MessageId};
use sqlx::{PgTransaction, Row};
use uuid::Uuid;

use crate::horizon::{Horizon, Refusal};
use crate::statement::is_named;

/// Whether this is the first copy of a message that a consumer admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Handle it, in this transaction.
    First,
    /// It was handled, in a transaction that has committed: do nothing.
    Repeat,
}

/// Why a message is neither admitted nor a repeat.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdmitError {
    /// The message's: it cannot be told whether it is a repeat. Park it; never handle it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The caller's.
    #[error("consumer: must be 1 to 100 bytes without NUL")]
    Consumer,
    /// The database's, or the transaction's: it is aborted now.
    #[error("message cannot be admitted")]
    Database(#[from] sqlx::Error),
}

/// Admits a message to `consumer` with the default [`Horizon`]. The effect belongs in the same transaction, and happens
/// once for each consumer and message id, however many copies arrive at once.
///
/// Two transactions that admit the same message wait for each other, so that one of them is told
/// [`Repeat`](Admission::Repeat). One that admits several takes them in the order of their ids, or uses [`admit_all`].
///
/// ```no_run
/// # async fn example(pool: sqlx::PgPool, message: message::Message) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = pool.begin().await?;
/// if inbox::admit(&mut tx, "shipping", &message).await? == inbox::Admission::First {
///     sqlx::query("insert into shipment (message) values ($1)").bind(message.id.as_uuid()).execute(&mut *tx).await?;
/// }
/// tx.commit().await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// The message's id is refused, the consumer's name is not a name, or the statement failed.
pub async fn admit(
    tx: &mut PgTransaction<'_>,
    consumer: &str,
    message: &Message,
) -> Result<Admission, AdmitError> {
    admit_within(tx, consumer, message, Horizon::default()).await
}

/// Like [`admit`], with another horizon.
///
/// # Errors
/// Like [`admit`].
pub async fn admit_within(
    tx: &mut PgTransaction<'_>,
    consumer: &str,
    message: &Message,
    horizon: Horizon,
) -> Result<Admission, AdmitError> {
    check_consumer(consumer)?;
    let made_at = horizon.date(message.id, Utc::now())?;
    let row = sqlx::query(include_str!("sql/admit.sql"))
        .bind(consumer)
        .bind(message.id.as_uuid())
        .bind(made_at)
        .persistent(is_named(tx))
        .fetch_one(&mut **tx)
        .await?;
    if row.try_get("too_old")? {
        return Err(Refusal::TooOld.into());
    }
    Ok(if row.try_get("first")? { Admission::First } else { Admission::Repeat })
}

/// Admits several messages in one statement: an answer for each, in the order given. If one is refused, none is admitted.
///
/// # Errors
/// Like [`admit`].
pub async fn admit_all(
    tx: &mut PgTransaction<'_>,
    consumer: &str,
    messages: &[Message],
    horizon: Horizon,
) -> Result<Vec<Admission>, AdmitError> {
    check_consumer(consumer)?;
    let now = Utc::now();
    let mut oldest = None;
    for message in messages {
        if let Some(made_at) = horizon.date(message.id, now)? {
            oldest = Some(oldest.map_or(made_at, |oldest: DateTime<Utc>| oldest.min(made_at)));
        }
    }
    let query = sqlx::query_scalar(include_str!("sql/floor.sql")).persistent(is_named(tx));
    let floor: DateTime<Utc> = query.fetch_one(&mut **tx).await?;
    if oldest.is_some_and(|oldest| oldest < floor) {
        return Err(Refusal::TooOld.into());
    }
    let mut ids: Vec<MessageId> = messages.iter().map(|message| message.id).collect();
    ids.sort_unstable();
    ids.dedup();
    let ids: Vec<Uuid> = ids.into_iter().map(Uuid::from).collect();
    let first: Vec<Uuid> = sqlx::query_scalar(include_str!("sql/admit_all.sql"))
        .bind(consumer)
        .bind(ids)
        .persistent(is_named(tx))
        .fetch_all(&mut **tx)
        .await?;
    let mut first: HashSet<Uuid> = first.into_iter().collect();
    // Of two copies in one batch, one is the first.
    let answer = |message: &Message| match first.remove(message.id.as_uuid()) {
        true => Admission::First,
        false => Admission::Repeat,
    };
    Ok(messages.iter().map(answer).collect())
}

pub(crate) fn check_consumer(name: &str) -> Result<(), AdmitError> {
    let valid = (1..=100).contains(&name.len()) && !name.contains('\0');
    if valid { Ok(()) } else { Err(AdmitError::Consumer) }
}
