//! Event in, a shipment, event out: one transaction each.

use inbox::{Consumer, HandlerError};
use message::{Event, Message};
use sqlx::PgTransaction;

use super::domain::{self, Destination};
use crate::events::{PaymentTaken, ShipmentDispatched, ShipmentRefused, answer, read};

/// The kinds it reacts to.
pub const KINDS: &[&str] = &[PaymentTaken::KIND];

/// Which function handles which kind.
pub fn register(consumer: Consumer) -> Consumer {
    consumer.on(PaymentTaken::KIND, ship)
}

/// `payment.taken`: dispatches the goods, or refuses.
///
/// # Errors
/// The payload is not such an event, or the database fails.
pub async fn ship(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let PaymentTaken { order, destination, .. } = read(message)?;
    let carrier: Option<Option<String>> = sqlx::query_scalar(include_str!("find_destination.sql"))
        .bind(&destination)
        .fetch_optional(&mut **tx)
        .await?;
    let known = match carrier {
        Some(Some(_)) => Destination::Served,
        Some(None) => Destination::Unserved,
        None => Destination::Unknown,
    };
    match domain::dispatch(&known) {
        Ok(()) => {
            let tracking: i64 = sqlx::query_scalar(include_str!("dispatch.sql"))
                .bind(order)
                .bind(&destination)
                .fetch_one(&mut **tx)
                .await?;
            answer(tx, message, &ShipmentDispatched { order, tracking }).await?;
        }
        Err(reason) => {
            sqlx::query(include_str!("refuse.sql"))
                .bind(order)
                .bind(&destination)
                .bind(reason.as_str())
                .execute(&mut **tx)
                .await?;
            answer(tx, message, &ShipmentRefused { order, reason }).await?;
        }
    }
    Ok(())
}
