//! The log is a ring of leaves that are emptied whole: never before every relay has delivered what is in them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod relay_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use brokers::memory::Broker;
use message::Message;
use outbox::log::{LogConnection, LogError};
use outbox::{Pruned, Upkeep, admin, prune};
use relay_support::{PATIENCE, message, numbers, settings, start, until, write};
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Executor, PgTransaction};
use tests::Database;
use tokio_util::sync::CancellationToken;

#[path = "retention/janitor.rs"]
mod janitor;
#[path = "retention/pins.rs"]
mod pins;

/// Positions of a leaf; the schema says the same.
const LEAF: i64 = 1 << 20;

/// Has the log go on at a position, as if so many messages had been written.
async fn jump(pool: &PgPool, position: i64) {
    sqlx::query("select setval('outbox.message_position_seq', $1)")
        .bind(position)
        .execute(pool)
        .await
        .unwrap();
}

/// Makes every message of a leaf older than anybody wants it kept.
async fn age(pool: &PgPool, leaf: i64) {
    let update = format!("update outbox.message_{leaf} set enqueued_at = now() - interval '10 days'");
    pool.execute(AssertSqlSafe(update)).await.unwrap();
}

async fn count(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from outbox.message").fetch_one(pool).await.unwrap()
}

/// A relay that nobody runs and that has delivered everything visible now, in one shard.
async fn relay_that_saw_all(pool: &PgPool, name: &str) {
    for sql in [
        "insert into outbox.relay (name, shards, retention) values ($1, 1, interval '3 days')",
        "insert into outbox.cursor (relay, shard, era, seen, seen_l)
         select $1, 0, 1, pg_current_snapshot(), coalesce(pg_sequence_last_value('outbox.message_position_seq'), 0)",
    ] {
        sqlx::query(sql).bind(name).execute(pool).await.unwrap();
    }
}

async fn pins(pool: &PgPool, relay: &str) -> Vec<i64> {
    let status = admin::status(pool).await.unwrap();
    status.into_iter().find(|status| status.relay == relay).expect("the relay").pins
}

/// A relay that has just begun has said how long it wants messages kept.
async fn until_said(pool: &PgPool) {
    let said = "select exists (select from outbox.relay where retention is not null)";
    until("said", || async { sqlx::query_scalar(said).fetch_one(pool).await.unwrap() }).await;
}

fn emptied(leaves: &[i64]) -> Pruned {
    let mut pruned = Pruned::default();
    pruned.emptied = leaves.to_vec();
    pruned
}

fn pinned(leaves: &[i64]) -> Pruned {
    let mut pruned = Pruned::default();
    pruned.pinned = leaves.to_vec();
    pruned
}

fn locked(leaves: &[i64]) -> Pruned {
    let mut pruned = Pruned::default();
    pruned.locked = leaves.to_vec();
    pruned
}

/// Leaves 0 and 1 hold a message each, the second one not delivered by `behind`.
async fn one_behind(database: &Database) {
    let pool = database.pool();
    write(pool, &[message("a", 1)]).await;
    relay_that_saw_all(pool, "behind").await;
    jump(pool, LEAF).await;
    write(pool, &[message("a", 2)]).await;
    relay_that_saw_all(pool, "done").await;
    jump(pool, 9 * LEAF).await;
    age(pool, 0).await;
    age(pool, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_is_emptied_when_it_is_delivered_and_old_and_no_other_is() {
    let database = Database::new("retention_old").await;
    let pool = database.pool();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    for leaf in 0..3 {
        jump(pool, leaf * LEAF + 1).await;
        write(pool, &[message("a", 1), message("b", 2)]).await;
    }
    jump(pool, 9 * LEAF).await;
    write(pool, &[message("a", 3)]).await;
    broker.wait_for_published(7).await;
    until_said(pool).await;
    relay.stop().await.unwrap();
    assert!(pins(pool, "default").await.is_empty());
    // Delivered, and all of it young.
    assert_eq!(prune(pool).await.unwrap(), Pruned::default());
    age(pool, 0).await;
    age(pool, 2).await;
    age(pool, 9).await;
    // One young message keeps a leaf of old ones.
    let first = "update outbox.message_1 set enqueued_at = now() - interval '10 days'
        where position = (select min(position) from outbox.message_1)";
    pool.execute(first).await.unwrap();
    // Not the one that is written, old as it is.
    assert_eq!(prune(pool).await.unwrap(), emptied(&[0, 2]));
    assert_eq!(prune(pool).await.unwrap(), Pruned::default());
    assert_eq!(count(pool).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_will_soon_write_over_is_emptied_young_if_it_is_delivered() {
    let database = Database::new("retention_ring").await;
    let pool = database.pool();
    for leaf in 0..6 {
        jump(pool, leaf * LEAF + 1).await;
        write(pool, &[message("a", 1)]).await;
    }
    relay_that_saw_all(pool, "done").await;
    // Leaf 15 is written and 0 is the next; 1 and 2 come after it.
    jump(pool, 15 * LEAF + 7).await;
    assert_eq!(prune(pool).await.unwrap(), emptied(&[1, 2]));
    for leaf in 0..6 {
        age(pool, leaf).await;
    }
    assert_eq!(prune(pool).await.unwrap(), emptied(&[3, 4, 5]));
    // In its next lap the log writes to leaf 0, then to 1.
    jump(pool, 16 * LEAF + 7).await;
    assert_eq!(prune(pool).await.unwrap(), Pruned::default());
    jump(pool, 17 * LEAF + 7).await;
    assert_eq!(prune(pool).await.unwrap(), emptied(&[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_laps_in_one_leaf_are_read_counted_and_kept_as_one_would_be() {
    let database = Database::new("retention_laps").await;
    let pool = outbox::pool_options().max_connections(8).connect(database.url()).await.unwrap();
    let pool = &pool;
    let broker = Broker::new();
    let mut settings = settings();
    settings.read.page = 2;
    let relay = start(pool, broker.publisher(), settings.clone());
    // In each of three laps over leaf 0: messages, and transactions that stay open, two across all laps.
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(pool.begin().await.unwrap());
    }
    for lap in 0..3_i64 {
        jump(pool, lap * 16 * LEAF + 5).await;
        for tx in &mut open {
            outbox::enqueue_all(tx, &[message("late", usize::try_from(lap).unwrap())]).await.unwrap();
        }
        let messages: Vec<Message> = (0..7).map(|_| message("a", usize::try_from(lap).unwrap())).collect();
        write(pool, &messages).await;
        broker.wait_for_published((usize::try_from(lap).unwrap() + 1) * 7).await;
    }
    until_said(pool).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2]);
    jump(pool, (32 + 9) * LEAF).await;
    pool.execute("update outbox.message_0 set enqueued_at = '2000-01-01'").await.unwrap();
    let status = |status: Vec<admin::RelayStatus>| (status[0].pending, status[0].pins.clone());
    assert_eq!(status(admin::status(pool).await.unwrap()), (0, vec![]));
    outbox::commit(open.remove(0)).await.unwrap();
    assert_eq!(status(admin::status(pool).await.unwrap()), (3, vec![0]));
    outbox::commit(open.remove(0)).await.unwrap();
    assert_eq!(status(admin::status(pool).await.unwrap()), (6, vec![0]));
    pool.execute("update outbox.message_0 set enqueued_at = '2000-01-01'").await.unwrap();
    assert_eq!(prune(pool).await.unwrap(), pinned(&[0]));
    let relay = start(pool, broker.publisher(), settings);
    broker.wait_for_published(27).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "late"), [0, 0, 1, 1, 2, 2]);
    until("emptied", || async { prune(pool).await.unwrap().emptied == [0] || count(pool).await == 0 }).await;
    assert_eq!(broker.published().len(), 27);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_retention_of_all_relays_counts() {
    let database = Database::new("retention_longest").await;
    let pool = database.pool();
    write(pool, &[message("a", 1)]).await;
    relay_that_saw_all(pool, "short").await;
    relay_that_saw_all(pool, "long").await;
    jump(pool, 9 * LEAF).await;
    age(pool, 0).await;
    sqlx::query("update outbox.relay set retention = interval '30 days' where name = 'long'")
        .execute(pool)
        .await
        .unwrap();
    assert_eq!(prune(pool).await.unwrap(), Pruned::default());
    sqlx::query("update outbox.relay set state = 'retired' where name = 'long'").execute(pool).await.unwrap();
    assert_eq!(prune(pool).await.unwrap(), emptied(&[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_since_when_nobody_runs_a_relay() {
    let database = Database::new("retention_unattended").await;
    // One that a killed process cannot leave inside a transaction.
    let pool = outbox::pool_options().max_connections(6).connect_lazy(database.url()).unwrap();
    let pool = &pool;
    let broker = Broker::new();
    let since = || async { admin::status(pool).await.unwrap().pop().unwrap().unattended_since };
    let now = || async { sqlx::query_scalar("select clock_timestamp()").fetch_one(pool).await.unwrap() };
    relay_that_saw_all(pool, "default").await;
    assert!(since().await.is_some_and(|since| since <= chrono::Utc::now() + chrono::TimeDelta::minutes(1)));
    for polite in [true, false] {
        let relay = start(pool, broker.publisher(), settings());
        until("it runs", || async { since().await.is_none() }).await;
        let running: chrono::DateTime<chrono::Utc> = now().await;
        if polite {
            relay.stop().await.unwrap();
        } else {
            relay.task.abort();
            let _ = relay.task.await;
        }
        until("nobody runs it", || async { since().await.is_some() }).await;
        let (left, now): (_, chrono::DateTime<chrono::Utc>) = (since().await.unwrap(), now().await);
        assert!(running <= left && left <= now, "{running} {left} {now}");
    }
}
