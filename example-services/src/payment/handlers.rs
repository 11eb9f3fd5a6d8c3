//! Event in, payment, ledger and balance, event out: one transaction each.

use inbox::{Consumer, HandlerError};
use message::{Event, Message};
use sqlx::PgTransaction;

use super::domain;
use crate::events::{
    PaymentRefunded, PaymentRefused, PaymentTaken, ShipmentRefused, StockReserved, answer, read,
};

/// The kinds it reacts to.
pub const KINDS: &[&str] = &[StockReserved::KIND, ShipmentRefused::KIND];

/// Which function handles which kind.
pub fn register(consumer: Consumer) -> Consumer {
    consumer.on(StockReserved::KIND, take).on(ShipmentRefused::KIND, refund)
}

/// `stock.reserved`: charges the customer, or refuses.
///
/// # Errors
/// The payload is not such an event, or the database fails.
pub async fn take(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let StockReserved { order, customer, destination, amount_cents } = read(message)?;
    let limit: Option<i64> = sqlx::query_scalar(include_str!("lock_account.sql"))
        .bind(&customer)
        .fetch_optional(&mut **tx)
        .await?;
    let decided = domain::charge(limit, amount_cents);
    sqlx::query(include_str!("decide.sql"))
        .bind(order)
        .bind(&customer)
        .bind(amount_cents)
        .bind(if decided.is_ok() { "taken" } else { "refused" })
        .bind(decided.err().map(|reason| reason.as_str()))
        .execute(&mut **tx)
        .await?;
    match decided {
        Ok(()) => {
            sqlx::query(include_str!("enter.sql"))
                .bind(&customer)
                .bind(order)
                .bind("charge")
                .bind(amount_cents)
                .execute(&mut **tx)
                .await?;
            answer(tx, message, &PaymentTaken { order, destination, amount_cents }).await?;
        }
        Err(reason) => {
            answer(tx, message, &PaymentRefused { order, reason }).await?;
        }
    }
    Ok(())
}

/// `shipment.refused`: gives back what was charged.
///
/// # Errors
/// The payload is not such an event, nothing was charged, or the database fails.
pub async fn refund(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let ShipmentRefused { order, .. } = read(message)?;
    let row: Option<(String, i64, String)> =
        sqlx::query_as(include_str!("lock_payment.sql")).bind(order).fetch_optional(&mut **tx).await?;
    let (customer, amount_cents) = match row {
        Some((customer, amount_cents, state)) if state == "taken" => (customer, amount_cents),
        Some(_) => return Err(HandlerError::reject("the payment of this order is not taken")),
        None => return Err(HandlerError::reject("no payment of this order")),
    };
    sqlx::query(include_str!("refund.sql")).bind(order).execute(&mut **tx).await?;
    sqlx::query(include_str!("enter.sql"))
        .bind(&customer)
        .bind(order)
        .bind("refund")
        .bind(-amount_cents)
        .execute(&mut **tx)
        .await?;
    answer(tx, message, &PaymentRefunded { order, amount_cents }).await?;
    Ok(())
}
