//! `outbox doctor`: each fault is made, and found by its name.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{Ran, run};
use message::Message;
use servers::{Pgbouncer, Postgres, PostgresOptions};
use sqlx::{Connection, Executor, PgConnection};
use tests::Database;

/// What a server for tests has by its nature: it does not wait for its disk.
const OF_TESTS: [&str; 2] = ["fsync", "full_page_writes"];

fn doctor(url: &str, more: &[&str]) -> Ran {
    run(&[&["doctor", "--output", "json"], more].concat(), &[("DATABASE_URL", url)])
}

/// The names of what was found, in order, but for what a server for tests has by its nature.
#[track_caller]
fn names(ran: &Ran) -> Vec<String> {
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{ran:?}"));
    let findings = report["findings"].as_array().unwrap();
    for finding in findings {
        let said = |part: &str| !finding[part].as_str().unwrap().is_empty();
        assert!(said("what") && said("remedy"), "{finding}");
    }
    let names = findings.iter().map(|finding| finding["name"].as_str().unwrap().to_owned());
    names.filter(|name| !OF_TESTS.contains(&name.as_str())).collect()
}

/// A database that is set up as it should be.
async fn sound(claim: &str) -> Database {
    let database = Database::new(claim).await;
    database.pool().execute(sqlx::raw_sql(migrations::roles())).await.unwrap();
    database
}

async fn enqueue(database: &Database) {
    let mut tx = database.pool().begin().await.unwrap();
    outbox::enqueue_all(&mut tx, &[Message::new("orders", "order.placed", "{}")]).await.unwrap();
    tx.commit().await.unwrap();
}

/// What is unsafe by itself, without any message: (name, how it is made).
const UNSAFE: [(&str, &str); 14] = [
    ("sequence_cache", "alter sequence outbox.message_position_seq cache 32"),
    ("sequence_cache", "alter sequence outbox.message_position_seq increment 2"),
    ("unlogged", "alter table outbox.message_3 set unlogged"),
    ("row_level_security", "alter table outbox.message enable row level security"),
    ("row_level_security", "alter table outbox.message_3 enable row level security"),
    (
        "triggers",
        "create function drop_it() returns trigger language plpgsql as 'begin return null; end';
         create trigger drops before insert on outbox.message for each row execute function drop_it()",
    ),
    ("triggers", "create rule drops as on insert to outbox.message where new.topic = 'x' do instead nothing"),
    ("held_rules", "alter table outbox.held_message add constraint short check (bytes < 1000)"),
    (
        "held_rules",
        "create rule drops as on insert to outbox.held_key where new.key = 'x' do instead nothing",
    ),
    ("leaves", "alter table outbox.message detach partition outbox.message_3"),
    ("other_cluster", "update outbox.cluster set system_identifier = 1"),
    ("schema", "update outbox.schema_version set version = 99, serves = 99"),
    ("schema", "update inbox.schema_version set version = 99, serves = 99"),
    ("inbox_floor", "update inbox.retention set floor = now() + interval '22 days'"),
];

#[tokio::test]
async fn what_is_unsafe_is_found_by_its_name_and_is_exit_5() {
    for (name, fault) in UNSAFE {
        let database = sound("doctor_unsafe").await;
        assert_eq!(names(&doctor(database.url(), &[])), [""; 0], "before: {fault}");
        database.pool().execute(sqlx::raw_sql(fault)).await.unwrap();
        let ran = doctor(database.url(), &[]);
        assert_eq!((ran.code, names(&ran)), (Some(5), vec![name.to_owned()]), "{fault}: {ran:?}");
        assert!(ran.err.contains("must be mended"), "{ran:?}");
    }
    let database = Database::empty("doctor_empty").await;
    let ran = doctor(database.url(), &[]);
    assert_eq!((ran.code, names(&ran)), (Some(5), vec!["schema".to_owned()]));
}

/// What hurts: (name, how it is made), after a message was enqueued and published.
const HURTS: [(&str, &str); 17] = [
    (
        "triggers_after",
        "create function look() returns trigger language plpgsql as 'begin return null; end';
         create trigger looks after insert on outbox.message for each row execute function look()",
    ),
    (
        "synchronous_commit",
        "do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$",
    ),
    (
        "search_path",
        "do $$ begin execute format('alter database %I set search_path = public, pg_catalog', current_database()); end $$",
    ),
    (
        "search_path",
        "do $$ begin execute format('alter role %I in database %I set search_path = \"$user\", public, pg_catalog', current_user, current_database()); end $$",
    ),
    ("rights", "create table outbox.later (a integer)"),
    ("no_relay", "delete from outbox.cursor; delete from outbox.relay"),
    (
        "all_retired",
        "update outbox.cursor set seen = '1:1:', seen_l = 0; update outbox.relay set state = 'retired'",
    ),
    ("unattended_relay", "update outbox.cursor set seen = '1:1:', seen_l = 0"),
    (
        "paused_relay",
        "update outbox.cursor set seen = '1:1:', seen_l = 0; update outbox.relay set state = 'paused'",
    ),
    (
        "lagging_relay",
        "update outbox.cursor set seen = '1:1:', seen_l = 0;
         update outbox.message set enqueued_at = now() - interval '1 hour';
         insert into outbox.process (id, relay, label, build, expires_at)
         values (gen_random_uuid(), 'default', '', '', now() + interval '1 hour')",
    ),
    (
        "parked_keys",
        "insert into outbox.held_key (relay, position, slot, state, attempts, last_error)
         values ('default', 1, 0, 'parked', 9, 'no')",
    ),
    (
        "parked_keys",
        "insert into outbox.held_key (relay, position, slot, state, attempts, next_attempt_at, last_error)
         values ('default', 1, 0, 'retrying', 9, now(), 'no'); update outbox.relay set state = 'retired'",
    ),
    (
        "parked_keys",
        "insert into inbox.held_key (consumer, state, attempts, last_error) values ('payment', 'parked', 9, 'no')",
    ),
    ("inbox_floor", "update inbox.retention set floor = now() - interval '3 days'"),
    (
        "inbox_floor",
        "update inbox.retention set floor = now() - interval '3 days';
         insert into inbox.emptied_day (slot, day) values (3, (now() - interval '3 days')::date)",
    ),
    (
        "inbox_not_pruned",
        "insert into inbox.consumer (name, horizon) values ('payment', '7 days');
         insert into inbox.process (id, consumer, started_at, expires_at)
         values (gen_random_uuid(), 'payment', now() - interval '1 day', now() + interval '40 seconds')",
    ),
    (
        "unfinished_replay",
        "insert into outbox.replay (name, era, seen, after, to_position) values ('r', 1, pg_current_snapshot(), 0, 1)",
    ),
];

#[tokio::test]
async fn what_hurts_is_found_by_its_name_and_is_no_failure_unless_asked_for() {
    for (name, fault) in HURTS {
        let database = sound("doctor_hurts").await;
        enqueue(&database).await;
        database
            .pool()
            .execute(sqlx::raw_sql(
                "insert into outbox.relay (name, shards) values ('default', 1);
                 insert into outbox.cursor (relay, shard, era, seen, seen_l)
                 select 'default', 0, 1, pg_current_snapshot(), 1",
            ))
            .await
            .unwrap();
        assert_eq!(names(&doctor(database.url(), &[])), [""; 0], "before: {fault}");
        database.pool().execute(sqlx::raw_sql(fault)).await.unwrap();
        let ran = doctor(database.url(), &[]);
        assert_eq!(names(&ran), [name], "{fault}");
        // What is advised a moment after something stopped loses nothing.
        let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        for finding in report["findings"].as_array().unwrap() {
            let remedy = finding["remedy"].as_str().unwrap();
            for losing in ["retire ", "cancel", "skip", "drop it", "rollback", "--start"] {
                assert!(!remedy.contains(losing), "{name}: {remedy}");
            }
        }
        assert_eq!(doctor(database.url(), &["--strict"]).code, Some(5), "{fault}");
    }
}

/// On a server of its own, durable, which others cannot disturb.
#[tokio::test]
async fn a_sound_set_up_is_exit_0_and_what_holds_a_cluster_back_is_named() {
    let server = PostgresOptions::new().durable(true).start().unwrap();
    let url = server.url("postgres");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    for schema in [migrations::Schema::Outbox, migrations::Schema::Inbox] {
        schema.migrate(&mut connection).await.unwrap();
    }
    let ran = doctor(&url, &[]);
    assert_eq!((ran.code, names(&ran)), (Some(0), vec!["roles".to_owned()]), "{ran:?}");
    connection.execute(sqlx::raw_sql(migrations::roles())).await.unwrap();
    let ran = run(&["doctor", "--strict"], &[("DATABASE_URL", &url)]);
    assert_eq!(ran.succeeded(), "nothing was found: the set-up is sound\n");

    for (make, name, unmake) in [
        (
            "begin; select outbox.enqueue('t', 'k', ''); prepare transaction 'forgotten'",
            "prepared_transaction",
            "rollback prepared 'forgotten'",
        ),
        (
            "select pg_create_physical_replication_slot('nobody', true)",
            "slot",
            "select pg_drop_replication_slot('nobody')",
        ),
        (
            "begin isolation level repeatable read; select count(*) from outbox.message",
            "old_transaction",
            "rollback",
        ),
    ] {
        connection.execute(sqlx::raw_sql(make)).await.unwrap();
        let ran = doctor(&url, &["--old", "0s"]);
        // The message of a transaction that is prepared and rolled back has drawn a position.
        let found: Vec<String> = names(&ran).into_iter().filter(|name| name != "no_relay").collect();
        assert_eq!((ran.code, found), (Some(0), vec![name.to_owned()]), "{make}: {ran:?}");
        // What is young enough is nobody's concern, and a slot has no age.
        let young = names(&doctor(&url, &[]));
        assert_eq!(young.contains(&name.to_owned()), name == "slot", "{make}: {young:?}");
        connection.execute(sqlx::raw_sql(unmake)).await.unwrap();
    }
}

#[tokio::test]
async fn a_read_replica_is_named() {
    let primary = PostgresOptions::new().start().unwrap();
    let mut connection = PgConnection::connect(&primary.url("postgres")).await.unwrap();
    for schema in [migrations::Schema::Outbox, migrations::Schema::Inbox] {
        schema.migrate(&mut connection).await.unwrap();
    }
    connection.execute(sqlx::raw_sql(migrations::roles())).await.unwrap();
    let held = "insert into inbox.consumer (name, horizon) values ('payment', '7 days');
        insert into inbox.held_key (consumer, key, state, attempts, last_error) values ('payment', 'a', 'parked', 1, 'no');
        insert into inbox.held_message (consumer, hold, message_id, kind, key, payload)
            select consumer, hold, gen_random_uuid(), 'order.placed', key, '' from inbox.held_key";
    connection.execute(sqlx::raw_sql(held)).await.unwrap();
    // This one does not wait for its disk, either.
    let ran = doctor(&primary.url("postgres"), &[]);
    assert!(OF_TESTS.iter().all(|name| ran.out.contains(&format!("{name} is off"))), "{ran:?}");
    let mut standby = PostgresOptions::new().standby_of(&primary).unwrap();
    standby.restart().unwrap();
    let url = standby.url("postgres");
    // What only reads works there, and what would write says why it does not.
    let ran = doctor(&url, &[]);
    assert_eq!(ran.code, Some(5), "{ran:?}");
    for name in ["replica", "parked_keys", "unhandled_kind"] {
        assert!(names(&ran).iter().any(|found| found == name), "{name}: {ran:?}");
    }
    let environment = [("DATABASE_URL", url.as_str())];
    for (arguments, expected) in [
        (&["status"][..], "payment"),
        (&["parked", "--consumer", "payment"], "order.placed"),
        (&["consumers"], "order.placed"),
        (&["audit"], "nothing was decided"),
        (&["repair", "inbox"], "nothing to repair"),
    ] {
        let ran = run(arguments, &environment);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
        assert!(ran.out.contains(expected), "{arguments:?}: {ran:?}");
    }
    let ran = run(&["parked", "redrive", "--consumer", "payment", "--every", "--by", "ada"], &environment);
    ran.failed(1, &["during recovery"]);
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_named() {
    let database = sound("doctor_pooler").await;
    let server = Postgres::given().unwrap();
    let pooler = Pgbouncer::start(&server, 3).unwrap();
    let ran = doctor(&pooler.url(&database.name), &[]);
    assert_eq!(names(&ran), ["pooler"], "{ran:?}");
    // Every time: it is no matter of luck.
    for _ in 0..5 {
        assert_eq!(names(&doctor(&pooler.url(&database.name), &[])), ["pooler"]);
        assert_eq!(names(&doctor(database.url(), &[])), [""; 0]);
    }
}

#[tokio::test]
async fn an_operator_and_a_monitor_may_examine_and_learn_what_they_do_not_see() {
    let database = sound("doctor_roles").await;
    let with = |role: &str| {
        let sign = if database.url().contains('?') { '&' } else { '?' };
        format!("{}{sign}options=-c%20role%3D{role}", database.url())
    };
    for role in ["outbox_operator", "outbox_monitor"] {
        let ran = doctor(&with(role), &[]);
        assert_eq!(names(&ran), ["unseen"], "{role}: {ran:?}");
    }
    // One without any of our roles may not even look, and learns which role may.
    for command in ["doctor", "status"] {
        run(&[command], &[("DATABASE_URL", &with("pg_signal_backend"))])
            .failed(1, &["permission denied", "outbox_monitor"]);
        // A service's may look at the version, and at nothing of what is shown.
        run(&[command], &[("DATABASE_URL", &with("outbox_service"))])
            .failed(1, &["permission denied", "outbox_monitor"]);
    }
}

#[tokio::test]
async fn a_role_that_may_look_at_one_schema_sees_that_one_and_a_sentence_about_the_other() {
    let database = sound("doctor_half").await;
    let sign = if database.url().contains('?') { '&' } else { '?' };
    for (role, sees, not) in [
        ("outbox_relay", "no relay has run here", "schema inbox"),
        ("outbox_consumer", "no consumer has run here", "schema outbox"),
    ] {
        let url = format!("{}{sign}options=-c%20role%3D{role}", database.url());
        let environment = [("DATABASE_URL", &*url)];
        let ran = run(&["status"], &environment);
        let sentence = format!("{not}: this role may not look at it; outbox_monitor may");
        assert!(ran.succeeded().contains(sees) && ran.out.contains(&sentence), "{role}: {ran:?}");
        let ran = doctor(&url, &[]);
        assert!(names(&ran).contains(&"unseen_schema".to_owned()), "{role}: {ran:?}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn clocks_that_differ_are_named() {
    let clock = tests::clock::WrongClock::start();
    let url = clock.server.url("postgres");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    for schema in [migrations::Schema::Outbox, migrations::Schema::Inbox] {
        schema.migrate(&mut connection).await.unwrap();
    }
    connection.execute(sqlx::raw_sql(migrations::roles())).await.unwrap();
    assert_eq!(names(&doctor(&url, &[])), [""; 0]);
    for hours in [-2, 2] {
        clock.set(hours * 3_600);
        assert_eq!(names(&doctor(&url, &[])), ["clocks_differ"]);
    }
    run(&["repair", "inbox", "--execute"], &[("DATABASE_URL", &url)])
        .failed(1, &["clocks of database and process differ"]);
}
