//! Times that a database clock wrote which was ahead and is right again: none is believed that cannot have been written now.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use inbox::admin::{self, ForgetKindError};
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, placed, start};
use sqlx::Executor;

async fn has_run(service: &Service) {
    service.publish(&[placed("a", "1")]).await;
    let running = start(service.consumer().on(KIND, effect));
    service.acknowledged().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_expires_later_than_any_can_is_dead_and_what_it_tried_is_tried_alone() {
    let service = Service::new("expires ahead").await;
    has_run(&service).await;
    let suspect = placed("b", "2");
    let dead = "insert into inbox.process (id, consumer, expires_at, in_hand)
        values (gen_random_uuid(), $1, now() + interval '30 days', array[$2])";
    let dead = sqlx::query(dead).bind(CONSUMER).bind(suspect.id.as_uuid());
    dead.execute(&service.pool).await.unwrap();
    let mut connection = service.pool.acquire().await.unwrap();
    let status = admin::status(&mut connection).await.unwrap();
    assert_eq!((status[0].processes, admin::floor(&mut connection).await.unwrap().running_since), (0, None));
    let ahead = admin::times_ahead(&mut connection).await.unwrap();
    assert_eq!((ahead[0].consumer.as_str(), ahead[0].processes), (CONSUMER, 1));
    let running = start(service.consumer().on(KIND, effect));
    eventually("it is found dead", async || {
        (service.count("select count(*) from inbox.quarantine").await == 1).then_some(())
    })
    .await;
    running.stop().await;
    assert!(admin::times_ahead(&mut connection).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_own_time_is_ahead_judges_no_other_before_its_next_heartbeat() {
    let service = Service::new("all ahead").await;
    has_run(&service).await;
    let running = start(service.consumer().on(KIND, effect));
    let lives = "select count(*) from inbox.process";
    eventually("it runs", async || (service.count(lives).await == 1).then_some(())).await;
    let other = start(service.consumer().on(KIND, effect));
    eventually("both run", async || (service.count(lives).await == 2).then_some(())).await;
    service
        .pool
        .execute("update inbox.process set expires_at = expires_at + interval '30 days'")
        .await
        .unwrap();
    let right = "select count(*) from inbox.process where expires_at < now() + interval '1 minute'";
    eventually("both are right again", async || (service.count(right).await == 2).then_some(())).await;
    running.stop().await;
    other.stop().await;
    assert_eq!(service.count("select count(*) from inbox.consumer where died_at is not null").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_key_that_is_due_later_than_any_can_be_is_tried() {
    let service = Service::new("due ahead").await;
    let rejects = async |_: &mut sqlx::PgTransaction<'_>, _: &message::Message| {
        Err(inbox::HandlerError::reject("not today"))
    };
    service.publish(&[placed("a", "1")]).await;
    let running = start(service.consumer().on(KIND, rejects));
    service.parked(1).await;
    running.stop().await;
    let ahead = "update inbox.held_key set state = 'retrying', attempts = 0, next_attempt_at = now() + interval '30 days'";
    service.pool.execute(ahead).await.unwrap();
    let mut connection = service.pool.acquire().await.unwrap();
    assert_eq!(admin::times_ahead(&mut connection).await.unwrap()[0].keys, 1);
    let running = start(service.consumer().on(KIND, effect));
    service.nothing_is_held().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_was_seen_in_the_future_is_registered_anew_and_can_be_forgotten() {
    let service = Service::new("seen ahead").await;
    has_run(&service).await;
    let ahead = "update inbox.consumer_kind set registered_at = now() + interval '30 days', last_seen_at = now() + interval '30 days'";
    service.pool.execute(ahead).await.unwrap();
    let mut connection = service.pool.acquire().await.unwrap();
    let kinds = admin::kinds(&mut connection, None).await.unwrap();
    assert!(!kinds[0].is_handled() && kinds[0].unseen.is_none());
    let running = start(service.consumer().on(KIND, effect));
    let right =
        "select count(*) from inbox.consumer_kind where last_seen_at <= now() and registered_at <= now()";
    eventually("it is registered anew", async || (service.count(right).await == 1).then_some(())).await;
    let forgotten = admin::forget_kind(&mut connection, CONSUMER, KIND, "ada", "rolled back").await;
    assert!(matches!(forgotten, Err(ForgetKindError::Handled)), "{forgotten:?}");
    running.stop().await;
    service.pool.execute(ahead).await.unwrap();
    admin::forget_kind(&mut connection, CONSUMER, KIND, "ada", "rolled back").await.unwrap();
}
