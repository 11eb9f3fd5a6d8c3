//! A service of one table with a consumer, on a database and a broker of its own.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use brokers::memory::Broker;
use inbox::admin::{self, HeldKey};
use inbox::{Backoff, Consumer, ConsumerError, HandlerError};
use message::{Acknowledge, Delivery, Message, Outgoing, SubscribeError, Subscriber, publish_all};
use sqlx::{PgPool, PgTransaction};
use tests::Database;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const CONSUMER: &str = "shipping";
pub(crate) const KIND: &str = "order.placed";
const TOPIC: &str = "orders";
const DEADLINE: Duration = Duration::from_secs(60);

/// The database, the broker, and the table `effect` that handlers write.
pub(crate) struct Service {
    pub(crate) pool: PgPool,
    pub(crate) broker: Broker,
    pub(crate) database: Database,
}

impl Service {
    pub(crate) async fn new(claim: &str) -> Self {
        let database = Database::new(claim).await;
        let pool = outbox::pool_options().max_connections(24).connect(database.url()).await.unwrap();
        sqlx::raw_sql("create table effect (number bigserial primary key, message uuid not null, note text)")
            .execute(&pool)
            .await
            .unwrap();
        Service { pool, broker: Broker::new(), database }
    }

    /// Impatient, so that tests need not be.
    pub(crate) fn consumer(&self) -> Consumer {
        let backoff =
            Backoff::default().with_first(Duration::from_millis(40)).with_ceiling(Duration::from_millis(200));
        Consumer::new(CONSUMER, self.pool.clone(), self.broker.subscriber(CONSUMER, [TOPIC]))
            .with_backoff(backoff)
    }

    pub(crate) async fn publish(&self, messages: &[Message]) {
        let batch: Vec<Outgoing> = messages
            .iter()
            .map(|message| Outgoing { destination: TOPIC.into(), message: Arc::new(message.clone()) })
            .collect();
        for result in publish_all(&self.broker.publisher(), &batch).await {
            result.unwrap();
        }
    }

    pub(crate) async fn acknowledged(&self) {
        let acknowledged = self.broker.wait_until_acknowledged(CONSUMER);
        tokio::time::timeout(DEADLINE, acknowledged).await.expect("everything is acknowledged in time");
    }

    /// The notes of all effects, in the order in which they committed on one key.
    pub(crate) async fn notes(&self) -> Vec<String> {
        sqlx::query_scalar("select coalesce(note, '') from effect order by number")
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }

    pub(crate) async fn held(&self) -> Vec<HeldKey> {
        let mut connection = self.pool.acquire().await.unwrap();
        admin::held_keys(&mut connection, Some(CONSUMER), 1_000).await.unwrap()
    }

    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    /// Waits until every held key is parked, and answers with them; at least `count`.
    pub(crate) async fn parked(&self, count: usize) -> Vec<HeldKey> {
        eventually("keys are parked", || async {
            let held = self.held().await;
            let parked = held.iter().all(|key| key.state == admin::HeldState::Parked);
            (parked && held.len() >= count).then_some(held)
        })
        .await
    }

    pub(crate) async fn nothing_is_held(&self) {
        eventually("nothing is held", || async { self.held().await.is_empty().then_some(()) }).await;
    }
}

/// A consumer that runs until it is told to stop.
pub(crate) struct Running {
    pub(crate) stop: CancellationToken,
    task: JoinHandle<Result<(), ConsumerError>>,
}

pub(crate) fn start(consumer: Consumer) -> Running {
    let stop = CancellationToken::new();
    Running { task: tokio::spawn(consumer.run(stop.clone())), stop }
}

impl Running {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.ended().await;
    }

    /// By itself.
    pub(crate) async fn ended(self) {
        tokio::time::timeout(DEADLINE, self.task).await.expect("it stops in time").unwrap().unwrap();
    }
}

/// A message of that key (empty: none) whose payload is the note.
pub(crate) fn placed(key: &str, note: &str) -> Message {
    let message = Message::new(TOPIC, KIND, note.to_owned());
    if key.is_empty() { message } else { message.with_key(key) }
}

/// The handler of most tests: one row.
pub(crate) async fn effect(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    sqlx::query("insert into effect (message, note) values ($1, $2)")
        .bind(message.id.as_uuid())
        .bind(note(message))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

pub(crate) fn note(message: &Message) -> String {
    String::from_utf8(message.payload.to_vec()).unwrap()
}

/// Asks again until there is an answer.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A subscriber to which saying "still at work" takes long: one whose server says nothing (the NATS client waits five
/// seconds). Acknowledging works.
pub(crate) struct Slow<S>(pub(crate) S, pub(crate) Duration, pub(crate) Arc<AtomicBool>);
struct SlowAnswer(Delivery, Duration, Arc<AtomicBool>);

#[async_trait::async_trait]
impl<S: Subscriber> Subscriber for Slow<S> {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscribeError> {
        let deliveries = self.0.receive(max).await?;
        let slow = |delivery: Delivery| {
            let received = delivery.received.clone();
            Delivery::new(received, Box::new(SlowAnswer(delivery, self.1, self.2.clone())))
        };
        Ok(deliveries.into_iter().map(slow).collect())
    }
    async fn close(&mut self) {
        self.0.close().await;
    }
}

#[async_trait::async_trait]
impl Acknowledge for SlowAnswer {
    async fn acknowledge(self: Box<Self>) -> Result<(), SubscribeError> {
        self.0.acknowledge().await
    }
    async fn retry_after(self: Box<Self>, delay: Duration) -> Result<(), SubscribeError> {
        self.0.retry_after(delay).await
    }
    async fn extend(&self) -> Result<(), SubscribeError> {
        if self.2.load(Ordering::SeqCst) {
            tokio::time::sleep(self.1).await;
            return Err(SubscribeError::Unavailable("no answer in time".to_owned()));
        }
        self.0.extend().await
    }
}
