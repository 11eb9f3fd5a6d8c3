//! `outbox replay`: what it says, what it does, and what a kill in the middle costs.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::HashSet;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Instant;

use common::{outbox, run, until};
use message::{Message, Subscriber};
use tests::Database;

/// A command that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// A lease of a second, so that a test need not wait for ten.
    fn start(database: &Database, arguments: &[&str]) -> Self {
        let arguments = [&["replay"], arguments].concat();
        let environment = [("DATABASE_URL", database.url()), ("OUTBOX_LEASE", "1s")];
        Running(outbox(&arguments, &environment).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn enqueue(database: &Database, count: usize) -> Vec<Message> {
    let message =
        |n: usize| Message::new("orders", "order.placed", n.to_string()).with_key(format!("k{}", n % 7));
    let messages: Vec<Message> = (1..=count).map(message).collect();
    let mut tx = database.pool().begin().await.unwrap();
    outbox::enqueue_all(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();
    messages
}

/// The whole lines of a file, which may be being written.
fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(line: &serde_json::Value) -> usize {
    line["data"].as_u64().unwrap() as usize
}

#[tokio::test]
async fn it_says_what_it_would_publish_and_publishes_it_when_told_to() {
    let database = Database::new("cli_replay").await;
    let environment = [("DATABASE_URL", database.url())];
    let messages = enqueue(&database, 20).await;
    let directory = tempfile::tempdir().unwrap();
    let stream = directory.path().join("stream.jsonl");
    let broker = format!("file:{}", stream.display());
    let replay = |more: &[&str]| run(&[&["replay", "r"], more].concat(), &environment);

    replay(&[]).failed(2, &["it has not begun", "--all"]);
    replay(&["--all", "--execute"]).failed(2, &["no broker"]);
    replay(&["--all", "--execute", "--broker", &broker, "--destination", "{key}"])
        .failed(2, &["--destination: "]);
    let told = replay(&["--key", "k1", "--broker", &broker, "--output", "json"]).json();
    assert_eq!(
        (&told["messages"], &told["topics"]["orders"], &told["state"]),
        (&3.into(), &3.into(), &"new".into())
    );
    assert_eq!((&told["first"]["position"], &told["last"]["position"]), (&1.into(), &15.into()));
    assert_eq!(told["first"]["id"].as_str(), Some(&*messages[0].id.to_string()));
    let text = replay(&["--key", "k1"]);
    assert!(
        text.succeeded().contains("would publish 3 messages") && text.out.contains("--execute"),
        "{text:?}"
    );
    assert_eq!(run(&["replays"], &environment).succeeded(), "nothing was replayed here (outbox replay)\n");
    assert_eq!(lines(&stream).len(), 0);

    let done = replay(&[
        "--key",
        "k1",
        "--broker",
        &broker,
        "--execute",
        "--by",
        "ada",
        "--reason",
        "lost",
        "--log",
        "error",
    ]);
    assert_eq!(done.succeeded(), "replay r: finished, 3 published, 0 given up\n");
    let published = lines(&stream);
    assert_eq!(published.iter().map(number).collect::<Vec<_>>(), [1, 8, 15]);
    assert!(published.iter().all(|line| line["headers"] == "{\"outbox-replay\":\"r\"}"), "{published:?}");
    assert!(replay(&[]).succeeded().contains("is finished: 3 messages published"));
    // Run once more it publishes nothing, and says so.
    let again = ["--broker", &broker, "--execute", "--log", "error"];
    assert!(replay(&again).succeeded().contains("was finished before, with 3 published"));
    let again = replay(&[&again[..], &["--output", "json"]].concat()).json();
    assert_eq!((&again["finished"], &again["already"]), (&true.into(), &true.into()));
    assert_eq!(lines(&stream).len(), 3);
    replay(&["--key", "k2", "--broker", &broker, "--execute", "--log", "error"])
        .failed(1, &["another filter"]);
    let list = run(&["replays", "--output", "json"], &environment).json();
    assert_eq!(
        (&list[0]["replay"], &list[0]["state"], &list[0]["published"]),
        (&"r".into(), &"finished".into(), &3.into())
    );
    let audit = run(&["audit", "--output", "json"], &environment).json();
    let entry = &audit[0];
    assert_eq!(
        (&entry["action"], &entry["replay"], &entry["who"]),
        (&"replay".into(), &"r".into(), &"ada".into())
    );
    assert_eq!((audit.as_array().unwrap().len(), &entry["reason"]), (1, &"lost".into()));
}

#[tokio::test]
async fn what_is_killed_half_way_goes_on_and_repeats_only_what_was_not_recorded() {
    const COUNT: usize = 3000;
    let database = Database::new("cli_replay_killed").await;
    enqueue(&database, COUNT).await;
    let directory = tempfile::tempdir().unwrap();
    let stream = directory.path().join("stream.jsonl");
    let broker = format!("file:{}", stream.display());
    let first =
        Running::start(&database, &["r", "--all", "--broker", &broker, "--rate", "500/s", "--execute"]);
    until("half of it is published", || lines(&stream).len() > COUNT / 2);
    first.kill();
    // A line that was cut is no message; the file's publisher completes it before it goes on.
    let on_wire = lines(&stream).len();
    let (recorded, after): (i64, i64) =
        sqlx::query_as("select published, after from outbox.replay where state = 'running'")
            .fetch_one(database.pool())
            .await
            .unwrap();
    assert!(recorded > 0 && recorded == after && on_wire < COUNT, "{recorded}, {after}, {on_wire}");
    // A second's worth, what a batch holds, and what a busy machine is late by.
    let unrecorded = on_wire - recorded as usize;
    assert!(unrecorded <= 1_500, "{unrecorded} were published and not recorded");

    let environment = [("DATABASE_URL", database.url()), ("OUTBOX_LEASE", "1s")];
    let again = ["replay", "r", "--broker", &broker, "--execute", "--log", "error"];
    assert_eq!(run(&again, &environment).succeeded(), "replay r: finished, 3000 published, 0 given up\n");
    let published: Vec<usize> = lines(&stream).iter().map(number).collect();
    let mut seen = HashSet::new();
    let first: Vec<usize> = published.iter().copied().filter(|number| seen.insert(*number)).collect();
    assert_eq!(seen.len(), COUNT, "none is lost");
    for key in 0..7 {
        assert!(first.iter().filter(|number| *number % 7 == key).is_sorted(), "key {key} is in order");
    }
    let repeated = published.len() - COUNT;
    assert!(repeated <= unrecorded + 1, "{repeated} repeated, {unrecorded} were not recorded");
}

#[tokio::test]
async fn a_second_process_is_refused_while_the_first_lives_and_a_signal_stops_that_politely() {
    let database = Database::new("cli_replay_two").await;
    enqueue(&database, 400).await;
    let environment = [("DATABASE_URL", database.url()), ("OUTBOX_LEASE", "1s")];
    let directory = tempfile::tempdir().unwrap();
    let stream = directory.path().join("stream.jsonl");
    let broker = format!("file:{}", stream.display());
    let mut first =
        Running::start(&database, &["r", "--all", "--broker", &broker, "--rate", "50/s", "--execute"]);
    until("it works", || lines(&stream).len() > 5);
    let second = ["replay", "r", "--broker", "memory:", "--execute", "--log", "error"];
    run(&second, &environment).failed(1, &["another process works at the replay"]);
    let working = run(&["replays", "--output", "json"], &environment).json();
    assert_eq!((&working[0]["working"], &working[0]["state"]), (&true.into(), &"running".into()));

    let signal = std::process::Command::new("kill").args(["-s", "TERM", &first.0.id().to_string()]).status();
    assert!(signal.unwrap().success());
    let mut code = None;
    until("it stops", || {
        code = first.0.try_wait().unwrap();
        code.is_some()
    });
    assert_eq!(code.unwrap().code(), Some(1), "it is not finished");
    let stopped = run(&["replays"], &environment);
    assert!(stopped.succeeded().contains("r       stopped"), "{stopped:?}");
    // Its lease is given back, and nothing is repeated.
    let begun = Instant::now();
    let again = ["replay", "r", "--broker", &broker, "--execute", "--log", "error"];
    run(&again, &environment).succeeded();
    assert_eq!(lines(&stream).iter().map(number).collect::<Vec<_>>(), (1..=400).collect::<Vec<_>>());
    assert!(begun.elapsed().as_secs() < 30);
}

#[tokio::test]
async fn a_rejected_message_is_named_and_given_up_only_when_told_to() {
    let database = Database::new("cli_replay_rejected").await;
    let broker = Database::new("cli_replay_rejected_to").await;
    let messages = enqueue(&database, 3).await;
    let at = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(at.path(), broker.url()).unwrap();
    let to = format!("@{}", at.path().display());
    let environment = [("DATABASE_URL", database.url())];
    // No topic of a log has a blank: the broker rejects it.
    let replay =
        ["replay", "r", "--all", "--destination", "no topic", "--broker", &to, "--execute", "--log", "error"];
    let words = ["the message at position 1", &messages[0].id.to_string(), "--skip-rejected"];
    run(&replay, &environment).failed(1, &words);
    let stopped = run(&["replays"], &environment);
    assert!(stopped.succeeded().contains("r: message rejected: "), "{stopped:?}");
    let skipped = run(&[&replay[..], &["--skip-rejected"]].concat(), &environment);
    assert_eq!(skipped.succeeded(), "replay r: finished, 0 published, 3 given up\n");
    let audit = run(&["audit", "--output", "json"], &environment).json();
    assert_eq!(
        audit.as_array().unwrap().iter().filter(|entry| entry["action"] == "skip").count(),
        3,
        "{audit}"
    );
}

#[tokio::test]
async fn a_replay_that_nobody_finishes_is_cancelled() {
    let database = Database::new("cli_replay_cancel").await;
    enqueue(&database, 200).await;
    let environment = [("DATABASE_URL", database.url())];
    let mut running =
        Running::start(&database, &["r", "--all", "--broker", "memory:", "--rate", "20/s", "--execute"]);
    until("it works", || run(&["replays"], &environment).succeeded().contains("running"));
    // It says what it would give up, and does nothing until it is told to, with a reason.
    let told = run(&["replays", "cancel", "r"], &environment);
    assert!(told.succeeded().contains("unpublished, for good\nNothing was changed"), "{told:?}");
    assert_eq!(run(&["replays", "cancel", "r", "--execute"], &environment).code, Some(2));
    assert!(run(&["replays"], &environment).succeeded().contains("running"));
    let cancel = ["replays", "cancel", "r", "--execute", "--by", "ada", "--reason", "done"];
    let cancelled = run(&cancel, &environment);
    assert!(cancelled.succeeded().starts_with("replay r is cancelled, with "), "{cancelled:?}");
    assert_eq!(run(&cancel, &environment).succeeded(), "replay r is cancelled already\n");
    run(&["replays", "cancel", "nobody"], &environment).failed(1, &["no such replay"]);
    until("it ends", || running.0.try_wait().unwrap().is_some());
    run(&["replay", "r", "--broker", "memory:", "--execute", "--log", "error"], &environment)
        .failed(1, &["was cancelled: take another name"]);
}

#[tokio::test]
async fn a_log_is_not_replayed_into_itself_and_nothing_is_begun() {
    let database = Database::new("cli_replay_itself").await;
    enqueue(&database, 3).await;
    let environment = [("DATABASE_URL", database.url())];
    run(
        &["replay", "r", "--all", "--broker", "env:DATABASE_URL", "--execute", "--log", "error"],
        &environment,
    )
    .failed(1, &["the broker is the log that is read"]);
    assert_eq!(run(&["replays"], &environment).succeeded(), "nothing was replayed here (outbox replay)\n");
    let messages = "select count(*) from outbox.message";
    assert_eq!(sqlx::query_scalar::<_, i64>(messages).fetch_one(database.pool()).await.unwrap(), 3);
}

#[tokio::test]
async fn a_stream_that_still_remembers_the_first_copy_takes_the_replays() {
    let database = Database::new("cli_replay_nats").await;
    let server = servers::Nats::start_own().unwrap();
    let messages = enqueue(&database, 2).await;
    let environment = [("DATABASE_URL", database.url())];
    let client = brokers::nats::connect(&server.url()).await.unwrap();
    let policy = brokers::nats::StreamPolicy::create("SHOP", ["shop.>"]);
    let publisher = brokers::nats::NatsPublisher::new(client.clone()).with_stream(policy);
    let batch: Vec<_> = messages
        .iter()
        .map(|message| message::Outgoing {
            destination: "shop.orders".into(),
            message: message.clone().into(),
        })
        .collect();
    // The client connects by and by.
    while let Err(error) = message::Publisher::check(&publisher).await {
        assert!(matches!(error, message::PublishError::Unavailable(_)), "{error}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for result in message::publish_all(&publisher, &batch).await {
        result.unwrap();
    }
    let url = server.url();
    let replay =
        ["replay", "r", "--all", "--broker", &url, "--nats-stream", "SHOP", "--destination", "shop.{topic}"];
    run(&[&replay[..], &["--execute", "--log", "error"]].concat(), &environment).succeeded();
    let mut subscriber =
        brokers::nats::NatsSubscriber::new(client, "SHOP", "test").with_subjects(["shop.orders"]);
    let mut marks = Vec::new();
    let begun = Instant::now();
    while marks.len() < 4 {
        assert!(begun.elapsed().as_secs() < 30, "{marks:?}");
        let received = tokio::time::timeout(std::time::Duration::from_secs(10), subscriber.receive(10)).await;
        for delivery in received.unwrap().unwrap() {
            let message = delivery.received.as_ref().unwrap();
            marks.push((message.id.to_string(), message.headers.replay().map(str::to_owned)));
            delivery.acknowledge().await.unwrap();
        }
    }
    let expected = |replay: Option<&str>| {
        messages
            .iter()
            .map(move |message| (message.id.to_string(), replay.map(str::to_owned)))
            .collect::<Vec<_>>()
    };
    assert_eq!(marks, [expected(None), expected(Some("r"))].concat());
}

#[test]
fn what_is_asked_for_must_mean_something() {
    let environment = [("DATABASE_URL", "postgres://app@127.0.0.1:1/orders")];
    for (arguments, words) in [
        (&["replay", "No Name", "--all"][..], "the replay's name"),
        (
            &["replay", "r", "--from-position", "9", "--to-position", "8"],
            "--from-position (9) must be at most",
        ),
        (
            &["replay", "r", "--since", "2026-01-02T00:00:00Z", "--until", "2026-01-01T00:00:00Z"],
            "--since must be before",
        ),
    ] {
        run(arguments, &environment).failed(2, &[words]);
    }
    for (arguments, words) in [
        (&["replay", "r", "--since", "yesterday"][..], "--since"),
        (&["replay", "r", "--topic", "a..b"], "--topic"),
        (&["replay", "r", "--id", "7"], "--id"),
        (&["replay", "r", "--all", "--rate", "0/s"], "--rate"),
        (&["replay", "r", "--all", "--key", "a"], "--all"),
    ] {
        let ran = run(arguments, &environment);
        assert!(ran.code == Some(2) && ran.err.contains(words), "{ran:?}");
    }
}
