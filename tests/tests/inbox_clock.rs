//! A database whose clock is wrong: nothing is forgotten, and nothing is refused for good.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use std::sync::Arc;

use brokers::memory::Broker;
use chrono::{DateTime, TimeDelta, Utc};
use inbox::admin::{self, LowerFloorError};
use inbox::{Admission, AdmitError, Consumer, Horizon, Refusal, admit, admit_within, prune};
use inbox_support::{KIND, effect, eventually, placed, start};
use message::{Message, MessageId, Outgoing, publish_all};
use sqlx::{Executor, PgPool};
use tests::clock::WrongClock;

const DAY: i64 = 86_400;

async fn database(clock: &WrongClock) -> PgPool {
    let pool =
        outbox::pool_options().max_connections(4).connect(&clock.server.url("postgres")).await.unwrap();
    migrations::Schema::Inbox.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    pool
}

fn made(days_ago: i64) -> Message {
    Message::new("orders", "order.placed", "{}")
        .with_id(MessageId::at(Utc::now() - TimeDelta::days(days_ago)))
}

async fn admitted(pool: &PgPool, message: &Message) -> Result<Admission, AdmitError> {
    let mut tx = pool.begin().await.unwrap();
    let horizon = Horizon::default().with_undated();
    let admission = admit_within(&mut tx, "shipping", message, horizon).await;
    tx.commit().await.unwrap();
    admission
}

async fn floor(pool: &PgPool) -> DateTime<Utc> {
    sqlx::query_scalar("select floor from inbox.retention").fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_database_clock_that_jumps_moves_no_floor_and_removes_no_row() {
    let clock = WrongClock::start();
    let pool = database(&clock).await;
    let foreign = Message::new("orders", "order.placed", "{}").with_id(MessageId::foreign("/a", "1"));
    let handled = [made(0), made(2), made(6), foreign];
    for message in &handled {
        assert_eq!(admitted(&pool, message).await.unwrap(), Admission::First);
    }
    assert_eq!(prune(&pool).await.unwrap().clock_difference, None);
    let before = floor(&pool).await;
    for days in [30, -30] {
        clock.set(days * DAY);
        let now: DateTime<Utc> =
            sqlx::query_scalar("select clock_timestamp()").fetch_one(&pool).await.unwrap();
        let shifted = (now - Utc::now()).num_hours();
        assert!((shifted - 24 * days).abs() <= 1, "the server's clock is wrong: {shifted} h");
        let pruned = prune(&pool).await.unwrap();
        let difference = pruned.clock_difference.unwrap();
        assert!((difference.num_seconds() - days * DAY).abs() < 60, "{difference}");
        assert_eq!((pruned.days, pruned.undated, floor(&pool).await), (0, 0, before));
        let mut connection = pool.acquire().await.unwrap();
        let refused = admin::lower_floor(&mut connection).await.unwrap_err();
        assert!(matches!(refused, LowerFloorError::ClocksDiffer(_)), "{refused}");
    }
    clock.set(0);
    assert_eq!(prune(&pool).await.unwrap().clock_difference, None);
    for message in &handled {
        assert_eq!(admitted(&pool, message).await.unwrap(), Admission::Repeat);
    }
    assert_eq!(admitted(&pool, &made(0)).await.unwrap(), Admission::First);
}

#[tokio::test]
async fn a_floor_that_a_wrong_clock_has_raised_is_lowered_to_where_its_rows_are_complete() {
    let clock = WrongClock::start();
    let pool = database(&clock).await;
    let (gone, kept) = (made(5), made(2));
    assert_eq!(admitted(&pool, &gone).await.unwrap(), Admission::First);
    assert_eq!(prune(&pool).await.unwrap().days, 0);
    // As a process leaves it whose own clock jumped with the database's: it had emptied one day, and had not come to others.
    clock.set(30 * DAY);
    sqlx::raw_sql(
        "update inbox.retention set floor = date_trunc('day', clock_timestamp() - interval '8 days', 'UTC')",
    )
    .execute(&pool)
    .await
    .unwrap();
    clock.set(0);
    assert_eq!(prune(&pool).await.unwrap().days, 1);
    assert!(matches!(admitted(&pool, &kept).await, Err(AdmitError::Refused(Refusal::TooOld))));
    assert!(matches!(admitted(&pool, &made(0)).await, Err(AdmitError::Refused(Refusal::TooOld))));

    let mut connection = pool.acquire().await.unwrap();
    let found = admin::lower_floor(&mut connection).await.unwrap();
    let end_of_the_day_that_is_gone = (gone.id.made_at().unwrap() + TimeDelta::days(1)).date_naive();
    assert_eq!(found.lowest().date_naive(), end_of_the_day_that_is_gone);
    assert_eq!(floor(&pool).await, found.lowest());
    assert!(matches!(admitted(&pool, &gone).await, Err(AdmitError::Refused(Refusal::TooOld))));
    assert_eq!(admitted(&pool, &kept).await.unwrap(), Admission::First);
    let mut tx = pool.begin().await.unwrap();
    assert_eq!(admit(&mut tx, "shipping", &made(0)).await.unwrap(), Admission::First);
    let refused = admin::lower_floor(&mut connection).await.unwrap_err();
    assert!(matches!(refused, LowerFloorError::NothingToLower), "{refused}");
}

async fn publish(broker: &Broker, key: &str, note: &str, days_from_now: i64) {
    let made_at = Utc::now() + TimeDelta::days(days_from_now);
    let message = Arc::new(placed(key, note).with_id(MessageId::at(made_at)));
    let sent = publish_all(&broker.publisher(), &[Outgoing { destination: "orders".into(), message }]).await;
    sent.into_iter().for_each(|sent| sent.unwrap());
}

async fn notes(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("select note from effect order by number").fetch_all(pool).await.unwrap()
}

#[tokio::test]
async fn a_consumer_one_of_whose_two_clocks_is_wrong_parks_nothing_and_counts_nothing() {
    let clock = WrongClock::start();
    let pool = database(&clock).await;
    pool.execute("create table effect (number bigserial primary key, message uuid not null, note text)")
        .await
        .unwrap();
    let consumer = |name, broker: &Broker| {
        let subscriber = broker.subscriber(name, ["orders"]);
        start(Consumer::new(name, pool.clone(), subscriber).with_concurrency(2).on(KIND, effect))
    };
    for (days, name) in [(10, "behind"), (-10, "ahead")] {
        // To a message of the database's time, its own clock is the wrong one.
        clock.set(days * DAY);
        let broker = Broker::new();
        let running = consumer(name, &broker);
        publish(&broker, name, name, days).await;
        eventually("what is neither ahead nor too old is handled", async || {
            notes(&pool).await.contains(&name.to_owned()).then_some(())
        })
        .await;
        running.stop().await;
    }
    // By the clock by which rows are removed it comes from the future: it waits until one of the two is set right.
    let broker = Broker::new();
    let running = consumer("waits", &broker);
    publish(&broker, "a", "waits", 0).await;
    publish(&broker, "b", "beside", -10).await;
    eventually("the other one is handled", async || {
        notes(&pool).await.contains(&"beside".to_owned()).then_some(())
    })
    .await;
    assert!(!notes(&pool).await.contains(&"waits".to_owned()));
    clock.set(0);
    eventually("it is handled then", async || notes(&pool).await.contains(&"waits".to_owned()).then_some(()))
        .await;
    running.stop().await;
    let mut connection = pool.acquire().await.unwrap();
    assert_eq!(admin::held_keys(&mut connection, None, 10).await.unwrap().len(), 0);
}
