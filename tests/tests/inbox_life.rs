//! The life of a consumer's process: when it is ready, what it does while it waits for locks, and how it stops.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use std::sync::Arc;
use std::time::Duration;

use brokers::memory::Broker;
use brokers::postgres::{PostgresPublisher, PostgresSubscriber, Start};
use inbox::{Consumer, ConsumerError, HandlerError};
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, note, placed, start};
use message::{Message, Outgoing, Subscriber, publish_all};
use sqlx::{AssertSqlSafe, Executor, PgPool, PgTransaction};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// How many backends wait for a lock.
const WAITING: &str = "select count(*) from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock'";

/// At least so many: a subscriber that begins has several statements, and makes those again that were not answered.
async fn waiting(service: &Service, count: i64) {
    eventually("a backend waits for a lock", async || (service.count(WAITING).await >= count).then_some(()))
        .await;
}

async fn publish(pool: &PgPool, message: Message) {
    let outgoing = Outgoing { destination: "orders".into(), message: Arc::new(message) };
    publish_all(&PostgresPublisher::new(pool.clone()), &[outgoing]).await.pop().unwrap().unwrap();
}

async fn locked(service: &Service, table: &str) -> PgTransaction<'static> {
    let mut tx = service.pool.begin().await.unwrap();
    tx.execute(AssertSqlSafe(format!("lock table {table} in exclusive mode"))).await.unwrap();
    tx
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_ready_receives_what_is_published_from_then_on_in_a_new_group_too() {
    let service = Service::new("ready from now on").await;
    // No kind is new: that would delay it for a reason of its own.
    sqlx::query("insert into inbox.consumer (name, horizon) values ($1, '7 days')")
        .bind(CONSUMER)
        .execute(&service.pool)
        .await
        .unwrap();
    sqlx::query("insert into inbox.consumer_kind (consumer, kind, registered_at) values ($1, $2, now() - interval '1 day')")
        .bind(CONSUMER)
        .bind(KIND)
        .execute(&service.pool)
        .await
        .unwrap();
    let lock = locked(&service, "outbox.relay").await;
    let subscriber =
        PostgresSubscriber::new(service.pool.clone(), CONSUMER.parse().unwrap()).with_start(Start::Now);
    let consumer = Consumer::new(CONSUMER, service.pool.clone(), subscriber).on(KIND, effect);
    let mut ready = consumer.ready();
    let running = start(consumer);
    waiting(&service, 1).await;
    assert!(!ready.is_ready(), "its group has no place in the log yet");
    publish(&service.pool, placed("a", "before")).await;
    lock.rollback().await.unwrap();
    assert!(ready.wait().await);
    publish(&service.pool, placed("a", "after")).await;
    eventually("what came after is handled", async || {
        service.notes().await.iter().any(|note| note == "after").then_some(())
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn a_start_that_meets_a_lock_without_end_says_so() {
    let service = Service::new("start meets a lock").await;
    let lock = locked(&service, "inbox.consumer").await;
    let short = format!("alter database {} set lock_timeout = '50ms'", service.database.name);
    service.pool.execute(AssertSqlSafe(short)).await.unwrap();
    let pool = outbox::pool_options().max_connections(4).connect(service.database.url()).await.unwrap();
    let consumer = Consumer::new(CONSUMER, pool, service.broker.subscriber(CONSUMER, ["orders"]));
    let ended = consumer.on(KIND, effect).run(CancellationToken::new()).await;
    assert!(matches!(ended, Err(ConsumerError::Locked(_))), "{ended:?}");
    lock.rollback().await.unwrap();
}

#[tokio::test]
async fn a_start_that_waits_for_a_lock_can_be_stopped() {
    let service = Service::new("start is stopped").await;
    let lock = locked(&service, "inbox.consumer").await;
    let running = start(service.consumer().on(KIND, effect));
    waiting(&service, 1).await;
    running.stop().await;
    lock.rollback().await.unwrap();
}

/// Says that it has begun and waits for a permit, if the note says so.
#[derive(Clone)]
struct Waits {
    begun: Arc<Semaphore>,
    end: Arc<Semaphore>,
}

#[async_trait::async_trait]
impl inbox::Handler for Waits {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        if note(message) == "waits" {
            self.begun.add_permits(1);
            self.end.acquire().await.map_err(HandlerError::retry)?.forget();
        }
        effect(tx, message).await
    }
}

/// A consumer that has received messages, of which the first is under way.
async fn at_work(
    service: &Service,
    consumer: Consumer,
    messages: &[Message],
) -> (Waits, inbox_support::Running) {
    // Together, so that they are received together.
    service.publish(messages).await;
    let handler = Waits { begun: Arc::new(Semaphore::new(0)), end: Arc::new(Semaphore::new(0)) };
    let running = start(consumer.on(KIND, handler.clone()));
    handler.begun.acquire().await.unwrap().forget();
    (handler, running)
}

/// Takes the process for dead from now on, and waits until it says that it is not.
async fn beats(service: &Service) {
    let expire = "update inbox.process set expires_at = now() - interval '1 second'";
    service.pool.execute(expire).await.unwrap();
    eventually("its heartbeat is renewed", async || {
        (service.count("select count(*) from inbox.process where expires_at > now()").await == 1)
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_finishes_what_is_in_hand_is_not_taken_for_dead() {
    let service = Service::new("beats while it stops").await;
    let (handler, running) = at_work(&service, service.consumer(), &[placed("a", "waits")]).await;
    running.stop.cancel();
    // More than once.
    beats(&service).await;
    beats(&service).await;
    handler.end.add_permits(1);
    running.ended().await;
    assert_eq!(service.notes().await, ["waits"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_concurrency_of_one_what_was_received_is_finished_at_a_stop() {
    let service = Service::new("one at a time stops").await;
    let mut messages = vec![placed("a", "waits")];
    messages.extend((0..9).map(|n| placed(&format!("key-{n}"), "behind")));
    let (handler, running) = at_work(&service, service.consumer().with_concurrency(1), &messages).await;
    running.stop.cancel();
    handler.end.add_permits(1);
    running.ended().await;
    assert_eq!(service.count("select count(*) from effect").await, 10);
    assert_eq!(service.broker.unacknowledged(CONSUMER), 0);
}

/// A service whose broker delivers nothing again because it waits for an answer.
async fn patient(claim: &str) -> Service {
    let broker = Broker::new().with_answer_wait(Duration::from_secs(3_600));
    Service { broker, ..Service::new(claim).await }
}

/// Until another subscriber of the group has received so many.
async fn received_by_another(service: &Service, count: usize) {
    let mut another = service.broker.subscriber(CONSUMER, ["orders"]);
    let mut received = Vec::new();
    while received.len() < count {
        let more = tokio::time::timeout(Duration::from_secs(60), another.receive(100)).await;
        received.extend(more.unwrap().unwrap());
    }
    assert_eq!(received.len(), count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_concurrency_of_one_what_has_not_begun_in_time_at_a_stop_is_given_back() {
    let service = patient("one at a time gives back").await;
    let mut messages = vec![placed("a", "waits")];
    messages.extend((0..9).map(|n| placed(&format!("key-{n}"), "behind")));
    let consumer = service.consumer().with_concurrency(1).with_grace(Duration::ZERO);
    let (handler, running) = at_work(&service, consumer, &messages).await;
    running.stop.cancel();
    // While the first is under way.
    received_by_another(&service, 9).await;
    handler.end.add_permits(1);
    running.ended().await;
    assert_eq!(service.notes().await, ["waits"]);
}

/// The consumer is registered, and a process of it has died.
async fn a_process_has_died(service: &Service) {
    sqlx::query("insert into inbox.consumer (name, horizon, died_at) values ($1, '7 days', now())")
        .bind(CONSUMER)
        .execute(&service.pool)
        .await
        .unwrap();
}

async fn has_started(service: &Service) {
    eventually("it has started", async || {
        (service.count("select count(*) from inbox.process").await == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_declared_at_a_stop_is_given_back() {
    let service = patient("undeclared stops").await;
    a_process_has_died(&service).await;
    let running = start(service.consumer().on(KIND, effect));
    has_started(&service).await;
    let lock = locked(&service, "inbox.process").await;
    service.publish(&[placed("a", "1"), placed("b", "2")]).await;
    let declares = "select count(*) from pg_stat_activity where datname = current_database()
        and wait_event_type = 'Lock' and query like '%sent as text%'";
    eventually("it declares", async || (service.count(declares).await == 1).then_some(())).await;
    running.stop.cancel();
    received_by_another(&service, 2).await;
    lock.rollback().await.unwrap();
    running.ended().await;
    assert!(service.notes().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_the_registered_kinds_delays_no_heartbeat() {
    let service = Service::new("kinds are locked").await;
    let running = start(service.consumer().on(KIND, effect));
    has_started(&service).await;
    // It registers its kind again when it finds it old.
    let old = "update inbox.consumer_kind set last_seen_at = now() - interval '1 day'";
    service.pool.execute(old).await.unwrap();
    let lock = locked(&service, "inbox.consumer_kind").await;
    waiting(&service, 1).await;
    beats(&service).await;
    beats(&service).await;
    assert_eq!(service.count(WAITING).await, 1);
    lock.rollback().await.unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_death_everything_is_handled_at_a_concurrency_above_what_is_declared_ahead() {
    let service = Service::new("many at once").await;
    a_process_has_died(&service).await;
    let running = start(service.consumer().with_concurrency(48).on(KIND, effect));
    for keys in [1, 40, 200, 1_000] {
        let messages: Vec<Message> = (0..1_000).map(|n| placed(&format!("key-{}", n % keys), "")).collect();
        service.publish(&messages).await;
        service.acknowledged().await;
    }
    running.stop().await;
    assert_eq!(service.count("select count(*) from effect").await, 4_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_goes_on_after_a_death_when_its_role_is_read_only_by_default() {
    let mut service = Service::new("declare read only").await;
    a_process_has_died(&service).await;
    let set = format!("alter database {} set default_transaction_read_only = on", service.database.name);
    service.database.admin().execute(AssertSqlSafe(set)).await.unwrap();
    service.pool = outbox::pool_options().max_connections(24).connect(service.database.url()).await.unwrap();
    let running = start(service.consumer().on(KIND, effect));
    service.publish(&(0..20).map(|n| placed(&format!("k{n}"), "")).collect::<Vec<_>>()).await;
    service.acknowledged().await;
    running.stop().await;
    assert_eq!(service.count("select count(*) from effect").await, 20);
}

/// The lock stands for a pruning, or a registration of kinds, that takes its time: nothing else needs these tables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_stopped_while_it_prunes_ends_at_once_and_is_not_taken_for_dead() {
    let service = Service::new("stop while pruning").await;
    let mut lock = service.pool.begin().await.unwrap();
    lock.execute("lock table inbox.emptied_day in access exclusive mode").await.unwrap();
    let (stopped, other) =
        (start(service.consumer().on(KIND, effect)), start(service.consumer().on(KIND, effect)));
    service.publish(&[placed("a", "1")]).await;
    service.acknowledged().await;
    stopped.stop.cancel();
    // Its statement may wait for the lock for a minute.
    let ended = tokio::time::timeout(Duration::from_secs(40), stopped.ended()).await;
    let died = service.count("select count(*) from inbox.consumer where died_at is not null").await;
    lock.rollback().await.unwrap();
    other.stop().await;
    assert!(ended.is_ok() && died == 0, "ended: {}; taken for dead: {died}", ended.is_ok());
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_process_behind() {
    let service = Service::new("start fails").await;
    service.pool.execute("alter table inbox.consumer_kind add check (kind <> 'order.placed')").await.unwrap();
    let failed = service.consumer().on(KIND, effect).run(CancellationToken::new()).await;
    assert!(matches!(failed, Err(ConsumerError::Database(_))), "{failed:?}");
    assert_eq!(service.count("select count(*) from inbox.process").await, 0);
}
