//! What the tests share: a database of one's own on a real server, gone when the test ends, a
//! network that fails on request, and the claims that every broker must hold.

#![allow(clippy::expect_used, clippy::panic, reason = "a harness of tests fails by panicking")]

pub mod clock;
pub mod conformance;
mod database;
mod proxy;
pub mod source;

pub use database::Database;
pub use proxy::{Fate, Proxy};

/// The examples of the README compile, as those of the documentation do.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
