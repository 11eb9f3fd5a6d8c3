//! Publishers and subscribers, one room per broker, one feature each. A room holds both ends of its broker side by side,
//! so that what one writes the other reads.
//!
//! | module | feature | broker |
//! |---|---|---|
//! | `memory` | `memory` | one in the process, with faults on request: for tests |
//! | `file` | `file` | CloudEvents JSON lines in a file or on standard output |
//! | `nats` | `nats` | NATS JetStream |
//! | `postgres` | `postgres` | a log in a PostgreSQL database |

#[cfg(feature = "file")]
pub mod file;
#[cfg(feature = "memory")]
pub mod memory;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(any(feature = "nats", feature = "postgres"))]
mod pace;
#[cfg(feature = "postgres")]
pub mod postgres;
