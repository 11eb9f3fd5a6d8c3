//! Law 8 while something takes nothing, or does not answer: a polite stop repeats nothing that was confirmed, and waits for
//! nothing but what is on the wire.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod relay_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use brokers::memory::{Broker, MemoryPublisher};
use message::{Message, Outcomes, Outgoing, Pipelining, PublishError, Publisher};
use outbox::Settings;
use outbox::admin::{self, HeldKey};
use relay_support::{numbers, settings, start, until, write};
use sqlx::PgPool;
use tests::Database;
use tokio::sync::watch;

async fn held(pool: &PgPool) -> Vec<HeldKey> {
    admin::held_keys(pool, "default").await.unwrap()
}

fn to(topic: &str, key: &str, number: usize) -> Message {
    Message::new(topic, "order.changed", number.to_string()).with_key(key)
}

fn at(broker: &Broker, destination: &str) -> usize {
    broker.published().iter().filter(|published| &*published.destination == destination).count()
}

/// Holds messages to one destination until it is told what to answer, and passes on the others.
struct Gated {
    publisher: MemoryPublisher,
    gate: watch::Receiver<bool>,
    refused: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl Publisher for Gated {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let away = |outgoing: &Outgoing| &*outgoing.destination == "away";
        for (index, outgoing) in batch.iter().enumerate().filter(|(_, outgoing)| !away(outgoing)) {
            let results = message::publish_all(&self.publisher, std::slice::from_ref(outgoing)).await;
            outcomes.report(index, results[0].clone());
        }
        for (index, _) in batch.iter().enumerate().filter(|(_, outgoing)| away(outgoing)) {
            let _ = self.gate.clone().wait_for(|open| *open).await;
            self.refused.store(true, Ordering::SeqCst);
            outcomes.report(index, Err(PublishError::DestinationUnavailable("full".to_owned())));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_a_destination_is_down_makes_no_duplicate() {
    let database = Database::new("stops_down").await;
    let pool = database.pool();
    let broker = Broker::new();
    let (open, gate) = watch::channel(false);
    let refused = Arc::new(AtomicBool::new(false));
    let publisher = Gated { publisher: broker.publisher(), gate, refused: Arc::clone(&refused) };
    let mut settings = settings();
    settings.shards = 1;
    // Longer than anything waits here: what waits for a destination is not waited for.
    settings.drain = Duration::from_secs(3600);
    let relay = start(pool, publisher, settings.clone());
    write(pool, &[to("away", "w", 1)]).await;
    write(pool, &(1..=20).map(|number| to("here", &format!("h{number}"), number)).collect::<Vec<_>>()).await;
    until("the others are published", || async { at(&broker, "here") == 20 }).await;
    open.send_replace(true);
    until("it was refused", || async { refused.load(Ordering::SeqCst) }).await;
    relay.stop().await.unwrap();
    // As in a rolling restart: nothing else is written, each process stops politely.
    for _ in 1..=3 {
        let gate = watch::channel(true).1;
        let refused = Arc::new(AtomicBool::new(false));
        let publisher = Gated { publisher: broker.publisher(), gate, refused: Arc::clone(&refused) };
        let relay = start(pool, publisher, settings.clone());
        until("it was refused", || async { refused.load(Ordering::SeqCst) }).await;
        relay.stop().await.unwrap();
    }
    assert_eq!(at(&broker, "here"), 20, "copies");
}

/// Answers nothing for one key, ever, and passes on the others.
struct Mute {
    publisher: MemoryPublisher,
}

#[async_trait::async_trait]
impl Publisher for Mute {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let mute = |outgoing: &Outgoing| outgoing.message.key.as_deref() == Some("mute");
        for (index, outgoing) in batch.iter().enumerate().filter(|(_, outgoing)| !mute(outgoing)) {
            let results = message::publish_all(&self.publisher, std::slice::from_ref(outgoing)).await;
            outcomes.report(index, results[0].clone());
        }
        if batch.iter().any(mute) {
            std::future::pending::<()>().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_a_held_message_is_not_answered_repeats_nothing_that_was_confirmed() {
    let database = Database::new("stops_mute").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut settings: Settings = settings();
    settings.lease = Duration::from_secs(5);
    settings.drain = Duration::from_secs(1);
    settings.publish_timeout = Duration::from_millis(200);
    let first = start(pool, Mute { publisher: broker.publisher() }, settings.clone());
    write(pool, &[to("here", "mute", 1)]).await;
    until("it is held", || async { held(pool).await.len() == 1 }).await;
    first.stop().await.unwrap();
    // From now on each try takes long.
    settings.publish_timeout = Duration::from_secs(30);
    settings.record_interval = Duration::from_secs(3);
    let first = start(pool, Mute { publisher: broker.publisher() }, settings.clone());
    until("it is being tried", || async { held(pool).await[0].attempts > 0 }).await;
    write(pool, &(0..64).map(|key| to("here", &format!("k{key}"), 1)).collect::<Vec<_>>()).await;
    until("others are published", || async { broker.published().len() == 64 }).await;
    first.stop().await.unwrap();
    let second = start(pool, Mute { publisher: broker.publisher() }, settings.clone());
    write(pool, &[to("here", "last", 1)]).await;
    until("all is read", || async { numbers(&broker, "last") == [1] }).await;
    second.stop().await.unwrap();
    assert_eq!(broker.published().len(), 65, "copies");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_takes_turns_repeats_nothing_while_a_destination_is_down() {
    let (one, two) = (Database::new("stops_fleet1").await, Database::new("stops_fleet2").await);
    let broker = Broker::new();
    let refused = Arc::new(AtomicBool::new(false));
    let (publisher, gate) = (broker.publisher(), watch::channel(true).1);
    let publisher = Gated { publisher, gate, refused: Arc::clone(&refused) };
    let mut settings = settings();
    settings.lease = Duration::from_secs(10);
    settings.drain = Duration::from_secs(3600);
    write(one.pool(), &[to("away", "w", 1)]).await;
    for number in 1..=20 {
        write(one.pool(), &[to("here", &format!("h{number}"), number)]).await;
    }
    let fleet = outbox::Fleet::new("default", publisher)
        .with_settings(settings)
        .with_connections(4)
        .with_database("one", one.url().parse().unwrap())
        .with_database("two", two.url().parse().unwrap());
    let stop = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(fleet.run(stop.clone()));
    for number in 1..=3 {
        refused.store(false, Ordering::SeqCst);
        until("the first database has its turn", || async { refused.load(Ordering::SeqCst) }).await;
        write(two.pool(), &[to("there", "t", number)]).await;
        until("the other database has its turn", || async { at(&broker, "there") >= number }).await;
    }
    stop.cancel();
    let _ = running.await;
    assert_eq!(at(&broker, "here"), 20, "copies");
}
