//! NATS JetStream.
//!
//! * [`NatsPublisher`]: the subject is the destination, headers as `docs/wire.md` has them, a message confirmed when the
//!   stream's acknowledgement of it has arrived.
//! * [`NatsSubscriber`]: a durable pull consumer, one active subscriber of a group at a time, keys in order.
//! * [`StreamPolicy`]: the stream that is created or checked before anything is sent.
//!
//! What JetStream itself does not promise: an acknowledged message is stored, and on disk only within the server's
//! `sync_interval` (two minutes by default; set it to `always`, or use three replicas). Servers before 2.10.23 lost
//! acknowledged messages when the server process alone was killed. `Nats-Msg-Id` removes copies only within the
//! stream's duplicate window.

mod access;
mod answer;
mod connect;
mod connection;
mod consumer;
mod filter;
mod hold;
mod identity;
mod passing;
mod publisher;
mod pull;
mod refusal;
mod requests;
mod stored;
mod stream;
mod subject;
mod subscriber;
mod unreadable;

pub use access::Access;
pub use async_nats::Client;
pub use connect::{ConnectError, connect};
pub use connection::Connection;
pub use publisher::NatsPublisher;
pub use stream::StreamPolicy;
pub use subscriber::NatsSubscriber;
