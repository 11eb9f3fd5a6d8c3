//! Messages in quarantine: each is tried while its process tries nothing else, and in no other's name.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use std::sync::Arc;
use std::time::Duration;

use inbox::HandlerError;
use inbox::admin::{self, HeldState};
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, note, placed, start};
use message::Message;
use sqlx::{PgPool, PgTransaction};
use tokio::sync::Semaphore;

async fn quarantine(service: &Service, message: &Message) {
    let quarantine = "insert into inbox.quarantine (consumer, message_id) values ($1, $2)";
    let quarantine = sqlx::query(quarantine).bind(CONSUMER).bind(message.id.as_uuid());
    quarantine.execute(&service.pool).await.unwrap();
}

async fn rejects(_: &mut PgTransaction<'_>, _: &Message) -> Result<(), HandlerError> {
    Err(HandlerError::reject("not today"))
}

/// From now on each process declares what it is about to try.
async fn a_process_dies(service: &Service) {
    let running = start(service.consumer().on(KIND, effect));
    eventually("it is registered", async || {
        (service.count("select count(*) from inbox.consumer").await == 1).then_some(())
    })
    .await;
    running.stop().await;
    let dead = "insert into inbox.process (id, consumer, expires_at) values (gen_random_uuid(), $1, now())";
    sqlx::query(dead).bind(CONSUMER).execute(&service.pool).await.unwrap();
}

/// Notes of a suspect how many others the row of its process names during its try.
struct Names(PgPool);

#[async_trait::async_trait]
impl inbox::Handler for Names {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        if note(message) != "suspect" {
            return effect(tx, message).await;
        }
        let named = "select count(*) from inbox.process cross join unnest(in_hand) as declared (id) where declared.id <> $1";
        let named: i64 = sqlx::query_scalar(named).bind(message.id.as_uuid()).fetch_one(&self.0).await?;
        let note = format!("suspect beside {named}");
        let insert = sqlx::query("insert into effect (message, note) values ($1, $2)");
        insert.bind(message.id.as_uuid()).bind(note).execute(&mut **tx).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_suspect_is_tried_alone_its_process_names_no_other() {
    let service = Service::new("names no other").await;
    a_process_dies(&service).await;
    let suspect = placed("suspect", "suspect");
    quarantine(&service, &suspect).await;
    service.publish(&[suspect]).await;
    let running = start(service.consumer().with_concurrency(4).on(KIND, Names(service.pool.clone())));
    let mut published = 0;
    // First tries never end meanwhile, so that some are always declared.
    let tried = "select count(*) from effect where note like 'suspect%'";
    while service.count(tried).await == 0 {
        assert!(published < 100_000, "the suspect is not tried");
        if service.broker.unacknowledged(CONSUMER) < 200 {
            let others: Vec<Message> =
                (0..200).map(|n| placed(&format!("key-{}", (published + n) % 50), "other")).collect();
            published += 200;
            service.publish(&others).await;
        }
    }
    service.acknowledged().await;
    running.stop().await;
    let beside = "select count(*) from effect where note = 'suspect beside 0'";
    assert_eq!(
        service.count(beside).await,
        1,
        "{:?}",
        service.notes().await.iter().find(|n| n.starts_with("suspect"))
    );
    assert_eq!(service.count("select count(*) from effect where note = 'other'").await, published);
}

/// Notes that it has begun what waits, and waits until it may end.
struct Waits {
    notes: PgPool,
    end: Arc<Semaphore>,
}

#[async_trait::async_trait]
impl inbox::Handler for Waits {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        if note(message).starts_with("waits") {
            sqlx::query("insert into begun (note) values ($1)")
                .bind(note(message))
                .execute(&self.notes)
                .await?;
            self.end.acquire().await.map_err(HandlerError::retry)?.forget();
        }
        effect(tx, message).await
    }
}

/// A consumer of one service whose handler waits for a permit.
async fn waiting(claim: &str) -> (Service, Arc<Semaphore>, inbox_support::Running) {
    let service = Service::new(claim).await;
    sqlx::raw_sql("create table begun (note text)").execute(&service.pool).await.unwrap();
    let end = Arc::new(Semaphore::new(0));
    let handler = Waits { notes: service.pool.clone(), end: end.clone() };
    let running = start(service.consumer().with_concurrency(3).on(KIND, handler));
    (service, end, running)
}

async fn begun(service: &Service, count: i64) {
    eventually("it has begun", async || {
        (service.count("select count(*) from begun").await == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_another_consumer_of_the_process_makes_a_lone_try_everything_goes_on_and_then_it_is_its_turn() {
    let (one, end_of_one, one_running) = waiting("lone one").await;
    let suspect = placed("suspect", "waits 1");
    quarantine(&one, &suspect).await;
    one.publish(&[suspect]).await;
    begun(&one, 1).await;

    let (other, end_of_other, other_running) = waiting("lone other").await;
    other.publish(&[placed("long", "waits 2")]).await;
    begun(&other, 1).await;
    let suspect = placed("suspect", "suspect");
    quarantine(&other, &suspect).await;
    other.publish(&[suspect]).await;
    eventually("the suspect is held", async || (other.held().await.len() == 1).then_some(())).await;
    // Its claims come many times meanwhile, and a first try is under way all the time.
    for number in 1..=100 {
        other.publish(&[placed("others", "other")]).await;
        eventually("the others go on", async || {
            (other.count("select count(*) from effect").await == number).then_some(())
        })
        .await;
    }
    assert_eq!(other.count("select count(*) from effect where note = 'suspect'").await, 0);
    end_of_one.add_permits(1);
    end_of_other.add_permits(1);
    other.nothing_is_held().await;
    one.nothing_is_held().await;
    assert_eq!(other.count("select count(*) from effect where note = 'suspect'").await, 1);
    other_running.stop().await;
    one_running.stop().await;
}

#[tokio::test]
async fn of_two_events_with_one_id_in_quarantine_each_is_tried_when_it_is_due() {
    let service = Service::new("two in quarantine").await;
    let from = |source: &str, message: &Message| {
        let mut message = message.clone();
        message.source = Some(source.into());
        message
    };
    let first = from("/orders", &placed("a", "first"));
    let second = from("/stock", &placed("b", "second").with_id(first.id));
    let running = start(service.consumer().on(KIND, rejects));
    service.publish(std::slice::from_ref(&first)).await;
    service.acknowledged().await;
    service.parked(1).await;
    service.publish(&[second]).await;
    service.acknowledged().await;
    let parked = service.parked(2).await;
    running.stop().await;
    quarantine(&service, &first).await;
    let running = start(service.consumer().on(KIND, effect));
    let mut connection = service.pool.acquire().await.unwrap();
    let hold_of = |alone: bool| parked.iter().find(|held| held.key.is_none() == alone).unwrap().hold;
    // Refused again; that says nothing of the other, which stays in quarantine.
    admin::redrive(&mut connection, CONSUMER, hold_of(true), "ada", None).await.unwrap();
    service.parked(2).await;
    assert_eq!(service.count("select count(*) from inbox.quarantine").await, 1);
    admin::redrive(&mut connection, CONSUMER, hold_of(false), "ada", None).await.unwrap();
    eventually("the first is handled", async || (service.held().await.len() == 1).then_some(())).await;
    running.stop().await;
    assert_eq!(service.notes().await, ["first"]);
    assert_eq!(service.count("select count(*) from inbox.quarantine").await, 0);
}

#[tokio::test]
async fn a_message_in_quarantine_that_is_kept_in_plain_form_is_tried_when_it_is_due() {
    let service = Service::new("plain in quarantine").await;
    let rule = "alter table inbox.held_message add constraint no_card check (headers is null or not headers ? 'card')";
    sqlx::raw_sql(rule).execute(&service.pool).await.unwrap();
    let message = placed("a", "1").with_header("card", "4111");
    let running = start(service.consumer().on(KIND, rejects));
    service.publish(std::slice::from_ref(&message)).await;
    service.acknowledged().await;
    service.parked(1).await;
    quarantine(&service, &message).await;
    let mut connection = service.pool.acquire().await.unwrap();
    admin::redrive_all(&mut connection, CONSUMER, "ada", None).await.unwrap();
    let parked = service.parked(1).await;
    running.stop().await;
    assert_eq!((parked[0].state, parked[0].attempts), (HeldState::Parked, 1), "{parked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_hangs_stops_no_other_key_while_a_message_is_in_quarantine() {
    let service = Service::new("hangs").await;
    sqlx::raw_sql("create table begun (note text)").execute(&service.pool).await.unwrap();
    let end = Arc::new(Semaphore::new(0));
    let handler = Waits { notes: service.pool.clone(), end: end.clone() };
    let consumer = service.consumer().with_handler_timeout(Duration::from_secs(600)).on(KIND, handler);
    let running = start(consumer);
    service.publish(&[placed("a", "waits")]).await;
    begun(&service, 1).await;
    let suspect = placed("suspect", "suspect");
    quarantine(&service, &suspect).await;
    service.publish(&[suspect]).await;
    let held = "select count(*) from inbox.held_key";
    eventually("the suspect is held", async || (service.count(held).await > 0).then_some(())).await;
    for n in 0..20 {
        service.publish(&[placed(&format!("k{n}"), "other")]).await;
        let others = "select count(*) from effect where note = 'other'";
        eventually("others go on", async || (service.count(others).await > n).then_some(())).await;
    }
    assert_eq!(service.count(held).await, 1);
    end.add_permits(1);
    service.nothing_is_held().await;
    running.stop().await;
}
