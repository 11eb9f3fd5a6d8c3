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
async fn each_filter_lets_through_what_it_names_and_nothing_else() {
    let database = Database::new("replay_filters").await;
    let pool = database.pool();
    let cause = Message::new("t", "k", "0");
    let mut messages: Vec<Message> = [
        ("orders.eu.placed", "order.placed", Some("a")),
        ("orders.us.placed", "order.placed", Some("b")),
        ("orders", "order.changed", Some("a")),
        ("stock", "stock.taken", None),
        ("orders.eu", "order.placed", Some("c")),
    ]
    .iter()
    .enumerate()
    .map(|(index, (topic, kind, key))| {
        let mut message = Message::new(*topic, *kind, (index + 1).to_string());
        message.key = key.map(Into::into);
        message
    })
    .collect();
    messages[3] = messages[3].clone().caused_by(&cause);
    for message in &messages {
        write(pool, std::slice::from_ref(message)).await;
    }
    // An hour apart, from midnight on.
    sqlx::raw_sql(
        "update outbox.message set enqueued_at = '2026-01-01T00:00:00Z'::timestamptz + interval '1 hour' * position",
    )
    .execute(pool)
    .await
    .unwrap();
    let all = Filter::default;
    let at = |hour: u32| format!("2026-01-01T{hour:02}:00:00Z").parse().unwrap();
    let topic = |pattern: &str| all().with_topic(pattern.parse().unwrap());
    for (name, filter, expected) in [
        ("all", all(), vec![1, 2, 3, 4, 5]),
        ("from", all().with_from_position(4), vec![4, 5]),
        ("to", all().with_to_position(2), vec![1, 2]),
        ("range", all().with_from_position(2).with_to_position(3), vec![2, 3]),
        ("beyond", all().with_from_position(77), vec![]),
        ("since", all().with_since(at(4)), vec![4, 5]),
        // Within a second of a message: the place of a time is not as exact as what is asked for.
        ("since-close", all().with_since(at(4) + chrono::TimeDelta::milliseconds(500)), vec![5]),
        ("until", all().with_until(at(3)), vec![1, 2]),
        ("hours", all().with_since(at(2)).with_until(at(5)), vec![2, 3, 4]),
        ("since-never", all().with_since("2036-01-01T00:00:00Z".parse().unwrap()), vec![]),
        ("topic", topic("orders"), vec![3]),
        ("pattern", topic("orders.>"), vec![1, 2, 5]),
        ("word", topic("orders.*.placed"), vec![1, 2]),
        ("topics", topic("stock").with_topic("orders.eu".parse().unwrap()), vec![4, 5]),
        ("kind", all().with_kind("order.placed"), vec![1, 2, 5]),
        ("key", all().with_key("a"), vec![1, 3]),
        ("keys", all().with_key("a").with_key("c"), vec![1, 3, 5]),
        ("id", all().with_id(messages[1].id), vec![2]),
        ("ids", all().with_id(messages[1].id).with_id(messages[4].id), vec![2, 5]),
        ("workflow", all().with_correlation(cause.id), vec![4]),
        ("both", topic("orders.>").with_key("c"), vec![5]),
        ("neither", topic("stock").with_key("a"), vec![]),
    ] {
        let foretold = preview(pool, name, Some(&filter)).await.unwrap();
        let broker = Broker::new();
        let done = run(replay(pool, name, broker.publisher()).with_filter(filter)).await.unwrap();
        let mut published = numbers(&broker);
        published.sort_unstable();
        assert_eq!(published, expected, "{name}");
        assert_eq!((done.published, done.finished), (expected.len() as i64, true), "{name}");
        assert_eq!(foretold.messages, expected.len() as i64, "{name}");
        let ends = foretold.ends.map(|(first, last)| (first.position as usize, last.position as usize));
        assert_eq!(ends, expected.first().copied().zip(expected.last().copied()), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_bears_the_replays_name_and_is_what_was_enqueued() {
    let database = Database::new("replay_marked").await;
    let written = message(1).with_header("tenant", "acme").with_content_type("text/plain");
    write(database.pool(), std::slice::from_ref(&written)).await;
    let broker = Broker::new();
    let replay = replay(database.pool(), "monthly-2", broker.publisher()).with_filter(Filter::default());
    run(replay.with_destination("rebuild.{topic}").unwrap()).await.unwrap();
    let published = broker.published();
    assert_eq!(&*published[0].destination, "rebuild.orders");
    let mut arrived = (*published[0].message).clone();
    assert_eq!(arrived.headers.replay(), Some("monthly-2"));
    arrived.headers.remove("outbox-replay");
    arrived.source = None;
    assert_eq!(arrived, written);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_committed_when_it_began_is_published() {
    let database = Database::new("replay_snapshot").await;
    let pool = database.pool();
    let mut open = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut open, &[message(1)]).await.unwrap();
    fill(pool, 2..=4).await;
    let broker = Broker::new();
    broker.go_down();
    let running = spawn(replay(pool, "r", broker.publisher()).with_filter(Filter::default()));
    until("begun", || async { !list(pool).await.unwrap().is_empty() }).await;
    outbox::commit(open).await.unwrap();
    fill(pool, 5..=6).await;
    broker.come_up();
    let done = running.await.unwrap().unwrap();
    assert_eq!((done.published, numbers(&broker)), (3, vec![2, 3, 4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_through_the_leaves_of_the_ring_in_order() {
    let database = Database::new("replay_leaves").await;
    let pool = database.pool();
    let broker = Broker::new();
    for (first, number) in [(1, 1), (LEAF - 2, 4), (5 * LEAF - 1, 10), (16 * LEAF + 1, 13)] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
            "alter sequence outbox.message_position_seq restart {first}"
        )))
        .execute(pool)
        .await
        .unwrap();
        fill(pool, number..=number + if number == 4 { 5 } else { 2 }).await;
    }
    let foretold = preview(pool, "r", Some(&Filter::default())).await.unwrap();
    let mut settings = settings();
    settings.page = 2;
    let done =
        run(replay(pool, "r", broker.publisher()).with_filter(Filter::default()).with_settings(settings))
            .await
            .unwrap();
    assert_eq!((done.published, foretold.messages), (15, 15));
    assert_eq!(numbers(&broker), (1..=15).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_in_an_era_that_has_ended_is_published_too() {
    let database = Database::new("replay_eras").await;
    let pool = database.pool();
    fill(pool, 1..=3).await;
    // As a restore and a repair leave it: transaction ids from another life, and an era of this one above them.
    sqlx::raw_sql(
        "update outbox.message set tx = '900000000000';
         insert into outbox.cluster (era, system_identifier, first_position)
         select 2, system_identifier, 4 from outbox.cluster",
    )
    .execute(pool)
    .await
    .unwrap();
    fill(pool, 4..=5).await;
    let mut open = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut open, &[message(6)]).await.unwrap();
    let broker = Broker::new();
    let done = run(replay(pool, "r", broker.publisher()).with_filter(Filter::default())).await.unwrap();
    assert_eq!((done.published, numbers(&broker)), (5, vec![1, 2, 3, 4, 5]));
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
async fn a_replay_whose_process_dies_goes_on_after_what_was_recorded() {
    let database = Database::new("replay_resumed").await;
    let pool = database.pool();
    fill(pool, 1..=500).await;
    let broker = Broker::new();
    let mut paced = settings();
    paced.rate = Some(1000);
    let first =
        replay(pool, "r", broker.publisher()).with_filter(Filter::default()).with_settings(paced.clone());
    let running = spawn(first);
    arrived(&broker, 200).await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    let on_wire = broker.published().len();
    let recorded = list(pool).await.unwrap().remove(0);
    assert!(recorded.published > 50, "{recorded:?}");
    assert_eq!((&*recorded.state, recorded.after), ("running", recorded.published), "{recorded:?}");

    // Without a filter: it has one.
    let done = run(replay(pool, "r", broker.publisher())).await.unwrap();
    assert_eq!((done.published, done.finished), (500, true));
    assert_order(&broker);
    let published = numbers(&broker);
    assert!((1..=500).all(|number| published.contains(&number)));
    // What was recorded is not published again.
    let repeated = &published[on_wire..];
    assert_eq!(repeated.first(), Some(&(recorded.published as usize + 1)));
    assert_eq!(published.len() - 500, on_wire - recorded.published as usize);

    // Once more under its name: there is nothing to do.
    assert_eq!(run(replay(pool, "r", broker.publisher())).await.unwrap(), done);
    assert_eq!(broker.published().len(), published.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_polite_stop_repeats_nothing() {
    let database = Database::new("replay_stopped").await;
    let pool = database.pool();
    fill(pool, 1..=300).await;
    let broker = Broker::new();
    let mut finished = false;
    for life in 1..20 {
        let mut paced = settings();
        paced.rate = Some(2000);
        paced.record_interval = Duration::from_secs(3600);
        let stop = CancellationToken::new();
        let replay =
            replay(pool, "r", broker.publisher()).with_filter(Filter::default()).with_settings(paced);
        let running = tokio::spawn(replay.run(stop.clone()));
        let enough = tokio::time::timeout(PATIENCE, broker.wait_for_published((life * 70).min(300))).await;
        assert!(enough.is_ok());
        stop.cancel();
        finished = running.await.unwrap().unwrap().finished;
        if finished {
            break;
        }
    }
    assert!(finished);
    assert_eq!(numbers(&broker), (1..=300).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_do_not_publish_the_same_replay() {
    let database = Database::new("replay_two").await;
    let pool = database.pool();
    fill(pool, 1..=100).await;
    let broker = Broker::new();
    let mut paced = settings();
    paced.rate = Some(20);
    let first = replay(pool, "r", broker.publisher()).with_filter(Filter::default()).with_settings(paced);
    let running = spawn(first);
    arrived(&broker, 5).await;
    // It waits for the lease, which is renewed meanwhile: so the first is alive.
    let second = run(replay(pool, "r", Broker::new().publisher())).await;
    assert!(matches!(second, Err(ReplayError::Busy)), "{second:?}");
    assert!(!running.is_finished());
    running.abort();
    let _ = running.await;
    let done = run(replay(pool, "r", broker.publisher())).await.unwrap();
    assert_eq!(done.published, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_taken_for_dead_records_nothing_any_more() {
    let database = Database::new("replay_zombie").await;
    let pool = database.pool();
    fill(pool, 1..=100).await;
    let broker = Broker::new();
    let mut paced = settings();
    paced.rate = Some(10);
    let zombie =
        spawn(replay(pool, "r", broker.publisher()).with_filter(Filter::default()).with_settings(paced));
    arrived(&broker, 2).await;
    let mut paced = settings();
    paced.rate = Some(200);
    let done = loop {
        sqlx::raw_sql("update outbox.replay set expires_at = clock_timestamp()").execute(pool).await.unwrap();
        match run(replay(pool, "r", broker.publisher()).with_settings(paced.clone())).await {
            // It renewed its lease just then.
            Err(ReplayError::Busy) => {}
            done => break done.unwrap(),
        }
    };
    assert_eq!((done.published, done.finished), (100, true));
    let ended = tokio::time::timeout(PATIENCE, zombie).await.expect("it notices").unwrap();
    assert!(matches!(ended, Err(ReplayError::Busy)), "{ended:?}");
    assert_eq!(list(pool).await.unwrap()[0].published, 100);
    assert_order(&broker);
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
    assert!(cancel(pool, "r", "grace", Some("enough")).await.unwrap());
    assert!(!cancel(pool, "r", "grace", None).await.unwrap());
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
async fn a_preview_says_what_would_be_published_and_writes_nothing() {
    let database = Database::new("replay_preview").await;
    let pool = database.pool();
    let messages = fill(pool, 1..=4).await;
    write(pool, &[Message::new("stock", "k", "5")]).await;
    let everything = || async {
        let sql = "select sum((xpath('/row/c/text()', query_to_xml(
                format('select count(*) as c from %I.%I', table_schema, table_name), false, true, '')))[1]::text::bigint)::bigint
            from information_schema.tables where table_schema in ('outbox', 'inbox') and table_type = 'BASE TABLE'";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(pool).await.unwrap()
    };
    let before = everything().await;
    // A reader that may not even write.
    let reader = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .connect_with(
            database
                .url()
                .parse::<sqlx::postgres::PgConnectOptions>()
                .unwrap()
                .options([("default_transaction_read_only", "on")]),
        )
        .await
        .unwrap();
    let foretold = preview(&reader, "r", Some(&Filter::default().with_from_position(2))).await.unwrap();
    assert_eq!(foretold.found, Found::Nothing);
    let topics: Vec<(&str, i64)> = foretold.topics.iter().map(|(topic, count)| (&**topic, *count)).collect();
    assert_eq!((foretold.messages, topics), (4, vec![("orders", 3), ("stock", 1)]));
    let (first, last) = foretold.ends.unwrap();
    assert_eq!((first.position, first.id, last.position), (2, messages[1].id, 5));
    assert!(first.enqueued_at <= last.enqueued_at);
    assert!(matches!(preview(&reader, "r", None).await, Err(ReplayError::NotBegun)));
    assert_eq!(everything().await, before);
}

async fn effect(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    sqlx::query("insert into effect values ($1, $2)")
        .bind(message.id.as_uuid())
        .bind(message.headers.replay())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_sees_the_mark_and_an_inbox_discards_what_it_has_handled() {
    let (database, broker) = (Database::new("replay_consumed").await, Database::new("replay_broker").await);
    let pool = database.pool();
    let consumers = outbox::pool_options().max_connections(20).connect(database.url()).await.unwrap();
    sqlx::raw_sql("create table effect (message uuid, replay text)").execute(pool).await.unwrap();
    let effects = || async {
        let sql = "select coalesce(replay, '-') from effect order by 1";
        sqlx::query_scalar::<_, String>(sql).fetch_all(pool).await.unwrap()
    };
    let stop = CancellationToken::new();
    let consume = |name: &str, start: Start| {
        let subscriber =
            PostgresSubscriber::new(broker.pool().clone(), name.parse().unwrap()).with_start(start);
        let consumer = Consumer::new(name, consumers.clone(), subscriber).on("order.changed", effect);
        tokio::spawn(consumer.run(stop.clone()))
    };
    write(pool, &[message(1), message(2)]).await;
    let to_broker = || PostgresPublisher::new(broker.pool().clone());
    let relay = relay_support::start(pool, to_broker(), relay_support::settings());
    let old = consume("old", Start::Beginning);
    until("handled", || async { effects().await.len() == 2 }).await;
    relay.stop().await.unwrap();
    let new = consume("new", Start::Now);
    let groups = || async { admin::status(broker.pool()).await.unwrap() };
    until("both read", || async {
        groups().await.iter().filter(|group| group.owned_shards > 0).count() == 2
    })
    .await;

    run(replay(pool, "again", to_broker()).with_filter(Filter::default())).await.unwrap();
    until("new has handled", || async { effects().await.len() >= 4 }).await;
    until("both are done", || async { groups().await.iter().all(|group| group.pending == 0) }).await;
    stop.cancel();
    for consumer in [old, new] {
        tokio::time::timeout(PATIENCE, consumer).await.expect("it stops").unwrap().unwrap();
    }
    assert_eq!(effects().await, ["-", "-", "again", "again"]);
}

/// Publishes to memory, and looks at the first batch whether the log was on the disk by then.
struct Watchful {
    publisher: MemoryPublisher,
    pool: PgPool,
    written: i64,
    durable: Arc<AtomicBool>,
}

#[async_trait]
impl Publisher for Watchful {
    fn pipelining(&self) -> Pipelining {
        self.publisher.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let flushed = "select pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint";
        let flushed: i64 = sqlx::query_scalar(flushed).fetch_one(&self.pool).await.unwrap();
        self.durable.store(flushed >= self.written, Ordering::Relaxed);
        self.publisher.publish(batch, outcomes).await;
    }
}

/// On a server of its own, whose log is written out late.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_on_the_disk_though_its_producer_did_not_wait() {
    let server = servers::PostgresOptions::new()
        .with_setting("wal_writer_delay", "10s")
        .with_setting("synchronous_commit", "off")
        .durable(true)
        .start()
        .expect("PostgreSQL starts");
    let pool = outbox::pool_options().connect(&server.url("postgres")).await.unwrap();
    migrations::Schema::Outbox.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    fill(&pool, 1..=3).await;
    let written = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";
    let written = sqlx::query_scalar(written).fetch_one(&pool).await.unwrap();
    let durable = Arc::new(AtomicBool::new(false));
    let broker = Broker::new();
    let publisher = Watchful {
        publisher: broker.publisher(),
        pool: pool.clone(),
        written,
        durable: Arc::clone(&durable),
    };
    run(replay(&pool, "r", publisher).with_filter(Filter::default())).await.unwrap();
    assert_eq!((broker.published().len(), durable.load(Ordering::Relaxed)), (3, true));
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
    assert!(cancel(&operator, "r", "ada", None).await.unwrap());

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
