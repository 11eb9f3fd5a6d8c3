//! Databases that are not as they must be, each with its exit code, and the command that mends them.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{MARKER, run};
use sqlx::Executor;
use tests::Database;

fn environment(database: &Database) -> [(&'static str, &str); 1] {
    [("DATABASE_URL", database.url())]
}

#[test]
fn a_database_that_cannot_be_reached_is_exit_3() {
    let url = format!("postgres://app:{MARKER}@127.0.0.1:1/orders");
    let id = "0193b5a0-0000-7000-8000-000000000001";
    for command in [
        &["migrate"][..],
        &["migrate", "--check"],
        &["status"],
        &["parked"],
        &["parked", "redrive", "--consumer", "c", "--every"],
        &["trace", id],
    ] {
        run(command, &[("DATABASE_URL", &url)])
            .failed(3, &["database postgres://127.0.0.1:1/orders: ", "refused"]);
    }
    let ran = run(&["relay", "--broker", "memory:", "--log", "error"], &[("DATABASE_URL", &url)]);
    ran.failed(3, &["database postgres://127.0.0.1:1/orders: "]);
}

#[test]
fn a_wrong_password_is_exit_3_and_never_printed() {
    // A server of its own: others may let everybody in.
    let server = servers::Postgres::start_own().unwrap();
    let address = server.url("postgres");
    let address = address.rsplit_once('@').unwrap().1;
    for password in [MARKER, "m4rker%40%3A%2F", "m4rker@b:c"] {
        let url = format!("postgres://postgres:{password}@{address}");
        run(&["status"], &[("DATABASE_URL", &url)]).failed(3, &["password authentication failed"]);
    }
    let url = server.url("no_such_database");
    run(&["status"], &[("DATABASE_URL", &url)]).failed(3, &["no_such_database", "does not exist"]);
}

#[test]
fn a_password_that_the_driver_cannot_send_is_named_and_no_character_of_it_is_printed() {
    let server = servers::Postgres::start_own().unwrap();
    let url = server.url("postgres");
    let address = url.rsplit_once('@').unwrap().1;
    let url = format!("postgres://postgres:{MARKER}%F0%9F%98%80@{address}");
    for command in
        [&["status"][..], &["migrate"], &["doctor"], &["relay", "--broker", "memory:", "--log", "error"]]
    {
        let ran = run(command, &[("DATABASE_URL", &url)]);
        assert_ne!(ran.code, Some(0), "{ran:?}");
        assert!(ran.err.contains("the password holds a character that the driver cannot send"), "{ran:?}");
        assert!(!ran.err.contains('\u{1f600}') && !ran.out.contains('\u{1f600}'), "{ran:?}");
    }
}

#[test]
fn a_server_is_reached_by_its_address_of_ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let server =
        servers::PostgresOptions::new().with_setting("listen_addresses", "127.0.0.1,::1").start().unwrap();
    let url = server.url("postgres").replace("127.0.0.1", "[::1]");
    let ran = run(&["migrate"], &[("DATABASE_URL", &url)]);
    assert!(ran.succeeded().contains("outbox: migrated"), "{ran:?}");
}

#[tokio::test]
async fn a_missing_schema_is_exit_4_until_migrate_has_run() {
    let database = Database::empty("a_missing_schema").await;
    let environment = environment(&database);
    run(&["migrate", "--check"], &environment).failed(4, &["schema outbox is missing", "outbox migrate"]);
    run(&["status"], &environment).failed(4, &["neither an outbox nor an inbox"]);
    run(&["parked"], &environment).failed(4, &["neither an outbox nor an inbox"]);
    run(&["parked", "skip", "--relay", "r", "--position", "1", "--reason", "x"], &environment)
        .failed(4, &["schema outbox is missing"]);
    run(&["trace", "0193b5a0-0000-7000-8000-000000000001"], &environment).failed(4, &["neither"]);
    run(&["relay", "--broker", "memory:", "--log", "error"], &environment)
        .failed(4, &["schema outbox is missing"]);

    let ran = run(&["migrate", "--schema", "outbox", "--source", "/orders"], &environment);
    assert!(ran.succeeded().starts_with("outbox: migrated: fits this build (version "), "{ran:?}");
    let again = run(&["migrate", "--schema", "outbox"], &environment);
    assert!(again.succeeded().starts_with("outbox: fits this build (version "), "{again:?}");
    run(&["migrate", "--check", "--schema", "outbox"], &environment).succeeded();
    run(&["migrate", "--check"], &environment).failed(4, &["schema inbox is missing"]);
    assert!(run(&["status"], &environment).succeeded().contains("no relay has run here"));

    run(&["migrate"], &environment).succeeded();
    let again = run(&["migrate", "--output", "json"], &environment).json();
    assert_eq!((&again[1]["schema"], &again[1]["migrated"]), (&"inbox".into(), &false.into()));
    let source: String =
        sqlx::query_scalar("select source from outbox.origin").fetch_one(database.pool()).await.unwrap();
    assert_eq!(source, "/orders");
}

#[tokio::test]
async fn an_older_schema_and_one_too_new_are_exit_4_and_a_newer_one_that_serves_us_is_fine() {
    let database = Database::new("older_and_newer").await;
    let environment = environment(&database);
    let state = async |sql: &'static str| {
        database.pool().execute(sql).await.unwrap();
        run(&["status"], &environment)
    };
    let newer = "insert into outbox.schema_version (version, serves) values (1000, 1)";
    state(newer).await.succeeded();
    run(&["migrate"], &environment).succeeded();
    let too_new = "update outbox.schema_version set serves = 1000 where version = 1000";
    state(too_new).await.failed(4, &["version 1000", "run a newer build"]);
    run(&["migrate"], &environment).failed(4, &["version 1000"]);
    let older = "alter table outbox.schema_version drop constraint schema_version_check;
        delete from outbox.schema_version; insert into outbox.schema_version (version, serves) values (0, 0)";
    state(older).await.failed(4, &["schema outbox is at version 0", "run `outbox migrate`"]);
}

#[tokio::test]
async fn the_printed_sql_makes_a_database_that_fits() {
    let database = Database::empty("printed_sql").await;
    let printed = run(&["migrate", "--print"], &[]);
    let sql = printed.succeeded().to_owned();
    database.pool().execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
    run(&["migrate", "--check"], &environment(&database)).succeeded();
    let roles = run(&["migrate", "--roles"], &[]);
    assert!(roles.succeeded().contains("outbox_monitor"));
    run(&["migrate", "--print", "--check"], &[]).code.filter(|code| *code == 2).unwrap();
}

#[test]
fn a_source_that_breaks_the_limit_is_refused_before_anything_is_tried() {
    let environment = [("DATABASE_URL", "postgres://127.0.0.1:1/x")];
    run(&["migrate", "--source", "a b"], &environment).failed(2, &["--source: 1 to 200 printable"]);
    run(&["migrate", "--source", "/a", "--schema", "inbox"], &environment)
        .failed(2, &["--source: belongs to"]);
}
