//! What JetStream takes for a copy, and what is one.

use serde_json::Value;

use super::*;

/// Two shops in one stream.
fn outgoing(nats: &Nats, subject: &str, message: &Message) -> Outgoing {
    Outgoing { destination: format!("{}.{subject}", nats.name).into(), message: Arc::new(message.clone()) }
}

/// The payloads at a subject, in their order. `last` is published after all of them.
async fn payloads(nats: &Nats, subject: &str) -> Vec<String> {
    let filter = format!("{}.{subject}", nats.name);
    let (mut sequence, mut found) = (1, Vec::new());
    while let Some(message) = stored(nats, sequence, &filter).await {
        sequence = message["seq"].as_u64().expect("a sequence") + 1;
        let bytes = base64(message["data"].as_str().unwrap_or_default());
        found.push(String::from_utf8_lossy(&bytes).into_owned());
    }
    found
}

async fn stored(nats: &Nats, sequence: u64, filter: &str) -> Option<Value> {
    let request = format!(r#"{{"seq":{sequence},"next_by_subj":"{filter}"}}"#);
    let answer = nats.client.request(format!("$JS.API.STREAM.MSG.GET.{}", nats.name), request.into());
    let answer: Value = serde_json::from_slice(&answer.await.expect("an answer").payload).expect("JSON");
    answer.get("message").cloned()
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = text.bytes().filter(|byte| *byte != b'=').flat_map(|byte| {
        let six = ALPHABET.iter().position(|letter| *letter == byte).expect("base64");
        (0..6).rev().map(move |bit| six >> bit & 1)
    });
    let bits: Vec<usize> = bits.collect();
    bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | *bit) as u8).collect()
}

fn three() -> Vec<Message> {
    (0..3)
        .map(|number| Message::new("orders", "order.placed", number.to_string()).with_source("/s"))
        .collect()
}

#[tokio::test]
async fn two_relays_into_one_stream_both_deliver_everything() {
    let nats = nats().await;
    let messages = three();
    for (relay, subject) in [("main", "shop"), ("audit", "audit"), ("copy", "shop")] {
        let publisher = nats.publisher().with_relay(relay);
        let batch: Vec<Outgoing> = messages.iter().map(|message| outgoing(&nats, subject, message)).collect();
        assert_eq!(publish_all(&publisher, &batch).await, [Ok(()), Ok(()), Ok(())]);
    }
    assert_eq!(payloads(&nats, "audit").await, ["0", "1", "2"]);
    assert_eq!(payloads(&nats, "shop").await, ["0", "1", "2", "0", "1", "2"]);
}

#[tokio::test]
async fn two_publishers_without_a_name_lose_nothing_that_goes_to_another_subject() {
    let nats = nats().await;
    let messages = three();
    for subject in ["shop", "audit", "shop"] {
        let batch: Vec<Outgoing> = messages.iter().map(|message| outgoing(&nats, subject, message)).collect();
        assert_eq!(publish_all(&nats.publisher(), &batch).await, [Ok(()), Ok(()), Ok(())]);
    }
    assert_eq!(payloads(&nats, "shop").await, ["0", "1", "2"]);
    assert_eq!(payloads(&nats, "audit").await, ["0", "1", "2"]);
}

#[tokio::test]
async fn one_uuid_under_two_sources_is_two_messages() {
    let nats = nats().await;
    let first = Message::new("orders", "order.placed", "first").with_source("/s");
    let second = Message::new("orders", "order.placed", "second").with_source("/t").with_id(first.id);
    let batch = [outgoing(&nats, "shop", &first), outgoing(&nats, "shop", &second)];
    assert_eq!(publish_all(&nats.publisher(), &batch).await, [Ok(()), Ok(())]);
    assert_eq!(payloads(&nats, "shop").await, ["first", "second"]);
}

#[tokio::test]
async fn a_message_that_is_called_a_copy_of_another_is_published_once_under_another_id() {
    let nats = nats().await;
    let first = Message::new("orders", "order.placed", "first").with_source("/s");
    let second = Message::new("orders", "order.placed", "second").with_source("/s").with_id(first.id);
    for message in [&first, &second, &second, &first] {
        let batch = [outgoing(&nats, "shop", message)];
        assert_eq!(publish_all(&nats.publisher(), &batch).await, [Ok(())]);
    }
    assert_eq!(payloads(&nats, "shop").await, ["first", "second"]);
}

#[tokio::test]
async fn a_copy_of_what_was_consumed_meanwhile_is_confirmed_and_not_stored_again() {
    let nats = nats().await;
    let batch = [outgoing(&nats, "shop", &three()[0])];
    assert_eq!(publish_all(&nats.publisher(), &batch).await, [Ok(())]);
    // As a work queue does when it is acknowledged.
    let delete = format!("$JS.API.STREAM.MSG.DELETE.{}", nats.name);
    nats.client.request(delete, r#"{"seq":1}"#.into()).await.expect("the server deletes it");
    assert_eq!(publish_all(&nats.publisher(), &batch).await, [Ok(())]);
    assert!(payloads(&nats, "shop").await.is_empty());
}

#[tokio::test]
async fn a_stream_that_changes_subjects_stores_a_copy_once() {
    let nats = nats().await;
    let name = format!("{}-moved", nats.name);
    let config = format!(
        r#"{{"name":"{name}","subjects":["{name}.in"],"storage":"file","num_replicas":1,
            "subject_transform":{{"src":"{name}.in","dest":"{name}.out"}}}}"#
    );
    nats.client.request(format!("$JS.API.STREAM.CREATE.{name}"), config.into()).await.expect("it is made");
    let outgoing =
        Outgoing { destination: format!("{name}.in").into(), message: Arc::new(three().remove(0)) };
    for _ in 0..2 {
        let publisher = NatsPublisher::new(nats.connection.clone());
        assert_eq!(publish_all(&publisher, std::slice::from_ref(&outgoing)).await, [Ok(())]);
    }
    let info =
        nats.client.request(format!("$JS.API.STREAM.INFO.{name}"), "".into()).await.expect("an answer");
    let info: Value = serde_json::from_slice(&info.payload).expect("JSON");
    assert_eq!(info["state"]["messages"], 1);
}

#[tokio::test]
async fn the_longest_message_is_compared_whole() {
    let nats = nats().await;
    let long = |last: u8| {
        let mut payload = vec![b'x'; message::limits::PAYLOAD_BYTES];
        payload.push(last);
        payload.remove(0);
        Message::new("orders", "order.placed", payload).with_source("/s")
    };
    let first = long(b'1');
    let second = long(b'2').with_id(first.id).with_occurred_at(first.occurred_at);
    for message in [&first, &second, &first, &second] {
        let batch = [outgoing(&nats, "shop", message)];
        assert_eq!(publish_all(&nats.publisher(), &batch).await, [Ok(())]);
    }
    assert_eq!(payloads(&nats, "shop").await.len(), 2);
}
