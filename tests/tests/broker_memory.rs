//! The memory broker: the conformance claims, and the faults it has on request.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use brokers::memory::{Broker, Fault};
use message::{Message, Outcomes, Outgoing, PublishError, Publisher, Subscriber, publish_all};
use tests::conformance::Setup;
use tokio::sync::mpsc;

struct Memory(Broker);

async fn memory() -> Memory {
    Memory(Broker::new().with_answer_wait(Duration::from_millis(300)))
}

#[async_trait]
impl Setup for Memory {
    fn destination(&self) -> String {
        "orders".to_owned()
    }

    async fn publisher(&self) -> Box<dyn Publisher> {
        Box::new(self.0.publisher())
    }

    async fn subscriber(&self, group: &str) -> Box<dyn Subscriber> {
        Box::new(self.0.subscriber(group, ["orders"]))
    }

    fn answer_wait(&self) -> Duration {
        Duration::from_millis(300)
    }

    async fn closed_destination(&self) -> Option<String> {
        self.0.close_destination("closed");
        Some("closed".to_owned())
    }

    async fn unreachable(&self) -> Box<dyn Publisher> {
        let broker = Broker::new();
        broker.go_down();
        Box::new(broker.publisher())
    }

    async fn put_foreign(&self, headers: &[(&str, &str)], payload: &'static [u8]) -> bool {
        self.0.put_foreign("orders", headers, payload);
        true
    }
}

mod conformance {
    tests::conformance_tests!(super::memory);
}

fn outgoing(key: &str) -> Outgoing {
    let message = Message::new("orders", "order.placed", "{}").with_key(key);
    Outgoing { destination: "orders".into(), message: Arc::new(message) }
}

fn kinds(results: &[Result<(), PublishError>]) -> Vec<&'static str> {
    let kind = |result: &Result<(), PublishError>| match result {
        Ok(()) => "ok",
        Err(PublishError::Unavailable(_)) => "unavailable",
        Err(PublishError::DestinationUnavailable(_)) => "destination",
        Err(PublishError::NotSent(_)) => "not sent",
        Err(PublishError::Rejected(_)) => "rejected",
        Err(PublishError::Unknown(_)) => "unknown",
        Err(_) => "other",
    };
    results.iter().map(kind).collect()
}

#[tokio::test]
async fn each_fault_meets_the_next_message_once() {
    let broker = Broker::new();
    broker.fail_next(1, Fault::Unavailable);
    broker.fail_next(1, Fault::DestinationUnavailable);
    broker.fail_next(1, Fault::Rejected);
    broker.fail_next(1, Fault::Unknown);
    broker.fail_next(1, Fault::UnknownButKept);
    let batch: Vec<Outgoing> = ["a", "b", "c", "d", "e", "f"].map(outgoing).into();
    let results = publish_all(&broker.publisher(), &batch).await;
    assert_eq!(kinds(&results), ["unavailable", "destination", "rejected", "unknown", "unknown", "ok"]);
    let kept: Vec<_> = broker.published().iter().map(|published| published.message.id).collect();
    assert_eq!(kept, [batch[4].message.id, batch[5].message.id]);
}

#[tokio::test]
async fn nothing_of_a_key_is_kept_after_a_failure_in_its_batch() {
    let broker = Broker::new();
    broker.fail_next(1, Fault::Rejected);
    let batch = ["a", "b", "a"].map(outgoing);
    assert_eq!(kinds(&publish_all(&broker.publisher(), &batch).await), ["rejected", "ok", "not sent"]);
    assert_eq!(broker.published().len(), 1);
}

#[tokio::test]
async fn a_rejected_key_is_rejected_until_it_is_accepted() {
    let broker = Broker::new();
    broker.reject_key("a");
    let publisher = broker.publisher();
    assert_eq!(kinds(&publish_all(&publisher, &["a", "b"].map(outgoing)).await), ["rejected", "ok"]);
    broker.accept_key("a");
    assert_eq!(kinds(&publish_all(&publisher, &[outgoing("a")]).await), ["ok"]);
}

#[tokio::test]
async fn a_broker_that_is_down_takes_nothing_and_gives_nothing() {
    let broker = Broker::new();
    let mut subscriber = broker.subscriber("g", ["orders"]);
    assert_eq!(kinds(&publish_all(&broker.publisher(), &[outgoing("a")]).await), ["ok"]);
    let delivery = subscriber.receive(1).await.unwrap().remove(0);
    broker.go_down();
    assert_eq!(kinds(&publish_all(&broker.publisher(), &[outgoing("a")]).await), ["unavailable"]);
    assert!(broker.publisher().check().await.is_err());
    assert!(subscriber.receive(1).await.is_err());
    assert!(delivery.acknowledge().await.is_err());
    broker.come_up();
    broker.redeliver_now();
    subscriber.receive(1).await.unwrap().remove(0).acknowledge().await.unwrap();
    assert_eq!(broker.unacknowledged("g"), 0);
}

#[tokio::test]
async fn held_confirmations_are_told_when_they_are_released_and_not_before() {
    let broker = Broker::new();
    broker.hold_confirmations();
    let (sender, mut outcomes) = mpsc::unbounded_channel();
    let (publisher, batch) = (broker.publisher(), [outgoing("a")]);
    let publishing = tokio::spawn(async move { publisher.publish(&batch, Outcomes::new(7, sender)).await });
    assert_eq!(broker.wait_for_published(1).await.len(), 1);
    assert!(outcomes.try_recv().is_err());
    broker.release_confirmations();
    publishing.await.unwrap();
    assert_eq!(outcomes.recv().await.unwrap().result, Ok(()));
}

#[tokio::test]
async fn delayed_confirmations_come_so_much_later() {
    let broker = Broker::new();
    broker.delay_confirmations(Duration::from_millis(200));
    let start = tokio::time::Instant::now();
    assert_eq!(publish_all(&broker.publisher(), &[outgoing("a")]).await, [Ok(())]);
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_lost_acknowledgement_makes_one_duplicate() {
    let broker = Broker::new();
    publish_all(&broker.publisher(), &[outgoing("a")]).await;
    broker.duplicate_deliveries(1);
    let mut subscriber = broker.subscriber("g", ["orders"]);
    for _ in 0..2 {
        assert_eq!(broker.unacknowledged("g"), 1);
        subscriber.receive(1).await.unwrap().remove(0).acknowledge().await.unwrap();
    }
    broker.wait_until_acknowledged("g").await;
}

#[tokio::test]
async fn a_second_unconfirmed_message_of_a_key_is_counted() {
    let broker = Broker::new();
    publish_all(&broker.publisher(), &["a", "a"].map(outgoing)).await;
    assert_eq!(broker.overlaps(), 0, "several in one batch are allowed");
    publish_all(&broker.publisher().one_per_key(), &["a", "b", "a"].map(outgoing)).await;
    assert_eq!(broker.overlaps(), 1);

    broker.hold_confirmations();
    let publisher = broker.publisher();
    let (first, second) = ([outgoing("a")], [outgoing("a")]);
    let publishing =
        async { tokio::join!(publish_all(&publisher, &first), publish_all(&publisher, &second)) };
    tokio::join!(publishing, async {
        broker.wait_for_published(7).await;
        broker.release_confirmations();
    });
    assert_eq!(broker.overlaps(), 2);
}
