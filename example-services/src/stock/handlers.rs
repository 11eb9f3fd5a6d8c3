//! Event in, reservation and pieces, event out: one transaction each.

use inbox::{Consumer, HandlerError};
use message::{Event, Message};
use sqlx::PgTransaction;
use uuid::Uuid;

use super::domain::{self, Article};
use crate::events::{
    OrderPlaced, PaymentRefused, ShipmentDispatched, ShipmentRefused, StockMissing, StockReleased,
    StockReserved, answer, read,
};

/// The kinds it reacts to.
pub const KINDS: &[&str] =
    &[OrderPlaced::KIND, PaymentRefused::KIND, ShipmentRefused::KIND, ShipmentDispatched::KIND];

/// Which function handles which kind.
pub fn register(consumer: Consumer) -> Consumer {
    consumer
        .on(OrderPlaced::KIND, reserve)
        .on(PaymentRefused::KIND, payment_refused)
        .on(ShipmentRefused::KIND, shipment_refused)
        .on(ShipmentDispatched::KIND, dispatched)
}

/// `order.placed`: sets all lines aside, or none.
///
/// # Errors
/// The payload is not such an event, or the database fails.
pub async fn reserve(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let OrderPlaced { order, customer, destination, lines } = read(message)?;
    let codes: Vec<&str> = lines.iter().map(|line| line.article.as_str()).collect();
    let rows: Vec<(String, i64, i32)> =
        sqlx::query_as(include_str!("lock_articles.sql")).bind(codes).fetch_all(&mut **tx).await?;
    let articles: Vec<Article> =
        rows.into_iter().map(|(code, price_cents, free)| Article { code, price_cents, free }).collect();
    match domain::reserve(&lines, &articles) {
        Ok(reserved) => {
            open(tx, order, "held", None).await?;
            sqlx::query(include_str!("reserve_lines.sql"))
                .bind(order)
                .bind(reserved.iter().map(|line| line.article.as_str()).collect::<Vec<_>>())
                .bind(reserved.iter().map(|line| line.quantity).collect::<Vec<_>>())
                .bind(reserved.iter().map(|line| line.price_cents).collect::<Vec<_>>())
                .execute(&mut **tx)
                .await?;
            let amount_cents = domain::amount_cents(&reserved);
            answer(tx, message, &StockReserved { order, customer, destination, amount_cents }).await?;
        }
        Err(missing) => {
            open(tx, order, "missing", Some(missing.reason.as_str())).await?;
            let event = StockMissing { order, article: missing.article, reason: missing.reason };
            answer(tx, message, &event).await?;
        }
    }
    Ok(())
}

/// `payment.refused`: the pieces are for sale again.
///
/// # Errors
/// The payload is not such an event, nothing was ever reserved, or the database fails.
pub async fn payment_refused(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let event: PaymentRefused = read(message)?;
    release(tx, message, event.order).await
}

/// `shipment.refused`: the pieces are for sale again.
///
/// # Errors
/// As [`payment_refused`].
pub async fn shipment_refused(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let event: ShipmentRefused = read(message)?;
    release(tx, message, event.order).await
}

/// `shipment.dispatched`: the pieces have left the house.
///
/// # Errors
/// As [`payment_refused`].
pub async fn dispatched(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let event: ShipmentDispatched = read(message)?;
    held(tx, event.order).await?;
    sqlx::query(include_str!("ship.sql")).bind(event.order).execute(&mut **tx).await?;
    Ok(())
}

async fn release(tx: &mut PgTransaction<'_>, message: &Message, order: Uuid) -> Result<(), HandlerError> {
    held(tx, order).await?;
    sqlx::query(include_str!("release.sql")).bind(order).execute(&mut **tx).await?;
    answer(tx, message, &StockReleased { order }).await?;
    Ok(())
}

/// Locks the reservation, which must be held: nobody but this service ends it, and each way of ending comes once.
async fn held(tx: &mut PgTransaction<'_>, order: Uuid) -> Result<(), HandlerError> {
    let row: Option<(String, i64)> =
        sqlx::query_as(include_str!("lock_reservation.sql")).bind(order).fetch_optional(&mut **tx).await?;
    match row {
        Some((state, _)) if state == "held" => Ok(()),
        Some(_) => Err(HandlerError::reject("the reservation of this order has ended")),
        None => Err(HandlerError::reject("no reservation of this order")),
    }
}

async fn open(
    tx: &mut PgTransaction<'_>,
    order: Uuid,
    state: &str,
    reason: Option<&str>,
) -> Result<(), sqlx::Error> {
    sqlx::query(include_str!("open_reservation.sql"))
        .bind(order)
        .bind(state)
        .bind(reason)
        .execute(&mut **tx)
        .await?;
    Ok(())
}
