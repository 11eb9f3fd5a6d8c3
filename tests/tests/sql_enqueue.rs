//! `outbox.enqueue`, the contract for every language: the limits of the Rust library and of the table, the same errors,
//! the caller's transaction, and nothing but psql needed.

#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod sql_enqueue {
    mod parity;
    mod writing;
}
