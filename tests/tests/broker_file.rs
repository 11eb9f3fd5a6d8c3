//! The file broker: what is confirmed stands in the file as a CloudEvent a line, whatever happens to the file.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use brokers::file::{FilePublisher, ReadError, read};
use message::{Message, Outgoing, PublishError, Publisher, publish_all};
use tests::conformance::{assert_same, keyed, messages_of_every_shape, publish_in_order};

fn outgoing(messages: &[Message]) -> Vec<Outgoing> {
    let outgoing =
        |message: &Message| Outgoing { destination: "orders".into(), message: Arc::new(message.clone()) };
    messages.iter().map(outgoing).collect()
}

fn messages(path: &Path) -> Vec<Message> {
    read(path).expect("the file opens").collect::<Result<_, _>>().expect("each line is a message")
}

#[tokio::test]
async fn every_confirmed_message_stands_in_the_file_as_it_was_sent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.jsonl");
    let sent = messages_of_every_shape();
    publish_in_order(&FilePublisher::new(&path), "orders", &sent).await;
    let received = messages(&path);
    assert_eq!(received.len(), sent.len());
    received.iter().zip(&sent).for_each(|(received, sent)| assert_same(received, sent));
}

#[tokio::test]
async fn any_json_reader_finds_one_cloud_event_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.jsonl");
    let message = Message::new("orders", "order.placed", r#"{"order":7}"#).with_source("/shop").with_key("7");
    publish_in_order(&FilePublisher::new(&path), "orders", std::slice::from_ref(&message)).await;
    let text = std::fs::read_to_string(&path).unwrap();
    let (line, rest) = text.split_once('\n').expect("a line feed");
    assert_eq!(rest, "");
    let event: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&event["specversion"], &event["type"], &event["data"]["order"]),
        (&"1.0".into(), &"order.placed".into(), &7.into())
    );
    assert_eq!(event["id"], message.id.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_at_the_same_time_never_share_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.jsonl");
    // Two publishers, as two processes would have.
    let publishers = [(); 2].map(|()| Arc::new(FilePublisher::new(&path).without_sync()));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..40 {
        let publisher = publishers[number % 2].clone();
        let payload = vec![b'a'; 20_000];
        let batch = [(); 10].map(|()| Message::new("orders", "k", payload.clone()).with_source("/shop"));
        tasks.spawn(async move { publish_all(&*publisher, &outgoing(&batch)).await });
    }
    let confirmed = tasks.join_all().await.concat().into_iter().filter(Result::is_ok).count();
    assert_eq!((confirmed, messages(&path).len()), (400, 400));
}

#[tokio::test]
async fn a_torn_last_line_spoils_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.jsonl");
    let sent = keyed(2, 1);
    publish_in_order(&FilePublisher::new(&path), "orders", &sent[..1]).await;
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(br#"{"specversion":"1.0","id":"#).unwrap();
    publish_in_order(&FilePublisher::new(&path), "orders", &sent[1..]).await;
    let lines: Vec<_> = read(&path).unwrap().collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0].as_ref().unwrap().id, sent[0].id);
    assert!(matches!(&lines[1], Err(ReadError::Malformed(_))));
    assert_eq!(lines[2].as_ref().unwrap().id, sent[1].id);
}

#[tokio::test]
async fn a_file_that_was_moved_away_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.jsonl");
    let publisher = FilePublisher::new(&path);
    let sent = keyed(2, 1);
    publish_in_order(&publisher, "orders", &sent[..1]).await;
    std::fs::rename(&path, directory.path().join("yesterday.jsonl")).unwrap();
    publish_in_order(&publisher, "orders", &sent[1..]).await;
    assert_eq!(messages(&path)[0].id, sent[1].id);
}

#[tokio::test]
async fn a_missing_directory_is_unavailable_until_it_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("missing").join("events.jsonl");
    let publisher = FilePublisher::new(&path);
    assert!(matches!(publisher.check().await, Err(PublishError::Unavailable(_))));
    let batch = outgoing(&keyed(2, 1));
    let results = publish_all(&publisher, &batch).await;
    assert!(results.iter().all(|result| matches!(result, Err(PublishError::Unavailable(_)))), "{results:?}");
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    assert_eq!(publisher.check().await, Ok(()));
    assert_eq!(publish_all(&publisher, &batch).await, [Ok(()), Ok(())]);
}

#[tokio::test]
async fn a_directory_in_its_place_is_unavailable() {
    let directory = tempfile::tempdir().unwrap();
    let publisher = FilePublisher::new(directory.path());
    assert!(matches!(publisher.check().await, Err(PublishError::Unavailable(_))));
    let results = publish_all(&publisher, &outgoing(&keyed(1, 1))).await;
    assert!(matches!(&results[0], Err(PublishError::Unavailable(_))), "{results:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_is_unavailable() {
    let results = publish_all(&FilePublisher::new("/dev/full"), &outgoing(&keyed(3, 3))).await;
    assert!(results.iter().all(|result| matches!(result, Err(PublishError::Unavailable(_)))), "{results:?}");
}

/// Runs this test's own binary for one test, with that test told to act as the writer.
fn writer(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads", "1"]).env(WRITER, "1");
    command
}

const WRITER: &str = "BROKER_FILE_WRITER";

/// A limit on the file's length, so that a write stops half-way, as on a disk that is full.
#[cfg(target_os = "linux")]
#[test]
fn a_batch_that_does_not_fit_leaves_nothing_in_the_file() {
    if std::env::var_os(WRITER).is_some() {
        let path = std::env::var_os("EVENTS").unwrap();
        let big = Message::new("orders", "k", vec![b'a'; 30_000]).with_source("/shop");
        let small = Message::new("orders", "k", "1").with_source("/shop");
        let publisher = FilePublisher::new(path);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            assert_eq!(publish_all(&publisher, &outgoing(std::slice::from_ref(&small))).await, [Ok(())]);
            let results = publish_all(&publisher, &outgoing(&[small.clone(), big])).await;
            assert!(results.iter().all(|r| matches!(r, Err(PublishError::Unavailable(_)))), "{results:?}");
            assert_eq!(publish_all(&publisher, &outgoing(&[small])).await, [Ok(())]);
        });
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.jsonl");
    let writer = writer("a_batch_that_does_not_fit_leaves_nothing_in_the_file");
    // 16 blocks of 1,024 bytes; without the signal a write past them fails.
    let script = r#"trap '' XFSZ; ulimit -f 16; exec "$0" "$@""#;
    let output = Command::new("bash")
        .args(["-c", script])
        .arg(writer.get_program())
        .args(writer.get_args())
        .env(WRITER, "1")
        .env("EVENTS", &path)
        .output()
        .expect("bash");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(messages(&path).len(), 2);
}

/// Through a pipe whose reader goes away in the middle.
#[test]
fn a_broken_pipe_confirms_what_went_through_and_nothing_else() {
    if std::env::var_os(WRITER).is_some() {
        let publisher = FilePublisher::standard_output();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let batch = outgoing(&keyed(5_000, 1));
            let results = publish_all(&publisher, &batch).await;
            let confirmed = results.iter().take_while(|result| result.is_ok()).count();
            let rest = &results[confirmed..];
            assert!(confirmed > 0 && !rest.is_empty(), "{confirmed}");
            assert!(rest.iter().skip(1).all(|r| matches!(r, Err(PublishError::Unavailable(_)))));
            let again = publish_all(&publisher, &batch[..1]).await;
            assert!(matches!(&again[0], Err(PublishError::Unavailable(_))), "{again:?}");
            // Standard output is gone; the verdict goes elsewhere.
            std::fs::write(std::env::var_os("VERDICT").unwrap(), "held").unwrap();
        });
        std::process::exit(0);
    }
    let directory = tempfile::tempdir().unwrap();
    let verdict = directory.path().join("verdict");
    let mut child = writer("a_broken_pipe_confirms_what_went_through_and_nothing_else")
        .env("VERDICT", &verdict)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with('{') {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut lines, &mut line).unwrap() > 0, "no line came");
    }
    drop(lines);
    child.wait().unwrap();
    assert_eq!(std::fs::read_to_string(&verdict).expect("the writer's verdict"), "held");
}
