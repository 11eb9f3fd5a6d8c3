//! Transactional outbox for PostgreSQL.
//!
//! A service [enqueues](enqueue()) messages in the transaction of its state change. They are published if and only if
//! the transaction commits: at least once, in order per key.

mod bell;
mod commit;
mod doorbell;
mod enqueue;
mod fleet;
mod pool;
mod relay;
mod schedule;
mod statement;
mod upkeep;

pub mod admin;
pub mod log;
pub mod replay;

pub use commit::{CommitError, TransactionStatus, commit, commit_within, transaction_status};
pub use doorbell::Doorbell;
pub use enqueue::{EnqueueError, enqueue, enqueue_all, enqueue_beside, lock_keys};
pub use fleet::Fleet;
pub use pool::{connect_options, pool_options};
pub use relay::{Backoff, InvalidRoute, Pattern, Policies, Policy, Relay, RelayError, Routes, Settings};
pub use schedule::{cancel, enqueue_all_at, enqueue_at};
pub use upkeep::{Pruned, Upkeep, prune};
