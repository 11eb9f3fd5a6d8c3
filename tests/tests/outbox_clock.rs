//! A database whose clock was ahead: what it dated then keeps nothing waiting after it was set right.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod relay_support;

use brokers::memory::Broker;
use chrono::{TimeDelta, Utc};
use message::Message;
use outbox::admin;
use outbox::replay::{Filter, Replay};
use relay_support::{message, numbers, settings, start, until, until_published, write};
use sqlx::PgPool;
use tests::clock::WrongClock;
use tokio_util::sync::CancellationToken;

const DAY: i64 = 86_400;

async fn database(clock: &WrongClock) -> PgPool {
    let options = outbox::pool_options().max_connections(20);
    let pool = options.connect(&clock.server.url("postgres")).await.unwrap();
    migrations::Schema::Outbox.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    pool
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_and_attempts_dated_by_a_clock_that_was_ahead_keep_nothing_waiting() {
    let clock = WrongClock::start();
    let pool = &database(&clock).await;
    clock.set(DAY);
    let broker = Broker::new();
    broker.reject_key("held");
    let mut first = settings();
    first.max_attempts = 1000;
    let dead = start(pool, broker.publisher(), first.clone());
    write(pool, &[message("held", 1), message("good", 1)]).await;
    until_published(&broker, 1).await;
    until("a key is held", || async { admin::held_keys(pool, "default").await.unwrap().len() == 1 }).await;
    let upkeep = "select holder is not null from outbox.upkeep";
    until("the log is looked after", || async { sqlx::query_scalar(upkeep).fetch_one(pool).await.unwrap() })
        .await;
    dead.task.abort();
    let _ = dead.task.await;
    clock.set(0);
    assert_eq!(admin::status(pool).await.unwrap()[0].processes, 0, "the dead one does not count");
    broker.accept_key("held");
    let mut tx = pool.begin().await.unwrap();
    let due = Utc::now() - TimeDelta::minutes(1);
    outbox::enqueue_all_at(&mut tx, &[message("scheduled", 1)], due).await.unwrap();
    outbox::commit(tx).await.unwrap();
    write(pool, &[message("good", 2)]).await;
    let relay = start(pool, broker.publisher(), first);
    until("its shards are taken over", || async { numbers(&broker, "good").contains(&2) }).await;
    until("the held key is tried", || async { numbers(&broker, "held") == [1] }).await;
    until("the upkeep is taken over", || async { numbers(&broker, "scheduled") == [1] }).await;
    assert_eq!(admin::status(pool).await.unwrap()[0].processes, 1);
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_whose_lease_was_dated_by_a_clock_that_was_ahead_goes_on() {
    let clock = WrongClock::start();
    let pool = &database(&clock).await;
    let broker = Broker::new();
    let relay = start(pool, Broker::new().publisher(), settings());
    write(pool, &[Message::new("orders", "order.changed", "1").with_key("a")]).await;
    until("the relay runs", || async { admin::status(pool).await.unwrap().len() == 1 }).await;
    relay.stop().await.unwrap();
    broker.close_destination("orders");
    clock.set(DAY);
    let replay = |broker: &Broker| {
        Replay::new("again", pool.clone(), broker.publisher(), "ada").with_filter(Filter::default())
    };
    let dead = tokio::spawn(replay(&broker).run(CancellationToken::new()));
    let works = "select count(*) from outbox.replay where expires_at is not null";
    until("it works at it", || async {
        sqlx::query_scalar::<_, i64>(works).fetch_one(pool).await.unwrap() == 1
    })
    .await;
    dead.abort();
    let _ = dead.await;
    clock.set(0);
    broker.open_destination("orders");
    let going_on = tokio::spawn(
        Replay::new("again", pool.clone(), broker.publisher(), "ada").run(CancellationToken::new()),
    );
    until("it is published", || async { numbers(&broker, "a") == [1] }).await;
    going_on.await.unwrap().unwrap();
}
