//! Claims about what was not acknowledged.

use std::time::Duration;

use message::{Message, Subscriber};
use tokio::time::{Instant, timeout_at};

use super::traffic::{message, number, receive};
use super::{PATIENCE, Setup, assert_in_order, keyed, publish_in_order, receive_all};

/// Last delivered, first acknowledged.
pub async fn acknowledgements_may_come_in_any_order(setup: &dyn Setup) {
    let sent = keyed(60, 6);
    publish_in_order(&*setup.publisher().await, &setup.destination(), &sent).await;
    let mut subscriber = setup.subscriber("g").await;
    let mut deliveries = Vec::new();
    while deliveries.len() < sent.len() {
        deliveries.extend(receive(&mut *subscriber, 100).await);
    }
    assert_in_order(deliveries.iter().map(message), sent.len());
    while let Some(delivery) = deliveries.pop() {
        delivery.acknowledge().await.expect("the broker takes an acknowledgement");
    }
    assert_nothing_more(&mut *subscriber, setup.answer_wait() * 2).await;
    // The group's position holds for the next subscriber, too.
    drop(subscriber);
    assert_nothing_more(&mut *setup.subscriber("g").await, setup.answer_wait() * 2).await;
}

/// The delivery is dropped while its subscriber lives.
pub async fn an_unanswered_message_comes_again_and_is_not_overtaken(setup: &dyn Setup) {
    let sent = keyed(6, 2);
    publish_in_order(&*setup.publisher().await, &setup.destination(), &sent).await;
    let mut subscriber = setup.subscriber("g").await;
    let first = receive(&mut *subscriber, 1).await.remove(0);
    let id = message(&first).id;
    drop(first);
    let received = receive_all(&mut *subscriber, sent.len()).await;
    assert!(received.iter().any(|message| message.id == id), "it did not come again");
    assert_in_order(&received, sent.len());
}

/// The other key goes on meanwhile.
pub async fn a_retried_message_waits_and_is_not_overtaken(setup: &dyn Setup) {
    const DELAY: Duration = Duration::from_millis(700);
    let sent = keyed(6, 2);
    publish_in_order(&*setup.publisher().await, &setup.destination(), &sent).await;
    let mut subscriber = setup.subscriber("g").await;
    let first = receive(&mut *subscriber, 1).await.remove(0);
    let key = message(&first).key.clone();
    assert_eq!(number(message(&first)), 0);
    let asked = Instant::now();
    first.retry_after(DELAY).await.expect("the broker takes a retry");

    let others = receive_all(&mut *subscriber, sent.len() / 2).await;
    assert!(others.iter().all(|message| message.key != key), "the key was overtaken, or came too soon");
    assert_in_order(&others, sent.len() / 2);
    let retried = receive_all(&mut *subscriber, sent.len() / 2).await;
    // Servers measure by their own clocks.
    assert!(asked.elapsed() >= DELAY - Duration::from_millis(20), "{:?}", asked.elapsed());
    assert_in_order(&retried, sent.len() / 2);
}

/// Extended for three times as long as the broker waits.
pub async fn an_extended_delivery_does_not_come_again(setup: &dyn Setup) {
    publish_in_order(&*setup.publisher().await, &setup.destination(), &keyed(1, 1)).await;
    let mut subscriber = setup.subscriber("g").await;
    let delivery = receive(&mut *subscriber, 1).await.remove(0);
    let end = Instant::now() + setup.answer_wait() * 3;
    while Instant::now() < end {
        delivery.extend().await.expect("the broker takes an extension");
        assert_nothing_more(&mut *subscriber, setup.answer_wait() / 3).await;
    }
    delivery.acknowledge().await.expect("the broker takes an acknowledgement");
    assert_nothing_more(&mut *subscriber, setup.answer_wait() * 2).await;
}

/// With deliveries in hand, some of them acknowledged. Another of its group goes on.
pub async fn a_subscriber_dropped_half_way_loses_nothing(setup: &dyn Setup) {
    let sent = keyed(100, 5);
    publish_in_order(&*setup.publisher().await, &setup.destination(), &sent).await;
    let mut first = setup.subscriber("g").await;
    let mut deliveries = Vec::new();
    while deliveries.len() < 40 {
        deliveries.extend(receive(&mut *first, 40 - deliveries.len()).await);
    }
    let mut received: Vec<Message> = Vec::new();
    for delivery in deliveries.drain(..20) {
        received.push(message(&delivery).clone());
        delivery.acknowledge().await.expect("the broker takes an acknowledgement");
    }
    drop(deliveries);
    drop(first);
    let mut second = setup.subscriber("g").await;
    received.extend(receive_all(&mut *second, sent.len() - received.len()).await);
    assert_in_order(&received, sent.len());
}

/// The time is how long a broker might need to deliver what it must not.
async fn assert_nothing_more(subscriber: &mut dyn Subscriber, within: Duration) {
    let deadline = Instant::now() + within.min(PATIENCE);
    if let Ok(deliveries) = timeout_at(deadline, subscriber.receive(10)).await {
        let deliveries = deliveries.expect("the broker delivers");
        panic!(
            "delivered again: {:?}",
            deliveries.iter().map(|delivery| &delivery.received).collect::<Vec<_>>()
        );
    }
}
