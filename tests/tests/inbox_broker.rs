//! A broker that says nothing, or seldom, to what its consumer tells it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod inbox_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use inbox::{Consumer, HandlerError};
use inbox_support::{CONSUMER, KIND, Service, Slow, effect, eventually, note, placed, start};
use message::{Acknowledge, Delivery, Message, SubscribeError, Subscriber};
use sqlx::{Executor, PgTransaction};

/// With the defaults of consumer and NATS client: 10 s, 30 s and 5 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_slow_to_extend_takes_no_time_from_the_handler() {
    let service = Service::new("slow to extend").await;
    let subscriber = Slow(
        service.broker.subscriber(CONSUMER, ["orders"]),
        Duration::from_secs(5),
        Arc::new(AtomicBool::new(true)),
    );
    let handler = async |tx: &mut PgTransaction<'_>, message: &Message| {
        // Twenty-three seconds of work.
        for _ in 0..23 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            tx.execute("select 1").await?;
        }
        effect(tx, message).await
    };
    let consumer =
        Consumer::new(CONSUMER, service.pool.clone(), subscriber).with_max_attempts(1).on(KIND, handler);
    let running = start(consumer);
    service.publish(&[placed("a", "1")]).await;
    service.acknowledged().await;
    running.stop().await;
    let held = service.held().await;
    assert!(held.is_empty(), "{:?}", held[0].last_error);
}

/// Never hears an acknowledgement, and never closes.
struct Mute<S>(S);
struct MuteAnswer(Delivery);

#[async_trait::async_trait]
impl<S: Subscriber> Subscriber for Mute<S> {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscribeError> {
        let mute =
            |delivery: Delivery| Delivery::new(delivery.received.clone(), Box::new(MuteAnswer(delivery)));
        Ok(self.0.receive(max).await?.into_iter().map(mute).collect())
    }
    async fn close(&mut self) {
        std::future::pending().await
    }
}

#[async_trait::async_trait]
impl Acknowledge for MuteAnswer {
    async fn acknowledge(self: Box<Self>) -> Result<(), SubscribeError> {
        std::future::pending().await
    }
    async fn retry_after(self: Box<Self>, _: Duration) -> Result<(), SubscribeError> {
        std::future::pending().await
    }
    async fn extend(&self) -> Result<(), SubscribeError> {
        self.0.extend().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_takes_no_answer_keeps_no_place_and_no_stop() {
    let service = Service::new("takes no answer").await;
    let subscriber = Mute(service.broker.subscriber(CONSUMER, ["orders"]));
    let consumer =
        Consumer::new(CONSUMER, service.pool.clone(), subscriber).with_concurrency(1).on(KIND, effect);
    let running = start(consumer);
    service.publish(&[placed("a", "1"), placed("b", "2")]).await;
    eventually("both are handled", async || (service.notes().await == ["1", "2"]).then_some(())).await;
    running.stop().await;
}

/// Its message `alone` waits until it is told.
struct Waits(Arc<tokio::sync::Notify>);

#[async_trait::async_trait]
impl inbox::Handler for Waits {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        if note(message) == "alone" {
            self.0.notified().await;
        }
        effect(tx, message).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_slow_to_extend_stops_no_heartbeat() {
    let service = Service::new("slow heartbeat").await;
    let silent = Arc::new(AtomicBool::new(true));
    let subscriber =
        Slow(service.broker.subscriber(CONSUMER, ["orders"]), Duration::from_secs(5), silent.clone());
    let release = Arc::new(tokio::sync::Notify::new());
    let consumer = Consumer::new(CONSUMER, service.pool.clone(), subscriber)
        .with_extend_every(Duration::from_secs(3))
        .with_handler_timeout(Duration::from_secs(120))
        .on(KIND, Waits(release.clone()));
    let running = start(consumer);
    service.publish(&[placed("a", "alone"), placed("a", "2"), placed("a", "3")]).await;
    let expired = "select count(*) from inbox.process where expires_at < clock_timestamp()";
    let begun = Instant::now();
    let mut was_expired = None;
    while begun.elapsed() < Duration::from_secs(40) && was_expired.is_none() {
        was_expired = (service.count(expired).await > 0).then(|| begun.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    silent.store(false, Ordering::SeqCst);
    release.notify_one();
    service.acknowledged().await;
    running.stop().await;
    assert_eq!(was_expired, None);
}
