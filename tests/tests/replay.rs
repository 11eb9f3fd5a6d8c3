//! What a replay promises: exactly what was asked for, once more, marked, in order per key, and no more than it must after
//! a kill.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod relay_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use brokers::memory::{Broker, Fault, MemoryPublisher};
use brokers::postgres::{PostgresPublisher, PostgresSubscriber};
use inbox::{Consumer, HandlerError};
use message::{Message, MessageId, Outcomes, Outgoing, Pipelining, Publisher};
use outbox::log::Start;
use outbox::replay::{Filter, Found, Replay, ReplayError, ReplaySettings, Replayed, cancel, list, preview};
use outbox::{Backoff, admin};
use relay_support::{PATIENCE, until, write};
use sqlx::{PgPool, PgTransaction};
use tests::Database;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[path = "replay/processes.rs"]
mod processes;
#[path = "replay/selection.rs"]
mod selection;

/// Positions per leaf of the ring.
const LEAF: i64 = 1 << 20;

fn settings() -> ReplaySettings {
    let mut settings = ReplaySettings::default();
    settings.lease = Duration::from_secs(1);
    settings.record_interval = Duration::from_millis(20);
    settings.unavailable = Backoff { first: Duration::from_millis(10), ceiling: Duration::from_millis(50) };
    settings
}

fn replay<P: Publisher + 'static>(pool: &PgPool, name: &str, publisher: P) -> Replay<P> {
    Replay::new(name, pool.clone(), publisher, "ada").with_settings(settings())
}

async fn run<P: Publisher + 'static>(replay: Replay<P>) -> Result<Replayed, ReplayError> {
    tokio::time::timeout(PATIENCE, replay.run(CancellationToken::new())).await.expect("it ends in time")
}

fn spawn<P: Publisher + 'static>(replay: Replay<P>) -> JoinHandle<Result<Replayed, ReplayError>> {
    tokio::spawn(replay.run(CancellationToken::new()))
}

async fn arrived(broker: &Broker, count: usize) {
    let published = tokio::time::timeout(PATIENCE, broker.wait_for_published(count)).await;
    assert!(published.is_ok(), "{count} are expected: {:?}", numbers(broker));
}

/// A message whose payload is its number, and whose key has every third of them.
fn message(number: usize) -> Message {
    Message::new("orders", "order.changed", number.to_string()).with_key(format!("k{}", number % 3))
}

async fn fill(pool: &PgPool, numbers: std::ops::RangeInclusive<usize>) -> Vec<Message> {
    let messages: Vec<Message> = numbers.map(message).collect();
    write(pool, &messages).await;
    messages
}

fn numbers(broker: &Broker) -> Vec<usize> {
    let published = broker.published();
    published
        .iter()
        .map(|published| std::str::from_utf8(&published.message.payload).unwrap().parse().unwrap())
        .collect()
}

/// That each key's first deliveries are in order.
fn assert_order(broker: &Broker) {
    let mut last = std::collections::HashMap::new();
    let mut seen = std::collections::HashSet::new();
    for number in numbers(broker) {
        if seen.insert(number) {
            let before = last.insert(number % 3, number);
            assert!(before < Some(number), "{number} after {before:?}: {:?}", numbers(broker));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_keeps_its_order_through_failures_of_every_kind() {
    for publisher in [Broker::publisher, |broker: &Broker| broker.publisher().one_per_key()] {
        let database = Database::new("replay_order").await;
        fill(database.pool(), 1..=60).await;
        let broker = Broker::new();
        broker.fail_next(3, Fault::Unavailable);
        broker.fail_next(4, Fault::UnknownButKept);
        broker.fail_next(2, Fault::Unknown);
        let mut settings = settings();
        settings.batch = 7;
        let replay = replay(database.pool(), "r", publisher(&broker)).with_filter(Filter::default());
        let done = run(replay.with_settings(settings)).await.unwrap();
        assert_eq!(done.published, 60);
        assert_order(&broker);
        assert_eq!(broker.published().len(), 64, "four were kept without an answer");
        assert_eq!(broker.overlaps(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_a_second_are_published_than_the_rate_allows() {
    let database = Database::new("replay_rate").await;
    fill(database.pool(), 1..=150).await;
    let broker = Broker::new();
    let mut paced = settings();
    paced.rate = Some(100);
    let begun = std::time::Instant::now();
    run(replay(database.pool(), "r", broker.publisher()).with_filter(Filter::default()).with_settings(paced))
        .await
        .unwrap();
    // The first moment's messages go at once.
    assert!(begun.elapsed() >= Duration::from_millis(1_350), "{:?}", begun.elapsed());
    assert_eq!(broker.published().len(), 150);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_message_stops_it_and_a_skip_is_written_down() {
    let database = Database::new("replay_rejected").await;
    let pool = database.pool();
    let mut messages: Vec<Message> = (1..=9).map(message).collect();
    messages[4].key = Some("bad".into());
    messages[6].key = Some("bad".into());
    write(pool, &messages).await;
    let broker = Broker::new();
    broker.reject_key("bad");
    let stopped = run(replay(pool, "r", broker.publisher()).with_filter(Filter::default())).await;
    let Err(ReplayError::Rejected { position: 5, id, .. }) = stopped else { panic!("{stopped:?}") };
    assert_eq!(id, messages[4].id);
    let status = list(pool).await.unwrap().remove(0);
    assert_eq!((&*status.state, status.after, status.published, status.working), ("running", 4, 4, false));
    assert!(status.last_error.as_deref().is_some_and(|error| error.contains("reject")), "{status:?}");

    let mut skipping = settings();
    skipping.skip_rejected = true;
    let done = run(replay(pool, "r", broker.publisher()).with_settings(skipping)).await.unwrap();
    assert_eq!((done.published, done.skipped, done.finished), (7, 2, true));
    let audit = admin::audit(pool, None, 10).await.unwrap();
    let actions: Vec<_> = audit.iter().map(|entry| (&*entry.action, entry.position)).collect();
    assert_eq!(actions, [("skip", Some(7)), ("skip", Some(5)), ("replay", None)]);
    assert!(audit.iter().all(|entry| entry.replay.as_deref() == Some("r") && entry.who == "ada"));
    assert_eq!(audit[1].message_id, Some(*messages[4].id.as_uuid()));
    assert!(audit[1].reason.as_deref().is_some_and(|reason| reason.contains("reject")));
    assert_eq!(list(pool).await.unwrap()[0].last_error, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_never_answered_stops_it_and_is_not_given_up() {
    let database = Database::new("replay_unanswered").await;
    let pool = database.pool();
    fill(pool, 1..=3).await;
    let broker = Broker::new();
    broker.fail_next(1_000, Fault::Unknown);
    let mut skipping = settings();
    skipping.skip_rejected = true;
    let stopped =
        run(replay(pool, "r", broker.publisher()).with_settings(skipping).with_filter(Filter::default()))
            .await;
    assert!(matches!(stopped, Err(ReplayError::Unanswered { .. })), "{stopped:?}");
    let status = list(pool).await.unwrap().remove(0);
    assert_eq!((&*status.state, status.skipped, status.working), ("running", 0, false));
    assert!(status.last_error.is_some_and(|error| error.contains("unknown")));
    let done = run(replay(pool, "r", Broker::new().publisher())).await.unwrap();
    assert_eq!((done.published, done.skipped, done.finished), (3, 0, true));
    assert_eq!(admin::audit(pool, None, 10).await.unwrap().len(), 1, "only that it began");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_a_broker_that_is_down() {
    let database = Database::new("replay_down").await;
    fill(database.pool(), 1..=50).await;
    let broker = Broker::new();
    broker.go_down();
    let running = spawn(replay(database.pool(), "r", broker.publisher()).with_filter(Filter::default()));
    let lease = settings().lease;
    // Longer than its lease, which it must renew while it waits.
    tokio::time::sleep(lease * 2).await;
    assert!(!running.is_finished());
    assert!(list(database.pool()).await.unwrap()[0].working);
    broker.come_up();
    let done = tokio::time::timeout(PATIENCE, running).await.expect("in time").unwrap().unwrap();
    assert_eq!((done.published, numbers(&broker).len()), (50, 50));
}

/// Though what waits for it is more than a page, and stands before them.
#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_is_down_keeps_no_other_topic_of_a_replay_waiting() {
    let database = Database::new("replay_destination").await;
    let pool = database.pool();
    let to = |topic: &str, number: usize| {
        Message::new(topic, "order.changed", number.to_string()).with_key(format!("{topic}{}", number % 3))
    };
    write(pool, &(1..=100).map(|number| to("away", number)).collect::<Vec<_>>()).await;
    write(pool, &(101..=200).map(|number| to("here", number)).collect::<Vec<_>>()).await;
    let broker = Broker::new();
    broker.close_destination("away");
    let mut small = settings();
    small.page = 20;
    let job = replay(pool, "r", broker.publisher()).with_filter(Filter::default()).with_settings(small);
    let running = spawn(job);
    arrived(&broker, 100).await;
    assert!(broker.published().iter().all(|published| &*published.destination == "here"));
    broker.open_destination("away");
    let done = tokio::time::timeout(PATIENCE, running).await.expect("in time").unwrap().unwrap();
    assert_eq!((done.published, done.finished, numbers(&broker).len()), (200, true, 200));
    for key in 0..3 {
        let of_key: Vec<_> =
            numbers(&broker).into_iter().filter(|number| *number <= 100 && number % 3 == key).collect();
        assert!(of_key.is_sorted() && !of_key.is_empty(), "{of_key:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_cancelled_stops_and_its_name_is_not_used_again() {
    let database = Database::new("replay_cancelled").await;
    let pool = database.pool();
    fill(pool, 1..=100).await;
    let broker = Broker::new();
    let mut paced = settings();
    paced.rate = Some(20);
    let running =
        spawn(replay(pool, "r", broker.publisher()).with_filter(Filter::default()).with_settings(paced));
    arrived(&broker, 3).await;
    assert!(cancel(pool, "r", "grace", "enough").await.unwrap());
    assert!(!cancel(pool, "r", "grace", "enough").await.unwrap());
    let ended = tokio::time::timeout(PATIENCE, running).await.expect("it notices").unwrap();
    assert!(matches!(ended, Err(ReplayError::Cancelled)), "{ended:?}");
    assert!(matches!(run(replay(pool, "r", broker.publisher())).await, Err(ReplayError::Cancelled)));
    let entry = admin::audit(pool, None, 1).await.unwrap().remove(0);
    assert_eq!((&*entry.action, &*entry.who, entry.reason.as_deref()), ("cancel", "grace", Some("enough")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_stands_for_one_filter_and_one_destination() {
    let database = Database::new("replay_other").await;
    let pool = database.pool();
    fill(pool, 1..=3).await;
    let unbegun = run(replay(pool, "typo", Broker::new().publisher())).await;
    assert!(matches!(unbegun, Err(ReplayError::NotBegun)), "{unbegun:?}");
    let orders = Filter::default().with_topic("orders".parse().unwrap()).with_key("k1").with_key("k2");
    let same = Filter::default().with_key("k2").with_key("k1").with_topic("orders".parse().unwrap());
    let broker = Broker::new();
    let first = replay(pool, "r", broker.publisher()).with_filter(orders);
    run(first.with_destination("a").unwrap()).await.unwrap();
    let other = run(replay(pool, "r", broker.publisher()).with_filter(Filter::default())).await;
    assert!(matches!(other, Err(ReplayError::OtherFilter)), "{other:?}");
    assert!(matches!(preview(pool, "r", Some(&Filter::default())).await, Err(ReplayError::OtherFilter)));
    let elsewhere = run(replay(pool, "r", broker.publisher()).with_destination("b").unwrap()).await;
    assert!(matches!(elsewhere, Err(ReplayError::OtherFilter)), "{elsewhere:?}");
    assert!(run(replay(pool, "r", broker.publisher()).with_filter(same)).await.unwrap().finished);
    assert_eq!(broker.published().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_a_replay_would_publish_and_needs_the_relays_right_to_do_it() {
    let database = Database::new("replay_roles").await;
    let pool = database.pool();
    sqlx::raw_sql(migrations::roles()).execute(pool).await.unwrap();
    fill(pool, 1..=3).await;
    let as_roles = |roles: &str| {
        let options =
            database.url().parse::<sqlx::postgres::PgConnectOptions>().unwrap().options([("role", roles)]);
        outbox::pool_options().max_connections(2).connect_lazy_with(options)
    };
    let operator = as_roles("outbox_operator");
    let filter = || Filter::default().with_key("k1").with_since("2020-01-01T00:00:00Z".parse().unwrap());
    assert_eq!(preview(&operator, "r", Some(&filter())).await.unwrap().messages, 1);
    let broker = Broker::new();
    let refused = run(replay(&operator, "r", broker.publisher()).with_filter(filter())).await;
    let Err(ReplayError::Database(error)) = &refused else { panic!("{refused:?}") };
    assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("42501"), "{error}");
    assert!(broker.published().is_empty());
    assert!(cancel(&operator, "r", "ada", "enough").await.unwrap());

    let both = format!("replayer_{}", MessageId::new().as_uuid().simple());
    let grant = format!("create role {both}; grant outbox_operator, outbox_relay to {both}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(grant)).execute(pool).await.unwrap();
    let mut skipping = settings();
    skipping.skip_rejected = true;
    broker.fail_next(1, Fault::Rejected);
    let replay = replay(&as_roles(&both), "s", broker.publisher()).with_filter(Filter::default());
    let done = run(replay.with_settings(skipping)).await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("drop owned by {both}; drop role {both}")))
        .execute(pool)
        .await
        .unwrap();
    let done = done.unwrap();
    assert_eq!((done.published, done.skipped), (2, 1));
    for role in ["outbox_service", "outbox_relay", "outbox_consumer", "outbox_monitor"] {
        let refused = run(replay_of(&as_roles(role), "t")).await;
        assert!(
            matches!(refused, Err(ReplayError::Database(_) | ReplayError::Refused(_))),
            "{role}: {refused:?}"
        );
    }
}

fn replay_of(pool: &PgPool, name: &str) -> Replay<MemoryPublisher> {
    replay(pool, name, Broker::new().publisher()).with_filter(Filter::default())
}
