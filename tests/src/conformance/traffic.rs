//! Sending and receiving as a relay and a consumer do.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use message::{Delivery, Message, Outgoing, Pipelining, Publisher, Subscriber, publish_all};
use tokio::time::{Instant, timeout_at};

use super::PATIENCE;

/// `count` messages over `keys` keys in turn; the payload is the number within the key, from 0.
pub fn keyed(count: usize, keys: usize) -> Vec<Message> {
    let message = |n: usize| {
        let number = (n / keys).to_string();
        Message::new("orders", "order.placed", number)
            .with_source("/shop")
            .with_key(format!("key-{}", n % keys))
    };
    (0..count).map(message).collect()
}

/// Publishes in batches, as many of a key at once as the publisher allows. Each must be confirmed.
pub async fn publish_in_order(publisher: &dyn Publisher, destination: &str, messages: &[Message]) {
    let outgoing =
        |message: &Message| Outgoing { destination: destination.into(), message: Arc::new(message.clone()) };
    for batch in batches(publisher.pipelining(), messages) {
        let batch: Vec<Outgoing> = batch.into_iter().map(outgoing).collect();
        for (result, outgoing) in publish_all(publisher, &batch).await.into_iter().zip(&batch) {
            assert_eq!(result, Ok(()), "{:?}", outgoing.message);
        }
    }
}

fn batches(pipelining: Pipelining, messages: &[Message]) -> Vec<Vec<&Message>> {
    if pipelining != Pipelining::OnePerKey {
        return messages.chunks(300).map(|chunk| chunk.iter().collect()).collect();
    }
    let mut batches: Vec<Vec<&Message>> = Vec::new();
    let mut of_key: HashMap<&str, usize> = HashMap::new();
    for message in messages {
        let number = match message.key.as_deref() {
            None => 0,
            Some(key) => {
                let next = of_key.entry(key).or_default();
                *next += 1;
                *next - 1
            }
        };
        if batches.len() <= number {
            batches.resize_with(number + 1, Vec::new);
        }
        batches[number].push(message);
    }
    batches
}

/// The next deliveries, within [`PATIENCE`].
pub(super) async fn receive(subscriber: &mut dyn Subscriber, max: usize) -> Vec<Delivery> {
    let deadline = Instant::now() + PATIENCE;
    let received = timeout_at(deadline, subscriber.receive(max)).await;
    let deliveries = received.expect("nothing was delivered in time").expect("the broker delivers");
    assert!((1..=max).contains(&deliveries.len()), "{} deliveries of {max}", deliveries.len());
    deliveries
}

/// Receives and acknowledges until there are `count` messages, in the order of arrival. A second copy of one, which a
/// machine under load may cause at any time, is acknowledged and not counted.
pub async fn receive_all(subscriber: &mut dyn Subscriber, count: usize) -> Vec<Message> {
    let (mut messages, mut seen) = (Vec::new(), HashSet::new());
    while messages.len() < count {
        for delivery in receive(subscriber, 100).await {
            let message = message(&delivery).clone();
            if seen.insert(message.id) {
                messages.push(message);
            }
            delivery.acknowledge().await.expect("the broker takes an acknowledgement");
        }
    }
    messages
}

pub(super) fn message(delivery: &Delivery) -> &Message {
    delivery.received.as_ref().expect("what we published is a message")
}

/// The number that [`keyed`] gave it within its key.
pub(super) fn number(message: &Message) -> usize {
    std::str::from_utf8(&message.payload).expect("a number").parse().expect("a number")
}

/// That for each key, the numbers are 0, 1, 2 … without a gap, and `count` in all.
pub fn assert_in_order<'a>(messages: impl IntoIterator<Item = &'a Message>, count: usize) {
    let mut next: HashMap<Option<Arc<str>>, usize> = HashMap::new();
    let mut seen = 0;
    for message in messages {
        let expected = next.entry(message.key.clone()).or_default();
        assert_eq!(number(message), *expected, "key {:?}", message.key);
        *expected += 1;
        seen += 1;
    }
    assert_eq!(seen, count);
}

/// That every part arrived as it was sent. An absent content type and `application/json` are the same.
pub fn assert_same(received: &Message, sent: &Message) {
    assert_eq!(received.id, sent.id);
    assert_eq!(received.source, sent.source, "source of {sent:?}");
    assert_eq!((&received.topic, &received.kind), (&sent.topic, &sent.kind), "topic and kind of {sent:?}");
    assert_eq!(received.key, sent.key, "key of {sent:?}");
    assert_eq!(received.correlation, sent.correlation, "correlation of {sent:?}");
    assert_eq!(received.causation, sent.causation, "causation of {sent:?}");
    assert_eq!(received.occurred_at, sent.occurred_at, "time of {sent:?}");
    assert_eq!(received.headers.content_type(), sent.headers.content_type(), "content type of {sent:?}");
    let others = |message: &Message| -> Vec<(String, String)> {
        let pairs = message.headers.iter().filter(|(name, _)| *name != "content-type");
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    assert_eq!(others(received), others(sent), "headers of {sent:?}");
    assert!(received.payload == sent.payload, "payload of {sent:?} ({} bytes)", received.payload.len());
}
