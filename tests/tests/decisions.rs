//! What a person decides about what a relay holds, and what they are told of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod relay_support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use brokers::memory::{Broker, MemoryPublisher};
use message::{Message, Outcomes, Outgoing, Pipelining, PublishError, Publisher};
use outbox::admin::{self, HeldKey};
use relay_support::{numbers, patient, start, until, write};
use sqlx::PgPool;
use tests::Database;
use tokio::sync::watch;

async fn held(pool: &PgPool) -> Vec<HeldKey> {
    admin::held_keys(pool, "default").await.unwrap()
}

fn to(topic: &str, key: &str, number: usize) -> Message {
    Message::new(topic, "order.changed", number.to_string()).with_key(key)
}

/// Keeps everything back until it is let go.
struct Slow {
    publisher: MemoryPublisher,
    gate: watch::Receiver<bool>,
}

#[async_trait::async_trait]
impl Publisher for Slow {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let _ = self.gate.clone().wait_for(|open| *open).await;
        self.publisher.publish(batch, outcomes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_skipped_of_a_retired_relay_is_not_published_afterwards() {
    let database = Database::new("decisions_retired").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    let relay = start(pool, broker.publisher(), patient());
    write(pool, &[to("here", "bad", 1)]).await;
    until("parked", || async { held(pool).await.first().is_some_and(HeldKey::is_parked) }).await;
    relay.stop().await.unwrap();
    broker.accept_key("bad");
    let (open, gate) = watch::channel(false);
    let relay = start(pool, Slow { publisher: broker.publisher(), gate }, patient());
    let position = held(pool).await[0].position;
    assert!(admin::redrive(pool, "default", position, "ada", None).await.unwrap());
    until("it is being tried", || async { held(pool).await[0].attempts == 1 }).await;
    assert!(admin::retire(pool, "default", "ada", "over").await.unwrap());
    let skipped = admin::skip(pool, "default", position, "ada", "lost").await.unwrap();
    assert_eq!(broker.published().len(), 0);
    open.send_replace(true);
    let _ = relay.task.await;
    assert!(!skipped || broker.published().is_empty(), "published after it was skipped");
    assert!(!skipped, "a process of the relay is alive");
}

/// Rejects two tries, the second one when it is let, and takes what is tried after that.
struct Stubborn {
    publisher: MemoryPublisher,
    tries: AtomicUsize,
    gate: watch::Receiver<bool>,
}

#[async_trait::async_trait]
impl Publisher for Stubborn {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let before = self.tries.fetch_add(1, Ordering::SeqCst);
        if before == 1 {
            let _ = self.gate.clone().wait_for(|open| *open).await;
        }
        if before > 1 {
            return self.publisher.publish(batch, outcomes).await;
        }
        for index in 0..batch.len() {
            outcomes.report(index, Err(PublishError::Rejected("no".to_owned())));
        }
    }
}

/// Whether the topic's keys are parked after their last attempt, or skipped.
#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_during_the_last_attempt_is_not_undone_when_that_fails() {
    for policy in [outbox::Policy::Park, outbox::Policy::Skip] {
        let database = Database::new("decisions_redrive").await;
        let pool = database.pool();
        let broker = Broker::new();
        let (open, gate) = watch::channel(false);
        let mut settings = patient();
        settings.max_attempts = 1;
        settings.policies = outbox::Policies::default().with("here".parse().unwrap(), policy);
        let publisher = Stubborn { publisher: broker.publisher(), tries: AtomicUsize::new(0), gate };
        let relay = start(pool, publisher, settings);
        write(pool, &[to("here", "bad", 1)]).await;
        if policy == outbox::Policy::Park {
            until("parked", || async { held(pool).await.first().is_some_and(HeldKey::is_parked) }).await;
            let position = held(pool).await[0].position;
            assert!(admin::redrive(pool, "default", position, "ada", None).await.unwrap());
        }
        until("it is being tried", || async {
            held(pool).await.first().is_some_and(|held| held.attempts == 1 && !held.is_parked())
        })
        .await;
        let position = held(pool).await[0].position;
        assert!(admin::redrive(pool, "default", position, "ada", None).await.unwrap());
        open.send_replace(true);
        until("it is tried again and published", || async { numbers(&broker, "bad") == [1] }).await;
        relay.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_counts_what_waits_for_a_person() {
    let database = Database::new("decisions_doctor").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.close_destination("away");
    broker.reject_key("bad");
    let relay = start(pool, broker.publisher(), patient());
    write(pool, &[to("here", "bad", 1)]).await;
    write(pool, &(0..30).map(|number| to("away", &format!("w{number}"), 1)).collect::<Vec<_>>()).await;
    let mut number = 0;
    until("all are held", || {
        number += 1;
        async move {
            write(pool, &[to("here", "h", number)]).await;
            let held = held(pool).await;
            held.len() == 31 && held[0].is_parked()
        }
    })
    .await;
    relay.stop().await.unwrap();
    let found = admin::examine(pool, a_day(), a_day()).await.unwrap();
    let parked = found.iter().find(|finding| finding.name == "parked_keys").unwrap();
    assert!(parked.what.contains(" 1 message"), "{}", parked.what);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_doctor_advises_for_what_a_retired_relay_holds_can_be_done() {
    let database = Database::new("decisions_advice").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    let mut settings = patient();
    settings.retention = Duration::ZERO;
    let relay = start(pool, broker.publisher(), settings);
    write(pool, &[to("here", "bad", 1)]).await;
    until("parked", || async { held(pool).await.first().is_some_and(HeldKey::is_parked) }).await;
    sqlx::raw_sql("select setval('outbox.message_position_seq', 5 * (1 << 20))").execute(pool).await.unwrap();
    write(pool, &(0..64).map(|key| to("here", &format!("k{key}"), 1)).collect::<Vec<_>>()).await;
    until("published", || async { broker.published().len() == 64 }).await;
    until("emptied", || async {
        outbox::prune(pool).await.unwrap();
        write(pool, &(0..64).map(|key| to("here", &format!("k{key}"), 1)).collect::<Vec<_>>()).await;
        let first = "select count(*) from outbox.message where position = 1";
        sqlx::query_scalar::<_, i64>(first).fetch_one(pool).await.unwrap() == 0
    })
    .await;
    relay.stop().await.unwrap();
    admin::retire(pool, "default", "ada", "over").await.unwrap();
    let found = admin::examine(pool, a_day(), a_day()).await.unwrap();
    let parked = found.iter().find(|finding| finding.name == "parked_keys").unwrap();
    // The log has it no more: a replay has nothing to publish, and the copy that is held can be read.
    assert!(parked.remedy.contains("those that the log still has"), "{}", parked.remedy);
    assert!(parked.remedy.contains("outbox.held_message"), "{}", parked.remedy);
    let copy = "select convert_from(payload, 'UTF8') from outbox.held_message where key = 'bad'";
    assert_eq!(sqlx::query_scalar::<_, String>(copy).fetch_one(pool).await.unwrap(), "1");
}

fn a_day() -> Duration {
    Duration::from_secs(86_400)
}
