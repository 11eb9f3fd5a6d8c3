//! Scheduled messages: held aside in a table of their own, and moved into the log when they are due.

mod mover;

use chrono::{DateTime, Utc};
use message::{Event, Message, MessageId};
use sqlx::postgres::PgArguments;
use sqlx::{Arguments, PgTransaction, Row};

pub(crate) use mover::Mover;

use crate::EnqueueError;
use crate::enqueue::{bind, classify, validate};
use crate::statement::is_named;

const ENQUEUE_AT: &str = include_str!("sql/enqueue_at.sql");
/// In seconds.
const YEAR_10000: i64 = 253_402_300_800;
const CANCEL: &str = include_str!("sql/cancel.sql");

/// Schedules an event in the outbox of the transaction's database: if the transaction commits, and nobody
/// [cancels](cancel) it, it enters the log at `when`, as if it were enqueued and happened then. Answers its id, which carries
/// that moment (or now, if it has passed), so that an inbox's horizon counts from it. Costs one round trip.
///
/// Scheduled messages enter the log in the order of their times, and, for the same time, in the order in which they were
/// scheduled. Among a key's other messages a scheduled one takes its place when it is due. It is the relays that move it
/// there, by the database's clock: at its time if it was committed two seconds before, within two seconds else, or when the next
/// relay runs. A time that has passed is due at once. When the process that moves them dies,
/// another goes on when its lease is over.
///
/// # Errors
/// See [`EnqueueError`].
///
/// ```no_run
/// use chrono::{TimeDelta, Utc};
/// # use message::Event;
/// # use serde::Serialize;
/// #[derive(Serialize)]
/// struct PaymentOverdue { order: i64 }
/// # impl Event for PaymentOverdue {
/// #     const TOPIC: &'static str = "orders";
/// #     const KIND: &'static str = "order.payment-overdue";
/// #     fn key(&self) -> Option<String> { Some(self.order.to_string()) }
/// # }
///
/// # async fn place(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = pool.begin().await?;
/// let reminder = outbox::enqueue_at(&mut tx, &PaymentOverdue { order: 7 }, Utc::now() + TimeDelta::days(3)).await?;
/// sqlx::query("insert into orders (id, reminder) values (7, $1)").bind(reminder.as_uuid()).execute(&mut *tx).await?;
/// outbox::commit(tx).await?;
///
/// // It is paid.
/// let mut tx = pool.begin().await?;
/// let was_waiting = outbox::cancel(&mut tx, reminder).await?;
/// outbox::commit(tx).await?;
/// # Ok(()) }
/// ```
pub async fn enqueue_at<E: Event>(
    tx: &mut PgTransaction<'_>,
    event: &E,
    when: DateTime<Utc>,
) -> Result<MessageId, EnqueueError> {
    let message = event.to_message().map_err(EnqueueError::Encode)?;
    let message = at(message, when);
    insert(tx, std::slice::from_ref(&message), when).await?;
    Ok(message.id)
}

/// Schedules messages for `when`, as [`enqueue_at`] does an event, in one statement. Each gets an id that carries `when`, and
/// happens then; the ids are answered, in the order of the messages. None is a no-op.
///
/// # Errors
/// See [`EnqueueError`]; either all are scheduled or none.
pub async fn enqueue_all_at(
    tx: &mut PgTransaction<'_>,
    messages: &[Message],
    when: DateTime<Utc>,
) -> Result<Vec<MessageId>, EnqueueError> {
    let messages: Vec<Message> = messages.iter().map(|message| at(message.clone(), when)).collect();
    if !messages.is_empty() {
        insert(tx, &messages, when).await?;
    }
    Ok(messages.iter().map(|message| message.id).collect())
}

/// Gives up a scheduled message. Whether it was still waiting: if not, it is in the log already, or was never scheduled
/// here, or somebody else has given it up. While another transaction that gives it up is open, this waits.
///
/// # Errors
/// See [`EnqueueError`].
pub async fn cancel(tx: &mut PgTransaction<'_>, id: MessageId) -> Result<bool, EnqueueError> {
    // Unnamed, so planned each time: a plan kept from when nothing was scheduled would look through them all.
    let query = sqlx::query(CANCEL).bind(*id.as_uuid()).persistent(false);
    query.fetch_one(&mut **tx).await.and_then(|row| row.try_get(0)).map_err(classify)
}

/// The message as one that happens at `when`. An inbox would refuse one whose id is from long ago.
fn at(message: Message, when: DateTime<Utc>) -> Message {
    message.with_id(MessageId::at(when.max(Utc::now()))).with_occurred_at(when)
}

async fn insert(
    tx: &mut PgTransaction<'_>,
    messages: &[Message],
    when: DateTime<Utc>,
) -> Result<(), EnqueueError> {
    if !(0..YEAR_10000).contains(&when.timestamp()) {
        return Err(EnqueueError::DueAt);
    }
    validate(messages)?;
    let mut arguments = bind(PgArguments::default(), messages).map_err(EnqueueError::Database)?;
    arguments.add(when).map_err(|error| EnqueueError::Database(sqlx::Error::Encode(error)))?;
    let query = sqlx::query_with(ENQUEUE_AT, arguments).persistent(is_named(tx));
    query.execute(&mut **tx).await.map_err(classify)?;
    Ok(())
}
