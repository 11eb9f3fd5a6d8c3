//! The daemon: it publishes, it stops when asked, and ends at once when asked twice.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{outbox, run, until};
use message::{Message, Subscriber};
use sqlx::Executor;
use tests::Database;

/// A relay that is ended with the test.
struct Relay {
    child: Child,
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Relay {
    fn start(database: &Database, arguments: &[&str]) -> Self {
        let arguments = [&["relay"], arguments].concat();
        let mut command = outbox(&arguments, &[("DATABASE_URL", database.url())]);
        Relay { child: command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap() }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Reads its log until a line holds these words.
    fn until_logged(&mut self, words: &str) {
        let log = BufReader::new(self.child.stderr.as_mut().unwrap());
        assert!(log.lines().any(|line| line.unwrap().contains(words)), "the log ends without {words:?}");
    }

    fn code(&mut self) -> Option<i32> {
        let mut code = None;
        until("the relay ends", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code()
    }
}

#[tokio::test]
async fn a_second_process_with_another_broker_or_other_routes_warns_and_is_named() {
    let database = Database::new("relay_split").await;
    database.pool().execute(sqlx::raw_sql(migrations::roles())).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let broker = |name: &str| format!("file:{}", folder.path().join(name).display());
    let (one, other) = (broker("one"), broker("other"));
    let environment = [("DATABASE_URL", database.url())];
    let split = || run(&["status", "--output", "json"], &environment).json()["relays"][0]["split"].clone();
    let mut first = Relay::start(&database, &["--broker", &one]);
    first.until_logged("shards acquired");
    let mut same = Relay::start(&database, &["--broker", &one]);
    same.until_logged("shards acquired");
    assert_eq!(split(), serde_json::json!([]));
    same.signal("TERM");
    assert_eq!(same.code(), Some(0));

    for (arguments, says) in [
        (&["--broker", &*other][..], other.clone()),
        (&["--broker", &*one, "--route", "orders=x.{topic}"], format!("{one}, routes orders=x.{{topic}}")),
    ] {
        let mut second = Relay::start(&database, arguments);
        second.until_logged("another process of this relay publishes elsewhere");
        let found = split();
        let named: Vec<&str> = found.as_array().unwrap().iter().filter_map(|it| it.as_str()).collect();
        assert!(named.len() == 2 && named.iter().any(|it| it.ends_with(&says)), "{found}");
        let doctor = run(&["doctor"], &environment);
        assert!(doctor.code == Some(5) && doctor.out.contains("unsafe  split_relay"), "{doctor:?}");
        assert!(run(&["status"], &environment).out.contains("differ in what they publish to"));
        second.signal("TERM");
        assert_eq!(second.code(), Some(0));
        assert_eq!(split(), serde_json::json!([]));
    }
}

async fn enqueue(database: &Database, count: usize) -> Vec<String> {
    let messages: Vec<Message> =
        (0..count).map(|n| Message::new("orders", "order.placed", n.to_string())).collect();
    let mut tx = database.pool().begin().await.unwrap();
    outbox::enqueue_all(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();
    messages.iter().map(|message| message.id.to_string()).collect()
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// The most memory that a process has had, in MiB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_backlog_of_long_messages_does_not_fill_the_memory() {
    let database = Database::new("cli_long").await;
    let directory = tempfile::tempdir().unwrap();
    let stream = directory.path().join("stream.jsonl");
    const LONG: u64 = 250;
    // All of them are 225 MB; short ones first, from which nothing can be told of what follows.
    enqueue(&database, 2000).await;
    let long = r#"insert into outbox.message (id, correlation, source, topic, kind, payload)
        select outbox.uuid_v7(), outbox.uuid_v7(), '/s', 't', 'k', convert_to('"' || repeat('x', 900000) || '"', 'UTF8')
        from generate_series(1, $1)"#;
    sqlx::query(long).bind(LONG as i64).execute(database.pool()).await.unwrap();
    let broker = format!("file:{}", stream.display());
    let mut relay = Relay::start(&database, &["--broker", &broker, "--max-bytes", "16000000"]);
    until("everything is published", || {
        std::fs::metadata(&stream).is_ok_and(|file| file.len() > LONG * 900_000)
    });
    let peak = peak(relay.child.id());
    relay.signal("TERM");
    assert_eq!(relay.code(), Some(0));
    let lines = lines(&stream).len() as u64;
    assert_eq!(lines, 2000 + LONG);
    assert!(peak < 140, "the relay needed {peak} MiB");
}

#[tokio::test]
async fn what_is_enqueued_is_published_and_a_signal_stops_politely() {
    let database = Database::new("cli_relay").await;
    let directory = tempfile::tempdir().unwrap();
    let stream = directory.path().join("stream.jsonl");
    let broker = format!("file:{}", stream.display());
    let mut ids = enqueue(&database, 20).await;
    for signal in ["TERM", "INT"] {
        let mut relay = Relay::start(&database, &["--broker", &broker]);
        ids.extend(enqueue(&database, 5).await);
        until("everything is published", || lines(&stream).len() >= ids.len());
        relay.signal(signal);
        assert_eq!(relay.code(), Some(0), "{signal}");
    }
    // A polite stop records what it has done: the second relay repeated nothing.
    let published: Vec<String> = lines(&stream)
        .iter()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let mut sorted = (published.clone(), ids.clone());
    sorted.0.sort();
    sorted.1.sort();
    assert_eq!(sorted.0, sorted.1);
}

#[tokio::test]
async fn standard_output_is_data_and_the_log_is_beside_it() {
    let database = Database::new("cli_relay_stdout").await;
    enqueue(&database, 3).await;
    let mut relay = Relay::start(&database, &["--broker", "file:-", "--log-format", "json"]);
    let mut out = BufReader::new(relay.child.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        let line: serde_json::Value = serde_json::from_str(&out.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["type"], "order.placed");
    }
    relay.signal("TERM");
    assert_eq!((relay.code(), out.next().is_none()), (Some(0), true));
    let log = BufReader::new(relay.child.stderr.take().unwrap());
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap();
    }
}

#[tokio::test]
async fn a_relay_whose_reader_has_gone_ends_by_itself() {
    let database = Database::new("cli_relay_head").await;
    enqueue(&database, 1).await;
    let mut relay = Relay::start(&database, &["--broker", "file:-"]);
    let mut out = BufReader::new(relay.child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.contains("order.placed"), "{line}");
    drop(out);
    enqueue(&database, 1).await;
    assert_eq!(relay.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_a_relay_that_hangs() {
    let database = Database::new("cli_relay_hangs").await;
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // More than a pipe holds: once its first bytes arrive here, the rest is stuck on the wire.
    let mut reader = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let big = Message::new("orders", "order.placed", vec![b'x'; 900_000]);
    let mut tx = database.pool().begin().await.unwrap();
    outbox::enqueue_all(&mut tx, &[big]).await.unwrap();
    tx.commit().await.unwrap();
    let mut relay = Relay::start(&database, &["--broker", &format!("file:{}", pipe.display())]);
    reader.read_exact(&mut [0; 100]).unwrap();
    relay.signal("TERM");
    relay.until_logged("stopping");
    relay.signal("TERM");
    assert_eq!(relay.code(), Some(128 + 15));
}

#[tokio::test]
async fn routes_and_stream_of_the_configuration_reach_nats() {
    let database = Database::new("cli_relay_nats").await;
    let server = servers::Nats::start_own().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("relay.toml");
    let toml = format!(
        "broker = {:?}\n[nats]\nstream = \"SHOP\"\nsubjects = \"shop.>\"\n[[route]]\ntopic = \">\"\ndestination = \"shop.{{topic}}\"",
        server.url()
    );
    std::fs::write(&config, toml).unwrap();
    let ids = enqueue(&database, 1).await;
    let mut relay = Relay::start(&database, &["--config", config.to_str().unwrap()]);
    // Once a line is logged the stream may still be missing: the subscriber asks until it is there.
    let client = brokers::nats::connect(&server.url()).await.unwrap();
    let mut subscriber =
        brokers::nats::NatsSubscriber::new(client, "SHOP", "test").with_subjects(["shop.orders"]);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let received = loop {
        match subscriber.receive(1).await {
            Ok(mut deliveries) => break deliveries.remove(0).received.unwrap(),
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!(received.id.to_string(), ids[0]);
    relay.signal("TERM");
    assert_eq!(relay.code(), Some(0));
}

#[tokio::test]
async fn a_broker_database_takes_what_is_published() {
    let database = Database::new("cli_relay_from").await;
    let broker = Database::new("cli_relay_to").await;
    let ids = enqueue(&database, 3).await;
    let at = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(at.path(), broker.url()).unwrap();
    let from = format!("@{}", at.path().display());
    let mut relay = Relay::start(&database, &["--broker", &from, "--route", ">=shop.{topic}"]);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let arrived = loop {
        let sql = "select id::text from outbox.message where topic = 'shop.orders' order by position";
        let arrived: Vec<String> = sqlx::query_scalar(sql).fetch_all(broker.pool()).await.unwrap();
        if arrived.len() == ids.len() {
            break arrived;
        }
        assert!(std::time::Instant::now() < deadline, "{arrived:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    // Messages without a key have no order.
    assert!(ids.iter().all(|id| arrived.contains(id)));
    relay.signal("TERM");
    assert_eq!(relay.code(), Some(0));
}

#[tokio::test]
async fn a_relay_begins_where_flag_variable_or_file_say() {
    let database = Database::new("cli_relay_start").await;
    let first = enqueue(&database, 3).await;
    let moment: String = sqlx::query_scalar(
        "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    )
    .fetch_one(database.pool())
    .await
    .unwrap();
    let second = enqueue(&database, 2).await;
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("relay.toml");
    std::fs::write(&config, "start = \"position:3\"").unwrap();
    for (name, arguments, environment, expected) in [
        (
            "flag",
            ["--start", "position:2"].as_slice(),
            ("OUTBOX_LOG", "info"),
            [&first[1..], &second].concat(),
        ),
        ("variable", &[], ("OUTBOX_START", &*moment), second.clone()),
        (
            "file",
            &["--config", config.to_str().unwrap()],
            ("OUTBOX_LOG", "info"),
            [&first[2..], &second].concat(),
        ),
    ] {
        let stream = directory.path().join(name);
        let broker = format!("file:{}", stream.display());
        let arguments = [&["relay", "--relay", name, "--broker", &broker], arguments].concat();
        let environment = [("DATABASE_URL", database.url()), environment];
        let child = outbox(&arguments, &environment).stderr(Stdio::null()).spawn().unwrap();
        let mut relay = Relay { child };
        until("published", || lines(&stream).len() >= expected.len());
        relay.signal("TERM");
        assert_eq!(relay.code(), Some(0));
        let published = lines(&stream);
        assert!(published.len() == expected.len(), "{name}: {published:?}");
        assert!(
            expected.iter().all(|id| published.iter().any(|line| line.contains(id))),
            "{name}: {published:?}"
        );
    }
    let ahead =
        ["relay", "--relay", "ahead", "--broker", "memory:", "--log", "error", "--start", "position:99"];
    run(&ahead, &[("DATABASE_URL", database.url())]).failed(1, &["beyond the end of the log"]);
}

#[tokio::test]
async fn a_policy_of_the_configuration_gives_up_what_the_broker_rejects() {
    let database = Database::new("cli_relay_policy").await;
    let broker = Database::new("cli_relay_policy_to").await;
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("relay.toml");
    // No topic of a log has a blank: the broker rejects it.
    let toml = "[retry]\nmax_attempts = 1\n[[route]]\ntopic = \"metrics\"\ndestination = \"no topic\"\n[[policy]]\ntopic = \"metrics\"\npolicy = \"skip\"";
    std::fs::write(&config, toml).unwrap();
    let mut tx = database.pool().begin().await.unwrap();
    let messages =
        [Message::new("metrics", "k", "{}").with_key("a"), Message::new("orders", "k", "{}").with_key("a")];
    outbox::enqueue_all(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();
    let at = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(at.path(), broker.url()).unwrap();
    let from = format!("@{}", at.path().display());
    let mut relay = Relay::start(&database, &["--config", config.to_str().unwrap(), "--broker", &from]);
    let environment = [("DATABASE_URL", database.url())];
    until("written down", || run(&["audit"], &environment).succeeded().contains("relay default (role"));
    until("drained", || run(&["parked", "--all"], &environment).succeeded() == "nothing is held back\n");
    relay.signal("TERM");
    assert_eq!(relay.code(), Some(0));
    let audit = run(&["audit", "--output", "json"], &environment).json();
    assert_eq!(audit[0]["message_id"].as_str(), Some(&*messages[0].id.to_string()), "{audit}");
    let arrived: Vec<String> =
        sqlx::query_scalar("select topic from outbox.message").fetch_all(broker.pool()).await.unwrap();
    assert_eq!(arrived, ["orders"]);
}

#[tokio::test]
async fn a_relay_whose_routes_and_broker_disagree_is_refused() {
    let database = Database::new("cli_relay_refused").await;
    let environment = [("DATABASE_URL", database.url())];
    let stream = ["relay", "--broker", "memory:", "--nats-stream", "SHOP"];
    run(&stream, &environment).failed(2, &["nats.stream is given, and the broker is not NATS"]);
    let retired = "insert into outbox.relay (name, state) values ('old', 'retired')";
    sqlx::query(retired).execute(database.pool()).await.unwrap();
    let ran = run(&["relay", "--broker", "memory:", "--relay", "old", "--log", "error"], &environment);
    ran.failed(1, &["relay old of database", "the relay is retired"]);
}

#[tokio::test]
async fn a_relay_keeps_the_number_of_shards_that_it_began_with_and_says_so() {
    let database = Database::new("cli_shards").await;
    for (shards, says) in
        [("4", "shards acquired"), ("8", "it keeps the number of shards that it began with")]
    {
        let mut relay = Relay::start(&database, &["--broker", "file:/dev/null", "--shards", shards]);
        relay.until_logged(says);
        relay.signal("TERM");
        assert_eq!(relay.code(), Some(0));
    }
    let cursors = sqlx::query_scalar::<_, i64>("select count(*) from outbox.cursor");
    assert_eq!(cursors.fetch_one(database.pool()).await.unwrap(), 4);
}

#[tokio::test]
async fn a_file_of_databases_is_relayed_within_a_budget_of_connections() {
    let (one, two) = (Database::new("cli_fleet_a").await, Database::new("cli_fleet_b").await);
    let bare = Database::empty("cli_fleet_c").await;
    let directory = tempfile::tempdir().unwrap();
    let (list, stream) = (directory.path().join("databases"), directory.path().join("stream.jsonl"));
    std::fs::write(&list, format!("# tenants\n{}\n\n{}\n{}\n", one.url(), two.url(), bare.url())).unwrap();
    let (list, broker) = (list.display().to_string(), format!("file:{}", stream.display()));
    let arguments = ["relay", "--databases", &list, "--connections", "4", "--broker", &broker];
    let mut relay = Relay {
        child: outbox(&arguments, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(),
    };
    for round in 1..=2 {
        enqueue(&one, 3).await;
        enqueue(&two, 4).await;
        until("both are relayed", || lines(&stream).len() == round * 7);
    }
    relay.signal("TERM");
    assert_eq!(relay.code(), Some(0));
    let log = std::io::read_to_string(relay.child.stderr.take().unwrap()).unwrap();
    let left_out = log.lines().find(|line| line.contains("left out")).unwrap_or_default();
    assert!(left_out.contains(&bare.name) && left_out.contains("schema outbox is missing"), "{log}");
    let both = run(&["relay", "--databases", &list, "--broker", &broker], &[("DATABASE_URL", one.url())]);
    both.failed(2, &["both given"]);
}

#[tokio::test]
async fn what_is_scheduled_is_moved_into_the_log_once_however_often_the_process_is_killed() {
    const ALL: usize = 20_000;
    let database = Database::new("cli_schedule").await;
    let insert = "insert into outbox.scheduled_message (due_at, id, correlation, occurred_at, source, topic, kind, payload)
        select now() - interval '1 hour', id, id, now(), '/test', 'orders', 'order.placed', ''
        from generate_series(1, 20000) n cross join lateral outbox.uuid_v7(clock_timestamp() + n * interval '0') id";
    database.pool().execute(insert).await.unwrap();
    let count = async |table: &str| -> usize {
        let sql = sqlx::AssertSqlSafe(format!("select count(*) from outbox.{table}"));
        let count: i64 = sqlx::query_scalar(sql).fetch_one(database.pool()).await.unwrap();
        usize::try_from(count).unwrap()
    };
    // Nobody may write to the log, so the process stands in the middle of a move when it is killed.
    let mut lock = database.pool().begin().await.unwrap();
    lock.execute("lock table outbox.message in share mode").await.unwrap();
    let arguments = ["--broker", "file:/dev/null", "--lease", "1s"];
    for _ in 0..2 {
        let relay = Relay::start(&database, &arguments);
        let moving =
            "select count(*) from pg_locks l where l.relation = 'outbox.message'::regclass and not l.granted";
        while sqlx::query_scalar::<_, i64>(moving).fetch_one(database.pool()).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
        relay.signal("KILL");
        drop(relay);
        let end = "select pg_terminate_backend(l.pid) from pg_locks l where l.relation = 'outbox.message'::regclass and not l.granted";
        assert_eq!(count("message").await, 0);
        database.pool().execute(end).await.unwrap();
    }
    assert_eq!(count("scheduled_message").await, ALL);
    lock.rollback().await.unwrap();
    let relay = Relay::start(&database, &arguments);
    while count("scheduled_message").await > 0 {
        tokio::task::yield_now().await;
    }
    drop(relay);
    let different: i64 = sqlx::query_scalar("select count(distinct id) from outbox.message")
        .fetch_one(database.pool())
        .await
        .unwrap();
    assert_eq!((count("message").await, different), (ALL, ALL as i64));
}
