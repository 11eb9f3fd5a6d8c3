//! `outbox repair`: what it finds, that it changes nothing until it is told to, and what it refuses.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::run;
use message::Message;
use sqlx::Executor;
use tests::Database;

async fn eras(database: &Database) -> i64 {
    sqlx::query_scalar("select count(*) from outbox.cluster").fetch_one(database.pool()).await.unwrap()
}

#[tokio::test]
async fn a_log_of_another_cluster_is_described_and_repaired_only_when_told_to() {
    let database = Database::new("repair").await;
    let environment = [("DATABASE_URL", database.url())];
    let ran = run(&["repair"], &environment);
    assert_eq!(ran.succeeded(), "nothing to repair: era 1 was written in this cluster\n");
    run(&["repair", "--execute"], &environment).failed(1, &["nothing to repair"]);

    let mut tx = database.pool().begin().await.unwrap();
    let messages = ["a", "b", "c"].map(|key| Message::new("orders", "order.placed", "{}").with_key(key));
    outbox::enqueue_all(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();
    for sql in [
        "insert into outbox.relay (name, shards) values ('default', 1)",
        "insert into outbox.cursor (relay, shard, era, seen, seen_l) values ('default', 0, 1, '1:1:', 0)",
        "update outbox.cluster set system_identifier = 7",
        "select setval('outbox.message_position_seq', 1)",
        "insert into outbox.process (id, relay, label, build, expires_at)
         values (gen_random_uuid(), 'default', 'pid 1', '', now() + interval '1 hour')",
    ] {
        database.pool().execute(sql).await.unwrap();
    }
    let ran = run(&["repair"], &environment);
    let text = ran.succeeded();
    for line in [
        "the log was written in cluster 7, and is in ",
        "the sequence of positions stands at 1, and the log reaches 3",
        "era 1 ends at position 3, era 2 begins at 4",
        "relay processes alive, or alive when the dump was made: default (pid 1); stop them first",
        "default  3            0         0       0",
        "nothing was changed: `outbox repair --execute` does it",
    ] {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
    run(&["repair", "--execute"], &environment).failed(1, &["made: default (pid 1); stop them, or wait"]);
    assert_eq!(eras(&database).await, 1);

    database.pool().execute("update outbox.process set expires_at = now()").await.unwrap();
    let repair = ["repair", "--execute", "--by", "ada", "--reason", "moved", "--output", "json"];
    let document = run(&repair, &environment).json();
    assert_eq!((&document["repaired"], &document["first_position"]), (&true.into(), &4.into()));
    assert_eq!(document["relays"][0]["undelivered"], 3);
    assert_eq!(eras(&database).await, 2);
    let audit = run(&["audit", "--output", "json"], &environment).json();
    let entry = &audit[0];
    assert_eq!((&entry["action"], &entry["who"]), (&"repair".into(), &"ada".into()), "{audit}");
    assert_eq!((&entry["position"], &entry["reason"]), (&4.into(), &"moved".into()), "{audit}");
    run(&["repair", "--execute"], &environment).failed(1, &["nothing to repair"]);
}

#[tokio::test]
async fn without_a_schema_there_is_nothing_to_repair() {
    let database = Database::empty("repair_missing").await;
    run(&["repair"], &[("DATABASE_URL", database.url())]).failed(4, &["outbox migrate"]);
}

#[tokio::test]
async fn a_floor_that_a_clock_has_raised_is_described_and_lowered_only_with_go() {
    let database = Database::new("repair_inbox").await;
    let environment = [("DATABASE_URL", database.url())];
    let ran = run(&["repair", "inbox"], &environment);
    assert!(ran.succeeded().ends_with("nothing to repair: the floor is as low as it can be\n"), "{ran:?}");
    run(&["repair", "inbox", "--execute"], &environment).failed(1, &["nothing to repair"]);
    for sql in [
        "update inbox.retention set floor = '2099-01-01Z'",
        "insert into inbox.emptied_day (slot, day) values (3, (now() at time zone 'UTC')::date - 3)",
    ] {
        database.pool().execute(sql).await.unwrap();
    }
    let floor = async |sql: &'static str| -> bool {
        sqlx::query_scalar(sql).fetch_one(database.pool()).await.unwrap()
    };
    let text = run(&["repair", "inbox"], &environment);
    for line in [
        "floor           2099-01-01 00:00:00 UTC",
        "nothing was changed: `outbox repair inbox --execute` does it",
    ] {
        assert!(text.succeeded().contains(line), "no {line:?} in {text:?}");
    }
    assert!(floor("select floor = '2099-01-01Z' from inbox.retention").await);
    let document = run(&["repair", "inbox", "--execute", "--output", "json"], &environment).json();
    assert_eq!(document["repaired"], true);
    let lowest = "select floor = date_trunc('day', now() - interval '2 days', 'UTC') from inbox.retention";
    assert!(floor(lowest).await, "{document}");
    run(&["repair", "inbox", "--execute"], &environment).failed(1, &["nothing to repair"]);
}

#[tokio::test]
async fn without_an_inbox_there_is_none_to_repair() {
    let database = Database::empty("repair_inbox_missing").await;
    run(&["repair", "inbox"], &[("DATABASE_URL", database.url())]).failed(4, &["outbox migrate"]);
}
