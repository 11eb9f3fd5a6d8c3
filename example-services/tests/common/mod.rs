//! A service's database, a message as another service sends it, and what came of it.
#![allow(dead_code, unused_imports, unused_macros, reason = "each test binary uses its part")]

use example_services::service::{self, Definition};
use message::{Event, Message};
use sqlx::PgPool;
use tests::Database;
use uuid::Uuid;

/// A database of that service, as it is after its first start.
pub(crate) async fn started(definition: Definition) -> Database {
    let database = Database::empty(definition.name).await;
    service::migrate(database.pool(), definition.schema).await.unwrap();
    database
}

/// The message that carries `event`.
pub(crate) fn told(event: &impl Event) -> Message {
    event.to_message().unwrap()
}

/// Handles a message in a transaction of its own, as the consumer does; the transaction of a failure is rolled back.
macro_rules! handle {
    ($database:expr, $handler:path, $message:expr) => {{
        let mut tx = $database.pool().begin().await.unwrap();
        let handled = $handler(&mut tx, $message).await;
        match handled {
            Ok(()) => tx.commit().await.unwrap(),
            Err(_) => tx.rollback().await.unwrap(),
        }
        handled
    }};
}
pub(crate) use handle;

/// Kinds in the outbox that were caused by `cause`, in the order of the log.
pub(crate) async fn answers(pool: &PgPool, cause: &Message) -> Vec<String> {
    sqlx::query_scalar(
        "select kind from outbox.message where causation = $1 and correlation = $2 order by position",
    )
    .bind(*cause.id.as_uuid())
    .bind(*cause.correlation.as_uuid())
    .fetch_all(pool)
    .await
    .unwrap()
}

/// One number.
pub(crate) async fn number(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// One number of an order.
pub(crate) async fn number_of(pool: &PgPool, sql: &'static str, order: Uuid) -> i64 {
    sqlx::query_scalar(sql).bind(order).fetch_one(pool).await.unwrap()
}

/// One text of an order.
pub(crate) async fn text_of(pool: &PgPool, sql: &'static str, order: Uuid) -> Option<String> {
    sqlx::query_scalar(sql).bind(order).fetch_optional(pool).await.unwrap().flatten()
}
