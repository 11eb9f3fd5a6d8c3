//! Writing messages beside the state change, in the service's own transaction.

use message::{Event, InvalidMessage, Message, MessageId, limits, sqlstate};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments, AssertSqlSafe, PgTransaction};

use crate::bell;
use crate::statement::is_named;

const ENQUEUE: &str = include_str!("sql/enqueue.sql");
const LOCK_KEYS: &str = include_str!("sql/lock_keys.sql");

/// Why nothing was enqueued. After every error but [`Invalid`](EnqueueError::Invalid), [`Key`](EnqueueError::Key),
/// [`DueAt`](EnqueueError::DueAt) and [`Encode`](EnqueueError::Encode), which are found before any SQL runs, the transaction
/// can only be rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnqueueError {
    /// The caller's: a message breaks a limit. The transaction is untouched.
    #[error("message {index} of the call is not valid: {fault}")]
    Invalid {
        /// Which of the messages given.
        index: usize,
        /// The field and its limit.
        fault: InvalidMessage,
    },
    /// The caller's: what is to be locked is not a key that a message may have. The transaction is untouched.
    #[error("key {index} of the call is not valid: {fault}")]
    Key {
        /// Which of the keys given.
        index: usize,
        /// The limit.
        fault: InvalidMessage,
    },
    /// The caller's: a scheduled message is due when no calendar of ours holds it. The transaction is untouched.
    #[error("due_at: between the years 1970 and 9999")]
    DueAt,
    /// The caller's: the event does not serialise. The transaction is untouched.
    #[error("the event does not serialise as JSON")]
    Encode(#[source] serde_json::Error),
    /// The caller's: an earlier statement of the transaction failed.
    #[error("the transaction is aborted by an earlier error")]
    Aborted,
    /// The caller's: the transaction is read-only, or the server is a replica.
    #[error("the transaction is read-only")]
    ReadOnly,
    /// The operator's: there is no schema `outbox` here, or this role may not use it.
    #[error("schema outbox is missing or not granted to this role: run `outbox migrate`, see roles.sql")]
    Schema(#[source] sqlx::Error),
    /// The database's.
    #[error("the database did not take the messages")]
    Database(#[source] sqlx::Error),
}

/// Writes an event to the outbox of the transaction's database: it will be published if and only if the transaction
/// commits. Costs one round trip; [`enqueue_beside`] costs none of its own.
///
/// Events of one key are published in the order in which they were written, provided that the transactions of that key
/// follow one another: each holds a lock on the row the key stands for, or [`lock_keys`], *before* it enqueues.
///
/// # Errors
/// See [`EnqueueError`].
///
/// ```no_run
/// use message::Event;
/// use serde::Serialize;
///
/// #[derive(Serialize)]
/// struct OrderPlaced { order: i64 }
/// impl Event for OrderPlaced {
///     const TOPIC: &'static str = "orders";
///     const KIND: &'static str = "order.placed";
///     fn key(&self) -> Option<String> { Some(self.order.to_string()) }
/// }
///
/// # async fn place(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = pool.begin().await?;
/// let order: i64 = sqlx::query_scalar("insert into orders (state) values ('placed') returning id")
///     .fetch_one(&mut *tx).await?;
/// outbox::enqueue(&mut tx, &OrderPlaced { order }).await?;
/// outbox::commit(tx).await?;
/// # Ok(()) }
/// ```
pub async fn enqueue<E: Event>(tx: &mut PgTransaction<'_>, event: &E) -> Result<MessageId, EnqueueError> {
    let message = event.to_message().map_err(EnqueueError::Encode)?;
    enqueue_all(tx, std::slice::from_ref(&message)).await?;
    Ok(message.id)
}

/// Writes messages to the outbox in the order given, in one statement. None is a no-op.
///
/// # Errors
/// See [`EnqueueError`]; either all are written or none.
pub async fn enqueue_all(tx: &mut PgTransaction<'_>, messages: &[Message]) -> Result<(), EnqueueError> {
    validate(messages)?;
    if messages.is_empty() {
        return Ok(());
    }
    let arguments = bind(PgArguments::default(), messages).map_err(EnqueueError::Database)?;
    let query = sqlx::query_with(ENQUEUE, arguments).persistent(is_named(tx));
    query.execute(&mut **tx).await.map_err(classify)?;
    bell::ring();
    Ok(())
}

/// Runs a statement of the caller's and writes messages to the outbox, in one round trip: the form that costs none of
/// its own. Answers the rows of `statement`, which must return some columns (`… returning id`) and uses `$1`, `$2`, … for
/// `arguments`. The messages are written after the whole statement has run, so a row lock that it takes orders them.
///
/// # Errors
/// See [`EnqueueError`]; an error of `statement` is [`EnqueueError::Database`].
///
/// ```no_run
/// use message::Message;
/// use sqlx::{Arguments, postgres::PgArguments};
///
/// # async fn ship(tx: &mut sqlx::PgTransaction<'_>, order: i64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let mut arguments = PgArguments::default();
/// arguments.add(order)?;
/// let shipped = Message::new("orders", "order.shipped", "{}").with_key(order.to_string());
/// let rows = outbox::enqueue_beside(
///     tx, "update orders set state = 'shipped' where id = $1 returning id", arguments, &[shipped]).await?;
/// # Ok(()) }
/// ```
pub async fn enqueue_beside(
    tx: &mut PgTransaction<'_>,
    statement: &'static str,
    arguments: PgArguments,
    messages: &[Message],
) -> Result<Vec<PgRow>, EnqueueError> {
    validate(messages)?;
    let sql = beside(statement, arguments.len());
    let arguments = bind(arguments, messages).map_err(EnqueueError::Database)?;
    let query = sqlx::query_with(AssertSqlSafe(sql), arguments).persistent(is_named(tx));
    let rows = query.fetch_all(&mut **tx).await.map_err(classify)?;
    bell::ring();
    Ok(rows)
}

/// Locks keys until the transaction ends, so that the writers of a key follow one another. For services that do not
/// already lock a row the key stands for; call it before [`enqueue`]. Sorted, so that two transactions that each call it
/// once cannot deadlock.
///
/// # Errors
/// See [`EnqueueError`].
pub async fn lock_keys(tx: &mut PgTransaction<'_>, keys: &[&str]) -> Result<(), EnqueueError> {
    keys.iter()
        .enumerate()
        .try_for_each(|(index, key)| limits::key(key).map_err(|fault| EnqueueError::Key { index, fault }))?;
    let query = sqlx::query(LOCK_KEYS).bind(keys).persistent(is_named(tx));
    query.execute(&mut **tx).await.map_err(classify)?;
    Ok(())
}

pub(crate) fn validate(messages: &[Message]) -> Result<(), EnqueueError> {
    messages.iter().enumerate().try_for_each(|(index, message)| {
        message.validate().map_err(|fault| EnqueueError::Invalid { index, fault })
    })
}

/// `statement` with the insert behind it: the insert reads a count of the statement's rows, so it cannot run before.
fn beside(statement: &str, arguments: usize) -> String {
    let mut insert = ENQUEUE.to_owned();
    // From the last one: `$1` also begins `$10`.
    for parameter in (1..=10).rev() {
        insert = insert.replace(&format!("${parameter}::"), &format!("${}::", parameter + arguments));
    }
    format!(
        "with beside as ({statement}),\nran as materialized (select count(*) from beside),\nenqueued as ({insert}\ncross join ran)\nselect * from beside"
    )
}

pub(crate) fn bind(mut arguments: PgArguments, messages: &[Message]) -> Result<PgArguments, sqlx::Error> {
    fn column<'m, T>(messages: &'m [Message], value: impl Fn(&'m Message) -> T) -> Vec<T> {
        messages.iter().map(value).collect()
    }
    let m = messages;
    let added: Result<(), sqlx::error::BoxDynError> = (|| {
        arguments.add(column(m, |m| *m.id.as_uuid()))?;
        arguments.add(column(m, |m| *m.correlation.as_uuid()))?;
        arguments.add(column(m, |m| m.causation.map(uuid::Uuid::from)))?;
        arguments.add(column(m, |m| m.occurred_at))?;
        arguments.add(column(m, |m| m.source.as_deref()))?;
        arguments.add(column(m, |m| &*m.topic))?;
        arguments.add(column(m, |m| &*m.kind))?;
        arguments.add(column(m, |m| m.key.as_deref()))?;
        arguments.add(column(m, |m| m.headers.to_json()))?;
        arguments.add(column(m, |m| &*m.payload))?;
        Ok(())
    })();
    added.map(|()| arguments).map_err(sqlx::Error::Encode)
}

pub(crate) fn classify(error: sqlx::Error) -> EnqueueError {
    let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
    match code.as_str() {
        sqlstate::ABORTED => EnqueueError::Aborted,
        sqlstate::READ_ONLY => EnqueueError::ReadOnly,
        "42P01" | "3F000" | "42501" => EnqueueError::Schema(error),
        _ => EnqueueError::Database(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inserts_parameters_follow_the_statements_own() {
        let sql = beside("update t set a = $1 where b = $2 returning b", 2);
        assert!(
            sql.contains("$3::uuid[]")
                && sql.contains("$12::bytea[]")
                && sql.contains("where b = $2 returning")
        );
        assert!(!sql.contains("$1::"));
    }
}
