//! A process that stands still, and what it does when it goes on: the lease is another's then.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod relay_support;

use std::time::Duration;

use brokers::memory::{Broker, MemoryPublisher};
use message::{Message, Outcomes, Outgoing, Pipelining, PublishError, Publisher};
use outbox::admin::{self, HeldKey};
use relay_support::{numbers, patient, settings, start, until, write};
use sqlx::PgPool;
use tests::Database;

async fn held(pool: &PgPool) -> Vec<HeldKey> {
    admin::held_keys(pool, "default").await.unwrap()
}

fn to(topic: &str, key: &str, number: usize) -> Message {
    Message::new(topic, "order.changed", number.to_string()).with_key(key)
}

/// A process of its own that runs a relay until it is killed; started by
/// [`a_process_that_stands_still_while_it_counts_an_attempt_keeps_its_locks_for_a_second`].
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by another test"]
async fn child() {
    let Ok(url) = std::env::var("STANDING_CHILD") else { return };
    let pool = outbox::pool_options().max_connections(8).connect(&url).await.unwrap();
    let mut settings = settings();
    settings.lease = Duration::from_secs(2);
    settings.shards = 1;
    let _ = match std::env::var("STANDING_FILES") {
        Ok(files) => start(&pool, Files(files.into()), settings).task.await,
        Err(_) => start(&pool, Broker::new().publisher(), settings).task.await,
    };
}

/// Writes what it publishes to a file; the first message it keeps on the wire until another file is there.
struct Files(std::path::PathBuf);

#[async_trait::async_trait]
impl Publisher for Files {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        use std::io::Write;
        for outgoing in batch {
            if &*outgoing.message.payload == b"1" {
                std::fs::write(self.0.join("on_wire"), "").unwrap();
                while !self.0.join("go").exists() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            let path = self.0.join("out");
            let mut out = std::fs::File::options().create(true).append(true).open(path).unwrap();
            out.write_all(&[&outgoing.message.payload[..], b"\n"].concat()).unwrap();
        }
        outcomes.confirm_all();
    }
}

/// Rejects one message, and passes on the others.
struct Picky {
    publisher: MemoryPublisher,
}

#[async_trait::async_trait]
impl Publisher for Picky {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        for (index, outgoing) in batch.iter().enumerate() {
            let result = match &*outgoing.message.payload {
                b"2" => Err(PublishError::Rejected("two".to_owned())),
                _ => message::publish_all(&self.publisher, std::slice::from_ref(outgoing)).await[0].clone(),
            };
            outcomes.report(index, result);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stood_still_publishes_no_held_message_that_was_skipped_meanwhile() {
    let database = Database::new("still_thawed").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("a");
    let mut first = settings();
    (first.max_attempts, first.shards) = (1, 1);
    let relay = start(pool, broker.publisher(), first.clone());
    write(pool, &(1..=20).map(|number| to("here", "a", number)).collect::<Vec<_>>()).await;
    until("held", || async { held(pool).await.first().is_some_and(|held| held.messages == 20) }).await;
    relay.stop().await.unwrap();
    broker.accept_key("a");
    let position = held(pool).await[0].position;
    admin::redrive(pool, "default", position, "ada", None).await.unwrap();
    let files = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("STANDING_CHILD", database.url())
        .env("STANDING_FILES", files.path())
        .spawn()
        .unwrap();
    until("the first is on the wire", || async { files.path().join("on_wire").exists() }).await;
    let signal = |signal: &str| {
        std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    };
    signal("-STOP");
    (first.lease, first.max_attempts) = (Duration::from_secs(2), 3);
    let relay = start(pool, Picky { publisher: broker.publisher() }, first);
    until("the second is parked", || async {
        numbers(&broker, "a") == [1] && held(pool).await.first().is_some_and(HeldKey::is_parked)
    })
    .await;
    let second = held(pool).await[0].first_position.unwrap();
    assert!(admin::skip(pool, "default", second, "ada", "lost").await.unwrap());
    until("no key is held", || async { held(pool).await.is_empty() }).await;
    assert_eq!(numbers(&broker, "a"), [vec![1], (3..=20).collect()].concat());
    std::fs::write(files.path().join("go"), "").unwrap();
    signal("-CONT");
    // What it does next; nothing says that it will do no more.
    tokio::time::sleep(Duration::from_secs(3)).await;
    child.kill().unwrap();
    child.wait().unwrap();
    relay.stop().await.unwrap();
    let out = std::fs::read_to_string(files.path().join("out")).unwrap_or_default();
    let out: Vec<&str> = out.lines().collect();
    assert!(!out.contains(&"2"), "the skipped message: {out:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stands_still_while_it_counts_an_attempt_keeps_its_locks_for_a_second() {
    let database = Database::new("still_frozen").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("a");
    let mut first = patient();
    first.retry = outbox::Backoff { first: Duration::from_secs(600), ceiling: Duration::from_secs(600) };
    let relay = start(pool, broker.publisher(), first);
    write(pool, &[to("here", "a", 1)]).await;
    until("held", || async { held(pool).await.len() == 1 }).await;
    relay.stop().await.unwrap();
    broker.accept_key("a");

    sqlx::raw_sql("update outbox.held_key set next_attempt_at = clock_timestamp()")
        .execute(pool)
        .await
        .unwrap();
    let mut lock = pool.begin().await.unwrap();
    sqlx::raw_sql("select from outbox.held_key for update").execute(&mut *lock).await.unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("STANDING_CHILD", database.url())
        .spawn()
        .unwrap();
    let counts = "select state, wait_event_type from pg_stat_activity
        where datname = current_database() and query like '%Counts an attempt%' and pid <> pg_backend_pid()";
    let state = || async {
        sqlx::query_as::<_, (String, Option<String>)>(counts).fetch_optional(pool).await.unwrap()
    };
    until("it is about to count", || async {
        state().await.is_some_and(|(_, waits)| waits.as_deref() == Some("Lock"))
    })
    .await;
    let signal = |signal: &str| {
        std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    };
    signal("-STOP");
    lock.rollback().await.unwrap();
    until("it stands still", || async {
        state().await.is_some_and(|(state, _)| state == "idle in transaction")
    })
    .await;
    let mut settings = settings();
    settings.lease = Duration::from_secs(2);
    let relay = start(pool, broker.publisher(), settings);
    write(pool, &[to("here", "a", 2)]).await;
    write(pool, &(0..64).map(|key| to("here", &format!("k{key}"), 1)).collect::<Vec<_>>()).await;
    // Well before a transaction of minutes would be ended.
    until("its key is tried", || async { numbers(&broker, "a").first() == Some(&1) }).await;
    until("the cursors are recorded", || async { admin::status(pool).await.unwrap()[0].pending == 0 }).await;
    child.kill().unwrap();
    child.wait().unwrap();
    relay.stop().await.unwrap();
}
