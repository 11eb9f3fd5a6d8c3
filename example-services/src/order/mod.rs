//! Takes orders and follows them to their end.
//!
//! | reacts to | the order becomes | emits |
//! |---|---|---|
//! | `POST /orders` | placed | `order.placed` |
//! | `stock.reserved` | reserved | |
//! | `payment.taken` | paid | |
//! | `shipment.dispatched` | completed | `order.completed` |
//! | `stock.missing`, `payment.refused`, `shipment.refused` | cancelled | `order.cancelled` |
//!
//! It tells nobody what to do. What was done for a cancelled order is undone by those who did it, when they hear of the
//! refusal.

pub mod domain;
pub mod handlers;
mod http;

use crate::events::{PAYMENTS, SHIPMENTS, STOCK};
use crate::service::Definition;

/// The order service.
pub const DEFINITION: Definition = Definition {
    name: "order",
    schema: include_str!("schema.sql"),
    topics: &[STOCK, PAYMENTS, SHIPMENTS],
    kinds: handlers::KINDS,
    react: handlers::register,
    routes: http::routes,
};
