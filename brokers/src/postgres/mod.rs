//! PostgreSQL as the broker: a log of the same kind as a service's outbox, in a *broker database* (`outbox migrate` makes
//! it). Nothing but PostgreSQL is needed to start with.
//!
//! * [`PostgresPublisher`]: appends to the log; a message's topic there is its destination. A batch is one transaction.
//! * [`PostgresSubscriber`]: a cursor of the log. A consumer group is to the broker database what a relay is to an
//!   outbox: [`outbox::admin::status`] shows how far it is, and its processes share the shards.

mod answer;
mod desk;
mod fault;
mod group;
mod lanes;
mod publisher;
mod reach;
mod session;
mod subscriber;
mod unreadable;

pub use group::{Group, InvalidGroup};
pub use outbox::log::Start;
pub use outbox::{InvalidRoute, Pattern};
pub use publisher::PostgresPublisher;
pub use subscriber::PostgresSubscriber;
