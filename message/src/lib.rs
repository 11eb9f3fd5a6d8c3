//! What travels between services: a [`Message`], its [CloudEvents wire form](wire), and the two ports to a broker,
//! [`Publisher`] and [`Subscriber`]. No I/O happens here.
//!
//! `docs/wire.md` is the contract: which field is which column, SQL parameter, CloudEvents attribute and broker header.

mod chain;
mod clocks;
mod event;
mod headers;
mod id;
pub mod limits;
mod message;
mod publisher;
pub mod sqlstate;
mod subscriber;
pub mod wire;

pub use chain::{error_chain, without_settings};
pub use clocks::clock_difference;
pub use event::{DecodeError, Event, InvalidPayload};
pub use headers::Headers;
pub use id::{FOREIGN, InvalidId, MessageId};
pub use limits::{Field, InvalidMessage};
pub use message::Message;
pub use publisher::{Outcome, Outcomes, Outgoing, Pipelining, PublishError, Publisher, publish_all};
pub use subscriber::{Acknowledge, Delivery, Malformed, MalformedReason, SubscribeError, Subscriber};
