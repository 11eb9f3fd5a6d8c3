//! A broker in the process, for tests: nothing survives it, everything can be made to fail.
//!
//! What is published stands in one log, in order; each group of subscribers reads it from the beginning with positions
//! of its own, keeps what is not acknowledged, and lets one subscriber at a time have a key. [`Broker`] carries the
//! faults a real broker has on bad days, so that a test can ask how a service behaves on one.
//!
//! ```
//! use std::sync::Arc;
//! use brokers::memory::{Broker, Fault};
//! use message::{Message, Outgoing, PublishError, Subscriber, publish_all};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let broker = Broker::new();
//! broker.fail_next(1, Fault::Unavailable);
//!
//! let message = Arc::new(Message::new("orders", "order.placed", "{}").with_key("order-7"));
//! let batch = [Outgoing { destination: "orders".into(), message }];
//! let first = publish_all(&broker.publisher(), &batch).await;
//! assert!(matches!(first[0], Err(PublishError::Unavailable(_))));
//! assert_eq!(publish_all(&broker.publisher(), &batch).await, [Ok(())]);
//!
//! let mut subscriber = broker.subscriber("shipping", ["orders"]);
//! let delivery = subscriber.receive(10).await?.remove(0);
//! assert_eq!(delivery.received.as_ref().unwrap().kind.as_ref(), "order.placed");
//! delivery.acknowledge().await?;
//! assert_eq!(broker.unacknowledged("shipping"), 0);
//! # Ok::<(), message::SubscribeError>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod broker;
mod discard;
mod faults;
mod group;
mod publisher;
mod subscriber;

pub use broker::{Broker, Published};
pub use discard::Discard;
pub use faults::Fault;
pub use publisher::MemoryPublisher;
pub use subscriber::MemorySubscriber;
