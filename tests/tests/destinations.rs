//! Law 6 for destinations: one that takes nothing keeps only its own messages, wherever they stand in the log.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod relay_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use brokers::memory::{Broker, MemoryPublisher};
use brokers::nats::{NatsPublisher, NatsSubscriber, StreamPolicy, connect};
use message::{Message, Outcomes, Outgoing, Pipelining, Publisher, Subscriber};
use outbox::admin::{self, HeldKey};
use outbox::{Backoff, Routes, Settings};
use relay_support::{numbers, patient as settings, start, write};
use sqlx::PgPool;
use tests::Database;
use tokio::time::Instant;

/// Longer than anything takes here, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn held(pool: &PgPool) -> Vec<HeldKey> {
    admin::held_keys(pool, "default").await.unwrap()
}

async fn until_free(pool: &PgPool) {
    until("no key is held", || async { held(pool).await.is_empty() }).await;
}

fn to(topic: &str, key: &str, number: usize) -> Message {
    Message::new(topic, "order.changed", number.to_string()).with_key(key)
}

fn at(broker: &Broker, destination: &str) -> usize {
    broker.published().iter().filter(|published| &*published.destination == destination).count()
}

fn on_wire_bound(mut settings: Settings, most: usize) -> Settings {
    (settings.max_unrecorded, settings.read.page) = (most, most / 4);
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_destination_that_is_down_are_held_uncounted_with_the_reason_and_published_when_it_is_back()
{
    let database = Database::new("destinations_held").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.close_destination("away");
    let relay = start(pool, broker.publisher(), settings());
    for number in 1..=10 {
        write(pool, &[to("away", &format!("w{}", number % 3), number), to("here", "h", number)]).await;
    }
    let is_held = |held: &HeldKey| {
        let why = (held.reason.as_str(), held.destination.as_deref(), held.attempts, held.is_parked());
        why == ("destination", Some("away"), 0, false)
    };
    until("its keys are held", || async {
        let held = held(pool).await;
        held.len() == 3
            && held.iter().all(is_held)
            && held.iter().map(|held| held.messages).sum::<i64>() == 10
    })
    .await;
    assert_eq!((at(&broker, "here"), at(&broker, "away")), (10, 0));
    let status = admin::status(pool).await.unwrap().remove(0);
    let waits: Vec<_> = status.waits.iter().map(|wait| (wait.destination.as_str(), wait.keys)).collect();
    assert_eq!((waits, status.parked, status.held_messages), (vec![("away", 3)], 0, 10));
    assert!(status.waits[0].error.contains("closed on request"), "{:?}", status.waits);

    // One that takes over probes it, too.
    relay.stop().await.unwrap();
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[to("away", "w1", 11), to("here", "h", 11)]).await;
    until("others go on", || async { at(&broker, "here") == 11 }).await;
    // A probe counts while it is under way.
    until("no attempt counts", || async { held(pool).await.iter().all(is_held) }).await;
    broker.open_destination("away");
    until_free(pool).await;
    until("all is published", || async { broker.published().len() == 22 }).await;
    relay.stop().await.unwrap();
    assert_eq!(
        (numbers(&broker, "w0"), numbers(&broker, "w1"), numbers(&broker, "w2")),
        (vec![3, 6, 9], vec![1, 4, 7, 10, 11], vec![2, 5, 8])
    );
}

/// A relay that pauses for ten minutes when it pauses at all.
fn paused_for_long() -> Settings {
    let mut settings = settings();
    settings.unavailable = Backoff { first: Duration::from_secs(600), ceiling: Duration::from_secs(600) };
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_message_whose_destination_is_down_pauses_no_other_topic() {
    let database = Database::new("destinations_single").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.close_destination("away");
    // It would be tried again in ten minutes. What is confirmed behind it takes half of the look-ahead before.
    let mut settings = on_wire_bound(paused_for_long(), 400);
    settings.shards = 1;
    let relay = start(pool, broker.publisher(), settings);
    write(pool, &[to("away", "w", 1)]).await;
    until("it is refused", || async { broker.refused_by_destinations() > 0 }).await;
    for number in 1..=100 {
        write(pool, &(0..10).map(|key| to("here", &format!("h{key}"), number)).collect::<Vec<_>>()).await;
    }
    until("all others are published", || async { at(&broker, "here") == 1000 }).await;
    assert_eq!(broker.refused_by_destinations(), 1);
    // What was confirmed behind it is recorded: else a crash would repeat it.
    until("it is held", || async { held(pool).await.len() == 1 }).await;
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sent_behind_a_rejected_message_of_its_key_pauses_nothing() {
    let database = Database::new("destinations_not_sent").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    let relay = start(pool, broker.publisher(), paused_for_long());
    write(pool, &[to("here", "bad", 1), to("here", "bad", 2)]).await;
    until("it is held", || async { !held(pool).await.is_empty() }).await;
    write(pool, &[to("here", "good", 1)]).await;
    until("the others are published", || async { numbers(&broker, "good") == [1] }).await;
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_one_destination_longer_than_the_look_ahead_hides_no_other() {
    for (messages, payload) in [(450, 0), (60, 40_000)] {
        let database = Database::new("destinations_backlog").await;
        let pool = database.pool();
        let broker = Broker::new();
        broker.close_destination("away");
        let long = |number: usize| {
            let mut message = to("away", &format!("w{}", number % 100), number);
            message.payload = vec![b'x'; payload].into();
            message
        };
        let away: Vec<Message> = (0..messages).map(long).collect();
        write(pool, &away).await;
        write(pool, &(0..50).map(|number| to("here", "h", number)).collect::<Vec<_>>()).await;
        let mut settings = on_wire_bound(settings(), 200);
        settings.max_bytes = 1 << 20;
        settings.read.page_bytes = 1 << 18;
        let relay = start(pool, broker.publisher(), settings);
        until("the other topic's are published", || async { at(&broker, "here") == 50 }).await;
        assert_eq!(at(&broker, "away"), 0);
        broker.open_destination("away");
        until("all are published", || async { at(&broker, "away") == messages }).await;
        until_free(pool).await;
        relay.stop().await.unwrap();
        assert_eq!(broker.published().len(), messages + 50);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_confirms_nothing_is_copied() {
    let database = Database::new("destinations_nothing").await;
    let pool = database.pool();
    let broker = Broker::new();
    ["one", "other"].into_iter().for_each(|destination| broker.close_destination(destination));
    let message = |number: usize| to(["one", "other"][number % 2], &format!("k{}", number % 50), number);
    write(pool, &(0..500).map(message).collect::<Vec<_>>()).await;
    let relay = start(pool, broker.publisher(), on_wire_bound(settings(), 200));
    until("it is refused", || async { broker.refused_by_destinations() > 0 }).await;
    let first = broker.refused_by_destinations();
    until("it was probed again and again", || async { broker.refused_by_destinations() > first + 10 }).await;
    assert_eq!(held(pool).await.len(), 0);
    // Most of the first look-ahead once, and one message a probe.
    assert!(broker.refused_by_destinations() <= 250, "{}", broker.refused_by_destinations());
    ["one", "other"].into_iter().for_each(|destination| broker.open_destination(destination));
    until("all are published", || async { broker.published().len() == 500 }).await;
    until_free(pool).await;
    relay.stop().await.unwrap();
    for key in 0..50 {
        let numbers = numbers(&broker, &format!("k{key}"));
        assert!(numbers.len() == 10 && numbers.is_sorted(), "{numbers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_flaps_makes_no_copy_and_inverts_no_key() {
    for one_per_key in [false, true] {
        let database = Database::new("destinations_flapping").await;
        let pool = database.pool();
        let broker = Broker::new();
        let publisher = if one_per_key { broker.publisher().one_per_key() } else { broker.publisher() };
        let relay = start(pool, publisher, on_wire_bound(settings(), 100));
        let mut number = 0;
        for outage in 0..10 {
            broker.close_destination("away");
            for _ in 0..20 {
                // Keys of one topic, of the other, and of both.
                let messages = [("away", "w"), ("here", "h"), ("away", "both"), ("here", "both")];
                let messages = messages.map(|(topic, key)| {
                    number += 1;
                    to(topic, &format!("{key}{}", number % 5), number)
                });
                write(pool, &messages).await;
            }
            // Now it comes back while keys are held, now while they wait, now while it is being probed.
            match outage % 3 {
                0 => until("keys are held", || async { !held(pool).await.is_empty() }).await,
                1 => {
                    let refused = broker.refused_by_destinations();
                    until("it is refused", || async { broker.refused_by_destinations() > refused }).await;
                }
                _ => {}
            }
            broker.open_destination("away");
        }
        until("all are published", || async { broker.published().len() >= number }).await;
        until_free(pool).await;
        relay.stop().await.unwrap();
        assert_eq!(broker.published().len(), number, "a copy");
        assert_eq!(broker.overlaps(), 0);
        for key in ["w", "h", "both"].iter().flat_map(|key| (0..5).map(move |part| format!("{key}{part}"))) {
            assert!(numbers(&broker, &key).is_sorted(), "{key}: {:?}", numbers(&broker, &key));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_key_goes_where_its_route_goes_when_it_is_tried() {
    let database = Database::new("destinations_rerouted").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.close_destination("away");
    let routes = || Routes::default().with("away.too", "away").unwrap();
    let mut routed = settings();
    routed.routes = routes();
    let relay = start(pool, broker.publisher(), routed);
    write(pool, &[to("away", "w", 1), to("here", "h", 1), to("away.too", "w", 2)]).await;
    until("held", || async { held(pool).await.iter().any(|held| held.messages == 2) }).await;
    relay.stop().await.unwrap();
    let mut routed = settings();
    routed.routes = routes().with("away", "elsewhere").unwrap();
    let relay = start(pool, broker.publisher(), routed);
    until("the first is published", || async { at(&broker, "elsewhere") == 1 }).await;
    until("the second waits", || async {
        let held = held(pool).await;
        held.len() == 1 && held[0].destination.as_deref() == Some("away") && held[0].messages == 1
    })
    .await;
    broker.open_destination("away");
    until_free(pool).await;
    relay.stop().await.unwrap();
    assert_eq!((at(&broker, "away"), numbers(&broker, "w")), (1, vec![1, 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_backlog_fills_the_look_ahead_is_set_aside_and_keeps_its_order() {
    let database = Database::new("destinations_hot").await;
    let pool = database.pool();
    let broker = Broker::new();
    // One message of a key at a time: a key with a long backlog takes long.
    broker.delay_confirmations(Duration::from_millis(10));
    write(pool, &(0..400).map(|number| to("here", "hot", number)).collect::<Vec<_>>()).await;
    write(pool, &(0..10).map(|number| to("here", &format!("k{number}"), number)).collect::<Vec<_>>()).await;
    let mut settings = on_wire_bound(settings(), 100);
    settings.record_interval = Duration::from_millis(10);
    let relay = start(pool, broker.publisher().one_per_key(), settings);
    until("the others are published", || async {
        (0..10).all(|key| numbers(&broker, &format!("k{key}")) == [key])
    })
    .await;
    // A look-ahead before its end the others would be read at the earliest.
    let behind = broker
        .published()
        .into_iter()
        .take_while(|published| published.message.key.as_deref() == Some("hot"));
    assert!(behind.count() < 300, "the others waited for the backlog");
    broker.delay_confirmations(Duration::ZERO);
    until("all are published", || async { numbers(&broker, "hot").len() >= 400 }).await;
    until_free(pool).await;
    write(pool, &[to("here", "hot", 400)]).await;
    until("it goes on", || async { numbers(&broker, "hot").len() > 400 }).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "hot"), (0..=400).collect::<Vec<_>>());
}

/// Counts the batches.
struct Counting {
    publisher: MemoryPublisher,
    batches: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl Publisher for Counting {
    fn pipelining(&self) -> Pipelining {
        self.publisher.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.publisher.publish(batch, outcomes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_innocent_keys_under_suspicion_is_free_after_a_few_tries() {
    let database = Database::new("destinations_suspicion").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut settings = settings();
    settings.shards = 1;
    settings.max_attempts = 10;
    let relay = start(pool, broker.publisher(), settings.clone());
    write(pool, &[to("here", "first", 1)]).await;
    until("it has begun", || async { broker.published().len() == 1 }).await;
    relay.stop().await.unwrap();
    write(pool, &(0..1000).map(|key| to("here", &format!("k{key}"), 1)).collect::<Vec<_>>()).await;
    // As two owners that died over it would have left it.
    sqlx::raw_sql("update outbox.cursor set crashes = 2").execute(pool).await.unwrap();
    let batches = Arc::new(AtomicUsize::new(0));
    let counting = Counting { publisher: broker.publisher(), batches: Arc::clone(&batches) };
    let began = Instant::now();
    let relay = start(pool, counting, settings);
    until("all are published", || async { broker.published().len() > 1000 }).await;
    until_free(pool).await;
    println!(
        r#"{{"measure": "suspicion", "keys": 1000, "held_seconds": {:.3}, "tries": {}}}"#,
        began.elapsed().as_secs_f64(),
        batches.load(Ordering::Relaxed)
    );
    relay.stop().await.unwrap();
    assert_eq!(broker.published().len(), 1001);
    let tries = batches.load(Ordering::Relaxed);
    assert!((10..100).contains(&tries), "they were not suspected, or tried one by one: {tries} tries");
}

/// What a relay publishes from its log, and how fast it drains as many keys that waited for a destination.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: run it in release, alone"]
async fn measure_how_fast_keys_drain_when_their_destination_is_back() {
    const KEYS: usize = 10_000;
    let database = Database::new("destinations_rate").await;
    let pool = database.pool();
    let broker = Broker::new();
    let messages =
        |topic: &str| (0..KEYS).map(|key| to(topic, &format!("{topic}{key}"), 1)).collect::<Vec<_>>();
    let relay = start(pool, broker.publisher(), settings());
    until("it runs", || async { admin::status(pool).await.unwrap().iter().any(|relay| relay.processes > 0) })
        .await;
    let rate = |began: Instant| KEYS as f64 / began.elapsed().as_secs_f64();
    // Written at once, so that it is a backlog.
    write(pool, &messages("warm")).await;
    until("published", || async { at(&broker, "warm") == KEYS }).await;
    let all = messages("normal");
    write(pool, &all).await;
    let began = Instant::now();
    until("published", || async { at(&broker, "normal") == KEYS }).await;
    let normal = rate(began);
    broker.close_destination("away");
    write(pool, &messages("away")).await;
    until("held", || async {
        write(pool, &[to("here", "h", 1)]).await;
        held(pool).await.len() == KEYS
    })
    .await;
    broker.open_destination("away");
    until("the probe", || async { at(&broker, "away") > 0 }).await;
    let began = Instant::now();
    until("published", || async { at(&broker, "away") == KEYS }).await;
    let drain = rate(began);
    println!(
        r#"{{"measure": "drain", "keys": {KEYS}, "normal": {normal:.0}, "drain": {drain:.0}, "ratio": {:.2}}}"#,
        drain / normal
    );
    until_free(pool).await;
    relay.stop().await.unwrap();
}

/// A subject that no stream takes, on a real server; and one that a stream takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_no_stream_takes_keeps_no_other_from_nats() {
    let url = std::env::var("NATS_URL").expect("NATS_URL is not set: run tests/run");
    let client = connect(&url).await.unwrap();
    for (away, payload) in [(10_050, 10), (80, 960_000)] {
        let database = Database::new("destinations_nats").await;
        let pool = database.pool();
        let name = format!("test-{}", uuid::Uuid::new_v4());
        let stream = StreamPolicy::create(&name, [format!("{name}.here")]);
        let publisher = NatsPublisher::new(client.clone()).with_stream(stream);
        publisher.check().await.unwrap();
        for part in (0..away).collect::<Vec<usize>>().chunks(if payload > 1000 { 10 } else { 2000 }) {
            let long = |number: &usize| {
                let mut message = to("away", &format!("w{number}"), *number);
                message.payload = vec![b'x'; payload].into();
                message
            };
            write(pool, &part.iter().map(long).collect::<Vec<_>>()).await;
        }
        write(pool, &(0..50).map(|number| to("here", "h", number)).collect::<Vec<_>>()).await;
        let mut routed = settings();
        routed.routes = Routes::default().with("*", &format!("{name}.{{topic}}")).unwrap();
        let relay = start(pool, publisher, routed);
        let mut subscriber = NatsSubscriber::new(client.clone(), &name, "g");
        let receiving = async {
            let mut received = 0;
            while received < 50 {
                for delivery in subscriber.receive(50).await.unwrap() {
                    delivery.acknowledge().await.unwrap();
                    received += 1;
                }
            }
        };
        tokio::time::timeout(PATIENCE, receiving).await.expect("the other topic's are stored");
        // They may be stored while what was held for them is being written.
        let waits = |held: &HeldKey| held.reason == "destination" && held.attempts == 0;
        until("keys are held, and no attempt counts", || async {
            let held = held(pool).await;
            !held.is_empty() && held.iter().all(waits)
        })
        .await;
        relay.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_waited_for_a_destination_is_tried_again_after_a_statement_about_it_failed() {
    let database = Database::new("destinations_waited").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.close_destination("away");
    let relay = start(pool, broker.publisher(), settings());
    let mut number = 0;
    write(pool, &[to("away", "w1", 1), to("away", "w2", 1)]).await;
    until("two keys are held", || {
        number += 1;
        async move {
            write(pool, &[to("here", "h", number)]).await;
            held(pool).await.iter().filter(|held| held.destination.is_some()).count() == 2
        }
    })
    .await;
    // In place of anything that makes the statement fail.
    let mut person = pool.begin().await.unwrap();
    sqlx::raw_sql("select from outbox.held_key where key = 'w2' for update")
        .execute(&mut *person)
        .await
        .unwrap();
    broker.open_destination("away");
    until("the first is published", || async { numbers(&broker, "w1") == [1] }).await;
    let waits =
        "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()
        and query like '%Counts an attempt%'";
    until("the second is being claimed", || async {
        sqlx::query_scalar::<_, i32>(waits).fetch_optional(pool).await.unwrap().is_some()
    })
    .await;
    // Long enough for the relay to look once more for what waits; nothing says when it has.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let pid: i32 = sqlx::query_scalar(waits).fetch_one(pool).await.unwrap();
    sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(pool).await.unwrap();
    person.rollback().await.unwrap();
    until("the second is published", || async { numbers(&broker, "w2") == [1] }).await;
    until_free(pool).await;
    relay.stop().await.unwrap();
}
