//! Claims about what arrives, in which order, and at whom.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use message::{MalformedReason, Message, MessageId, Outgoing, PublishError, publish_all};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::traffic::{message, receive};
use super::{
    PATIENCE, Setup, assert_in_order, assert_same, keyed, messages_of_every_shape, publish_in_order,
    receive_all,
};

/// Bytes: id, key, headers, content type and payload, at the edges of what is allowed.
pub async fn every_confirmed_message_arrives_as_it_was_sent(setup: &dyn Setup) {
    let sent = messages_of_every_shape();
    publish_in_order(&*setup.publisher().await, &setup.destination(), &sent).await;
    let received = receive_all(&mut *setup.subscriber("g").await, sent.len()).await;
    let received: HashMap<MessageId, Message> = received.into_iter().map(|m| (m.id, m)).collect();
    for sent in &sent {
        assert_same(received.get(&sent.id).expect("every message arrives"), sent);
    }
    assert_eq!(received.len(), sent.len());
}

/// What a relay registers of its broker, so that a person sees it, and that processes with different brokers are noticed.
pub async fn a_publisher_says_what_it_publishes_to(setup: &dyn Setup) {
    let said = setup.publisher().await.describe().expect("it says what it publishes to");
    assert!(!said.is_empty() && !said.contains('@'), "{said}");
    assert_eq!(setup.publisher().await.describe(), Some(said), "two processes say the same");
}

/// Whose fault it is decides whether everything pauses, or one destination's messages wait.
pub async fn a_broker_that_is_unavailable_is_told_apart_from_a_destination_that_is(setup: &dyn Setup) {
    let to = |destination: &str| {
        let message = keyed(1, 1).remove(0).with_key(destination);
        Outgoing { destination: destination.into(), message: Arc::new(message) }
    };
    let unreachable = publish_all(&*setup.unreachable().await, &[to(&setup.destination())]).await;
    assert!(matches!(unreachable[..], [Err(PublishError::Unavailable(_))]), "{unreachable:?}");
    if let Some(closed) = setup.closed_destination().await {
        let batch = [to(&setup.destination()), to(&closed), to(&setup.destination())];
        let results = publish_all(&*setup.publisher().await, &batch).await;
        assert!(
            matches!(results[..], [Ok(()), Err(PublishError::DestinationUnavailable(_)), Ok(())]),
            "{results:?}"
        );
    }
}

/// Order per key, while the subscriber already receives.
pub async fn messages_of_a_key_arrive_in_order(setup: &dyn Setup) {
    let sent = keyed(2_000, 20);
    let (publisher, destination) = (setup.publisher().await, setup.destination());
    let mut subscriber = setup.subscriber("g").await;
    let ((), received) = tokio::join!(
        publish_in_order(&*publisher, &destination, &sent),
        receive_all(&mut *subscriber, sent.len()),
    );
    assert_in_order(&received, sent.len());
}

/// Two groups do not take messages from each other.
pub async fn each_group_receives_everything(setup: &dyn Setup) {
    let sent = keyed(100, 5);
    let (mut one, mut other) = (setup.subscriber("one").await, setup.subscriber("other").await);
    publish_in_order(&*setup.publisher().await, &setup.destination(), &sent).await;
    assert_in_order(&receive_all(&mut *one, sent.len()).await, sent.len());
    assert_in_order(&receive_all(&mut *other, sent.len()).await, sent.len());
}

/// Two subscribers of one group receive each message once between them, and a key's messages one after the other.
pub async fn subscribers_of_a_group_share_without_doubles_and_in_order(setup: &dyn Setup) {
    let sent = keyed(400, 10);
    publish_in_order(&*setup.publisher().await, &setup.destination(), &sent).await;
    let received = Arc::new(Mutex::new(Vec::new()));
    let all_here = CancellationToken::new();
    let mut tasks = JoinSet::new();
    for _ in 0..2 {
        let mut subscriber = setup.subscriber("g").await;
        let (received, all_here, count) = (received.clone(), all_here.clone(), sent.len());
        tasks.spawn(async move {
            while let Some(deliveries) = all_here.run_until_cancelled(receive(&mut *subscriber, 5)).await {
                for delivery in deliveries {
                    let so_far = {
                        let mut received = received.lock().expect("a list");
                        received.push(message(&delivery).clone());
                        received.len()
                    };
                    delivery.acknowledge().await.expect("the broker takes an acknowledgement");
                    if so_far >= count {
                        all_here.cancel();
                    }
                }
            }
            subscriber
        });
    }
    let mut subscribers = tasks.join_all().await;
    let received = received.lock().expect("a list").clone();
    assert_in_order(&received, sent.len());
    // A double would come before the wait for an answer is over twice.
    let rest =
        futures_util::future::select_all(subscribers.iter_mut().map(|subscriber| subscriber.receive(1)));
    assert!(timeout(setup.answer_wait() * 2, rest).await.is_err(), "something was delivered twice");
}

/// `docs/wire.md`, "Reading what others wrote".
pub async fn what_others_wrote_comes_out_as_the_wire_page_says(setup: &dyn Setup) {
    let foreign = [
        ("ce-specversion", "1.0"),
        ("ce-id", "A-1"),
        ("ce-source", "/elsewhere"),
        ("ce-type", "sold"),
        ("ce-partitionkey", "%C3%A9"),
        ("ce-sequence", "12"),
        ("content-type", "text/plain"),
    ];
    if !setup.put_foreign(&foreign, b"hello").await {
        return;
    }
    assert!(setup.put_foreign(&[("x", "y")], b"\xff no event").await);
    let mut subscriber = setup.subscriber("g").await;
    let mut deliveries = Vec::new();
    while deliveries.len() < 2 {
        deliveries.extend(receive(&mut *subscriber, 10).await);
    }
    let (malformed, understood): (Vec<_>, Vec<_>) =
        deliveries.iter().partition(|delivery| delivery.received.is_err());

    let message = understood[0].received.as_ref().expect("a message");
    assert_eq!(message.id, MessageId::foreign("/elsewhere", "A-1"));
    assert_eq!((&*message.kind, message.correlation), ("sold", message.id));
    assert_eq!(message.key.as_deref(), Some("é"));
    assert_eq!(message.headers.get("sequence"), Some("12"));
    assert_eq!((message.headers.content_type(), &message.payload[..]), ("text/plain", &b"hello"[..]));

    let malformed = malformed[0].received.as_ref().expect_err("no message");
    assert_eq!(malformed.reason, MalformedReason::NoIdentity);
    assert_eq!(&malformed.payload[..], b"\xff no event");

    for delivery in deliveries {
        delivery.acknowledge().await.expect("what is malformed can be acknowledged too");
    }
}

/// `receive` is dropped after random times, from at once to long enough.
pub async fn a_cancelled_receive_loses_nothing(setup: &dyn Setup) {
    let sent = keyed(300, 7);
    let (publisher, destination) = (setup.publisher().await, setup.destination());
    let mut subscriber = setup.subscriber("g").await;
    let receiving = async {
        let mut received = Vec::new();
        let mut seen = HashSet::new();
        let mut random = 1_u64;
        let deadline = Instant::now() + PATIENCE;
        while seen.len() < sent.len() {
            assert!(Instant::now() < deadline, "{} of {} arrived", seen.len(), sent.len());
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let patience = Duration::from_micros((random >> 33) % 20_000);
            let Ok(deliveries) = timeout(patience, subscriber.receive(3)).await else { continue };
            for delivery in deliveries.expect("the broker delivers") {
                let message = message(&delivery).clone();
                if seen.insert(message.id) {
                    received.push(message);
                }
                delivery.acknowledge().await.expect("the broker takes an acknowledgement");
            }
        }
        received
    };
    let ((), received) = tokio::join!(publish_in_order(&*publisher, &destination, &sent), receiving);
    assert_in_order(&received, sent.len());
}
