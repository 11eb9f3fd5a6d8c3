//! `outbox consumers`: the kinds that consumers handle, and forgetting one that none handles any more.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::run;
use migrations::Schema;
use sqlx::{Connection, Executor, PgConnection};
use tests::Database;

const WEEK_OLD: &str = "
    insert into inbox.consumer (name, horizon) values ('payment', '7 days');
    insert into inbox.consumer_kind (consumer, kind, last_seen_at) values
        ('payment', 'order.placed', now()), ('payment', 'order.amended', now() - interval '8 days');
    insert into inbox.held_key (consumer, key, state, attempts, next_attempt_at, last_error)
        values ('payment', 'order-7', 'retrying', 0, now(), 'held for another process');
    insert into inbox.held_message (consumer, hold, message_id, correlation, topic, kind, key, payload)
        select 'payment', hold, id, id, 'orders', kind, key, '' from inbox.held_key
        cross join lateral (
            values (1, 'order.amended', gen_random_uuid()), (2, 'order.placed', gen_random_uuid())
        ) as waiting (number, kind, id)
        order by number";

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_none_handles_is_named_and_forgotten_when_a_person_says_so() {
    let database = Database::new("forget_kind").await;
    database.pool().execute(sqlx::raw_sql(WEEK_OLD)).await.unwrap();
    let environment = [("DATABASE_URL", database.url())];

    let found = run(&["doctor", "--output", "json"], &environment);
    let report: serde_json::Value = serde_json::from_str(&found.out).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let named: Vec<_> = findings.iter().filter(|finding| finding["name"] == "unhandled_kind").collect();
    assert_eq!(named.len(), 1, "{report}");
    assert!(named[0]["what"].as_str().unwrap().contains("order.amended for 8 days; 1 messages"), "{report}");

    let listed = run(&["consumers", "--output", "json"], &environment).json();
    assert_eq!((&listed[0]["kind"], &listed[0]["held"]), (&"order.amended".into(), &1.into()), "{listed}");
    let forget = |kind, more: &[&str]| {
        let words =
            ["consumers", "forget-kind", "payment", kind, "--output", "json", "--reason", "rolled back"];
        run(&[&words, more].concat(), &environment)
    };
    // Nothing without a word, and never what a process handles.
    let foretold = forget("order.amended", &[]).json();
    assert_eq!((&foretold["done"], &foretold["messages"]), (&false.into(), &1.into()), "{foretold}");
    // What would be refused is not said to be done either.
    for more in [&[][..], &["--execute"]] {
        forget("order.placed", more).failed(1, &["order.placed", "stop it first"]);
    }
    forget("order.dreamt", &["--execute"]).failed(1, &["no kind order.dreamt"]);
    let held = "select count(*) from inbox.held_message";
    assert_eq!(sqlx::query_scalar::<_, i64>(held).fetch_one(database.pool()).await.unwrap(), 2);

    let done = forget("order.amended", &["--execute", "--by", "ada"]).json();
    assert_eq!(
        (&done["done"], &done["messages"], &done["keys"]),
        (&true.into(), &1.into(), &0.into()),
        "{done}"
    );
    assert_eq!(sqlx::query_scalar::<_, i64>(held).fetch_one(database.pool()).await.unwrap(), 1);
    let audit = run(&["audit", "--output", "json"], &environment).json();
    let about = audit.as_array().unwrap();
    assert_eq!(about.len(), 2, "{audit}");
    assert!(about.iter().all(|entry| entry["action"] == "forget_kind" && entry["kind"] == "order.amended"));
    assert!(
        run(&["audit"], &environment)
            .succeeded()
            .contains("forget_kind, consumer payment, kind order.amended")
    );
    assert!(run(&["consumers"], &environment).succeeded().contains("order.placed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_times_that_a_clock_has_written_which_was_ahead_and_counts_what_waits_for_a_person() {
    let database = Database::new("times_ahead").await;
    let ahead = "
        insert into inbox.process (id, consumer, expires_at)
            values (gen_random_uuid(), 'payment', now() + interval '30 days');
        insert into inbox.held_key (consumer, key, state, attempts, last_error)
            values ('payment', 'order-8', 'parked', 1, 'no');
        insert into inbox.held_message (consumer, hold, payload)
            select 'payment', hold, '' from inbox.held_key where key = 'order-8'";
    database.pool().execute(sqlx::raw_sql(WEEK_OLD)).await.unwrap();
    database.pool().execute(sqlx::raw_sql(ahead)).await.unwrap();
    let found = run(&["doctor", "--output", "json"], &[("DATABASE_URL", database.url())]);
    let report: serde_json::Value = serde_json::from_str(&found.out).unwrap();
    let what = |name: &str| {
        let findings = report["findings"].as_array().unwrap().iter();
        findings
            .filter(|finding| finding["name"] == name)
            .map(|finding| finding["what"].to_string())
            .collect::<String>()
    };
    assert!(
        what("times_ahead").contains("consumer payment: 1 processes, 0 kinds and 0 held keys"),
        "{report}"
    );
    assert!(what("parked_keys").contains("1 keys; 1 messages wait for a person"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_an_encoding_that_cannot_store_every_message() {
    let database = Database::encoded("doctor_latin", "LATIN1").await;
    Schema::Inbox.migrate(&mut PgConnection::connect(database.url()).await.unwrap()).await.unwrap();
    for _ in 0..2 {
        let found = run(&["doctor", "--output", "json"], &[("DATABASE_URL", database.url())]);
        let report: serde_json::Value = serde_json::from_str(&found.out).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let named = findings.iter().filter(|finding| finding["name"] == "encoding");
        assert_eq!(named.count(), 1, "{report}");
        // Once, also where the log says it, too.
        Schema::Outbox.migrate(&mut PgConnection::connect(database.url()).await.unwrap()).await.unwrap();
    }
}
