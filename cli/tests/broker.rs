//! Brokers that are down, that do not let the relay in, and that do; and two relays into one stream.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::process::{Child, Command, Stdio};

use common::{MARKER, outbox, run, until};
use message::Message;
use tests::Database;

/// A relay that is ended with the test, and its log in a file.
struct Relay {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Relay {
    fn start(database: &Database, broker: &str, arguments: &[&str]) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let environment = [("DATABASE_URL", database.url()), ("OUTBOX_BROKER", broker)];
        let mut command = outbox(&[&["relay"], arguments].concat(), &environment);
        let stderr = log.reopen().unwrap();
        Relay { child: command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap(), log }
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.log.path()).unwrap();
        assert!(!log.contains(MARKER), "a secret was printed: {log}");
        log
    }

    /// The lines that hold all of these words.
    fn lines(&self, words: &[&str]) -> usize {
        self.log().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    fn until_logged(&self, words: &[&str]) {
        until(&format!("{words:?} in the log"), || self.lines(words) > 0);
    }

    fn stop(mut self) {
        let sent = Command::new("kill").args(["-s", "TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        until("the relay ends", || self.child.try_wait().unwrap().is_some());
    }
}

async fn enqueue(database: &Database, count: usize) {
    let messages: Vec<Message> =
        (0..count).map(|n| Message::new("orders", "order.placed", n.to_string())).collect();
    let mut tx = database.pool().begin().await.unwrap();
    outbox::enqueue_all(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();
}

/// How many messages the stream has at each of its subjects.
async fn stored(client: &brokers::nats::Client, stream: &str) -> serde_json::Value {
    let request = r#"{"subjects_filter":">"}"#.into();
    let answer = client.request(format!("$JS.API.STREAM.INFO.{stream}"), request).await.unwrap();
    let info: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    info["state"]["subjects"].clone()
}

async fn until_stored(server: &servers::Nats, stream: &str, expected: serde_json::Value) {
    let client = brokers::nats::connect(&server.url()).await.unwrap().client();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let found = stored(&client, stream).await;
        if found == expected {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{found}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_relays_into_one_stream_publish_everything_at_both_subjects() {
    let database = Database::new("cli_broker_two").await;
    let server = servers::Nats::start_own().unwrap();
    enqueue(&database, 3).await;
    let stream = ["--nats-stream", "ALL", "--nats-subjects", "shop.>,audit.>"];
    let main = [&["--relay", "main", "--route", "orders=shop.orders"], &stream[..]].concat();
    let main = Relay::start(&database, &server.url(), &main);
    main.until_logged(&["relay main"]);
    until_stored(&server, "ALL", serde_json::json!({ "shop.orders": 3 })).await;
    let audit = [&["--relay", "audit", "--route", "orders=audit.orders"], &stream[..]].concat();
    let audit = Relay::start(&database, &server.url(), &audit);
    until_stored(&server, "ALL", serde_json::json!({ "shop.orders": 3, "audit.orders": 3 })).await;
    main.stop();
    audit.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_that_is_down_is_named_at_once_and_seldom_and_waited_for() {
    let database = Database::new("cli_broker_down").await;
    let mut server = servers::Nats::start_own().unwrap();
    let (url, address) = (server.url(), server.url().replace("nats://", ""));
    server.stop().unwrap();
    enqueue(&database, 1).await;
    let secret = url.replace("nats://", &format!("nats://relay:{MARKER}@"));
    let stream =
        ["--nats-stream", "ALL", "--nats-subjects", "orders", "--log", "info,brokers=debug,async_nats=off"];
    let relay = Relay::start(&database, &secret, &stream);
    relay.until_logged(&["nats cannot be reached", &address, "refused"]);
    until("ten failed tries", || relay.lines(&["DEBUG", "nats client error"]) >= 10);
    let told = relay.lines(&["WARN", "brokers::nats"]);
    assert!((1..5).contains(&told), "{}", relay.log());
    tokio::task::block_in_place(|| server.restart()).unwrap();
    until_stored(&server, "ALL", serde_json::json!({ "orders": 1 })).await;
    relay.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_database_that_is_down_is_named_at_once() {
    let database = Database::new("cli_broker_gone").await;
    // A port that was free a moment ago.
    let port = servers::free_port().unwrap();
    let relay = Relay::start(&database, &format!("postgres://app:{MARKER}@127.0.0.1:{port}/broker"), &[]);
    relay.until_logged(&["cannot be reached", &format!("127.0.0.1:{port}"), "refused"]);
    relay.stop();
}

#[tokio::test]
async fn a_broker_database_that_is_missing_ends_the_start() {
    let database = Database::new("cli_broker_missing").await;
    let (server, _) = database.url().rsplit_once('/').unwrap();
    let environment =
        [("DATABASE_URL", database.url()), ("OUTBOX_BROKER", &format!("{server}/no_such_broker"))];
    run(&["relay"], &environment).failed(3, &["broker", "no_such_broker", "3D000"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_that_does_not_let_the_relay_in_ends_the_start() {
    let database = Database::new("cli_broker_refused").await;
    let server =
        servers::Nats::start_configured(r#"authorization { user: "relay", password: "p/4" }"#).unwrap();
    let address = server.url().replace("nats://", "");
    let relay = |credentials: &str| {
        let broker = format!("nats://{credentials}@{address}");
        run(&["relay"], &[("DATABASE_URL", database.url()), ("OUTBOX_BROKER", &broker)])
    };
    relay(&format!("relay:{MARKER}")).failed(3, &["broker nats://", &address, "authorization"]);
    relay(MARKER).failed(3, &[&address, "authorization"]);
    let relay = Relay::start(&database, &format!("nats://relay:p%2F4@{address}"), &[]);
    relay.until_logged(&["nats connected"]);
    relay.stop();
}

/// From the documentation of NATS.
const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
const PUBLIC: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_hold_what_lets_the_relay_in() {
    let database = Database::new("cli_broker_nkey").await;
    let server =
        servers::Nats::start_configured(&format!("authorization {{ users: [ {{ nkey: {PUBLIC} }} ] }}"))
            .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let seed = file("seed.nk", &format!("{SEED}\n"));
    let relay = Relay::start(&database, &server.url(), &["--nats-nkey", &seed]);
    relay.until_logged(&["nats connected"]);
    relay.stop();

    let url = server.url();
    let environment = [("DATABASE_URL", database.url()), ("OUTBOX_BROKER", &*url)];
    let fails = |flags: &[&str], code: i32, words: &[&str]| {
        let ran = run(&[&["relay"], flags].concat(), &environment);
        ran.failed(code, words);
        assert!(!ran.err.contains(SEED), "{ran:?}");
    };
    fails(&["--nats-nkey", SEED], 2, &["--nats-nkey: must be a file"]);
    fails(&["--nats-nkey", "/nowhere/seed.nk"], 2, &["/nowhere/seed.nk: no such file"]);
    fails(&["--nats-nkey", &seed, "--nats-credentials", &seed], 2, &["nats.credentials and nats.nkey"]);
    fails(&["--nats-credentials", &seed], 2, &["not the text of a credentials file"]);
    fails(&["--nats-ca", "/nowhere/ca.pem"], 2, &["/nowhere/ca.pem", "cannot be read"]);
    fails(&["--nats-key", &seed], 2, &["nats.certificate and nats.key"]);
    fails(&[], 3, &["authorization"]);
}
