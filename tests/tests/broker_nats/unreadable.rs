//! What the client library cannot read, written by a client that is not ours: it is handed out as malformed, with its
//! bytes, and passed; what is around it is neither lost nor delayed for long.

use message::{Delivery, Malformed, MalformedReason, SubscribeError};
use tokio::time::timeout;

use super::faults::{own, publish, receive};
use super::*;

/// What makes the client drop its connection.
const DROPPING: [(&[u8], &[u8]); 9] = [
    (b"", b"NATS/1.0\r\nX-Name: caf\xe9\r\n\r\n"),
    (b"", b"HTTP/1.1 200 OK\r\n\r\n"),
    (b"", b"NATS/1.0\r\nno colon\r\n\r\n"),
    (b"", b"NATS/1.0\r\nX Name: a\r\n\r\n"),
    (b"", b"NATS/1.0\r\n\xc3\xa9: a\r\n\r\n"),
    (b"", b"NATS/1.0\r\n"),
    (b"", b"\x00\x01\x02\r\n\r\n"),
    (b".caf\xe9", b"NATS/1.0\r\n\r\n"),
    (b".a\x0bb", b"NATS/1.0\r\n\r\n"),
];

/// What it reads, and what is no message of ours all the same. Servers before 2.15 deliver the first as it is, and that ends
/// the connection.
const READABLE: [&[u8]; 8] = [
    b"NATS/1.0 abc\r\n\r\n",
    b"NATS/1.0\r\n: no name\r\n\r\n",
    b"NATS/1.0\r\nX-Name: a\0b\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0 423 Nats-Wrong-Pin-Id\r\nNats-Pending-Messages: 7\r\n\r\n",
    b"NATS/1.0\r\nNats-Pin-Id: forged\r\n\r\n",
    b"",
];

/// Whose line of the pin becomes a part of another line.
const UNTERMINATED: [&[u8]; 3] =
    [b"NATS/1.0\r\nX-Name: a\r\n", b"NATS/1.0\r\nX-Name: a", b"NATS/1.0\r\nNats-Pin-Id: forged\r\n"];

/// What makes it panic.
const ENDING: &[u8] = b"NATS/1.0\r\nX-Name: a\rb\r\n\r\n";

/// Longer than any of these tests.
const LONG: Duration = Duration::from_secs(600);

fn subscriber(nats: &Nats, ack_wait: Duration) -> NatsSubscriber {
    NatsSubscriber::new(nats.connection.clone(), &nats.name, "g")
        .with_ack_wait(ack_wait)
        .with_takeover_after(Duration::from_secs(2))
}

async fn put(server: &servers::Nats, nats: &Nats, subject: &[u8], headers: &[u8], payload: &[u8]) {
    let subject = [nats.destination().as_bytes(), subject].concat();
    raw_publish_to(&server.url(), &subject, headers, payload).await;
}

/// Acknowledges until `messages` good ones and `malformed` others have come.
async fn drain(
    subscriber: &mut NatsSubscriber,
    messages: usize,
    malformed: usize,
) -> (Vec<Message>, Vec<Malformed>) {
    let (mut seen, mut good, mut bad) = (HashSet::new(), Vec::new(), Vec::new());
    let draining = async {
        while good.len() < messages || bad.len() < malformed {
            let deliveries = match subscriber.receive(100).await {
                Ok(deliveries) => deliveries,
                // While it connects again.
                Err(SubscribeError::Unavailable(_)) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
                Err(refused) => panic!("{refused}"),
            };
            for delivery in deliveries {
                match delivery.received.clone() {
                    Ok(message) if seen.insert(message.id) => good.push(message),
                    Ok(_) => {}
                    Err(other) => bad.push(other),
                }
                let _ = delivery.acknowledge().await;
            }
        }
    };
    if timeout(PATIENCE, draining).await.is_err() {
        panic!("{} of {messages} messages, {} of {malformed} others: {bad:?}", good.len(), bad.len());
    }
    (good, bad)
}

/// Whether the server waits for no answer.
async fn nothing_is_under_way(nats: &Nats) {
    let info = format!("$JS.API.CONSUMER.INFO.{}.g", nats.name);
    let settled = async {
        loop {
            let answer = nats.connection.client().request(info.clone(), "".into()).await.expect("an answer");
            let info: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
            if info["num_ack_pending"] == 0 && info["num_pending"] == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, settled).await.expect("something is still under way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_the_client_cannot_read_is_handed_out_with_its_bytes_and_passed() {
    let (server, nats) = own().await;
    let sent = keyed(40, 4);
    publish(&nats, &sent[..10]).await;
    for (subject, headers) in DROPPING {
        put(&server, &nats, subject, headers, b"body").await;
    }
    publish(&nats, &sent[10..]).await;
    let mut subscriber = subscriber(&nats, LONG);
    // The first ten tell the pin: what the connection takes along comes again without the ack wait.
    let (messages, malformed) = drain(&mut subscriber, sent.len(), DROPPING.len()).await;
    assert_in_order(&messages, sent.len());
    for (subject, headers) in DROPPING {
        let payload = [headers, b"body"].concat();
        let elsewhere = !subject.is_empty();
        let found = malformed
            .iter()
            .find(|found| found.payload == payload && elsewhere == (found.destination != nats.destination()));
        let found = found.unwrap_or_else(|| panic!("{headers:?} is not among {malformed:?}"));
        assert!(matches!(found.reason, MalformedReason::Unreadable(_)), "{found:?}");
    }
    nothing_is_under_way(&nats).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_ends_the_client_is_handed_out_and_passed_by_another() {
    let (server, nats) = own().await;
    let sent = keyed(20, 2);
    publish(&nats, &sent[..10]).await;
    for _ in 0..2 {
        put(&server, &nats, b"", ENDING, b"body").await;
    }
    publish(&nats, &sent[10..]).await;
    let mut subscriber = subscriber(&nats, Duration::from_secs(2));
    let (messages, malformed) = drain(&mut subscriber, sent.len(), 2).await;
    assert_in_order(&messages, sent.len());
    assert!(malformed.iter().all(|found| found.payload.starts_with(ENDING)), "{malformed:?}");
    nothing_is_under_way(&nats).await;
    // What shares the connection works, too.
    publish(&nats, &keyed(1, 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_looks_like_a_word_of_the_server_is_a_message() {
    let (server, nats) = own().await;
    let sent = keyed(20, 2);
    publish(&nats, &sent[..10]).await;
    for headers in READABLE {
        put(&server, &nats, b"", headers, b"body").await;
    }
    publish(&nats, &sent[10..]).await;
    let mut subscriber = subscriber(&nats, LONG);
    let (messages, malformed) = drain(&mut subscriber, sent.len(), READABLE.len()).await;
    assert_in_order(&messages, sent.len());
    assert_eq!(malformed.len(), READABLE.len());
    nothing_is_under_way(&nats).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_without_an_end_do_not_confuse_the_subscriber() {
    let (server, nats) = own().await;
    let sent = keyed(20, 2);
    publish(&nats, &sent[..10]).await;
    for headers in UNTERMINATED {
        put(&server, &nats, b"", headers, b"body").await;
    }
    publish(&nats, &sent[10..]).await;
    let mut subscriber = subscriber(&nats, LONG);
    let (messages, malformed) = drain(&mut subscriber, sent.len(), UNTERMINATED.len()).await;
    assert_in_order(&messages, sent.len());
    assert_eq!(malformed.len(), UNTERMINATED.len());
    nothing_is_under_way(&nats).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_of_them_do_not_stop_a_group() {
    let (server, nats) = own().await;
    let sent = keyed(40, 4);
    publish(&nats, &sent[..1]).await;
    for _ in 0..300 {
        put(&server, &nats, b"", DROPPING[0].1, b"").await;
    }
    publish(&nats, &sent[1..]).await;
    let mut subscriber = subscriber(&nats, LONG);
    let (messages, malformed) = drain(&mut subscriber, sent.len(), 300).await;
    assert_in_order(&messages, sent.len());
    assert_eq!(malformed.len(), 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_the_very_first_is_passed() {
    let (server, nats) = own().await;
    put(&server, &nats, b"", DROPPING[0].1, b"").await;
    let sent = keyed(10, 2);
    publish(&nats, &sent).await;
    let mut subscriber = subscriber(&nats, Duration::from_secs(3));
    let (messages, malformed) = drain(&mut subscriber, sent.len(), 1).await;
    assert_in_order(&messages, sent.len());
    assert_eq!(malformed.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_sent_back_comes_again() {
    let (server, nats) = own().await;
    publish(&nats, &keyed(1, 1)).await;
    put(&server, &nats, b"", DROPPING[0].1, b"").await;
    let mut subscriber = subscriber(&nats, LONG);
    let sending_back = async {
        loop {
            // While it connects again it says so.
            for delivery in subscriber.receive(10).await.unwrap_or_default() {
                let delivery: Delivery = delivery;
                if delivery.received.is_err() {
                    return delivery.retry_after(Duration::from_millis(50)).await;
                }
                delivery.acknowledge().await.expect("the server takes it");
            }
        }
    };
    timeout(PATIENCE, sending_back).await.expect("a delivery").expect("the server takes it");
    drain(&mut subscriber, 0, 1).await;
    // The other one of the batch may wait until this one is answered.
    let rest = async {
        loop {
            for delivery in receive(&mut subscriber, 10).await {
                let _ = delivery.acknowledge().await;
            }
        }
    };
    tokio::select! {
        () = nothing_is_under_way(&nats) => {}
        () = rest => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_stream_deleted_meanwhile_is_not_waited_for() {
    let (server, nats) = own().await;
    let sent = keyed(20, 1);
    publish(&nats, &sent[..10]).await;
    put(&server, &nats, b"", DROPPING[0].1, b"").await;
    publish(&nats, &sent[10..]).await;
    // The group has them under way, and they are gone.
    let mut lost = subscriber(&nats, Duration::from_secs(2));
    drop(timeout(Duration::from_secs(2), lost.receive(1)).await);
    drop(lost);
    let delete = format!("$JS.API.STREAM.MSG.DELETE.{}", nats.name);
    for sequence in [1, 2, 11] {
        let request = format!(r#"{{"seq":{sequence}}}"#);
        nats.client.request(delete.clone(), request.into()).await.expect("the server deletes it");
    }
    let mut subscriber = subscriber(&nats, Duration::from_secs(2));
    let (messages, _) = drain(&mut subscriber, sent.len() - 2, 0).await;
    assert_in_order(&[&sent[..2], &messages].concat(), sent.len());
}
