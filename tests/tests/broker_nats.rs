//! NATS JetStream: the conformance claims on a real server, and what is its own.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use brokers::nats::{Client, Connection, NatsPublisher, NatsSubscriber, StreamPolicy, connect};
use message::{Message, Outgoing, PublishError, Publisher, Subscriber, publish_all};
use tests::conformance::{PATIENCE, Setup, assert_in_order, keyed, publish_in_order, receive_all};

const ANSWER_WAIT: Duration = Duration::from_millis(1_500);

fn url() -> String {
    std::env::var("NATS_URL").expect("NATS_URL is not set: run tests/run, which starts a server and sets it")
}

/// A stream of its own, with a subject of its own.
struct Nats {
    connection: Connection,
    /// The connection's.
    client: Client,
    name: String,
}

async fn nats() -> Nats {
    let connection = connect(&url()).await.expect("an address");
    let client = connection.client();
    client.flush().await.expect("a NATS server at NATS_URL: run tests/run");
    let nats = Nats { connection, client, name: format!("test-{}", uuid::Uuid::new_v4()) };
    nats.publisher().check().await.expect("the stream is made");
    nats
}

impl Nats {
    fn policy(&self) -> StreamPolicy {
        StreamPolicy::create(&self.name, [format!("{}.>", self.name)])
    }

    fn publisher(&self) -> NatsPublisher {
        NatsPublisher::new(self.connection.clone()).with_stream(self.policy())
    }

    fn outgoing(&self, message: Message) -> Outgoing {
        Outgoing { destination: self.destination().into(), message: Arc::new(message) }
    }
}

#[async_trait]
impl Setup for Nats {
    fn destination(&self) -> String {
        format!("{}.orders", self.name)
    }

    async fn publisher(&self) -> Box<dyn Publisher> {
        Box::new(self.publisher())
    }

    async fn subscriber(&self, group: &str) -> Box<dyn Subscriber> {
        let subscriber = NatsSubscriber::new(self.connection.clone(), &self.name, group)
            .with_subjects([self.destination()])
            .with_ack_wait(ANSWER_WAIT)
            .with_takeover_after(Duration::from_secs(1));
        Box::new(subscriber)
    }

    fn answer_wait(&self) -> Duration {
        ANSWER_WAIT
    }

    async fn closed_destination(&self) -> Option<String> {
        Some("nobody.takes.this".to_owned())
    }

    async fn unreachable(&self) -> Box<dyn Publisher> {
        Box::new(NatsPublisher::new(connect("nats://127.0.0.1:9").await.expect("an address")))
    }

    async fn put_foreign(&self, headers: &[(&str, &str)], payload: &'static [u8]) -> bool {
        let pairs = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let block = format!("NATS/1.0\r\n{}\r\n", pairs.collect::<String>());
        raw_publish(&self.destination(), &block, payload).await;
        true
    }
}

/// As a client that is not ours writes it.
async fn raw_publish(subject: &str, headers: &str, payload: &[u8]) {
    raw_publish_to(&url(), subject.as_bytes(), headers.as_bytes(), payload).await;
}

/// The same to another server, with bytes that need not be text.
async fn raw_publish_to(url: &str, subject: &[u8], headers: &[u8], payload: &[u8]) {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let address = url.rsplit(['/', '@']).next().expect("an address").to_owned();
    let mut stream = BufReader::new(tokio::net::TcpStream::connect(address).await.expect("a NATS server"));
    let total = headers.len() + payload.len();
    let connect = b"CONNECT {\"verbose\":false,\"headers\":true}\r\nHPUB ";
    let lengths = format!(" {} {total}\r\n", headers.len());
    let bytes = [connect, subject, lengths.as_bytes(), headers].concat();
    stream.write_all(&bytes).await.expect("written");
    stream.write_all(payload).await.expect("written");
    stream.write_all(b"\r\nPING\r\n").await.expect("written");
    let mut line = String::new();
    while !line.starts_with("PONG") {
        line.clear();
        assert!(stream.read_line(&mut line).await.expect("an answer") > 0, "NATS closed the connection");
    }
}

#[path = "broker_nats/access.rs"]
mod access;
#[path = "broker_nats/faults.rs"]
mod faults;
#[path = "broker_nats/identity.rs"]
mod identity;
#[path = "broker_nats/unreadable.rs"]
mod unreadable;

mod conformance {
    tests::conformance_tests!(super::nats);
}

#[tokio::test]
async fn a_message_longer_than_the_server_takes_is_rejected_and_its_neighbours_are_kept() {
    let nats = nats().await;
    // Nothing that was enqueued is so long; the port alone does not ask.
    let long = Message::new("orders", "order.placed", vec![0; 1_100_000]);
    let plain = || nats.outgoing(Message::new("orders", "order.placed", "{}").with_source("/shop"));
    let results = publish_all(&nats.publisher(), &[plain(), nats.outgoing(long), plain()]).await;
    assert!(
        matches!(&results[1], Err(PublishError::Rejected(text)) if text.contains("max_payload")),
        "{results:?}"
    );
    assert_eq!((&results[0], &results[2]), (&Ok(()), &Ok(())));
    assert_eq!(receive_all(&mut *nats.subscriber("g").await, 2).await.len(), 2);
}

#[tokio::test]
async fn a_destination_that_is_no_subject_is_rejected() {
    let nats = nats().await;
    let message = Arc::new(Message::new("orders", "order.placed", "{}"));
    let outgoing = |destination: &str| Outgoing { destination: destination.into(), message: message.clone() };
    let batch = [outgoing("a b"), outgoing("a.*"), outgoing("x\r\nPUB y 0"), outgoing(&nats.destination())];
    let results = publish_all(&nats.publisher(), &batch).await;
    assert!(
        results[..3].iter().all(|result| matches!(result, Err(PublishError::Rejected(_)))),
        "{results:?}"
    );
    assert_eq!(results[3], Ok(()));
}

#[tokio::test]
async fn a_subject_that_no_stream_takes_is_a_destination_that_is_unavailable_and_named() {
    let nats = nats().await;
    let outgoing = Outgoing {
        destination: "nobody.takes.this".into(),
        message: Arc::new(Message::new("orders", "order.placed", "{}")),
    };
    let results = publish_all(&nats.publisher(), &[outgoing]).await;
    let Err(PublishError::DestinationUnavailable(text)) = &results[0] else { panic!("{results:?}") };
    assert!(text.contains("nobody.takes.this") && text.contains(&nats.name), "{text}");
}

#[tokio::test]
async fn another_stream_does_not_take_what_is_meant_for_one() {
    let nats = nats().await;
    let other = NatsPublisher::new(nats.connection.clone()).with_stream(StreamPolicy::check("elsewhere"));
    let results = publish_all(&other, &[nats.outgoing(Message::new("orders", "order.placed", "{}"))]).await;
    assert!(matches!(&results[0], Err(PublishError::DestinationUnavailable(_))), "{results:?}");
}

#[tokio::test]
async fn a_full_stream_is_a_destination_that_is_unavailable_and_confirms_only_what_it_keeps() {
    let nats = nats().await;
    let name = format!("{}-full", nats.name);
    let policy = StreamPolicy::create(&name, [name.clone()]).with_max_bytes(20_000);
    let publisher = NatsPublisher::new(nats.connection.clone()).with_stream(policy);
    publisher.check().await.expect("the stream is made");
    let outgoing =
        |message: Message| Outgoing { destination: name.as_str().into(), message: Arc::new(message) };
    let message = || Message::new("orders", "order.placed", vec![b' '; 4_000]).with_source("/shop");
    let batch: Vec<Outgoing> = (0..10).map(|_| outgoing(message())).collect();
    let results = publish_all(&publisher, &batch).await;
    let confirmed = results.iter().filter(|result| result.is_ok()).count();
    assert!((1..10).contains(&confirmed), "{results:?}");
    let full =
        |result: &&Result<(), PublishError>| matches!(result, Err(PublishError::DestinationUnavailable(_)));
    assert_eq!(results.iter().filter(full).count(), 10 - confirmed, "{results:?}");
    let mut subscriber = NatsSubscriber::new(nats.connection.clone(), &name, "g");
    assert_eq!(receive_all(&mut subscriber, confirmed).await.len(), confirmed);
}

#[tokio::test]
async fn a_second_copy_within_the_window_is_confirmed_and_stored_once() {
    let nats = nats().await;
    let batch: Vec<Outgoing> = keyed(3, 3).into_iter().map(|message| nats.outgoing(message)).collect();
    for _ in 0..2 {
        assert_eq!(publish_all(&nats.publisher(), &batch).await, [Ok(()), Ok(()), Ok(())]);
    }
    let last = nats.outgoing(Message::new("orders", "order.placed", "{}").with_source("/shop"));
    assert_eq!(publish_all(&nats.publisher(), std::slice::from_ref(&last)).await, [Ok(())]);
    let mut subscriber = nats.subscriber("g").await;
    let mut received = Vec::new();
    while received.last() != Some(&last.message.id) {
        for delivery in subscriber.receive(10).await.expect("a delivery") {
            received.push(delivery.received.as_ref().expect("a message").id);
            delivery.acknowledge().await.expect("acknowledged");
        }
    }
    assert_eq!(received.len(), 4, "a copy stands before the last");
}

#[tokio::test]
async fn a_missing_stream_is_named_by_both_ends() {
    let nats = nats().await;
    let publisher = NatsPublisher::new(nats.connection.clone()).with_stream(StreamPolicy::check("absent"));
    let error = publisher.check().await.expect_err("it is missing");
    assert_eq!(error, PublishError::Unavailable("stream absent: is missing".to_owned()));
    let error = NatsSubscriber::new(nats.connection.clone(), "absent", "g")
        .receive(1)
        .await
        .expect_err("it is missing");
    assert!(error.to_string().contains("stream absent: is missing"), "{error}");
}

#[tokio::test]
async fn a_group_whose_name_would_be_a_subject_is_refused() {
    let nats = nats().await;
    let error = NatsSubscriber::new(nats.connection.clone(), &nats.name, "a.b")
        .receive(1)
        .await
        .expect_err("refused");
    assert!(matches!(error, message::SubscribeError::Refused(_)), "{error}");
}

#[tokio::test]
async fn a_stream_that_is_not_what_was_asked_for_is_refused() {
    let nats = nats().await;
    let publisher = |policy: StreamPolicy| NatsPublisher::new(nats.connection.clone()).with_stream(policy);
    assert_eq!(publisher(nats.policy()).check().await, Ok(()));
    assert_eq!(publisher(StreamPolicy::check(&nats.name)).check().await, Ok(()));
    let longer = nats.policy().with_duplicate_window(Duration::from_secs(600));
    let error = publisher(longer).check().await.expect_err("another window");
    assert!(matches!(&error, PublishError::Rejected(text) if text.contains("duplicate_window")), "{error}");
    let name = format!("{}-aged", nats.name);
    let aged = StreamPolicy::create(&name, [name.clone()]).with_max_age(Duration::from_secs(600));
    let error = publisher(aged.clone()).check().await.expect_err("discards the unread");
    assert!(matches!(&error, PublishError::Rejected(text) if text.contains("max_age")), "{error}");
    assert_eq!(publisher(aged.that_may_discard()).check().await, Ok(()));
}

#[tokio::test]
async fn an_address_never_shows_its_password() {
    let error = connect("nats://user:s3cret@[::").await.expect_err("no address");
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    // Nobody listens there: connecting goes on by itself, publishing says so.
    let connection = connect("nats://user:s3cret@127.0.0.1:9").await.expect("an address");
    let publisher = NatsPublisher::new(connection.clone());
    let error = publisher.check().await.expect_err("nobody there");
    assert!(
        matches!(error, PublishError::Unavailable(_)) && !error.to_string().contains("s3cret"),
        "{error}"
    );
    let mut subscriber = NatsSubscriber::new(connection, "s", "g");
    let error = subscriber.receive(1).await.expect_err("nobody there");
    assert!(!error.to_string().contains("s3cret"), "{error}");
}

/// As while a new build is rolled out that asks for one subject more.
#[tokio::test]
async fn what_one_process_of_a_group_has_asked_for_is_taken_out_by_none_of_them() {
    let nats = nats().await;
    nats.publisher().check().await.unwrap();
    let subject = |name: &str| format!("{}.{name}", nats.name);
    let asks = |subjects: &[&str]| {
        NatsSubscriber::new(nats.connection.clone(), &nats.name, "g")
            .with_subjects(subjects.iter().map(|name| subject(name)))
            .with_ack_wait(ANSWER_WAIT)
            .with_takeover_after(Duration::from_secs(1))
    };
    let send = async |name: &str, number: u32| {
        let message = Message::new(name, "order.placed", number.to_string()).with_source("/shop");
        publish_in_order(&nats.publisher(), &subject(name), &[message]).await;
    };
    asks(&["orders"]).subscribe().await.unwrap();
    asks(&["orders", "refunds"]).subscribe().await.unwrap();
    // An old one again, after the new one.
    let mut old = asks(&["orders"]);
    old.subscribe().await.unwrap();
    for number in 0..4 {
        send(if number % 2 == 0 { "refunds" } else { "orders" }, number).await;
    }
    let mut received = Vec::new();
    while received.len() < 4 {
        let deliveries = tokio::time::timeout(PATIENCE, old.receive(10)).await.expect("they come").unwrap();
        for delivery in deliveries {
            received.push(String::from_utf8(delivery.received.as_ref().unwrap().payload.to_vec()).unwrap());
            delivery.acknowledge().await.unwrap();
        }
    }
    assert_eq!(received, ["0", "1", "2", "3"]);
}
