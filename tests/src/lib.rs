//! What the tests share: a database of one's own on a real server, gone when the test ends.

#![allow(clippy::expect_used, reason = "a harness of tests fails by panicking")]

mod database;

pub use database::Database;
