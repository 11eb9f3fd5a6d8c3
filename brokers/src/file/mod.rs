//! CloudEvents as JSON lines ([`wire::structured`](message::wire::structured)), in a file or on standard output: a way
//! to look at a stream, and a sink for pipelines.
//!
//! Every message goes to the same place whatever its destination; its topic stands in the line. [`FilePublisher`] writes,
//! [`read`] reads.
//!
//! ```
//! use std::sync::Arc;
//! use brokers::file::{self, FilePublisher};
//! use message::{Message, Outgoing, publish_all};
//!
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("events.jsonl");
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let message = Arc::new(Message::new("orders", "order.placed", r#"{"order":7}"#));
//! let batch = [Outgoing { destination: "orders".into(), message }];
//! assert_eq!(publish_all(&FilePublisher::new(&path), &batch).await, [Ok(())]);
//! # });
//! for message in file::read(&path)? {
//!     assert_eq!(&message?.payload[..], br#"{"order":7}"#);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod publisher;
mod read;
mod sink;

pub use publisher::FilePublisher;
pub use read::{Messages, ReadError, read};
