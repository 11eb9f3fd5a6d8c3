//! Starts real servers for the demo and the tests, and leaves nothing behind.
//!
//! [`Postgres`], [`Nats`] and [`Pgbouncer`] find a server (a running one in the environment, an installed one, a
//! downloaded one), start it on a free port of loopback in a temporary folder, and stop and remove both in the end: after
//! a drop, a panic, Ctrl-C, and after `kill -9` of the process that started them. [`process::Process`] is the
//! piece below that does so for any server program.
//!
//! Everything is synchronous: starting a server is waiting, and a drop that waits must not need a runtime.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let postgres = servers::Postgres::start()?;
//! let nats = servers::Nats::start()?;
//! println!("{}\n{}", postgres.describe(), nats.describe());
//! println!("{} {}", postgres.url("postgres"), nats.url());
//! # Ok(()) }
//! ```

mod cache;
pub mod nats;
pub mod pgbouncer;
mod port;
pub mod postgres;
pub mod process;

pub use cache::FetchError;
pub use nats::Nats;
pub use pgbouncer::Pgbouncer;
pub use port::free as free_port;
pub use postgres::{Postgres, PostgresOptions};

/// The server is not ours: its address was in the environment, so it is neither stopped nor restarted here.
#[derive(Debug, thiserror::Error)]
#[error("the server was given by {variable} and is not ours to stop")]
pub struct NotOurs {
    /// The environment variable that gave it.
    pub variable: &'static str,
}
