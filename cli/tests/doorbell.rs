//! The relay of another process hears the doorbell: looking by itself once an hour, it delivers all the same.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use common::{outbox, run};
use message::Message;
use outbox::Doorbell;
use servers::{Pgbouncer, Postgres, PostgresOptions};
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{ConnectOptions, Executor, Row};
use tests::Database;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Much shorter than the hour between two looks.
const PATIENCE: Duration = Duration::from_secs(60);
const AN_HOUR: [&str; 2] = ["--poll-ceiling", "1h"];
const RINGING: &str = "outbox doorbell, ringing";
const LISTENING: &str = "outbox doorbell, listening";

/// `outbox relay`, ended with the test, whose standard output is the broker.
struct Relay {
    child: std::process::Child,
    output: mpsc::UnboundedReceiver<String>,
    log: mpsc::UnboundedReceiver<String>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(source: impl std::io::Read + Send + 'static) -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        BufReader::new(source).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    receiver
}

async fn until(lines: &mut mpsc::UnboundedReceiver<String>, words: &str) {
    let mut others = Vec::new();
    let found = async {
        while let Some(line) = lines.recv().await {
            if line.contains(words) {
                return true;
            }
            others.push(line);
        }
        false
    };
    let found = tokio::time::timeout(PATIENCE, found).await.unwrap_or(false);
    assert!(found, "{words:?} does not come, but:\n{}", others.join("\n"));
}

impl Relay {
    fn start(url: &str, flags: &[&str]) -> Self {
        let arguments = [&["relay", "--broker", "file:-", "--log", "outbox=debug"], flags].concat();
        let mut command = crate::outbox(&arguments, &[("DATABASE_URL", url)]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (output, log) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Relay { child, output, log }
    }

    async fn delivers(&mut self, id: &str) {
        until(&mut self.output, id).await;
    }
}

struct Ringing {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Ringing {
    fn start(pool: &PgPool) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(Doorbell::new(pool.clone()).run(stop.clone()));
        Ringing { stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Writes a message as a service does, which rings every doorbell of this process.
async fn enqueue(pool: &PgPool) -> String {
    let message = Message::new("orders", "order.placed", "{}").with_key("a");
    let mut tx = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut tx, std::slice::from_ref(&message)).await.unwrap();
    outbox::commit(tx).await.unwrap();
    message.id.to_string()
}

/// Writes a message as others do, who have no doorbell.
async fn write(database: &Database) -> String {
    let query = "select outbox.enqueue('orders', 'order.placed', '{}', key => 'a')::text";
    sqlx::query_scalar(query).fetch_one(database.pool()).await.unwrap()
}

async fn backend(database: &Database, name: &str) -> Option<i32> {
    let query = "select pid from pg_stat_activity where datname = $1 and application_name = $2";
    sqlx::query_scalar(query).bind(&database.name).bind(name).fetch_optional(database.admin()).await.unwrap()
}

/// Waits for a backend of that name that is another than `before`.
async fn until_backend(database: &Database, name: &str, before: Option<i32>) -> i32 {
    let found = async {
        loop {
            match backend(database, name).await {
                Some(pid) if Some(pid) != before => return pid,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap()
}

async fn terminate(database: &Database, pid: i32) {
    let ended = sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(database.admin());
    ended.await.unwrap();
}

/// Waits until the relay has not looked for so long.
async fn until_silent(database: &Database, seconds: f64) {
    let query = "select coalesce(min(clock_timestamp() - state_change) > make_interval(secs => $2), false)
        from pg_stat_activity where datname = $1 and query like '%pg_current_snapshot()::text as snapshot%'";
    let silent = async {
        while !sqlx::query_scalar::<_, bool>(query)
            .bind(&database.name)
            .bind(seconds)
            .fetch_one(database.admin())
            .await
            .unwrap()
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, silent).await.unwrap();
}

/// Enqueues a message in a silence, and has it delivered before the relay would look by itself: its pauses double, from 5 ms
/// to 10.24 and then 20.48 seconds, or, after a ring, from 0.5 ms to 8.19 and then 16.38.
async fn a_ring_is_heard(database: &Database, relay: &mut Relay) {
    until_silent(database, 10.5).await;
    let message = enqueue(database.pool()).await;
    tokio::time::timeout(Duration::from_secs(5), relay.delivers(&message)).await.unwrap();
}

/// A relay that listens, and a service that rings, after the first delivery.
async fn at_work(database: &Database, flags: &[&str]) -> (Relay, Ringing) {
    let mut relay = Relay::start(database.url(), &[&["--doorbell"], flags].concat());
    until(&mut relay.log, "the doorbell is heard").await;
    let ringing = Ringing::start(database.pool());
    until_backend(database, RINGING, None).await;
    let first = write(database).await;
    relay.delivers(&first).await;
    (relay, ringing)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_looks_by_itself_once_an_hour_delivers_when_the_doorbell_rings() {
    let database = Database::new("doorbell_rings").await;
    let (mut relay, ringing) = at_work(&database, &AN_HOUR).await;
    a_ring_is_heard(&database, &mut relay).await;
    ringing.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_listening_connection_is_ended_listens_again_on_another() {
    let database = Database::new("doorbell_unheard").await;
    let (mut relay, ringing) = at_work(&database, &AN_HOUR).await;
    for _ in 0..2 {
        let pid = backend(&database, LISTENING).await.unwrap();
        terminate(&database, pid).await;
        // Enqueued while nobody listens: the look that is due on listening again finds it.
        let message = write(&database).await;
        relay.delivers(&message).await;
        until(&mut relay.log, "the doorbell is heard again").await;
        until_backend(&database, LISTENING, Some(pid)).await;
    }
    a_ring_is_heard(&database, &mut relay).await;
    ringing.stop().await;
}

/// What the relay has asked of its database: its looks, and few others.
async fn looks(database: &Database) -> i64 {
    let query = "select xact_commit from pg_stat_database where datname = $1";
    sqlx::query_scalar(query).bind(&database.name).fetch_one(database.admin()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_looks_seldom_while_it_hears_the_doorbell_and_as_ever_when_it_does_not() {
    let database = Database::new("doorbell_lost").await;
    let (mut relay, ringing) =
        at_work(&database, &["--poll-ceiling", "20ms", "--doorbell-ceiling", "1h"]).await;
    ringing.stop().await;
    until_silent(&database, 3.0).await;
    // Who is connected stays.
    let closed = format!("alter database {} allow_connections false", database.name);
    database.admin().execute(sqlx::AssertSqlSafe(closed)).await.unwrap();
    terminate(&database, backend(&database, LISTENING).await.unwrap()).await;
    until(&mut relay.log, "the doorbell is not heard still").await;
    let before = looks(&database).await;
    let often = async {
        while looks(&database).await < before + 300 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, often).await.unwrap();
    let message = write(&database).await;
    relay.delivers(&message).await;
}

/// `log_statement = all` has the server write down what it is asked.
fn was_asked(server: &Postgres, words: &str) -> bool {
    std::fs::read_to_string(server.folder().unwrap().join("log")).unwrap().contains(words)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_behind_a_pooler_says_so_and_polls_and_has_no_session_listen() {
    const LISTEN: &str = "statement: LISTEN";
    let server = PostgresOptions::new().with_setting("log_statement", "all").start().unwrap();
    let pool = outbox::pool_options().connect(&server.url("postgres")).await.unwrap();
    migrations::Schema::Outbox.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    let ringing = Ringing::start(&pool);
    let flags = ["--doorbell", "--poll-ceiling", "50ms", "--doorbell-ceiling", "1h"];
    // Some poolers refuse what a session is asked for at its start, and some are told to drop it.
    for ignored in [&[][..], &["options"]] {
        let pooler = Pgbouncer::start_ignoring(&server, 3, ignored).unwrap();
        let mut relay = Relay::start(&pooler.url("postgres"), &flags);
        until(&mut relay.log, "a pooler stands before the database").await;
        let message = enqueue(&pool).await;
        relay.delivers(&message).await;
        assert!(!was_asked(&server, LISTEN), "ignored: {ignored:?}");
    }
    let mut relay = Relay::start(&server.url("postgres"), &flags);
    until(&mut relay.log, "the doorbell is heard").await;
    assert!(was_asked(&server, LISTEN));
    ringing.stop().await;
}

#[tokio::test]
async fn a_mark_that_was_set_after_the_start_of_a_session_is_none() {
    const MARKED: &str = include_str!("../../outbox/src/doorbell/sql/marked.sql");
    let database = Database::new("doorbell_mark").await;
    let options: PgConnectOptions = database.url().parse().unwrap();
    for (options, set, mark) in [
        (options.clone().options([("outbox.doorbell", "first")]), "select", "first"),
        (options.clone().options([("outbox.doorbell", "first")]), "set outbox.doorbell = 'second'", "first"),
        (options.clone(), "set outbox.doorbell = 'second'", ""),
        (options, "select", ""),
    ] {
        let mut connection = options.connect().await.unwrap();
        connection.execute(sqlx::raw_sql(set)).await.unwrap();
        let marked = connection.fetch_one(sqlx::raw_sql(MARKED)).await.unwrap();
        assert_eq!(marked.get::<&str, _>(0), mark, "{set}");
    }
}

#[test]
fn a_relay_of_many_databases_listens_to_no_doorbell() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("databases");
    std::fs::write(&path, "postgres://db/orders\n").unwrap();
    let arguments = ["relay", "--broker", "file:-", "--databases", path.to_str().unwrap(), "--doorbell"];
    run(&arguments, &[]).failed(2, &["doorbell", "databases"]);
}
