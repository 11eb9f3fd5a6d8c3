//! Event in, the order's row and history, event out: one transaction each.

use inbox::{Consumer, HandlerError};
use message::{Event, Message};
use sqlx::PgTransaction;
use uuid::Uuid;

use super::domain::{News, State, after};
use crate::events::{
    OrderCancelled, OrderCompleted, PaymentRefused, PaymentTaken, ShipmentDispatched, ShipmentRefused,
    StockMissing, StockReserved, answer, read,
};

/// The kinds it reacts to.
pub const KINDS: &[&str] = &[
    StockReserved::KIND,
    StockMissing::KIND,
    PaymentTaken::KIND,
    PaymentRefused::KIND,
    ShipmentDispatched::KIND,
    ShipmentRefused::KIND,
];

/// Which function handles which kind.
pub fn register(consumer: Consumer) -> Consumer {
    consumer
        .on(StockReserved::KIND, reserved)
        .on(StockMissing::KIND, missing)
        .on(PaymentTaken::KIND, taken)
        .on(PaymentRefused::KIND, refused)
        .on(ShipmentDispatched::KIND, dispatched)
        .on(ShipmentRefused::KIND, undeliverable)
}

/// `stock.reserved`: the order is reserved, and its price is known.
///
/// # Errors
/// The payload is not such an event, the order is unknown, or the database fails.
pub async fn reserved(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let event: StockReserved = read(message)?;
    follow(tx, message, event.order, News::Reserved(event.amount_cents)).await
}

/// `stock.missing`: the order is cancelled.
///
/// # Errors
/// As [`reserved`].
pub async fn missing(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let event: StockMissing = read(message)?;
    follow(tx, message, event.order, News::Refused(event.reason)).await
}

/// `payment.taken`: the order is paid.
///
/// # Errors
/// As [`reserved`].
pub async fn taken(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let event: PaymentTaken = read(message)?;
    follow(tx, message, event.order, News::Paid).await
}

/// `payment.refused`: the order is cancelled.
///
/// # Errors
/// As [`reserved`].
pub async fn refused(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let event: PaymentRefused = read(message)?;
    follow(tx, message, event.order, News::Refused(event.reason)).await
}

/// `shipment.dispatched`: the order is completed.
///
/// # Errors
/// As [`reserved`].
pub async fn dispatched(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let event: ShipmentDispatched = read(message)?;
    follow(tx, message, event.order, News::Dispatched).await
}

/// `shipment.refused`: the order is cancelled.
///
/// # Errors
/// As [`reserved`].
pub async fn undeliverable(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let event: ShipmentRefused = read(message)?;
    follow(tx, message, event.order, News::Refused(event.reason)).await
}

async fn follow(
    tx: &mut PgTransaction<'_>,
    message: &Message,
    order: Uuid,
    news: News,
) -> Result<(), HandlerError> {
    let state: Option<String> =
        sqlx::query_scalar(include_str!("lock.sql")).bind(order).fetch_optional(&mut **tx).await?;
    let Some(state) = state.as_deref().and_then(State::parse) else {
        return Err(HandlerError::reject("no such order here"));
    };
    sqlx::query(include_str!("remember.sql"))
        .bind(order)
        .bind(*message.id.as_uuid())
        .bind(&*message.kind)
        .execute(&mut **tx)
        .await?;
    let next = after(state, news);
    let (reason, amount) = match news {
        News::Refused(reason) if next.is_some() => (Some(reason.as_str()), None),
        News::Reserved(amount) => (None, Some(amount)),
        _ => (None, None),
    };
    sqlx::query(include_str!("advance.sql"))
        .bind(order)
        .bind(next.unwrap_or(state).as_str())
        .bind(reason)
        .bind(amount)
        .execute(&mut **tx)
        .await?;
    match (next, news) {
        (Some(State::Completed), _) => {
            answer(tx, message, &OrderCompleted { order }).await?;
        }
        (Some(State::Cancelled), News::Refused(reason)) => {
            answer(tx, message, &OrderCancelled { order, reason }).await?;
        }
        _ => {}
    }
    Ok(())
}
