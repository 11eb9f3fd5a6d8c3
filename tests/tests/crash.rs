//! After a crash of the server the transaction ids that were never logged are given out again. What a relay has seen of
//! their first owners is worth nothing then, and worse: it hides the second ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod eras_support;
mod relay_support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use brokers::memory::Broker;
use eras_support::proxy::Pooler;
use eras_support::{Cluster, arrived, message, start_as};
use message::Message;
use outbox::log::{CursorRecord, HoldReason, LogConnection, LogError, NewHold, Record, Seen, Start, Store};
use outbox::{Settings, commit, enqueue_all};
use relay_support::{settings, until, write};
use servers::PostgresOptions;
use sqlx::PgPool;
use uuid::Uuid;

/// Nothing is flushed but by a commit that waits for it.
async fn cluster() -> Cluster {
    let options = PostgresOptions::new().with_setting("wal_writer_delay", "10s");
    Cluster::with_options(options.with_setting("autovacuum", "off")).await
}

/// A lease so long that no renewal flushes anything.
fn patient() -> Settings {
    let mut settings = settings();
    settings.lease = Duration::from_secs(3600);
    settings
}

/// Spends ids in transactions that draw a position and roll back: nobody waits for the log of that.
async fn spend(cluster: &Cluster) {
    cluster
        .do_sql(
            "do $$ begin for i in 1..100 loop perform outbox.enqueue('orders', 'gone', '\"no\"'::text); rollback; end loop; end $$",
        )
        .await;
}

/// The id of the transaction that wrote a message.
async fn write_as(pool: &PgPool, message: &Message) -> i64 {
    let mut tx = pool.begin().await.unwrap();
    enqueue_all(&mut tx, std::slice::from_ref(message)).await.unwrap();
    let id = "select pg_current_xact_id()::text::bigint";
    let id: i64 = sqlx::query_scalar(id).fetch_one(&mut *tx).await.unwrap();
    commit(tx).await.unwrap();
    id
}

/// Waits until the relay has looked at the log twice from now on, and so has seen all there was.
async fn until_seen(cluster: &Cluster) {
    let now = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint";
    for _ in 0..2 {
        let now = cluster.number(now).await;
        let looked = "select count(*) from pg_stat_activity
            where query like '%-- What a poll looks at%' and query not like '%pg_stat_activity%' and state = 'idle'
                and query_start > to_timestamp($1::float8 / 1000000)";
        until("the relay looked", || async {
            let looked: i64 =
                sqlx::query_scalar(looked).bind(now as f64).fetch_one(&cluster.pool).await.unwrap();
            looked > 0
        })
        .await;
    }
}

/// How often a crash is tried that makes ids come again: somebody else's commit may have flushed them before.
const TRIES: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn ids_given_out_again_after_a_crash_hide_no_message() {
    let mut cluster = cluster().await;
    let broker = Broker::new();
    let pool = eras_support::pool(&cluster.url()).await;
    let relay = start_as("default", &pool, broker.publisher(), patient());
    write(&cluster.pool, &[message("a", 1)]).await;
    broker.wait_for_published(1).await;
    for number in 2.. {
        spend(&cluster).await;
        until_seen(&cluster).await;
        let seen = cluster.next_id().await;
        cluster = crash(cluster).await;
        let message = message("a", number);
        let again = write_as(&cluster.pool, &message).await;
        let arrived = || async { arrived(&broker).contains(message.id.as_uuid()) };
        until("the message arrived whose id may have been seen before", arrived).await;
        if again < seen {
            break;
        }
        assert!(
            number <= TRIES,
            "{again} was not given out before the crash, up to {seen}: nothing is tested"
        );
    }
    relay.stop().await.unwrap();
}

/// As a power cut, for what the server had in memory.
async fn crash(mut cluster: Cluster) -> Cluster {
    cluster.server.kill().unwrap();
    cluster.restarted().await
}

async fn pooled(cluster: &Cluster) -> (Pooler, PgPool) {
    let socket = format!(".s.PGSQL.{}", cluster.server.port().unwrap());
    let pooler = Pooler::to(cluster.server.folder().unwrap().join(socket)).await;
    // A pooler that knows of prepared statements would make them anew; this one needs clients that have none.
    let url = format!(
        "postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable&statement-cache-capacity=0",
        pooler.port
    );
    let pool = eras_support::pool(&url).await;
    (pooler, pool)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_behind_a_pooler_that_hides_the_crash_starts_over() {
    let mut cluster = cluster().await;
    let (pooler, pool) = pooled(&cluster).await;
    let broker = Broker::new();
    let relay = start_as("default", &pool, broker.publisher(), patient());
    write(&cluster.pool, &[message("a", 1)]).await;
    broker.wait_for_published(1).await;
    for number in 2.. {
        spend(&cluster).await;
        until_seen(&cluster).await;
        pooler.pause().await;
        let seen = cluster.next_id().await;
        cluster = crash(cluster).await;
        let message = message("a", number);
        let again = write_as(&cluster.pool, &message).await;
        pooler.resume();
        let arrived = || async { arrived(&broker).contains(message.id.as_uuid()) };
        until("the message arrived whose id may have been seen before", arrived).await;
        if again < seen {
            break;
        }
        assert!(
            number <= TRIES,
            "{again} was not given out before the crash, up to {seen}: nothing is tested"
        );
    }
    assert!(pooler.replaced.load(Ordering::SeqCst) > 0, "the relay's connection lived on");
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_taken_before_a_crash_is_not_recorded_after_it() {
    let cluster = cluster().await;
    let (pooler, pool) = pooled(&cluster).await;
    let mut log = LogConnection::open(&pool).await.unwrap();
    let lease = Duration::from_secs(3600);
    let mut store =
        Store::join(&mut log, "default", Uuid::now_v7(), 1, Start::Beginning, lease).await.unwrap();
    store.acquire(log.connection(), 1).await.unwrap();
    spend(&cluster).await;
    let snapshot = log.look("default").await.unwrap().snapshot;
    pooler.pause().await;
    let cluster = crash(cluster).await;
    pooler.resume();
    let seen = Seen { era: 1, snapshot, bound: 0 };
    let cursor = CursorRecord { shard: 0, seen, until: None, after: 0 };
    let hold = NewHold {
        position: 1,
        slot: 0,
        key: None,
        retry_in: None,
        attempts: 1,
        error: "no".to_owned(),
        reason: HoldReason::Failed,
        destination: None,
    };
    for holds in [vec![], vec![hold]] {
        let record = Record { cursors: vec![cursor.clone()], holds, ..Record::default() };
        let refused = log.record(&mut store, record).await.unwrap_err();
        assert!(matches!(refused, LogError::ConnectionReplaced), "{refused}");
    }
    let refused = log.look("default").await.unwrap_err();
    assert!(matches!(refused, LogError::ConnectionReplaced), "{refused}");
    let written = "select count(*) from outbox.cursor where pg_snapshot_xmax(seen)::text <> '1'";
    assert_eq!(cluster.number(written).await, 0);
    assert_eq!(cluster.number("select count(*) from outbox.held_key").await, 0);
}
