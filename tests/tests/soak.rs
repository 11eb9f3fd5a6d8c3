//! A small soak: the judge finds nothing in the shipped relay, and finds what is planted in a naive one. The whole of it
//! is `cargo run --release -p tests --bin soak -- --messages 100000 --seed 1`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the helpers of tests fail by panicking"
)]

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

/// A build of the relay's binary and of a debug server's worth of work included.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs a soak; its exit code and its verdict.
async fn soak(arguments: &[&str]) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_soak"));
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let verdict = said.lines().last().unwrap_or_else(|| panic!("it says nothing: {}", output.status));
    (output.status.code().unwrap_or(-1), serde_json::from_str(verdict).unwrap())
}

async fn convicts(plant: &str, violation: &str) {
    let (code, verdict) = soak(&["--messages", "3000", "--seed", "1", "--plant", plant]).await;
    assert_eq!((code, &verdict["expected"]), (1, &Value::from(violation)), "{verdict}");
    assert!(verdict["violations"].as_array().unwrap().contains(&violation.into()), "{verdict}");
}

#[tokio::test]
async fn a_relay_killed_under_load_loses_repeats_and_overtakes_nothing() {
    let (code, verdict) = soak(&["--messages", "6000", "--seed", "1", "--kills", "5"]).await;
    assert_eq!((code, &verdict["violations"]), (0, &Value::Array(Vec::new())), "{verdict}");
    assert!(verdict["kills_with_backlog"].as_u64().unwrap() >= 5, "{verdict}");
}

#[tokio::test]
async fn a_soak_too_small_to_prove_anything_is_not_passed() {
    let (code, verdict) = soak(&["--messages", "20", "--seed", "1", "--plant", "control"]).await;
    assert_eq!(code, 2, "{verdict}");
    assert!(!verdict["too_little"].as_array().unwrap().is_empty(), "{verdict}");
}

/// Without it, the bugs below might be the naive relay's own.
#[tokio::test]
async fn the_naive_relay_without_a_planted_bug_is_acquitted() {
    let (code, verdict) = soak(&["--messages", "3000", "--seed", "1", "--plant", "control"]).await;
    assert_eq!((code, &verdict["violations"]), (0, &Value::Array(Vec::new())), "{verdict}");
}

#[tokio::test]
async fn a_cursor_that_is_a_position_loses_messages() {
    convicts("position-cursor", "lost").await;
}

#[tokio::test]
async fn the_order_of_transaction_ids_behind_a_horizon_inverts_a_key() {
    convicts("xid-horizon", "inversion").await;
}

#[tokio::test]
async fn a_lower_bound_read_just_before_the_snapshot_loses_messages() {
    convicts("bound-at-snapshot", "lost").await;
}

#[tokio::test]
async fn a_position_drawn_before_the_transaction_id_loses_messages() {
    convicts("tx-after-position", "lost").await;
}

#[tokio::test]
async fn a_window_in_the_order_of_transaction_ids_inverts_a_key() {
    convicts("order-by-tx", "inversion").await;
}
