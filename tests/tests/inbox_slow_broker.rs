//! A broker that takes long to answer: a process that lives writes its heartbeat all the same.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use inbox::{Consumer, HandlerError};
use inbox_support::{CONSUMER, KIND, Service, effect, note, placed, start};
use message::{Acknowledge, Delivery, Message, SubscribeError, Subscriber};
use sqlx::PgTransaction;

/// A subscriber to which saying "still at work" takes long: one whose server says nothing (the NATS client waits five
/// seconds). Acknowledging works.
struct Slow<S>(S, Duration, Arc<AtomicBool>);
struct SlowAnswer(Delivery, Duration, Arc<AtomicBool>);

#[async_trait::async_trait]
impl<S: Subscriber> Subscriber for Slow<S> {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscribeError> {
        let deliveries = self.0.receive(max).await?;
        let slow = |delivery: Delivery| {
            let received = delivery.received.clone();
            Delivery::new(received, Box::new(SlowAnswer(delivery, self.1, self.2.clone())))
        };
        Ok(deliveries.into_iter().map(slow).collect())
    }
    async fn close(&mut self) {
        self.0.close().await;
    }
}

#[async_trait::async_trait]
impl Acknowledge for SlowAnswer {
    async fn acknowledge(self: Box<Self>) -> Result<(), SubscribeError> {
        self.0.acknowledge().await
    }
    async fn retry_after(self: Box<Self>, delay: Duration) -> Result<(), SubscribeError> {
        self.0.retry_after(delay).await
    }
    async fn extend(&self) -> Result<(), SubscribeError> {
        if self.2.load(Ordering::SeqCst) {
            tokio::time::sleep(self.1).await;
            return Err(SubscribeError::Unavailable("no answer in time".to_owned()));
        }
        self.0.extend().await
    }
}

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
