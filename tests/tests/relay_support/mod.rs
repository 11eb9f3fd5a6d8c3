//! A relay at work in a test, and what it is held against.

#![allow(dead_code, reason = "every test file uses a part")]

use std::time::Duration;

use brokers::memory::Broker;
use message::{Message, Publisher};
use outbox::{Backoff, Relay, RelayError, Settings};
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A relay at work; stopped politely by [`stop`](Self::stop), or dropped as a killed process is.
pub(crate) struct Running {
    pub(crate) token: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), RelayError>>,
}

impl Running {
    pub(crate) async fn stop(self) -> Result<(), RelayError> {
        self.token.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("the relay stops in time").expect("no panic")
    }
}

pub(crate) fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.lease = Duration::from_secs(1);
    settings.retry = Backoff { first: Duration::from_millis(20), ceiling: Duration::from_millis(100) };
    settings.unavailable = settings.retry;
    settings.max_attempts = 3;
    settings
}

/// A lease so long that no shard changes hands because one ran out.
pub(crate) fn patient() -> Settings {
    let mut settings = settings();
    settings.lease = Duration::from_secs(3600);
    settings
}

pub(crate) fn start(pool: &PgPool, publisher: impl Publisher + 'static, settings: Settings) -> Running {
    start_named("default", pool, publisher, settings)
}

pub(crate) fn start_named(
    name: &str,
    pool: &PgPool,
    publisher: impl Publisher + 'static,
    settings: Settings,
) -> Running {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    let token = CancellationToken::new();
    let relay = Relay::new(name, pool.clone(), publisher).with_settings(settings);
    Running { task: tokio::spawn(relay.run(token.clone())), token }
}

pub(crate) async fn write(pool: &PgPool, messages: &[Message]) {
    let mut tx = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut tx, messages).await.unwrap();
    outbox::commit(tx).await.unwrap();
}

pub(crate) fn message(key: &str, number: usize) -> Message {
    Message::new("orders", "order.changed", number.to_string()).with_key(key)
}

pub(crate) fn numbers(broker: &Broker, key: &str) -> Vec<usize> {
    let published = broker.published();
    let mine = published.iter().filter(|published| published.message.key.as_deref() == Some(key));
    mine.map(|published| std::str::from_utf8(&published.message.payload).unwrap().parse().unwrap()).collect()
}

/// The numbers in the order of their first copies.
pub(crate) fn firsts(numbers: &[usize]) -> Vec<usize> {
    let mut firsts = Vec::new();
    for number in numbers {
        if !firsts.contains(number) {
            firsts.push(*number);
        }
    }
    firsts
}

/// Waits until so many messages are published.
pub(crate) async fn until_published(broker: &Broker, count: usize) {
    let arrived = tokio::time::timeout(PATIENCE, broker.wait_for_published(count)).await;
    assert!(arrived.is_ok(), "{} of {count} messages came", broker.published().len());
}

pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
