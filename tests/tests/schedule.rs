//! Scheduled messages: they enter the log when they are due, in the order of their times, once, or not at all if they are
//! given up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod relay_support;

use brokers::memory::Broker;
use chrono::{DateTime, TimeDelta, Utc};
use message::{Message, MessageId};
use outbox::{EnqueueError, cancel, enqueue_all_at};
use relay_support::{PATIENCE, message, numbers, settings, start, until, write};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor, PgPool};
use tests::Database;
use uuid::Uuid;

const NEXT: &str = include_str!("../../outbox/src/schedule/sql/next.sql");

async fn schedule(pool: &PgPool, messages: &[Message], when: DateTime<Utc>) -> Vec<MessageId> {
    let mut tx = pool.begin().await.unwrap();
    let ids = enqueue_all_at(&mut tx, messages, when).await.unwrap();
    outbox::commit(tx).await.unwrap();
    ids
}

async fn waiting(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from outbox.scheduled_message").fetch_one(pool).await.unwrap()
}

fn ago(seconds: i64) -> DateTime<Utc> {
    Utc::now() - TimeDelta::seconds(seconds)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_is_published_in_the_order_of_its_times_and_nothing_before_its_time() {
    let database = Database::new("schedule_order").await;
    let pool = database.pool();
    schedule(pool, &[message("a", 3), message("a", 4)], ago(10)).await;
    let ids = schedule(pool, &[message("a", 2)], ago(20)).await;
    schedule(pool, &[message("a", 1)], ago(3600)).await;
    schedule(pool, &[message("a", 9)], Utc::now() + TimeDelta::hours(1)).await;
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    broker.wait_for_published(4).await;

    // Due while the relay runs: it waits for no second look at what it knows.
    let soon = Utc::now() + TimeDelta::seconds(1);
    schedule(pool, &[message("a", 5)], soon).await;
    tokio::time::timeout(PATIENCE, broker.wait_for_published(5)).await.expect("it becomes due");
    relay.stop().await.unwrap();
    assert_eq!((numbers(&broker, "a"), waiting(pool).await), (vec![1, 2, 3, 4, 5], 1));

    let published = broker.published();
    let second = &published[1].message;
    assert_eq!((second.id, second.correlation), (ids[0], ids[0]));
    assert!(second.id.made_at().unwrap() > ago(60), "an inbox would refuse it");
    let last = &published[4].message;
    let made = last.id.made_at().unwrap();
    assert_eq!(
        (made.timestamp_millis(), last.occurred_at.timestamp_millis()),
        (soon.timestamp_millis(), soon.timestamp_millis())
    );
    let entered: DateTime<Utc> =
        sqlx::query_scalar("select enqueued_at from outbox.message order by position desc limit 1")
            .fetch_one(pool)
            .await
            .unwrap();
    assert!(entered >= soon, "it entered the log {} before its time", soon - entered);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_is_never_published_and_a_rollback_takes_it_back() {
    let database = Database::new("schedule_cancel").await;
    let pool = database.pool();
    let ids = schedule(pool, &[message("a", 1), message("a", 2)], ago(10)).await;
    let mut tx = pool.begin().await.unwrap();
    assert!(cancel(&mut tx, ids[0]).await.unwrap());
    assert!(!cancel(&mut tx, ids[0]).await.unwrap());
    assert!(!cancel(&mut tx, MessageId::new()).await.unwrap());
    outbox::commit(tx).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    assert!(cancel(&mut tx, ids[1]).await.unwrap());
    tx.rollback().await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    enqueue_all_at(&mut tx, &[message("a", 3)], ago(5)).await.unwrap();
    tx.rollback().await.unwrap();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    broker.wait_for_published(1).await;
    write(pool, &[message("a", 4)]).await;
    broker.wait_for_published(2).await;
    let mut tx = pool.begin().await.unwrap();
    assert!(!cancel(&mut tx, ids[1]).await.unwrap(), "it is in the log");
    tx.rollback().await.unwrap();
    relay.stop().await.unwrap();
    assert_eq!((numbers(&broker, "a"), waiting(pool).await), (vec![2, 4], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_somebody_is_giving_up_keeps_nobody_else_waiting() {
    let database = Database::new("schedule_locked").await;
    let pool = database.pool();
    let ids = schedule(pool, &[message("a", 1)], ago(20)).await;
    schedule(pool, &[message("b", 1)], ago(10)).await;
    let mut undecided = pool.begin().await.unwrap();
    assert!(cancel(&mut undecided, ids[0]).await.unwrap());
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    let goes_on = broker.wait_for_published(1);
    tokio::time::timeout(PATIENCE, goes_on).await.expect("the other one is not kept waiting");
    assert_eq!(numbers(&broker, "b"), [1]);
    undecided.rollback().await.unwrap();
    tokio::time::timeout(PATIENCE, broker.wait_for_published(2)).await.expect("it comes after all");
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), [1]);
}

/// Whoever was relieved of the upkeep does not know it yet, and moves as well.
#[tokio::test(flavor = "multi_thread")]
async fn processes_that_take_the_upkeep_from_one_another_move_everything_once_and_in_order() {
    const ALL: usize = 30_000;
    let database = Database::new("schedule_twice").await;
    let pool = database.pool();
    let insert = "insert into outbox.scheduled_message (due_at, id, correlation, occurred_at, source, topic, kind, key, payload)
        select due_at, id, id, due_at, '/test', 'orders', 'order.changed', 'k' || n % 10, convert_to(n::text, 'UTF8')
        from generate_series(1, 30000) n cross join lateral (select now() - (40000 - n) * interval '1 ms') d (due_at)
        cross join lateral outbox.uuid_v7(due_at) id";
    pool.execute(insert).await.unwrap();
    let broker = Broker::new();
    let begin = || {
        let pool = outbox::pool_options().max_connections(5).connect_lazy(database.url()).unwrap();
        start(&pool, broker.publisher(), settings())
    };
    let relays = [begin(), begin(), begin()];
    while waiting(pool).await > 0 {
        // As if the lease of whoever has it were over; and now and then his connection is.
        pool.execute("update outbox.upkeep set expires_at = now() where holder is not null").await.unwrap();
        let end = "select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and query like '%outbox.scheduled_message%' and state = 'active'
                and pid <> pg_backend_pid() and random() < 0.2";
        pool.execute(end).await.unwrap();
    }
    tokio::time::timeout(PATIENCE * 2, broker.wait_for_published(ALL)).await.expect("all arrive");
    for relay in relays {
        relay.stop().await.unwrap();
    }
    let (all, different): (i64, i64) =
        sqlx::query_as("select count(*), count(distinct id) from outbox.message")
            .fetch_one(pool)
            .await
            .unwrap();
    assert_eq!((all, different), (ALL as i64, ALL as i64));
    let inverted = "select count(*) from (
            select occurred_at < lag(occurred_at) over (order by position) as is_inverted from outbox.message
        ) m where is_inverted";
    let inverted: i64 = sqlx::query_scalar(inverted).fetch_one(pool).await.unwrap();
    assert_eq!(inverted, 0);
}

/// As a batch that is too much for the server: it fails as a whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fails_is_tried_again_in_parts() {
    let database = Database::new("schedule_parts").await;
    let pool = database.pool();
    schedule(pool, &[message("a", 1), message("a", 2)], ago(20)).await;
    schedule(pool, &[message("bad", 3)], ago(10)).await;
    pool.execute("alter table outbox.message add constraint not_bad check (key <> 'bad')").await.unwrap();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    tokio::time::timeout(PATIENCE, broker.wait_for_published(2))
        .await
        .expect("what comes before it is moved");
    pool.execute("alter table outbox.message drop constraint not_bad").await.unwrap();
    tokio::time::timeout(PATIENCE, broker.wait_for_published(3)).await.expect("it is moved when it can be");
    relay.stop().await.unwrap();
    assert_eq!((numbers(&broker, "a"), numbers(&broker, "bad")), (vec![1, 2], vec![3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_a_message_that_the_log_does_not_take_waits_for_it_if_it_is_of_its_key() {
    let database = Database::new("schedule_refused").await;
    let pool = database.pool();
    for (key, number, seconds) in [("a", 1, 60), ("a", 2, 50), ("a", 3, 40), ("b", 1, 30)] {
        schedule(pool, &[message(key, number)], ago(seconds)).await;
    }
    let bad = "alter table outbox.message add constraint not_bad check (key <> 'a' or payload <> '2')";
    pool.execute(bad).await.unwrap();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    // The last one: what comes before it was looked at.
    until("others are moved", || async { numbers(&broker, "b") == [1] }).await;
    schedule(pool, &[message("a", 4), message("b", 2)], ago(20)).await;
    until("others go on", || async { numbers(&broker, "b") == [1, 2] }).await;
    assert_eq!((numbers(&broker, "a"), waiting(pool).await), (vec![1], 3));
    pool.execute("alter table outbox.message drop constraint not_bad").await.unwrap();
    until("they are moved when the first can be", || async { numbers(&broker, "a").len() == 4 }).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), [1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_log_does_not_take_and_that_is_given_up_frees_its_key() {
    let database = Database::new("schedule_refused_cancel").await;
    let pool = database.pool();
    let bad = schedule(pool, &[message("a", 1)], ago(50)).await[0];
    schedule(pool, &[message("a", 2)], ago(40)).await;
    schedule(pool, &[message("b", 1)], ago(30)).await;
    let constraint = "alter table outbox.message add constraint not_bad check (key <> 'a' or payload <> '1')";
    pool.execute(constraint).await.unwrap();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    until("others are moved", || async { numbers(&broker, "b") == [1] }).await;
    let mut tx = pool.begin().await.unwrap();
    assert!(cancel(&mut tx, bad).await.unwrap());
    outbox::commit(tx).await.unwrap();
    until("the key goes on", || async { numbers(&broker, "a") == [2] }).await;
    relay.stop().await.unwrap();
}

#[tokio::test]
async fn a_look_costs_the_same_however_many_wait_and_however_many_have_gone() {
    let database = Database::new("schedule_idle").await;
    let pool = database.pool();
    let insert = "insert into outbox.scheduled_message (due_at, id, correlation, occurred_at, source, topic, kind, payload)
        select now() + n * interval '1 second', gen_random_uuid(), gen_random_uuid(), now(), '/test', 'orders', 'k', ''
        from generate_series(1, 200000) n";
    pool.execute(insert).await.unwrap();
    let cost = async |above: &str| {
        let sql =
            NEXT.replace("$1", &format!("'{above}'")).replace("$2", "'00000000-0000-0000-0000-000000000000'");
        let explain = format!("explain (analyze, buffers, timing off, summary off, format json) {sql}");
        let explained: Value = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_one(pool).await.unwrap();
        let blocks = ["Shared Hit Blocks", "Shared Read Blocks"]
            .map(|kind| explained[0]["Plan"][kind].as_i64().unwrap());
        blocks.iter().sum::<i64>()
    };
    assert!(cost("-infinity").await < 10);
    // What has gone stays in the index as long as somebody's snapshot may see it.
    let mut held = pool.begin().await.unwrap();
    held.execute("set transaction isolation level repeatable read; select 1").await.unwrap();
    let sql = "with gone as (delete from outbox.scheduled_message where due_at < now() + interval '50000 seconds' returning due_at)
        select max(due_at) from gone";
    let last: DateTime<Utc> = sqlx::query_scalar(sql).fetch_one(pool).await.unwrap();
    let above = (last - TimeDelta::seconds(5)).to_rfc3339();
    assert!(cost(&above).await < 20);
    let all = cost("-infinity").await;
    assert!(all > 100, "{all}: nothing keeps the dead entries: the test proves nothing");
}

#[tokio::test]
async fn what_breaks_a_limit_is_refused_by_name_before_any_sql() {
    let database = Database::new("schedule_limits").await;
    let mut tx = database.pool().begin().await.unwrap();
    let year_10000 = DateTime::from_timestamp(253_402_300_800, 0).unwrap();
    let refused = enqueue_all_at(&mut tx, &[message("a", 1)], year_10000).await.unwrap_err();
    assert!(matches!(refused, EnqueueError::DueAt), "{refused}");
    assert_eq!(refused.to_string(), "due_at: between the years 1970 and 9999");
    let long = message("a", 1).with_key("k".repeat(513));
    let refused = enqueue_all_at(&mut tx, &[message("a", 1), long], ago(1)).await.unwrap_err();
    assert!(matches!(refused, EnqueueError::Invalid { index: 1, .. }), "{refused}");
    assert!(enqueue_all_at(&mut tx, &[], ago(1)).await.unwrap().is_empty());
    // The transaction is as it was.
    enqueue_all_at(&mut tx, &[message("a", 1)], ago(1)).await.unwrap();
    outbox::commit(tx).await.unwrap();
    assert_eq!(waiting(database.pool()).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_language_schedules_and_gives_up_with_functions() {
    let database = Database::new("schedule_sql").await;
    let pool = database.pool();
    let call =
        "select outbox.enqueue_at(now() - interval '1 minute', 'orders', 'order.changed', '1', key => 'a')";
    let id: Uuid = sqlx::query_scalar(call).fetch_one(pool).await.unwrap();
    let later = "select outbox.enqueue_at(now() + interval '1 day', 'orders', 'order.changed', '2'::text, key => 'a')";
    let later: Uuid = sqlx::query_scalar(later).fetch_one(pool).await.unwrap();
    let made = MessageId::try_from(later).unwrap().made_at().unwrap();
    assert!(made > Utc::now() + TimeDelta::hours(23), "{made}");
    let give_up = async |id: Uuid| -> bool {
        sqlx::query_scalar("select outbox.cancel($1)").bind(id).fetch_one(pool).await.unwrap()
    };
    assert_eq!((give_up(later).await, give_up(later).await), (true, false));
    for (call, fault) in [
        ("select outbox.enqueue_at(null, 't', 'k', '')", "outbox.enqueue_at: due_at: between"),
        ("select outbox.enqueue_at('12000-01-01', 't', 'k', '')", "outbox.enqueue_at: due_at: between"),
        ("select outbox.enqueue_at('infinity', 't', 'k', '')", "outbox.enqueue_at: due_at: between"),
        ("select outbox.enqueue_at(now(), 'no topic', 'k', '')", "outbox.enqueue_at: topic: words"),
    ] {
        let error = pool.execute(call).await.unwrap_err();
        let error = error.as_database_error().unwrap();
        assert!(error.message().starts_with(fault), "{error}");
        assert_eq!(error.code().unwrap(), "22023");
    }
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    broker.wait_for_published(1).await;
    until("nothing waits", || async { waiting(pool).await == 0 }).await;
    relay.stop().await.unwrap();
    assert_eq!(broker.published()[0].message.id.as_uuid(), &id);
    assert_eq!(numbers(&broker, "a"), [1]);
}

/// A plan that a session keeps from when nothing was scheduled would look through them all.
#[tokio::test]
async fn a_session_that_gave_up_when_nothing_was_scheduled_finds_one_among_many_by_its_index() {
    let database = Database::new("schedule_plan").await;
    let mut connection = database.connect().await;
    connection.execute("alter table outbox.scheduled_message set (autovacuum_enabled = off)").await.unwrap();
    connection.execute("vacuum analyze outbox.scheduled_message").await.unwrap();
    for _ in 0..10 {
        connection.execute("select outbox.cancel(gen_random_uuid())").await.unwrap();
    }
    let insert = "insert into outbox.scheduled_message (due_at, id, correlation, occurred_at, source, topic, kind, payload)
        select now() + interval '1 hour', gen_random_uuid(), gen_random_uuid(), now(), '/test', 'orders', 'k', ''
        from generate_series(1, 20000) n";
    database.pool().execute(insert).await.unwrap();
    let scanned = "begin; select outbox.cancel(gen_random_uuid())";
    connection.execute(scanned).await.unwrap();
    let read = "select coalesce(sum(seq_tup_read), 0)::bigint from pg_stat_xact_user_tables where relname = 'scheduled_message'";
    let read: i64 = sqlx::query_scalar(read).fetch_one(&mut connection).await.unwrap();
    assert_eq!(read, 0);
}
