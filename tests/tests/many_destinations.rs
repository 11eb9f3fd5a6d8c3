//! Many destinations that are down at once, and many topics that go to one: none of them keeps others waiting.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod relay_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use brokers::memory::{Broker, MemoryPublisher};
use message::{Message, Outcomes, Outgoing, Pipelining, Publisher};
use outbox::Routes;
use outbox::admin::{self, HeldKey};
use relay_support::{patient, settings, start, until, write};
use sqlx::PgPool;
use tests::Database;

async fn held(pool: &PgPool) -> Vec<HeldKey> {
    admin::held_keys(pool, "default").await.unwrap()
}

fn to(topic: &str, key: &str, number: usize) -> Message {
    Message::new(topic, "order.changed", number.to_string()).with_key(key)
}

fn at(broker: &Broker, destination: &str) -> usize {
    broker.published().iter().filter(|published| &*published.destination == destination).count()
}

/// One destination that is down hides no other, however many topics go there, and more than are read ahead to try others.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_many_topics_to_one_destination_that_is_down_hides_no_other() {
    let database = Database::new("hostile_topics").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.close_destination("away");
    let away = |number: usize| to(&format!("a.t{number}"), &format!("w{number}"), 1);
    write(pool, &(0..1500).map(away).collect::<Vec<_>>()).await;
    write(pool, &(0..20).map(|number| to("here", "h", number)).collect::<Vec<_>>()).await;
    let mut settings = settings();
    settings.routes = Routes::default().with("a.>", "away").unwrap();
    (settings.max_unrecorded, settings.read.page) = (400, 100);
    let relay = start(pool, broker.publisher(), settings);
    until("the other topic's are published", || async { at(&broker, "here") == 20 }).await;
    relay.stop().await.unwrap();
}

/// The same where each topic is a destination (no route, as with NATS and one subject an entity).
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_to_many_destinations_that_are_down_hides_no_other() {
    let database = Database::new("hostile_subjects").await;
    let pool = database.pool();
    let broker = Broker::new();
    (0..400).for_each(|number| broker.close_destination(&format!("a.t{number}")));
    let away = |number: usize| to(&format!("a.t{number}"), &format!("w{number}"), 1);
    let mut settings = settings();
    (settings.max_unrecorded, settings.read.page) = (400, 100);
    // As after a few probes by default: most of them wait at any time.
    let pause = Duration::from_secs(5);
    settings.unavailable = outbox::Backoff { first: pause, ceiling: pause };
    let relay = start(pool, broker.publisher(), settings);
    // The look-ahead is full of them, and each is known to be down.
    write(pool, &(0..400).map(away).collect::<Vec<_>>()).await;
    until("all are refused", || async { broker.refused_by_destinations() >= 400 }).await;
    write(pool, &(0..20).map(|number| to("here", "h", number)).collect::<Vec<_>>()).await;
    until("the other topic's are published", || async { at(&broker, "here") == 20 }).await;
    relay.stop().await.unwrap();
}

/// It may be the broker that is down; a destination that was never tried is no proof that it is not.
#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_confirms_nothing_is_copied_however_many_the_destinations() {
    let database = Database::new("hostile_copies").await;
    let pool = database.pool();
    let broker = Broker::new();
    (0..3000).for_each(|number| broker.close_destination(&format!("order.{number}")));
    let away = |number: usize| to(&format!("order.{number}"), &format!("w{number}"), 1);
    write(pool, &(0..3000).map(away).collect::<Vec<_>>()).await;
    let mut settings = settings();
    (settings.max_unrecorded, settings.read.page) = (150, 50);
    let relay = start(pool, broker.publisher(), settings);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let copies = held(pool).await.len();
    relay.stop().await.unwrap();
    assert_eq!(copies, 0, "copies though nothing was confirmed");
}

/// Takes a while for each batch, and counts the batches of one message that are under way at once to what is down.
struct Counted {
    publisher: MemoryPublisher,
    under_way: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    counts: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl Publisher for Counted {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let is_probe = batch.len() == 1 && batch[0].destination.starts_with("order.");
        if is_probe && self.counts.load(Ordering::SeqCst) {
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
        }
        self.publisher.publish(batch, outcomes).await;
    }
}

/// Law 6. Probes take connections of the pool in which the lease is renewed: a few are made at once.
#[tokio::test(flavor = "multi_thread")]
async fn many_destinations_that_are_down_keep_no_other_waiting_and_are_back_with_the_first() {
    const MANY: usize = 200;
    let database = Database::new("many_down").await;
    let pool = database.pool();
    let broker = Broker::new();
    (0..MANY).for_each(|number| broker.close_destination(&format!("order.{number}")));
    let options = database.url().parse().unwrap();
    let relays = outbox::pool_options().max_connections(10).connect_with(options).await.unwrap();
    let (most, counts) = (Arc::default(), Arc::new(AtomicBool::new(true)));
    let publisher = Counted {
        publisher: broker.publisher(),
        under_way: Arc::default(),
        most: Arc::clone(&most),
        counts: Arc::clone(&counts),
    };
    let relay = start(&relays, publisher, patient());
    write(pool, &[to("here", "h", 0)]).await;
    until("it runs", || async { at(&broker, "here") == 1 }).await;
    let away = |number: usize| to(&format!("order.{number}"), &format!("w{number}"), 1);
    write(pool, &(0..MANY).map(away).collect::<Vec<_>>()).await;
    for number in 1..=20 {
        write(pool, &[to("here", "h", number)]).await;
        until("others go on", || async { at(&broker, "here") > number }).await;
    }
    let mut number = 20;
    until("some are held", || {
        number += 1;
        async move {
            write(pool, &[to("here", "h", number)]).await;
            held(pool).await.len() > MANY / 2
        }
    })
    .await;
    assert!(most.load(Ordering::SeqCst) <= 16, "{} probes at once", most.load(Ordering::SeqCst));
    counts.store(false, Ordering::SeqCst);
    (0..MANY).for_each(|number| broker.open_destination(&format!("order.{number}")));
    until("no key is held", || async { held(pool).await.is_empty() }).await;
    until("all came", || async { broker.published().len() > MANY + 20 }).await;
    relay.stop().await.unwrap();
}
