//! Servers that are killed, stopped or stand still, and connections that are lost.

use futures_util::{FutureExt, StreamExt};
use message::{Delivery, SubscribeError};
use tokio::time::timeout;

use super::*;

/// Longer than any test: what waits for it fails.
const FOR_EVER: Duration = Duration::from_secs(600);

/// A server of this test's own, to be killed.
pub(super) async fn own() -> (servers::Nats, Nats) {
    let server = servers::Nats::start_own().expect("a NATS server: run tests/run, which installs one");
    let connection = connect(&server.url()).await.expect("an address");
    let client = connection.client();
    client.flush().await.expect("our own server answers");
    let nats = Nats { connection, client, name: "own".to_owned() };
    nats.publisher().check().await.expect("the stream is made");
    (server, nats)
}

/// As a relay does: again until it is confirmed. Answers how often something was not.
pub(super) async fn publish_until_confirmed(publisher: &dyn Publisher, mut batch: Vec<Outgoing>) -> usize {
    let mut failures = 0;
    while !batch.is_empty() {
        let results = publish_all(publisher, &batch).await;
        let failed = |result: &Result<(), PublishError>| {
            assert!(!matches!(result, Err(PublishError::Rejected(_))), "{result:?}");
            result.is_err()
        };
        batch = results.iter().zip(batch).filter(|(result, _)| failed(result)).map(|(_, o)| o).collect();
        failures += batch.len();
        if !batch.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    failures
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_that_it_confirmed_and_no_order() {
    const ROUNDS: usize = 300;
    const KEYS: usize = 10;
    let (mut server, nats) = own().await;
    let sent = keyed(ROUNDS * KEYS, KEYS);
    let progress = tokio::sync::watch::Sender::new(0);

    let publisher = nats.publisher().with_ack_wait(Duration::from_secs(1));
    let publishing = async {
        let mut failures = 0;
        for (round, messages) in sent.chunks(KEYS).enumerate() {
            let batch = messages.iter().cloned().map(|message| nats.outgoing(message)).collect();
            failures += publish_until_confirmed(&publisher, batch).await;
            progress.send_replace(round);
        }
        failures
    };
    let arrived = std::cell::Cell::new(0);
    let receiving = async {
        // It lives through the kills.
        let mut subscriber = nats.subscriber("g").await;
        let (mut seen, mut received) = (HashSet::new(), Vec::new());
        while seen.len() < sent.len() {
            let Ok(deliveries) = subscriber.receive(20).await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            for delivery in deliveries {
                let message = delivery.received.as_ref().expect("a message").clone();
                if seen.insert(message.id) {
                    received.push(message);
                    arrived.set(received.len());
                }
                // One that is not taken comes again.
                let _ = delivery.acknowledge().await;
            }
        }
        received
    };
    let mut published = progress.subscribe();
    let killing = tokio::spawn(async move {
        for kill in 1..=3 {
            published.wait_for(|round| *round >= kill * ROUNDS / 4).await.expect("it publishes");
            tokio::task::block_in_place(|| {
                server.kill().expect("our own server");
                server.restart().expect("it starts again");
            });
        }
        server
    });
    let all = async { tokio::join!(publishing, receiving, killing) };
    // After each kill the subscriber waits until the server has delivered again what it may have lost sight of.
    let Ok((failures, received, server)) = timeout(PATIENCE, all).await else {
        panic!("round {} published, {} messages received", *progress.borrow(), arrived.get());
    };
    drop(server.expect("the server was killed and started"));
    assert!(failures > 0, "no kill was felt");
    assert_in_order(&received, sent.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_makes_the_outcome_unknown() {
    let (mut server, nats) = own().await;
    let publisher = nats.publisher().with_ack_wait(Duration::from_millis(500));
    server.pause().expect("our own server");
    // The signal may need a moment.
    for message in keyed(1_000, 1) {
        let batch = vec![nats.outgoing(message)];
        let results = publish_all(&publisher, &batch).await;
        if results[0].is_err() {
            assert!(matches!(&results[0], Err(PublishError::Unknown(_))), "{results:?}");
            server.resume().expect("our own server");
            assert_eq!(publish_until_confirmed(&publisher, batch).await, 0);
            return;
        }
    }
    panic!("the server does not stand still");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_unavailable_is_not_sent_later_behind_the_relays_back() {
    let (mut server, nats) = own().await;
    let sent = keyed(2, 1);
    let (lost, kept) = (nats.outgoing(sent[0].clone()), nats.outgoing(sent[1].clone()));
    let publisher = nats.publisher();
    server.kill().expect("our own server");
    // The connection notices by itself, or by what is sent over it.
    while publisher.check().await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let results = publish_all(&publisher, &[lost]).await;
    assert!(matches!(&results[0], Err(PublishError::Unavailable(_))), "{results:?}");
    tokio::task::block_in_place(|| server.restart()).expect("it starts again");
    publish_until_confirmed(&publisher, vec![kept]).await;
    let received = receive_all(&mut *nats.subscriber("g").await, 1).await;
    assert_eq!(received[0].id, sent[1].id);
}

/// A subscriber that waits for nothing but what the server says.
fn patient(nats: &Nats) -> NatsSubscriber {
    NatsSubscriber::new(nats.connection.clone(), &nats.name, "g")
        .with_ack_wait(FOR_EVER)
        .with_takeover_after(FOR_EVER)
}

/// The next deliveries, whether or not the server is there at first.
pub(super) async fn receive(subscriber: &mut NatsSubscriber, max: usize) -> Vec<Delivery> {
    let receiving = async {
        loop {
            match subscriber.receive(max).await {
                Ok(deliveries) => return deliveries,
                Err(SubscribeError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(refused) => panic!("{refused}"),
            }
        }
    };
    timeout(PATIENCE, receiving).await.expect("nothing was delivered in time")
}

async fn receive_and_acknowledge(subscriber: &mut NatsSubscriber, count: usize) -> Vec<Message> {
    let mut received = Vec::new();
    while received.len() < count {
        for delivery in receive(subscriber, count).await {
            received.push(message(&delivery).clone());
            delivery.acknowledge().await.expect("the server takes an acknowledgement");
        }
    }
    received
}

pub(super) async fn publish(nats: &Nats, messages: &[Message]) {
    for message in messages {
        publish_until_confirmed(&nats.publisher(), vec![nats.outgoing(message.clone())]).await;
    }
}

async fn reconnect(client: &Client) {
    let connects = || client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed);
    let before = connects();
    client.force_reconnect().await.expect("a client");
    // The client gives no sign of it.
    while connects() == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn message(delivery: &Delivery) -> &Message {
    delivery.received.as_ref().expect("a message")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_that_takes_nothing_along_makes_nobody_wait() {
    let nats = nats().await;
    // More than are asked for at a time.
    let sent = keyed(500, 50);
    let mut subscriber = patient(&nats);
    publish(&nats, &sent[..20]).await;
    let mut deliveries = Vec::new();
    while deliveries.len() < 20 {
        deliveries.extend(receive(&mut subscriber, 20).await);
    }
    reconnect(&nats.client).await;
    // Only then: what is delivered over the connection that goes down would be lost with it.
    let connects = || nats.client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed);
    let again = async {
        while connects() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("it connects again");
    publish(&nats, &sent[20..]).await;
    while deliveries.len() < sent.len() {
        deliveries.extend(receive(&mut subscriber, 100).await);
    }
    assert_in_order(deliveries.iter().map(message), sent.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_in_order_makes_nobody_wait() {
    let (mut server, nats) = own().await;
    let sent = keyed(60, 6);
    publish(&nats, &sent).await;
    let mut subscriber = patient(&nats);
    let first = receive(&mut subscriber, 1).await.remove(0);
    let key = message(&first).key.clone();
    first.retry_after(Duration::from_secs(1)).await.expect("the server takes a retry");
    let others = receive_all(&mut subscriber, 50).await;
    assert!(others.iter().all(|message| message.key != key), "the key was overtaken");

    // The rest of the key has arrived, and waits.
    tokio::task::block_in_place(|| {
        server.stop().expect("our own server");
        server.restart().expect("it starts again");
    });
    assert_in_order(&receive_and_acknowledge(&mut subscriber, 10).await, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_under_way_when_the_server_is_killed_is_answered_at_once() {
    let (mut server, nats) = own().await;
    publish(&nats, &keyed(50, 1)).await;
    let mut subscriber = patient(&nats);
    let mut deliveries = Vec::new();
    while deliveries.len() < 50 {
        deliveries.extend(receive(&mut subscriber, 50).await);
    }
    server.pause().expect("our own server");
    // The signal may need a moment.
    for delivery in deliveries {
        let mut acknowledged = std::pin::pin!(delivery.acknowledge());
        if timeout(Duration::from_millis(200), &mut acknowledged).await.is_err() {
            server.kill().expect("our own server");
            // Less than an answer may take from a server that lives.
            let answer = timeout(Duration::from_secs(3), acknowledged).await.expect("an answer");
            assert!(matches!(&answer, Err(SubscribeError::Unavailable(_))), "{answer:?}");
            return;
        }
    }
    panic!("the server does not stand still");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_works_slowly_through_what_it_has_keeps_its_turn() {
    const TAKEOVER: Duration = Duration::from_secs(2);
    let nats = nats().await;
    publish(&nats, &keyed(200, 10)).await;
    let gone = format!("$JS.EVENT.ADVISORY.CONSUMER.UNPINNED.{}.>", nats.name);
    let mut gone = nats.client.subscribe(gone).await.expect("a client");
    let mut subscriber = patient(&nats).with_takeover_after(TAKEOVER);
    let start = tokio::time::Instant::now();
    let mut handled = 0;
    while start.elapsed() < TAKEOVER + TAKEOVER / 2 {
        for delivery in receive(&mut subscriber, 1).await {
            // The work, of which there is always more here.
            tokio::time::sleep(Duration::from_millis(50)).await;
            delivery.acknowledge().await.expect("the server takes an acknowledgement");
            handled += 1;
        }
    }
    assert!(handled < 100, "there was not always more: {handled}");
    nats.client.flush().await.expect("a server");
    assert!(gone.next().now_or_never().is_none(), "the server took it for gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_is_deleted_receives_everything_again() {
    let nats = nats().await;
    let sent = keyed(20, 2);
    publish(&nats, &sent).await;
    let mut subscriber = patient(&nats);
    assert_in_order(&receive_all(&mut subscriber, 20).await, 20);
    let delete = format!("$JS.API.CONSUMER.DELETE.{}.g", nats.name);
    nats.client.request(delete, "".into()).await.expect("the server deletes it");
    assert_in_order(&receive_and_acknowledge(&mut subscriber, 20).await, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_died_with_its_server_is_made_again_at_once() {
    let (mut server, nats) = own().await;
    let mut subscriber = patient(&nats);
    // Nothing is there: the request waits at the server.
    assert!(timeout(Duration::from_millis(500), subscriber.receive(1)).await.is_err());
    tokio::task::block_in_place(|| {
        server.kill().expect("our own server");
        server.restart().expect("it starts again");
    });
    publish(&nats, &keyed(1, 1)).await;
    assert_eq!(receive(&mut subscriber, 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_acknowledgement_of_what_the_server_forgot_is_answered_at_once() {
    let nats = nats().await;
    publish(&nats, &keyed(1, 1)).await;
    let delivery = receive(&mut patient(&nats), 1).await.remove(0);
    reconnect(&nats.client).await;
    // As a server that lost the deliveries: it knows the consumer, and says nothing to the acknowledgement.
    let consumer = |verb: &str| format!("$JS.API.CONSUMER.{verb}.{}.g", nats.name);
    let config = r#"{"durable_name": "g", "ack_policy": "explicit"}"#;
    let config = format!(r#"{{"stream_name": "{}", "config": {config}}}"#, nats.name);
    nats.client.request(consumer("DELETE"), "".into()).await.expect("the server deletes it");
    nats.client.request(consumer("DURABLE.CREATE"), config.into()).await.expect("the server makes it");
    // Less than an answer may take.
    let answer = timeout(Duration::from_secs(3), delivery.acknowledge()).await.expect("an answer");
    assert!(matches!(&answer, Err(SubscribeError::Unavailable(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_got_the_number_of_an_acknowledged_one_is_not_taken_for_it() {
    let (mut server, nats) = own().await;
    let sent = keyed(4, 1);
    let store = server.folder().expect("our own server").join("store");
    let earlier = store.with_extension("earlier");
    let mut subscriber = patient(&nats);
    let mut stopped = |meanwhile: &dyn Fn()| {
        tokio::task::block_in_place(|| {
            server.stop().expect("our own server");
            meanwhile();
            server.restart().expect("it starts again");
        });
    };
    publish(&nats, &sent[..2]).await;
    assert_in_order(&receive_and_acknowledge(&mut subscriber, 2).await, 2);
    stopped(&|| copy(&store, &earlier));
    publish(&nats, &sent[2..3]).await;
    assert_eq!(receive_and_acknowledge(&mut subscriber, 1).await[0].id, sent[2].id);
    // The machine fails, and the last message had not reached the disk.
    stopped(&|| {
        std::fs::remove_dir_all(&store).expect("the server's folder");
        copy(&earlier, &store);
    });
    publish(&nats, &sent[3..]).await;
    assert_eq!(receive_and_acknowledge(&mut subscriber, 1).await[0].id, sent[3].id);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.expect("cp").success());
}
