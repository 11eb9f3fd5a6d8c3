//! What a process declares after a death: also what it had in hand already, for as long as that takes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod inbox_support;

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use brokers::postgres::{PostgresPublisher, PostgresSubscriber};
use inbox::{Backoff, Consumer, HandlerError};
use inbox_support::{CONSUMER, KIND, Running, Service, effect, eventually, note, placed, start};
use message::{Message, Outgoing, publish_all};
use sqlx::{Executor, PgPool, PgTransaction};
use tests::Database;
use tokio_util::sync::CancellationToken;

/// Waits with the note `alone`; then fails, if it is told to.
struct Waits {
    begun: Arc<tokio::sync::Notify>,
    release: Arc<tokio::sync::Notify>,
    fails: bool,
}

#[async_trait::async_trait]
impl inbox::Handler for Waits {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        if note(message) == "alone" {
            self.begun.notify_one();
            self.release.notified().await;
            if self.fails {
                return Err(HandlerError::reject("not today"));
            }
        }
        effect(tx, message).await
    }
}

/// A consumer with one message in hand.
async fn at_work(service: &Service, message: &Message, fails: bool) -> (Arc<tokio::sync::Notify>, Running) {
    let (begun, release) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let handler = Waits { begun: begun.clone(), release: release.clone(), fails };
    let running = start(service.consumer().with_handler_timeout(Duration::from_secs(120)).on(KIND, handler));
    service.publish(std::slice::from_ref(message)).await;
    tokio::time::timeout(Duration::from_secs(60), begun.notified()).await.expect("it is in hand");
    (release, running)
}

const DECLARED: &str = "select count(*) from inbox.process where cardinality(in_hand) > 0";

async fn is_declared(service: &Service) {
    eventually("it is declared", async || (service.count(DECLARED).await == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_hand_when_a_death_is_noticed_is_declared_though_nothing_else_waits() {
    let service = Service::new("in hand alone").await;
    let (release, running) = at_work(&service, &placed("a", "alone"), false).await;
    let dead =
        "insert into inbox.process (id, consumer, expires_at) values (gen_random_uuid(), 'shipping', now())";
    service.pool.execute(dead).await.unwrap();
    is_declared(&service).await;
    release.notify_one();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_hand_stays_declared_when_the_death_is_recent_no_more_until_it_ends() {
    let service = Service::new("in hand for long").await;
    let (release, running) = at_work(&service, &placed("a", "alone"), false).await;
    // It is recent for a few more seconds, from when a heartbeat has seen it.
    let died = "update inbox.consumer set died_at = clock_timestamp() - interval '85 seconds'";
    eventually("it is declared", async || {
        service.pool.execute(died).await.unwrap();
        (service.count(DECLARED).await == 1).then_some(())
    })
    .await;
    let recent =
        "select count(*) from inbox.consumer where died_at > clock_timestamp() - interval '90 seconds'";
    eventually("no death is recent", async || (service.count(recent).await == 0).then_some(())).await;
    // Several heartbeats later: each puts off the expiry.
    let beats = "with now as materialized (select max(expires_at) as at from inbox.process)
        select extract(epoch from at)::bigint from now";
    let before = service.count(beats).await;
    eventually("heartbeats go on", async || (service.count(beats).await > before + 6).then_some(())).await;
    assert_eq!(service.count(DECLARED).await, 1);
    release.notify_one();
    eventually("it is declared no more", async || (service.count(DECLARED).await == 0).then_some(())).await;
    running.stop().await;
}

/// Also when its process was taken for dead, and lived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_try_that_ends_takes_its_message_out_of_quarantine() {
    for fails in [false, true] {
        let service = Service::new("first try").await;
        let message = placed("a", "alone");
        let (release, running) = at_work(&service, &message, fails).await;
        // As another process does that takes this one for dead, after a freeze say.
        sqlx::query("insert into inbox.quarantine (consumer, message_id) values ($1, $2)")
            .bind(CONSUMER)
            .bind(message.id.as_uuid())
            .execute(&service.pool)
            .await
            .unwrap();
        release.notify_one();
        service.acknowledged().await;
        let left = "select count(*) from inbox.quarantine";
        eventually("it is out", async || (service.count(left).await == 0).then_some(())).await;
        running.stop().await;
    }
}

const CHILD: &str = "INBOX_DECLARED_DATABASE";

/// A process of the test below. Its handler works for a hundred seconds, and then the process is killed by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_of_the_consumer() {
    let Ok(url) = std::env::var(CHILD) else { return };
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let connect =
        |connections| outbox::pool_options().max_connections(connections).connect_lazy(&url).unwrap();
    let subscriber =
        PostgresSubscriber::new(connect(4), CONSUMER.parse().unwrap()).with_lease(Duration::from_millis(500));
    let consumer = Consumer::new(CONSUMER, connect(8), subscriber)
        .with_max_attempts(1)
        .with_backoff(Backoff::default().with_first(Duration::from_millis(40)))
        .with_handler_timeout(Duration::from_secs(300))
        .on(KIND, Deadly(connect(2)));
    consumer.run(CancellationToken::new()).await.unwrap();
}

struct Deadly(PgPool);

#[async_trait::async_trait]
impl inbox::Handler for Deadly {
    async fn handle(&self, _: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        let tried = "insert into tried (note) values ($1)";
        sqlx::query(tried).bind(note(message)).execute(&self.0).await?;
        tokio::time::sleep(Duration::from_secs(100)).await;
        let _ = Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
        std::future::pending().await
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A hundred seconds: longer than a death is recent. A supervisor starts the process again at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes"]
async fn a_message_that_kills_its_process_slowly_parks() {
    let database = Database::new("slow killer").await;
    sqlx::raw_sql("create table tried (note text)").execute(database.pool()).await.unwrap();
    let message = placed("killer", "dies");
    let batch = [Outgoing { destination: "orders".into(), message: Arc::new(message) }];
    for result in publish_all(&PostgresPublisher::new(database.pool().clone()), &batch).await {
        result.unwrap();
    }
    let start = || {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_process_of_the_consumer", "--nocapture", "--test-threads", "1"])
            .env(CHILD, database.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Killed(child.unwrap())
    };
    let mut deaths = 0;
    let mut process = start();
    while deaths < 5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if process.0.try_wait().unwrap().is_some() {
            deaths += 1;
            let facts =
                "select (select count(*) from tried) || ' tries, ' || (select count(*) from inbox.quarantine)
                || ' in quarantine, ' || (select count(*) from inbox.held_key) || ' held'";
            let facts: String = sqlx::query_scalar(facts).fetch_one(database.pool()).await.unwrap();
            eprintln!("death {deaths}: {facts}");
            process = start();
        }
    }
    // It takes nothing before its predecessor has expired.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let parked = "select count(*) from inbox.held_key where state = 'parked'";
    let parked: i64 = sqlx::query_scalar(parked).fetch_one(database.pool()).await.unwrap();
    drop(process);
    assert_eq!(parked, 1, "{deaths} processes have died");
}
