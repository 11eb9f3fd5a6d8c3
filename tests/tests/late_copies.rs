//! A message of a held key that is copied to it during a try of a later one: a transaction was open for long, or a crash has
//! the log read again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod relay_support;

use std::time::Duration;

use brokers::memory::{Broker, Fault, MemoryPublisher};
use message::{Outcomes, Outgoing, Pipelining, Publisher};
use outbox::Backoff;
use outbox::admin::{self, HeldKey};
use relay_support::{message, numbers, patient, settings, start, until, write};
use sqlx::PgPool;
use tests::Database;
use tokio::sync::watch;

async fn held(pool: &PgPool) -> Vec<HeldKey> {
    admin::held_keys(pool, "default").await.unwrap()
}

/// Keeps one payload of key `bad` on the wire until it is let go, and says that it is there.
struct Gate {
    publisher: MemoryPublisher,
    payload: &'static [u8],
    open: watch::Receiver<bool>,
    reached: watch::Sender<bool>,
}

#[async_trait::async_trait]
impl Publisher for Gate {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let gated = |outgoing: &Outgoing| {
            outgoing.message.key.as_deref() == Some("bad") && &*outgoing.message.payload == self.payload
        };
        if batch.iter().any(gated) {
            self.reached.send_replace(true);
            let _ = self.open.clone().wait_for(|open| *open).await;
        }
        self.publisher.publish(batch, outcomes).await;
    }
}

/// A transaction that was open for long commits a message of a held key while a later one of it is being tried.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_key_is_let_go_though_an_earlier_message_of_it_came_during_its_last_try() {
    let database = Database::new("late_copy").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    let mut one_try = patient();
    (one_try.max_attempts, one_try.shards) = (1, 1);
    let (open, gate) = watch::channel(false);
    let (reached, mut on_wire) = watch::channel(false);
    let mut late = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut late, &[message("bad", 1)]).await.unwrap();
    write(pool, &[message("bad", 2)]).await;
    let relay = start(pool, broker.publisher(), one_try.clone());
    until("parked", || async { held(pool).await.first().is_some_and(HeldKey::is_parked) }).await;
    relay.stop().await.unwrap();
    broker.accept_key("bad");
    one_try.max_attempts = 3;
    let publisher = Gate { publisher: broker.publisher(), payload: b"2", open: gate, reached };
    let relay = start(pool, publisher, one_try.clone());
    let position = held(pool).await[0].position;
    assert!(admin::redrive(pool, "default", position, "ada", None).await.unwrap());
    on_wire.wait_for(|on_wire| *on_wire).await.unwrap();
    outbox::commit(late).await.unwrap();
    until("copied", || async { held(pool).await[0].messages == 2 }).await;
    open.send_replace(true);
    let went = tokio::time::timeout(Duration::from_secs(20), async {
        while !held(pool).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let went = went.await.is_ok();
    relay.stop().await.unwrap();
    let relay = start(pool, broker.publisher(), one_try);
    until("nothing is held", || async { held(pool).await.is_empty() }).await;
    relay.stop().await.unwrap();
    assert!(went, "the key stands still");
    assert_eq!(numbers(&broker, "bad"), [2, 1], "and a polite stop repeats it");
}

/// The same without any transaction side by side: after a crash, what was published before the held message is read again.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_key_is_let_go_after_a_crash_though_what_lies_before_it_is_read_again_during_its_try() {
    let database = Database::new("late_copy_crash").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.fail_next(1, Fault::Unknown);
    let mut stuck = settings();
    (stuck.shards, stuck.lease) = (1, Duration::from_secs(5));
    stuck.max_attempts = 10;
    stuck.unavailable = Backoff { first: Duration::from_secs(600), ceiling: Duration::from_secs(600) };
    let relay = start(pool, broker.publisher(), stuck);
    write(pool, &[message("first", 1), message("bad", 1)]).await;
    until("published", || async { numbers(&broker, "bad").first() == Some(&1) }).await;
    broker.reject_key("bad");
    write(pool, &[message("bad", 2)]).await;
    until("held", || async { held(pool).await.len() == 1 }).await;
    relay.task.abort();
    broker.accept_key("bad");
    let (open, gate) = watch::channel(false);
    let (reached, mut on_wire) = watch::channel(false);
    let publisher = Gate { publisher: broker.publisher(), payload: b"2", open: gate, reached };
    let mut slow = settings();
    (slow.shards, slow.lease) = (1, Duration::from_secs(5));
    slow.read.page = 1;
    let relay = start(pool, publisher, slow.clone());
    on_wire.wait_for(|on_wire| *on_wire).await.unwrap();
    until("copied", || async { held(pool).await[0].messages == 2 }).await;
    open.send_replace(true);
    let went = tokio::time::timeout(Duration::from_secs(20), async {
        while !held(pool).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let went = went.await.is_ok();
    relay.stop().await.unwrap();
    let relay = start(pool, broker.publisher(), slow);
    until("nothing is held", || async { held(pool).await.is_empty() }).await;
    relay.stop().await.unwrap();
    assert!(went, "the key stands still");
}

/// Nothing depends on foreign keys being checked.
#[tokio::test(flavor = "multi_thread")]
async fn without_foreign_keys_no_message_is_lost_that_came_during_the_last_try_of_its_key() {
    let database = Database::new("late_copy_unchecked").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    let mut one_try = patient();
    (one_try.max_attempts, one_try.shards) = (1, 1);
    let (open, gate) = watch::channel(false);
    let (reached, mut on_wire) = watch::channel(false);
    let mut late = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut late, &[message("bad", 1)]).await.unwrap();
    write(pool, &[message("bad", 2)]).await;
    let relay = start(pool, broker.publisher(), one_try.clone());
    until("parked", || async { held(pool).await.first().is_some_and(HeldKey::is_parked) }).await;
    relay.stop().await.unwrap();
    broker.accept_key("bad");
    one_try.max_attempts = 3;
    let name: String = sqlx::query_scalar("select current_database()").fetch_one(pool).await.unwrap();
    let set = format!("alter database \"{name}\" set session_replication_role = replica");
    sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(pool).await.unwrap();
    let unchecked = outbox::pool_options().max_connections(8).connect(database.url()).await.unwrap();
    let publisher = Gate { publisher: broker.publisher(), payload: b"2", open: gate, reached };
    let relay = start(&unchecked, publisher, one_try.clone());
    let position = held(pool).await[0].position;
    assert!(admin::redrive(pool, "default", position, "ada", None).await.unwrap());
    on_wire.wait_for(|on_wire| *on_wire).await.unwrap();
    outbox::commit(late).await.unwrap();
    until("copied", || async { held(pool).await[0].messages == 2 }).await;
    open.send_replace(true);
    until("nothing is held", || async { held(pool).await.is_empty() }).await;
    write(pool, &[message("last", 1)]).await;
    until("the last", || async { numbers(&broker, "last") == [1] }).await;
    relay.stop().await.unwrap();
    let relay = start(&unchecked, broker.publisher(), one_try);
    write(pool, &[message("last", 2)]).await;
    until("the last", || async { numbers(&broker, "last") == [1, 2] }).await;
    relay.stop().await.unwrap();
    let orphans: i64 =
        sqlx::query_scalar("select count(*) from outbox.held_message").fetch_one(pool).await.unwrap();
    assert_eq!(orphans, 0);
    assert_eq!(numbers(&broker, "bad"), [2, 1], "lost");
}
