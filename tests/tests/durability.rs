//! Nothing is published before its commit is durable: a producer that does not wait for the disk is seen before it is
//! safe, and a crash would leave a message at the broker that no database ever held.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use brokers::memory::{Broker, MemoryPublisher};
use message::{Message, MessageId, Outcomes, Outgoing, Pipelining, Publisher};
use outbox::{Relay, RelayError, Settings};
use servers::{Postgres, PostgresOptions};
use sqlx::{Executor, PgPool};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

/// A server on which hardly anybody but the relay flushes the log.
async fn lazy_server() -> Postgres {
    let server = PostgresOptions::new()
        .with_setting("wal_writer_delay", "10s")
        .with_setting("wal_writer_flush_after", "1GB")
        .with_setting("autovacuum", "off")
        .start()
        .expect("PostgreSQL starts");
    let pool = producer(&server).await;
    migrations::Schema::Outbox.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    pool.close().await;
    server
}

/// Connections whose commits do not wait for the disk.
async fn producer(server: &Postgres) -> PgPool {
    outbox::pool_options()
        .max_connections(2)
        .after_connect(|connection, _| {
            Box::pin(async move { connection.execute("set synchronous_commit = off").await.map(drop) })
        })
        .connect(&server.url("postgres"))
        .await
        .unwrap()
}

async fn relay(
    server: &Postgres,
    name: &str,
    publisher: impl Publisher + 'static,
) -> (CancellationToken, JoinHandle<Result<(), RelayError>>) {
    let pool = outbox::pool_options().max_connections(4).connect(&server.url("postgres")).await.unwrap();
    let mut settings = Settings::default();
    // A heartbeat is a commit that is waited for: it would flush what the relay must flush itself.
    settings.lease = Duration::from_secs(600);
    let stop = CancellationToken::new();
    let relay = Relay::new(name, pool, publisher).with_settings(settings);
    (stop.clone(), tokio::spawn(relay.run(stop)))
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Where the log of the server stands, in bytes.
async fn lsn(pool: &PgPool, which: &str) -> i64 {
    let sql = format!("select pg_wal_lsn_diff(pg_current_wal_{which}_lsn(), '0/0')::bigint");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(pool).await.unwrap()
}

/// Asks the server, at each publish, how far its log is flushed.
struct Asks {
    broker: MemoryPublisher,
    pool: PgPool,
    flushed: Arc<Mutex<HashMap<MessageId, i64>>>,
}

#[async_trait]
impl Publisher for Asks {
    fn pipelining(&self) -> Pipelining {
        self.broker.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let flushed = lsn(&self.pool, "flush").await;
        let ids = batch.iter().map(|outgoing| (outgoing.message.id, flushed));
        self.flushed.lock().unwrap().extend(ids);
        self.broker.publish(batch, outcomes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_writer_did_not_wait_for_the_disk_is_published_when_its_commit_is_on_it() {
    let server = lazy_server().await;
    let producer = producer(&server).await;
    let broker = Broker::new();
    let flushed = Arc::new(Mutex::new(HashMap::new()));
    let asks = Asks { broker: broker.publisher(), pool: producer.clone(), flushed: Arc::clone(&flushed) };
    let (stop, running) = relay(&server, "default", asks).await;
    let mut inserted: Vec<(MessageId, i64)> = Vec::new();
    let mut early = 0;
    for number in 1..=50 {
        let message = Message::new("orders", "order.changed", number.to_string()).with_key("a");
        let mut tx = producer.begin().await.unwrap();
        outbox::enqueue_all(&mut tx, std::slice::from_ref(&message)).await.unwrap();
        let sql = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";
        let row: i64 = sqlx::query_scalar(sql).fetch_one(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        early += i32::from(lsn(&producer, "flush").await <= row);
        inserted.push((message.id, row));
        in_time("a message arrives", broker.wait_for_published(number)).await;
    }
    stop.cancel();
    in_time("the relay stops", running).await.unwrap().unwrap();
    assert!(early > 0, "every commit was on disk when it returned: the test proves nothing");
    let flushed = flushed.lock().unwrap();
    for (id, row) in inserted {
        // Beyond the row, so with the next record of the log: the commit's own.
        assert!(
            flushed[&id] > row,
            "published when the log was flushed to {}, written at {row}",
            flushed[&id]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_before_a_crash_still_stands_in_the_log_after_it() {
    let mut server = lazy_server().await;
    let broker = Broker::new();
    let mut forgotten = 0;
    let mut numbers = 0;
    for life in 0..20 {
        let producer = producer(&server).await;
        // Of another name each time: nothing waits for the lease of the one that is gone.
        let (_, running) = relay(&server, &format!("life-{life}"), broker.publisher()).await;
        for _ in 0..10 {
            numbers += 1;
            write(&producer, numbers).await;
            in_time("a message arrives", broker_has(&broker, numbers)).await;
        }
        running.abort();
        let _ = running.await;
        // Nobody publishes it, and nobody asks the server to keep it.
        numbers += 1;
        write(&producer, numbers).await;
        server.crash().unwrap();
        server.restart().unwrap();
        let pool = outbox::pool_options().connect(&server.url("postgres")).await.unwrap();
        let kept: Vec<String> =
            sqlx::query_scalar("select convert_from(payload, 'UTF8') from outbox.message order by position")
                .fetch_all(&pool)
                .await
                .unwrap();
        for published in payloads(&broker) {
            assert!(kept.contains(&published), "published, and gone: {published}");
        }
        forgotten += i32::from(!kept.contains(&numbers.to_string()));
        if forgotten > 1 {
            return;
        }
    }
    panic!("no crash forgot anything: the test proves nothing");
}

async fn write(pool: &PgPool, number: i32) {
    let message = Message::new("orders", "order.changed", number.to_string()).with_key("a");
    let mut tx = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut tx, &[message]).await.unwrap();
    outbox::commit(tx).await.unwrap();
}

fn payloads(broker: &Broker) -> Vec<String> {
    let text = |payload: &[u8]| std::str::from_utf8(payload).unwrap().to_owned();
    broker.published().iter().map(|published| text(&published.message.payload)).collect()
}

/// A relay that is new repeats the others first.
async fn broker_has(broker: &Broker, number: i32) {
    let mut count = 0;
    while !payloads(broker).contains(&number.to_string()) {
        count = broker.wait_for_published(count + 1).await.len();
    }
}
