//! What a process writes about held keys after another one has acquired their shard: nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod relay_support;

use std::time::Duration;

use brokers::memory::Broker;
use outbox::admin;
use relay_support::{message, settings, start, until, write};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{PgConnection, PgPool, Postgres, Row};
use tests::Database;
use uuid::Uuid;

type Statement = Query<'static, Postgres, PgArguments>;

/// A database with one shard and one held key of two messages. Its position.
async fn with_held_key(database: &Database) -> i64 {
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("a");
    let mut settings = settings();
    (settings.shards, settings.max_attempts) = (1, 10);
    let hour = Duration::from_secs(3600);
    settings.retry = outbox::Backoff { first: hour, ceiling: hour };
    let relay = start(pool, broker.publisher(), settings);
    write(pool, &[message("a", 1), message("a", 2)]).await;
    let held = || async { admin::held_keys(pool, "default").await.unwrap() };
    until("held", || async { held().await.first().is_some_and(|held| held.messages == 2) }).await;
    relay.stop().await.unwrap();
    held().await[0].position
}

/// A process acquires the shard, if it is free or its own. The epoch.
async fn acquire(pool: &PgPool, process: Uuid) -> Result<Option<i64>, sqlx::Error> {
    let join = sqlx::query(include_str!("../../outbox/src/log/sql/join.sql")).bind(process);
    join.bind("default").bind("test").bind("test").bind(3600.0).execute(pool).await?;
    let mut tx = pool.begin().await?;
    sqlx::query("set local lock_timeout = '500ms'").execute(&mut *tx).await?;
    let acquire = sqlx::query(include_str!("../../outbox/src/log/sql/acquire.sql")).bind("default");
    let row = acquire.bind(process).bind(1_i64).fetch_optional(&mut *tx).await?;
    tx.commit().await?;
    row.map(|row| row.try_get("epoch")).transpose()
}

async fn dies(pool: &PgPool, process: Uuid) {
    sqlx::query("delete from outbox.process where id = $1").bind(process).execute(pool).await.unwrap();
}

fn settle(held: i64, epoch: i64) -> Statement {
    sqlx::query(include_str!("../../outbox/src/relay/sql/settle.sql"))
        .bind("default")
        .bind(vec![held])
        .bind(vec![held])
        .bind(vec![0_i16])
        .bind(vec![epoch])
        .bind(vec![None::<String>])
        .bind(vec![None::<i32>])
        .bind(Vec::<i64>::new())
}

fn failed(held: i64, epoch: i64) -> Statement {
    sqlx::query(include_str!("../../outbox/src/relay/sql/failed.sql"))
        .bind("default")
        .bind(vec![held])
        .bind(vec![0_i16])
        .bind(vec![epoch])
        .bind(vec!["retrying"])
        .bind(vec![Some(1.0)])
        .bind(vec![Some("away")])
        .bind(vec![0])
        .bind(vec![Some("destination")])
        .bind(vec![Some("away")])
        .bind(vec![None::<i32>])
}

fn begin_attempts(held: i64, epoch: i64) -> Statement {
    sqlx::query(include_str!("../../outbox/src/relay/sql/begin_attempts.sql"))
        .bind("default")
        .bind(vec![held])
        .bind(vec![0_i16])
        .bind(vec![epoch])
        .bind(1.0)
        .bind(10)
        .bind(500_i64)
        .bind(1_i64 << 20)
        .bind(vec![None::<i32>])
}

async fn rows(pool: &PgPool) -> Vec<String> {
    let rows = "select to_jsonb(h)::text from outbox.held_key h
        union all select position::text from outbox.held_message
        union all select position::text from outbox.settled_message";
    sqlx::query_scalar(rows).fetch_all(pool).await.unwrap()
}

async fn backend(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.unwrap()
}

/// It saw its own epoch when it began; it waits for another's lock meanwhile, as behind a decision of a person.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_before_another_process_acquired_the_shard_changes_nothing_after() {
    let database = Database::new("fencing_begun").await;
    let pool = database.pool();
    let held = with_held_key(&database).await;
    let statements =
        [("settle", settle as fn(i64, i64) -> Statement), ("failed", failed), ("begin", begin_attempts)];
    for (name, statement) in statements {
        // Its own earlier session is another process in this.
        for comes_back in [false, true] {
            let process = Uuid::now_v7();
            let epoch = acquire(pool, process).await.unwrap().expect("it is free");
            let mut person = pool.begin().await.unwrap();
            sqlx::query("select from outbox.held_key for update").execute(&mut *person).await.unwrap();
            let mut connection = pool.acquire().await.unwrap();
            let id = backend(&mut connection).await;
            let late = tokio::spawn(async move { statement(held, epoch).execute(&mut *connection).await });
            let waits =
                "select wait_event_type is not distinct from 'Lock' from pg_stat_activity where pid = $1";
            until("it waits", || async { sqlx::query_scalar(waits).bind(id).fetch_one(pool).await.unwrap() })
                .await;
            let next = if comes_back { process } else { Uuid::now_v7() };
            if !comes_back {
                dies(pool, process).await;
            }
            assert_eq!(acquire(pool, next).await.unwrap(), Some(epoch + 1));
            let before = rows(pool).await;
            person.rollback().await.unwrap();
            late.await.unwrap().unwrap();
            assert_eq!(rows(pool).await, before, "{name}, its own: {comes_back}");
            dies(pool, next).await;
        }
    }
}

/// What the next process reads must have in it what the last one has written.
#[tokio::test(flavor = "multi_thread")]
async fn no_process_acquires_a_shard_of_which_a_held_key_is_being_written() {
    let database = Database::new("fencing_acquire").await;
    let pool = database.pool();
    let held = with_held_key(&database).await;
    let process = Uuid::now_v7();
    let mut epoch = acquire(pool, process).await.unwrap().expect("it is free");
    for statement in [begin_attempts, failed, settle] {
        let mut tx = pool.begin().await.unwrap();
        statement(held, epoch).execute(&mut *tx).await.unwrap();
        let error = acquire(pool, process).await.expect_err("it waits for its earlier session");
        assert!(error.to_string().contains("lock timeout"), "{error}");
        dies(pool, process).await;
        assert_eq!(acquire(pool, Uuid::now_v7()).await.unwrap(), None);
        tx.commit().await.unwrap();
        epoch = acquire(pool, process).await.unwrap().expect("it is free again");
    }
}
