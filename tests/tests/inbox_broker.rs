//! A broker that says nothing, or seldom, to what its consumer tells it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod inbox_support;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use inbox::Consumer;
use inbox_support::{CONSUMER, KIND, Service, Slow, effect, eventually, placed, start};
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
