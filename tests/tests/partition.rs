//! A network between a database and its relay, consumer or subscriber that swallows everything: connections stay, and say
//! nothing. New ones are as before.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod inbox_support;
mod relay_support;

use std::time::Duration;

use brokers::memory::Broker;
use brokers::postgres::{PostgresPublisher, PostgresSubscriber};
use chrono::Utc;
use inbox::{Consumer, HandlerError};
use inbox_support::{CONSUMER, KIND, Service, effect, placed};
use message::{Delivery, Message, Outgoing, Subscriber, publish_all};
use outbox::{Backoff, admin};
use relay_support::{PATIENCE, message, numbers, patient, settings, start, until, until_published, write};
use sqlx::{PgPool, PgTransaction};
use tests::{Database, Fate, Proxy};

const LEASE: Duration = Duration::from_secs(2);
const THROUGH: &str = "through a network that fails";

/// A pool through a network of its own.
async fn through(database: &Database) -> (PgPool, Proxy) {
    let proxy = Proxy::start(&database.url().parse().unwrap()).await.unwrap();
    let options = proxy.options().application_name(THROUGH);
    let pool = outbox::pool_options().max_connections(8).connect_with(options).await.unwrap();
    (pool, proxy)
}

/// Until all that was delivered is recorded: else it would come again.
async fn until_recorded(pool: &PgPool) {
    let nothing_waits =
        || async { admin::status(pool).await.unwrap().iter().all(|relay| relay.pending == 0) };
    until("recorded", nothing_waits).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_connections_fall_silent_takes_others_and_so_does_its_upkeep() {
    let database = Database::new("partition_relay").await;
    let pool = database.pool();
    let (through, network) = through(&database).await;
    let broker = Broker::new();
    let mut settings = settings();
    settings.lease = LEASE;
    let relay = start(&through, broker.publisher(), settings);
    write(pool, &[message("a", 1)]).await;
    until_published(&broker, 1).await;
    until_recorded(pool).await;
    network.fall_silent();
    write(pool, &[message("a", 2)]).await;
    until_published(&broker, 2).await;
    let mut tx = pool.begin().await.unwrap();
    outbox::enqueue_all_at(&mut tx, &[message("a", 3)], Utc::now()).await.unwrap();
    outbox::commit(tx).await.unwrap();
    until_published(&broker, 3).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stands_by_while_its_connections_fall_silent_takes_over_all_the_same() {
    let database = Database::new("partition_standby").await;
    let pool = database.pool();
    let (through, network) = through(&database).await;
    let broker = Broker::new();
    let mut settings = settings();
    (settings.lease, settings.shards) = (LEASE, 1);
    let first = start(pool, broker.publisher(), settings.clone());
    write(pool, &[message("a", 1)]).await;
    until_published(&broker, 1).await;
    until_recorded(pool).await;
    let second = start(&through, broker.publisher(), settings);
    let looks = "select exists (select from pg_stat_activity where application_name = $1 and query ~ 'pg_current_snapshot')";
    let looks = || async { sqlx::query_scalar(looks).bind(THROUGH).fetch_one(pool).await.unwrap() };
    until("it stands by", looks).await;
    network.fall_silent();
    first.stop().await.unwrap();
    write(pool, &[message("a", 2)]).await;
    until_published(&broker, 2).await;
    second.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_whose_connections_fall_silent_takes_others() {
    let service = Service::new("partition_consumer").await;
    let (through, network) = through(&service.database).await;
    let subscriber = service.broker.subscriber(CONSUMER, ["orders"]);
    let consumer = Consumer::new(CONSUMER, through, subscriber).on(KIND, effect);
    let consumer = inbox_support::start(consumer.with_handler_timeout(LEASE).with_grace(Duration::ZERO));
    // Side by side, so that several connections are open.
    let many: Vec<Message> = (0..8).map(|key| placed(&format!("k{key}"), "before")).collect();
    service.publish(&many).await;
    service.acknowledged().await;
    network.fall_silent();
    service.publish(&[placed("a", "after")]).await;
    service.acknowledged().await;
    assert_eq!(service.notes().await.iter().filter(|note| *note == "after").count(), 1);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_whose_commits_are_never_answered_handles_their_messages_once_and_goes_on() {
    let service = Service::new("partition_commit").await;
    let (through, network) = through(&service.database).await;
    let subscriber = service.broker.subscriber(CONSUMER, ["orders"]);
    let consumer = Consumer::new(CONSUMER, through, subscriber).on(KIND, effect).with_concurrency(2);
    let consumer = inbox_support::start(consumer.with_handler_timeout(LEASE).with_grace(Duration::ZERO));
    service.publish(&[placed("a", "1")]).await;
    service.acknowledged().await;
    network.at_commit(Fate::IsNeverAnswered);
    service.publish(&[placed("a", "2"), placed("b", "2")]).await;
    let both = || async { service.count("select count(*) from effect where note = '2'").await == 2 };
    until("both are committed", both).await;
    network.at_commit(Fate::Passes);
    service.publish(&[placed("a", "3"), placed("c", "3")]).await;
    service.acknowledged().await;
    let mut notes = service.notes().await;
    notes.sort();
    assert_eq!(notes, ["1", "2", "2", "3", "3"]);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_was_counted_and_not_made_is_not_counted_again_beside_others_of_its_claim() {
    let service = Service::new("partition_retry").await;
    let reject = async |_: &mut PgTransaction<'_>, _: &Message| Err(HandlerError::reject("not today"));
    let rejecting = inbox_support::start(service.consumer().on(KIND, reject));
    service.publish(&[placed("a", "a"), placed("b", "b")]).await;
    service.acknowledged().await;
    service.parked(2).await;
    rejecting.stop().await;

    let (through, network) = through(&service.database).await;
    let subscriber = service.broker.subscriber(CONSUMER, ["orders"]);
    let consumer = Consumer::new(CONSUMER, through, subscriber).on(KIND, effect).with_max_attempts(1);
    let mut ready = consumer.ready();
    let consumer = inbox_support::start(consumer.with_handler_timeout(LEASE));
    assert!(ready.wait().await);
    network.at_commit(Fate::LosesItsAnswer);
    let due =
        "update inbox.held_key set state = 'retrying', attempts = 0, next_attempt_at = now() where key = $1";
    sqlx::query(due).bind("a").execute(&service.pool).await.unwrap();
    let counted =
        || async { service.count("select attempts::bigint from inbox.held_key where key = 'a'").await == 1 };
    until("it is counted, and the answer is lost", counted).await;
    network.at_commit(Fate::Passes);
    // Both are due, and taken by one statement.
    let both = "update inbox.held_key set state = 'retrying', next_attempt_at = now(),
        attempts = case key when 'a' then attempts else 0 end";
    sqlx::query(both).execute(&service.pool).await.unwrap();
    service.nothing_is_held().await;
    consumer.stop().await;
    assert_eq!(service.count("select count(*) from inbox.message where attempts = 1").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_whose_connections_fall_silent_takes_others() {
    let database = Database::new("partition_subscriber").await;
    let publisher = PostgresPublisher::new(database.pool().clone());
    let publish = async |message: Message| {
        let outgoing = Outgoing { destination: "orders".into(), message: message.into() };
        publish_all(&publisher, &[outgoing]).await.pop().unwrap().unwrap();
    };
    let (through, network) = through(&database).await;
    let mut subscriber = PostgresSubscriber::new(through, "shipping".parse().unwrap()).with_lease(LEASE);
    for number in 1..=2 {
        publish(message("a", number)).await;
        let received = tokio::time::timeout(PATIENCE, one(&mut subscriber)).await.expect("it comes in time");
        assert_eq!(received.received.as_ref().unwrap().payload, number.to_string());
        received.acknowledge().await.unwrap();
        until_recorded(database.pool()).await;
        network.fall_silent();
    }
}

/// The next delivery, however often it says that the database does not answer.
async fn one(subscriber: &mut PostgresSubscriber) -> Delivery {
    loop {
        if let Ok(mut received) = subscriber.receive(1).await {
            return received.pop().unwrap();
        }
    }
}

/// A relay through a network that fails, which holds `a` after one attempt; only what is asked of held keys says COMMIT.
async fn held(database: &Database, through: &PgPool, broker: &Broker) -> relay_support::Running {
    let mut settings = patient();
    settings.max_attempts = 2;
    settings.retry = Backoff { first: Duration::from_secs(600), ceiling: Duration::from_secs(600) };
    settings.unavailable = settings.retry;
    broker.reject_key("a");
    let relay = start(through, broker.publisher(), settings);
    write(database.pool(), &[message("a", 1)]).await;
    until("held", || async { !admin::held_keys(database.pool(), "default").await.unwrap().is_empty() }).await;
    until_recorded(database.pool()).await;
    broker.accept_key("a");
    relay
}

async fn make_due(pool: &PgPool) {
    let due = "update outbox.held_key set next_attempt_at = clock_timestamp()";
    sqlx::query(due).execute(pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_about_held_keys_that_is_never_answered_keeps_them_for_no_longer_than_an_answer_may_take()
{
    let database = Database::new("partition_held").await;
    let pool = database.pool();
    let (through, network) = through(&database).await;
    let broker = Broker::new();
    let relay = held(&database, &through, &broker).await;
    // Whether keys are due is asked all the time; the lease, which another connection renews, is not in question.
    network.at_commit(Fate::IsNeverAnswered);
    let asked = "select exists (select from pg_stat_activity where application_name = $1 and query = 'COMMIT'
        and state = 'idle' and state_change < clock_timestamp() - interval '2 seconds')";
    let asked = || async { sqlx::query_scalar(asked).bind(THROUGH).fetch_one(pool).await.unwrap() };
    until("an answer is withheld", asked).await;
    network.at_commit(Fate::Passes);
    make_due(pool).await;
    until_published(&broker, 1).await;
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_was_counted_and_not_made_is_not_counted_again() {
    let database = Database::new("partition_claim").await;
    let pool = database.pool();
    let (through, network) = through(&database).await;
    let broker = Broker::new();
    let relay = held(&database, &through, &broker).await;
    sqlx::raw_sql(
        "create function public.wait() returns trigger language plpgsql as $$
         begin perform pg_advisory_xact_lock_shared(7); return new; end $$;
         create trigger wait before update on outbox.held_key for each row
             when (new.attempts > old.attempts) execute function public.wait()",
    )
    .execute(pool)
    .await
    .unwrap();
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(7)").execute(&mut *lock).await.unwrap();
    make_due(pool).await;
    until("it is about to be counted", || async {
        let waits = "select exists (select from pg_stat_activity where application_name = $1 and wait_event = 'advisory')";
        sqlx::query_scalar(waits).bind(THROUGH).fetch_one(pool).await.unwrap()
    })
    .await;
    network.at_commit(Fate::LosesItsAnswer);
    lock.commit().await.unwrap();
    let counted = || async { admin::held_keys(pool, "default").await.unwrap()[0].attempts == 2 };
    until("it is counted, and the answer is lost", counted).await;
    network.at_commit(Fate::Passes);
    assert!(numbers(&broker, "a").is_empty(), "it was made");
    make_due(pool).await;
    until_published(&broker, 1).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), [1]);
}
