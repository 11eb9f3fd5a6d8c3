//! Relays as an operator's: where one begins, what a pause, a retirement and a topic's policy do.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod relay_support;

use std::time::Duration;

use async_trait::async_trait;
use brokers::memory::Broker;
use brokers::postgres::PostgresPublisher;
use chrono::{DateTime, Utc};
use message::{Message, Outcomes, Outgoing, Pipelining, PublishError, Publisher};
use outbox::log::{Refusal, Start};
use outbox::{Policies, Policy, RelayError, Settings, admin};
use relay_support::{PATIENCE, Running, message, patient, start, start_named, until, write};
use sqlx::PgPool;
use tests::Database;

async fn ended(relay: Running) -> Result<(), RelayError> {
    tokio::time::timeout(PATIENCE, relay.task).await.expect("the relay ends in time").expect("no panic")
}

fn settings(start: Start) -> Settings {
    let mut settings = relay_support::settings();
    settings.start = start;
    settings
}

/// Waits until so many are published, and not for ever.
async fn arrived(broker: &Broker, count: usize) {
    let published = tokio::time::timeout(PATIENCE, broker.wait_for_published(count)).await;
    assert!(published.is_ok(), "{count} are expected: {:?}", numbers(broker));
}

fn numbers(broker: &Broker) -> Vec<usize> {
    let published = broker.published();
    published
        .iter()
        .map(|published| std::str::from_utf8(&published.message.payload).unwrap().parse().unwrap())
        .collect()
}

/// Ten messages, each with a position of its number and a transaction of its own.
async fn ten(pool: &PgPool) {
    for number in 1..=10 {
        write(pool, &[message(&format!("k{}", number % 3), number)]).await;
    }
}

/// What a new relay publishes, sorted.
async fn published_from(pool: &PgPool, start_at: Start, expected: usize) -> Vec<usize> {
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings(start_at));
    arrived(&broker, expected).await;
    relay.stop().await.unwrap();
    let mut numbers = numbers(&broker);
    numbers.sort_unstable();
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_down_and_one_that_never_answers_delay_no_relay_to_another() {
    let database = Database::new("relays_isolated").await;
    let pool = database.pool();
    let (down, silent, up) = (Broker::new(), Broker::new(), Broker::new());
    silent.hold_confirmations();
    let relays = [("down", &down), ("silent", &silent), ("up", &up)].map(|(name, broker)| {
        // What a relay needs, and no other shares.
        let own = outbox::pool_options().max_connections(4).connect_lazy(database.url()).unwrap();
        start_named(name, &own, broker.publisher().one_per_key(), patient())
    });
    write(pool, &[message("k1", 1)]).await;
    arrived(&down, 1).await;
    down.go_down();
    for number in 2..=200 {
        write(pool, &[message(&format!("k{}", number % 7), number)]).await;
    }
    arrived(&up, 200).await;
    // One of each key waits for its answer.
    arrived(&silent, 7).await;
    assert_eq!((down.published().len(), silent.published().len()), (1, 7));
    down.come_up();
    silent.release_confirmations();
    for broker in [&down, &silent, &up] {
        arrived(broker, 200).await;
        for key in 0..7 {
            let expected: Vec<usize> = (1..=200).filter(|number| number % 7 == key).collect();
            assert_eq!(relay_support::numbers(broker, &format!("k{key}")), expected);
        }
    }
    for relay in relays {
        relay.stop().await.unwrap();
    }
}

/// Never says whether it is ready.
struct Hung;

#[async_trait]
impl Publisher for Hung {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, _: &[Outgoing], _: Outcomes) {
        unreachable!("it is not ready")
    }

    async fn check(&self) -> Result<(), PublishError> {
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_waits_for_its_broker_is_shown_as_waiting_and_not_as_absent() {
    let database = Database::new("relays_waiting").await;
    let pool = database.pool();
    let of = || async {
        let mut relays = admin::status(pool).await.unwrap();
        assert!(relays.len() <= 1, "{relays:?}");
        relays.pop()
    };
    // A new one, whose broker is down; one that is known, whose broker never answers.
    let broker = Broker::new();
    broker.go_down();
    let down = start(pool, broker.publisher(), patient());
    until("it waits", || async {
        of().await.is_some_and(|relay| (relay.waiting, relay.processes, relay.shards) == (1, 0, 0))
    })
    .await;
    let relay = of().await.unwrap();
    assert!(relay.waiting_for.is_some_and(|reason| reason.contains("unavailable")));
    write(pool, &[message("a", 1)]).await;
    broker.come_up();
    arrived(&broker, 1).await;
    let relay = of().await.unwrap();
    assert_eq!((relay.waiting, relay.processes), (0, 1));
    down.stop().await.unwrap();
    assert!(of().await.unwrap().unattended_since.is_some());

    let silent = start(pool, Hung, settings(Start::Beginning));
    until("it waits", || async { of().await.is_some_and(|relay| relay.waiting == 1) }).await;
    let relay = of().await.unwrap();
    assert_eq!((relay.processes, relay.shards, relay.unattended_since), (0, 16, None));
    silent.stop().await.unwrap();
    assert_eq!(of().await.unwrap().waiting, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_stops_while_its_broker_does_not_say_whether_it_is_ready() {
    let database = Database::new("relays_hung").await;
    start(database.pool(), Hung, relay_support::settings()).stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_broker_is_the_log_that_it_reads_is_refused() {
    let database = Database::new("relays_itself").await;
    let pool = database.pool();
    ten(pool).await;
    let itself = PostgresPublisher::new(pool.clone());
    let ended = ended(start(pool, itself, relay_support::settings())).await;
    assert!(matches!(ended, Err(RelayError::Refused(Refusal::Itself))), "{ended:?}");
    let messages: i64 =
        sqlx::query_scalar("select count(*) from outbox.message").fetch_one(pool).await.unwrap();
    assert_eq!(messages, 10);
    // Another database of the same cluster is another log.
    let broker = Database::new("relays_another").await;
    let relay = start(pool, PostgresPublisher::new(broker.pool().clone()), relay_support::settings());
    until("published", || async {
        let published: i64 =
            sqlx::query_scalar("select count(*) from outbox.message").fetch_one(broker.pool()).await.unwrap();
        published == 10
    })
    .await;
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_begins_at_a_position_and_forgets_no_open_transaction_below_it() {
    let database = Database::new("start_position").await;
    let pool = database.pool();
    let mut open = Vec::new();
    for number in 1..=2 {
        let mut tx = pool.begin().await.unwrap();
        outbox::enqueue_all(&mut tx, &[message("late", number)]).await.unwrap();
        open.push(tx);
    }
    for number in 3..=10 {
        write(pool, &[message("a", number)]).await;
    }
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings(Start::AtPosition(7)));
    arrived(&broker, 4).await;
    // Committed after the start, so it is delivered, as by a relay that began at the beginning: by this process …
    outbox::commit(open.remove(0)).await.unwrap();
    arrived(&broker, 5).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker), [7, 8, 9, 10, 1]);
    // … and by the next, which stands where was recorded, whatever it is told.
    outbox::commit(open.remove(0)).await.unwrap();
    write(pool, &[message("a", 11)]).await;
    assert_eq!(published_from(pool, Start::AtPosition(3), 2).await, [2, 11]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_beyond_the_end_of_the_log_is_refused_and_its_end_is_not() {
    let database = Database::new("start_ahead").await;
    let pool = database.pool();
    ten(pool).await;
    let tomorrow = Start::AtTime(Utc::now() + chrono::TimeDelta::days(1));
    for ahead in [Start::AtPosition(12), tomorrow] {
        let ended = ended(start(pool, Broker::new().publisher(), settings(ahead))).await;
        assert!(matches!(ended, Err(RelayError::Refused(Refusal::StartAhead))), "{ended:?}");
    }
    assert_eq!(admin::status(pool).await.unwrap().len(), 0, "nothing is left of it");
    // Nor of one that is known already and has no cursors, as when it ended between the two.
    sqlx::raw_sql("insert into outbox.relay (name) values ('default')").execute(pool).await.unwrap();
    let refused = ended(start(pool, Broker::new().publisher(), settings(Start::AtPosition(12)))).await;
    assert!(matches!(refused, Err(RelayError::Refused(Refusal::StartAhead))), "{refused:?}");
    assert_eq!(admin::status(pool).await.unwrap()[0].processes, 0, "no process of it is left");
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings(Start::AtPosition(11)));
    until("begun", || async { admin::status(pool).await.unwrap().iter().any(|relay| relay.processes == 1) })
        .await;
    until("cursors", || async {
        let cursors: i64 =
            sqlx::query_scalar("select count(*) from outbox.cursor").fetch_one(pool).await.unwrap();
        cursors == 16
    })
    .await;
    write(pool, &[message("a", 11)]).await;
    arrived(&broker, 1).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker), [11]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_begins_with_the_first_message_of_a_time() {
    let database = Database::new("start_time").await;
    let pool = database.pool();
    // Hours apart, with the clock of one writer half a second behind, and a gap as a retired leaf leaves it.
    sqlx::raw_sql(
        "insert into outbox.message (id, correlation, source, topic, kind, payload, enqueued_at)
         select id, id, '/x', 't', 'k', convert_to(n::text, 'UTF8'),
             '2026-01-01 00:00:00+00'::timestamptz + interval '1 hour' * n
                 - case n when 6 then interval '3600.5 seconds' else interval '0' end
         from generate_series(1, 20) n, lateral (select outbox.uuid_v7() as id where n > 0) made;
         delete from outbox.message where position in (1, 2, 13, 14)",
    )
    .execute(pool)
    .await
    .unwrap();
    let at = |text: &str| Start::AtTime(text.parse::<DateTime<Utc>>().unwrap());
    for (moment, first) in [
        ("2025-01-01T00:00:00Z", 3),
        ("2026-01-01T03:00:00Z", 3),
        ("2026-01-01T03:00:00.000001Z", 4),
        ("2026-01-01T05:00:00Z", 5),
        // 6 says that it is older than 5 by half a second: the first one at or after that is 5.
        ("2026-01-01T04:59:59.5Z", 5),
        ("2026-01-01T05:30:00Z", 7),
        ("2026-01-01T12:30:00Z", 15),
        ("2026-01-01T20:00:00Z", 20),
    ] {
        sqlx::raw_sql("delete from outbox.process; delete from outbox.cursor; delete from outbox.relay")
            .execute(pool)
            .await
            .unwrap();
        let expected: Vec<usize> = (first..=20).filter(|number| ![13, 14].contains(number)).collect();
        assert_eq!(published_from(pool, at(moment), expected.len()).await, expected, "{moment}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_started_while_paused_waits_and_begins_when_it_is_resumed() {
    let database = Database::new("relay_paused").await;
    let pool = database.pool();
    sqlx::raw_sql("insert into outbox.relay (name) values ('default')").execute(pool).await.unwrap();
    assert!(admin::pause(pool, "default", "ada", None).await.unwrap());
    ten(pool).await;
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings(Start::Beginning));
    // A relay that did not wait would publish or end meanwhile.
    let waited = tokio::time::timeout(Duration::from_secs(2), broker.wait_for_published(1)).await;
    assert!(waited.is_err() && !relay.task.is_finished());
    assert!(admin::resume(pool, "default", "ada", None).await.unwrap());
    arrived(&broker, 10).await;

    // Paused at work, it leaves, so that nobody waits for its lease whatever becomes of it.
    admin::pause(pool, "default", "ada", None).await.unwrap();
    let gone = || async {
        let query = "select not exists (select from outbox.process)
            and not exists (select from outbox.cursor where owner is not null)";
        sqlx::query_scalar::<_, bool>(query).fetch_one(pool).await.unwrap()
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while !gone().await {
        assert!(tokio::time::Instant::now() < deadline, "a paused relay's process is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    relay.stop().await.unwrap();

    // And one that is told to stop while it waits, stops.
    let relay = start(pool, Broker::new().publisher(), settings(Start::Beginning));
    until("waits", || async { !relay.task.is_finished() }).await;
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_retired_while_it_waits_ends_and_its_name_is_refused() {
    let database = Database::new("relay_retired").await;
    let pool = database.pool();
    sqlx::raw_sql("insert into outbox.relay (name) values ('default')").execute(pool).await.unwrap();
    admin::pause(pool, "default", "ada", None).await.unwrap();
    let relay = start(pool, Broker::new().publisher(), settings(Start::Beginning));
    assert!(admin::retire(pool, "default", "ada", "no longer needed").await.unwrap());
    assert!(matches!(ended(relay).await, Err(RelayError::Refused(Refusal::Retired))));
    assert!(!admin::retire(pool, "default", "ada", "no longer needed").await.unwrap());
    let resumed = admin::resume(pool, "default", "ada", None).await;
    assert!(matches!(resumed, Err(admin::StateError::Retired)), "{resumed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_skip_gives_the_message_up_and_the_key_goes_on() {
    for max_attempts in [1, 3] {
        let database = Database::new("policy_skip").await;
        let pool = database.pool();
        let broker = Broker::new();
        broker.reject_key("bad");
        let mut settings = settings(Start::Beginning);
        settings.max_attempts = max_attempts;
        settings.policies = Policies::default().with("metrics.>".parse().unwrap(), Policy::Skip);
        let relay = start(pool, broker.publisher(), settings);
        let metric = |number: usize| Message::new("metrics.cpu", "k", number.to_string()).with_key("bad");
        let given_up = metric(1);
        write(pool, std::slice::from_ref(&given_up)).await;
        until("given up", || async { !admin::audit(pool, None, 10).await.unwrap().is_empty() }).await;
        broker.accept_key("bad");
        write(pool, &[metric(2), metric(3)]).await;
        arrived(&broker, 2).await;
        until("free again", || async { admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
        relay.stop().await.unwrap();
        assert_eq!(numbers(&broker), [2, 3]);
        let audit = admin::audit(pool, Some("default"), 10).await.unwrap();
        let entry = &audit[0];
        assert_eq!((audit.len(), &*entry.who, &*entry.action), (1, "relay default", "skip"));
        assert_eq!((entry.message_id, entry.position), (Some(*given_up.id.as_uuid()), Some(1)));
        assert!(entry.reason.as_deref().is_some_and(|reason| reason.contains("reject")), "{entry:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_a_policy_is_parked_beside_one_that_is_skipped() {
    let database = Database::new("policy_park").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    let mut settings = settings(Start::Beginning);
    settings.policies = Policies::default().with("metrics".parse().unwrap(), Policy::Skip);
    let relay = start(pool, broker.publisher(), settings);
    write(pool, &[message("bad", 1)]).await;
    until("parked", || async {
        admin::held_keys(pool, "default").await.unwrap().iter().any(|held| held.is_parked())
    })
    .await;
    relay.stop().await.unwrap();
    assert_eq!(admin::audit(pool, None, 10).await.unwrap().len(), 0);
}
