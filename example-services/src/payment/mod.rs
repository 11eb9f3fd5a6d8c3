//! Takes the money, and gives it back.
//!
//! | reacts to | the payment becomes | emits |
//! |---|---|---|
//! | `stock.reserved`, within the customer's limit | taken | `payment.taken` |
//! | `stock.reserved`, above it or customer unknown | refused | `payment.refused` |
//! | `shipment.refused` | refunded | `payment.refunded` |

pub mod domain;
pub mod handlers;
mod http;

use crate::events::{SHIPMENTS, STOCK};
use crate::service::Definition;

/// The payment service.
pub const DEFINITION: Definition = Definition {
    name: "payment",
    schema: include_str!("schema.sql"),
    topics: &[STOCK, SHIPMENTS],
    kinds: handlers::KINDS,
    react: handlers::register,
    routes: http::routes,
};
