//! The contract between the services: every event that travels, its topic, its kind and its fields. This file is all that
//! one service knows of another.
//!
//! A kind is a version. Fields may be added to an event, and readers ignore those they do not know; a change that a reader
//! of today would misread is a new kind (`order.placed.v2`), emitted beside the old one until nobody asks for that.
//!
//! The key of every event is its order's id, so that what happens to one order stays in order. An event carries what those
//! who react to it need, so that nobody has to ask anybody.

use inbox::HandlerError;
use message::{Event, Message, MessageId};
use outbox::EnqueueError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sqlx::PgTransaction;
use uuid::Uuid;

/// What the order service tells.
pub const ORDERS: &str = "orders";
/// What the stock service tells.
pub const STOCK: &str = "stock";
/// What the payment service tells.
pub const PAYMENTS: &str = "payments";
/// What the shipping service tells.
pub const SHIPMENTS: &str = "shipments";

/// So many pieces of an article.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The article's code.
    pub article: String,
    /// How many pieces.
    pub quantity: i32,
}

/// Why a step of the workflow refuses. Each depends on the order alone, so the same order always ends the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Stock: no such article.
    UnknownArticle,
    /// Stock: fewer pieces than asked for.
    NotEnough,
    /// Payment: no account of that customer.
    UnknownCustomer,
    /// Payment: more than the customer may spend on one order.
    AboveLimit,
    /// Shipping: no such destination.
    UnknownDestination,
    /// Shipping: nobody carries goods there.
    Unserved,
}

impl Reason {
    /// As it stands in events, tables and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::UnknownArticle => "unknown_article",
            Reason::NotEnough => "not_enough",
            Reason::UnknownCustomer => "unknown_customer",
            Reason::AboveLimit => "above_limit",
            Reason::UnknownDestination => "unknown_destination",
            Reason::Unserved => "unserved",
        }
    }
}

/// A customer placed an order. Begins the workflow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderPlaced {
    /// The order.
    pub order: Uuid,
    /// Who pays.
    pub customer: String,
    /// Where it goes.
    pub destination: String,
    /// What goes there.
    pub lines: Vec<Line>,
}

/// The goods are on their way and paid for. Ends the workflow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderCompleted {
    /// The order.
    pub order: Uuid,
}

/// The order will not be carried out. Ends the workflow; what was done for it is being undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderCancelled {
    /// The order.
    pub order: Uuid,
    /// Who refused what.
    pub reason: Reason,
}

/// All lines of the order are set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockReserved {
    /// The order.
    pub order: Uuid,
    /// Who pays.
    pub customer: String,
    /// Where it goes.
    pub destination: String,
    /// What the lines cost together: stock knows the prices.
    pub amount_cents: i64,
}

/// At least one line cannot be had, so nothing is set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockMissing {
    /// The order.
    pub order: Uuid,
    /// The first article that is missing.
    pub article: String,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What was set aside is for sale again: compensation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockReleased {
    /// The order.
    pub order: Uuid,
}

/// The customer's account is charged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentTaken {
    /// The order.
    pub order: Uuid,
    /// Where it goes.
    pub destination: String,
    /// How much was charged.
    pub amount_cents: i64,
}

/// The customer does not pay; nothing is charged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentRefused {
    /// The order.
    pub order: Uuid,
    /// Why not.
    pub reason: Reason,
}

/// The customer has the money back: compensation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentRefunded {
    /// The order.
    pub order: Uuid,
    /// How much went back.
    pub amount_cents: i64,
}

/// The goods have left the house.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShipmentDispatched {
    /// The order.
    pub order: Uuid,
    /// The number by which the customer follows the parcel.
    pub tracking: i64,
}

/// The goods cannot go there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShipmentRefused {
    /// The order.
    pub order: Uuid,
    /// Why not.
    pub reason: Reason,
}

macro_rules! events {
    ($($event:ident: $topic:ident, $kind:literal;)*) => {$(
        impl Event for $event {
            const TOPIC: &'static str = $topic;
            const KIND: &'static str = $kind;
            fn key(&self) -> Option<String> {
                Some(self.order.to_string())
            }
        }
    )*};
}

events! {
    OrderPlaced: ORDERS, "order.placed";
    OrderCompleted: ORDERS, "order.completed";
    OrderCancelled: ORDERS, "order.cancelled";
    StockReserved: STOCK, "stock.reserved";
    StockMissing: STOCK, "stock.missing";
    StockReleased: STOCK, "stock.released";
    PaymentTaken: PAYMENTS, "payment.taken";
    PaymentRefused: PAYMENTS, "payment.refused";
    PaymentRefunded: PAYMENTS, "payment.refunded";
    ShipmentDispatched: SHIPMENTS, "shipment.dispatched";
    ShipmentRefused: SHIPMENTS, "shipment.refused";
}

/// Enqueues `event` as the answer to `cause`, in the transaction in which `cause` is being handled: the same workflow, one
/// step further.
///
/// # Errors
/// See [`EnqueueError`].
pub async fn answer<E: Event>(
    tx: &mut PgTransaction<'_>,
    cause: &Message,
    event: &E,
) -> Result<MessageId, EnqueueError> {
    let message = event.to_message().map_err(EnqueueError::Encode)?.caused_by(cause);
    outbox::enqueue_all(tx, std::slice::from_ref(&message)).await?;
    Ok(message.id)
}

/// The event in `message`. One that is not as this contract says is parked at once: no second try would read it.
///
/// # Errors
/// The payload is not such an event.
pub fn read<E: DeserializeOwned>(message: &Message) -> Result<E, HandlerError> {
    Ok(message.decode()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire<E: Event>(event: &E) -> String {
        let message = event.to_message().unwrap();
        assert_eq!(message.key.as_deref(), Some("00000000-0000-0000-0000-000000000007"));
        format!("{} {} {}", message.topic, message.kind, String::from_utf8_lossy(&message.payload))
    }

    /// Golden: services of another version, and messages already on a broker, have these bytes.
    #[test]
    fn the_events_on_the_wire_do_not_change() {
        let order = Uuid::from_u128(7);
        let id = r#"{"order":"00000000-0000-0000-0000-000000000007""#;
        let lines = vec![Line { article: "lamp".into(), quantity: 2 }];
        let placed = OrderPlaced { order, customer: "ada".into(), destination: "DE".into(), lines };
        assert_eq!(
            wire(&placed),
            format!(
                r#"orders order.placed {id},"customer":"ada","destination":"DE","lines":[{{"article":"lamp","quantity":2}}]}}"#
            )
        );
        let reserved =
            StockReserved { order, customer: "ada".into(), destination: "DE".into(), amount_cents: 5 };
        assert_eq!(
            wire(&reserved),
            format!(r#"stock stock.reserved {id},"customer":"ada","destination":"DE","amount_cents":5}}"#)
        );
        let missing = StockMissing { order, article: "lamp".into(), reason: Reason::UnknownArticle };
        assert_eq!(
            wire(&missing),
            format!(r#"stock stock.missing {id},"article":"lamp","reason":"unknown_article"}}"#)
        );
        let taken = PaymentTaken { order, destination: "DE".into(), amount_cents: 5 };
        assert_eq!(
            wire(&taken),
            format!(r#"payments payment.taken {id},"destination":"DE","amount_cents":5}}"#)
        );
        assert_eq!(
            wire(&PaymentRefused { order, reason: Reason::AboveLimit }),
            format!(r#"payments payment.refused {id},"reason":"above_limit"}}"#)
        );
        assert_eq!(
            wire(&PaymentRefunded { order, amount_cents: 5 }),
            format!(r#"payments payment.refunded {id},"amount_cents":5}}"#)
        );
        assert_eq!(
            wire(&ShipmentDispatched { order, tracking: 9 }),
            format!(r#"shipments shipment.dispatched {id},"tracking":9}}"#)
        );
        assert_eq!(
            wire(&ShipmentRefused { order, reason: Reason::Unserved }),
            format!(r#"shipments shipment.refused {id},"reason":"unserved"}}"#)
        );
        assert_eq!(wire(&OrderCompleted { order }), format!("orders order.completed {id}}}"));
        assert_eq!(wire(&StockReleased { order }), format!("stock stock.released {id}}}"));
        assert_eq!(
            wire(&OrderCancelled { order, reason: Reason::NotEnough }),
            format!(r#"orders order.cancelled {id},"reason":"not_enough"}}"#)
        );
    }

    #[test]
    fn a_field_that_a_reader_does_not_know_is_no_fault() {
        let text = r#"{"order":"00000000-0000-0000-0000-000000000007","added_later":true}"#;
        assert!(serde_json::from_str::<StockReleased>(text).is_ok());
    }

    #[test]
    fn a_reason_reads_the_same_in_a_table_and_in_an_event() {
        for reason in [
            Reason::UnknownArticle,
            Reason::NotEnough,
            Reason::UnknownCustomer,
            Reason::AboveLimit,
            Reason::UnknownDestination,
            Reason::Unserved,
        ] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }
}
