//! A command that looks or decides ends, also if what it asks for is never answered.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::run;
use sqlx::Executor;
use tests::Database;

#[tokio::test]
async fn a_command_whose_answer_does_not_come_ends_and_says_so() {
    let database = Database::new("cli_bounds").await;
    let mut lock = database.pool().begin().await.unwrap();
    lock.execute(
        "lock table outbox.held_key, outbox.audit, outbox.replay, inbox.held_key in access exclusive mode",
    )
    .await
    .unwrap();
    for command in [
        &["parked"][..],
        &["parked", "redrive", "--relay", "default", "--position", "1"],
        &["parked", "redrive", "--consumer", "payment", "--hold", "1"],
        &["audit"],
        &["status"],
        &["doctor"],
        &["replays"],
    ] {
        let ran = run(&[command, &["--timeout", "300ms"]].concat(), &[("DATABASE_URL", database.url())]);
        ran.failed(3, &["no answer within 300ms"]);
    }
    lock.rollback().await.unwrap();
    run(&["parked", "--timeout", "5m"], &[("DATABASE_URL", database.url())]).succeeded();
}
