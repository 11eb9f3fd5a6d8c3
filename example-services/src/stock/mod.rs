//! Keeps the goods: sets pieces aside for an order, all lines or none, and lets them go or leave.
//!
//! | reacts to | the reservation becomes | emits |
//! |---|---|---|
//! | `order.placed`, everything is there | held | `stock.reserved` |
//! | `order.placed`, an article is unknown or too few | missing | `stock.missing` |
//! | `payment.refused`, `shipment.refused` | released | `stock.released` |
//! | `shipment.dispatched` | shipped | |

pub mod domain;
pub mod handlers;
mod http;

use crate::events::{ORDERS, PAYMENTS, SHIPMENTS};
use crate::service::Definition;

/// The stock service.
pub const DEFINITION: Definition = Definition {
    name: "stock",
    schema: include_str!("schema.sql"),
    topics: &[ORDERS, PAYMENTS, SHIPMENTS],
    kinds: handlers::KINDS,
    react: handlers::register,
    routes: http::routes,
};
