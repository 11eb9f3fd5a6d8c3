//! Sends the goods, where somebody carries them.
//!
//! | reacts to | the shipment becomes | emits |
//! |---|---|---|
//! | `payment.taken`, the destination is served | dispatched | `shipment.dispatched` |
//! | `payment.taken`, it is not, or unknown | refused | `shipment.refused` |

pub mod domain;
pub mod handlers;
mod http;

use crate::events::PAYMENTS;
use crate::service::Definition;

/// The shipping service.
pub const DEFINITION: Definition = Definition {
    name: "shipping",
    schema: include_str!("schema.sql"),
    topics: &[PAYMENTS],
    kinds: handlers::KINDS,
    react: handlers::register,
    routes: http::routes,
};
