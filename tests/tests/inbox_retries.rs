//! Retries of held keys beside first tries: they share the consumer's concurrency, and neither starves.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use std::time::Duration;

use inbox::HandlerError;
use inbox::admin;
use inbox_support::{CONSUMER, KIND, Service, effect, note, placed, start};
use message::Message;
use sqlx::{PgPool, PgTransaction};
use tokio::sync::Barrier;

/// Sixty-four keys are tried beside two hundred others.
const DEADLINE: Duration = Duration::from_secs(240);

/// Asks again until it is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until as many are in hand side by side, and notes which claim it is of.
struct Together {
    notes: PgPool,
    retries: Barrier,
    firsts: Barrier,
}

#[async_trait::async_trait]
impl inbox::Handler for Together {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        match note(message).as_str() {
            "retry" => self.retries.wait().await,
            _ => self.firsts.wait().await,
        };
        let claim = "select xmin::text from inbox.held_key where key = $1";
        let claim: Option<String> =
            sqlx::query_scalar(claim).bind(message.key.as_deref()).fetch_optional(&self.notes).await?;
        sqlx::query("insert into effect (message, note) values ($1, $2)")
            .bind(message.id.as_uuid())
            .bind(claim)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
}

/// Parks as many keys.
async fn park(service: &Service, keys: usize) {
    let messages: Vec<Message> = (0..keys).map(|n| placed(&format!("held-{n}"), "retry")).collect();
    service.publish(&messages).await;
    let reject = async |_: &mut PgTransaction<'_>, _: &Message| Err(HandlerError::reject("not today"));
    let running = start(service.consumer().on(KIND, reject));
    service.acknowledged().await;
    service.parked(keys).await;
    running.stop().await;
}

async fn redrive(service: &Service, keys: u64) {
    let mut connection = service.pool.acquire().await.unwrap();
    assert_eq!(admin::redrive_all(&mut connection, CONSUMER, "ada", None).await.unwrap(), keys);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redriven_keys_have_the_whole_concurrency_while_no_first_try_waits() {
    let service = Service::new("whole concurrency").await;
    park(&service, 64).await;
    redrive(&service, 64).await;
    let handler = Together { notes: service.pool.clone(), retries: Barrier::new(8), firsts: Barrier::new(1) };
    let running = start(service.consumer().with_concurrency(8).on(KIND, handler));
    service.nothing_is_held().await;
    running.stop().await;
    assert_eq!(service.count("select count(*) from effect").await, 64);
    // One statement takes as many as begin then.
    let largest = "select max(keys) from (select count(*) as keys from effect group by note) as claims";
    assert_eq!(service.count(largest).await, 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_and_first_tries_have_half_of_the_concurrency_each_while_both_wait() {
    let service = Service::new("half each").await;
    park(&service, 64).await;
    let firsts: Vec<Message> = (0..200).map(|n| placed(&format!("first-{n}"), "first")).collect();
    service.publish(&firsts).await;
    redrive(&service, 64).await;
    let handler = Together { notes: service.pool.clone(), retries: Barrier::new(4), firsts: Barrier::new(4) };
    let running = start(service.consumer().with_concurrency(8).on(KIND, handler));
    service.acknowledged().await;
    service.nothing_is_held().await;
    running.stop().await;
    assert_eq!(service.count("select count(*) from effect").await, 264);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_concurrency_of_one_held_keys_are_tried_while_first_tries_never_end() {
    let service = Service::new("concurrency of one").await;
    park(&service, 20).await;
    let mut published = 0;
    let mut more = async || {
        let firsts: Vec<Message> =
            (0..20).map(|n| placed(&format!("first-{n}"), &format!("{:05}", published + n))).collect();
        published += 20;
        service.publish(&firsts).await;
    };
    more().await;
    redrive(&service, 20).await;
    let running = start(service.consumer().with_concurrency(1).on(KIND, effect));
    until("the held keys are done with", async || {
        if service.broker.unacknowledged(CONSUMER) < 40 {
            more().await;
        }
        service.held().await.is_empty()
    })
    .await;
    service.acknowledged().await;
    running.stop().await;
    assert_eq!(service.count("select count(*) from effect where note = 'retry'").await, 20);
    assert_eq!(service.count("select count(*) from effect where note <> 'retry'").await, published);
}
