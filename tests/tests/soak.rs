//! A small soak: the judge finds nothing in the shipped relay, and finds what is planted in a naive one. The whole of it
//! is `cargo run --release -p tests --bin soak -- --messages 100000 --seed 1`, and `-- --relays 8 --minutes 5 --seed 1` for
//! a relay of several processes.

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
use tokio::sync::RwLock;

/// A build of the relay's binary and of a debug server's worth of work included.
const PATIENCE: Duration = Duration::from_secs(600);

/// Where leases are in play, a machine that stands still for as long is one more thing that happens to them: such a soak has
/// it to itself.
static MACHINE: RwLock<()> = RwLock::const_new(());

/// Runs a soak; its exit code and its verdict.
async fn soak(arguments: &[&str]) -> (i32, Value) {
    let _shared = MACHINE.read().await;
    run(arguments).await
}

/// The same while no other runs.
async fn soak_alone(arguments: &[&str]) -> (i32, Value) {
    let _alone = MACHINE.write().await;
    run(arguments).await
}

async fn run(arguments: &[&str]) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_soak"));
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let verdict = said.lines().last().unwrap_or_else(|| panic!("it says nothing: {}", output.status));
    (output.status.code().unwrap_or(-1), serde_json::from_str(verdict).unwrap())
}

/// Messages, until the bug has shown: whether it does in a small run is decided by a race, and exit code 2 says that it has
/// not yet.
const ENOUGH: [&str; 4] = ["3000", "6000", "12000", "24000"];

async fn convicts(plant: &str, violation: &str) {
    convicts_of("1", plant, violation).await;
}

async fn convicts_of_several(plant: &str, violation: &str) {
    convicts_of("4", plant, violation).await;
}

async fn convicts_of(relays: &str, plant: &str, violation: &str) {
    let (mut code, mut verdict) = (2, Value::Null);
    for messages in ENOUGH {
        let arguments = ["--messages", messages, "--seed", "1", "--plant", plant, "--relays", relays];
        let given = if relays == "1" { &arguments[..6] } else { &arguments[..] };
        (code, verdict) = soak(given).await;
        if code != 2 {
            break;
        }
    }
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

#[tokio::test]
async fn processes_started_stopped_killed_and_frozen_lose_and_overtake_nothing_and_leave_no_shard_alone() {
    let (mut code, mut verdict) = (2, Value::Null);
    // As with the bugs: until everything that should happen to them has.
    for minutes in ["0.4", "0.8", "1.6"] {
        (code, verdict) =
            soak_alone(&["--relays", "4", "--minutes", minutes, "--kills", "1", "--seed", "1"]).await;
        if code != 2 {
            break;
        }
    }
    assert_eq!((code, &verdict["violations"]), (0, &Value::Array(Vec::new())), "{verdict}");
    for dangers in ["kills_with_backlog", "polite_stops", "freezes_outliving_the_lease", "takeovers"] {
        assert!(verdict[dangers].as_u64().unwrap() >= 1, "{dangers}: {verdict}");
    }
}

/// Without it, the bugs of a team might be the naive team's own.
#[tokio::test]
async fn a_naive_team_that_takes_over_and_fences_is_acquitted() {
    let messages = ["--relays", "4", "--messages", "3000", "--seed", "1", "--plant", "fenced-record"];
    let (code, verdict) = soak(&messages).await;
    assert_eq!((code, &verdict["violations"]), (0, &Value::Array(Vec::new())), "{verdict}");
}

#[tokio::test]
async fn a_process_that_counts_for_a_shard_it_has_lost_loses_messages() {
    convicts_of_several("unfenced-record", "lost").await;
}

#[tokio::test]
async fn processes_that_claim_windows_side_by_side_invert_a_key() {
    convicts_of_several("parallel-claims", "inversion").await;
}

#[tokio::test]
async fn processes_that_each_publish_everything_repeat_without_bound() {
    convicts_of_several("no-shards", "duplicates").await;
}

#[tokio::test]
async fn a_shard_that_nobody_takes_over_is_found() {
    convicts_of_several("no-takeover", "unowned").await;
}
