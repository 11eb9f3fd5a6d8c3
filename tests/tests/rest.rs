//! A process that is alone and idle rests: it writes nothing, and is heard of again as soon as somebody waits for it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod relay_support;

use std::sync::Arc;
use std::time::Duration;

use brokers::memory::Broker;
use chrono::{DateTime, Utc};
use outbox::Settings;
use outbox::log::{Lease, LogConnection, Start, Store};
use relay_support::{Running, message, settings, start, until, until_published, write};
use sqlx::{AssertSqlSafe, PgPool};
use tests::Database;
use tokio::time::Instant;
use uuid::Uuid;

/// The shortest that rests.
const LEASE: Duration = Duration::from_secs(8);

fn restful() -> Settings {
    let mut settings = settings();
    settings.lease = LEASE;
    settings.read.poll_ceiling = Duration::from_millis(50);
    settings
}

fn begin(pool: &PgPool, broker: &Broker) -> Running {
    // A pool for each process, and one that a killed process cannot leave inside a transaction.
    let pool = outbox::pool_options().max_connections(5).connect_lazy_with((*pool.connect_options()).clone());
    start(&pool, broker.publisher(), restful())
}

async fn kill(relay: Running) {
    relay.task.abort();
    assert!(relay.task.await.unwrap_err().is_cancelled());
}

/// In how many seconds the leases of a table's rows end, the last first.
async fn ends(pool: &PgPool, table: &str) -> Vec<f64> {
    let sql = format!(
        "select extract(epoch from expires_at - clock_timestamp())::float8 from outbox.{table}
         where expires_at is not null order by expires_at desc"
    );
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(pool).await.unwrap()
}

async fn until_at_rest(pool: &PgPool) {
    for table in ["process", "upkeep"] {
        let rests = || async { matches!(ends(pool, table).await[..], [end] if end > 200.0) };
        until(&format!("{table} at rest"), rests).await;
    }
}

/// Statements that wait for a lock.
async fn waiting(pool: &PgPool) -> i64 {
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    sqlx::query_scalar(waiting).fetch_one(pool).await.unwrap()
}

async fn shards(pool: &PgPool) -> Vec<i64> {
    let query = "select count(*) from outbox.cursor where owner is not null group by owner order by 1";
    sqlx::query_scalar(query).fetch_all(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_at_rest_writes_nothing_and_both_renew_when_another_joins() {
    let database = Database::new("rest_joined").await;
    let pool = database.pool();
    let broker = Broker::new();
    let first = begin(pool, &broker);
    write(pool, &[message("a", 1)]).await;
    until_published(&broker, 1).await;
    let published: DateTime<Utc> =
        sqlx::query_scalar("select clock_timestamp()").fetch_one(pool).await.unwrap();
    until("the cursors of all shards are recorded, the last that there is to write", || async {
        let recorded = sqlx::query_scalar("select min(recorded_at) > $1 from outbox.cursor").bind(published);
        recorded.fetch_one(pool).await.unwrap()
    })
    .await;
    until_at_rest(pool).await;
    let written = || async {
        let rows =
            "select (select xmin::text from outbox.process) || ' ' || (select xmin::text from outbox.upkeep)
            || ' ' || (select string_agg(xmin::text, ' ' order by shard) from outbox.cursor) || ' '
            || (select string_agg(xmin::text, ' ') from outbox.relay)";
        sqlx::query_scalar::<_, String>(rows).fetch_one(pool).await.unwrap()
    };
    let before = written().await;
    // Longer than what a usual lease is renewed in, by the looks it makes meanwhile.
    tokio::time::sleep(LEASE / 2).await;
    assert_eq!(written().await, before);

    let second = begin(pool, &broker);
    until("shared", || async { shards(pool).await == [8, 8] }).await;
    let heard = || async {
        let ends = ends(pool, "process").await;
        ends.len() == 2 && ends.iter().all(|end| (1.0..=LEASE.as_secs_f64()).contains(end))
    };
    assert!(heard().await, "{:?}", ends(pool, "process").await);
    until("the upkeep is waited for", || async { ends(pool, "upkeep").await[0] <= LEASE.as_secs_f64() })
        .await;
    let holder = "select holder::text from outbox.upkeep";
    let holder = || async { sqlx::query_scalar::<_, String>(holder).fetch_one(pool).await.unwrap() };
    let held_by = holder().await;
    // Neither is thought dead when the lease that was shortened would have ended.
    tokio::time::sleep(LEASE + LEASE / 4).await;
    assert!(heard().await, "{:?}", ends(pool, "process").await);
    assert_eq!((shards(pool).await, holder().await), (vec![8, 8], held_by));
    write(pool, &(1..=20).map(|key| message(&format!("k{key}"), 1)).collect::<Vec<_>>()).await;
    until_published(&broker, 21).await;
    second.stop().await.unwrap();
    first.stop().await.unwrap();
    assert_eq!(broker.published().len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_died_at_rest_is_replaced_a_lease_after_another_came() {
    let database = Database::new("rest_died").await;
    let pool = database.pool();
    let broker = Broker::new();
    let first = begin(pool, &broker);
    until_at_rest(pool).await;
    kill(first).await;
    write(pool, &[message("a", 1)]).await;
    let second = begin(pool, &broker);
    until_published(&broker, 1).await;
    until("the dead one is forgotten", || async { ends(pool, "process").await.len() == 1 }).await;
    assert_eq!(shards(pool).await, [16]);
    let second_has_it = || async {
        let query = "select count(*) from outbox.upkeep where expires_at > clock_timestamp() + interval '200 seconds'";
        sqlx::query_scalar::<_, i64>(query).fetch_one(pool).await.unwrap() == 1
    };
    until("the upkeep is the second's, and at rest", second_has_it).await;
    second.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_at_rest_that_finds_work_is_missed_as_soon_as_any() {
    let database = Database::new("rest_works").await;
    let pool = database.pool();
    let broker = Broker::new();
    let relay = begin(pool, &broker);
    until_at_rest(pool).await;
    write(pool, &[message("a", 1)]).await;
    until_published(&broker, 1).await;
    until("it renews", || async { ends(pool, "process").await[0] <= LEASE.as_secs_f64() }).await;
    until_at_rest(pool).await;
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn at_rest_a_look_is_as_good_as_a_renewal_unless_it_sees_news() {
    let database = Database::new("rest_looks").await;
    let pool = database.pool();
    let mut log = LogConnection::open(pool).await.unwrap();
    let process = Uuid::now_v7();
    let mut store = Store::join(&mut log, "default", process, 1, Start::Beginning, LEASE).await.unwrap();
    store.acquire(log.connection(), 1).await.unwrap();
    let lease = Lease::begin(pool.clone(), "default".to_owned(), process, LEASE).await.unwrap().unwrap();
    let lease = Arc::new(lease);
    let (changes, kept) = (lease.shares().borrow().changes, Arc::clone(&lease));
    let keeping = tokio::spawn(async move { kept.keep().await });
    let renewed = || lease.shares().borrow().renewed;
    until("it rests", || async {
        lease.has_seen(changes, Instant::now());
        ends(pool, "process").await[0] > 200.0
    })
    .await;
    let asked = Instant::now();
    lease.has_seen(changes, asked);
    assert_eq!(renewed(), asked);
    lease.has_seen(changes + 1, Instant::now());
    until("it renews", || async { ends(pool, "process").await[0] <= LEASE.as_secs_f64() }).await;
    let asked = Instant::now();
    lease.has_seen(changes, asked);
    assert!(renewed() < asked, "a look of one that does not rest is no renewal");
    keeping.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_about_to_rest_waits_for_one_that_is_joining() {
    let database = Database::new("rest_race").await;
    let pool = database.pool();
    let mut log = LogConnection::open(pool).await.unwrap();
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    Store::join(&mut log, "default", first, 1, Start::Beginning, LEASE).await.unwrap();
    let changes = async || {
        let changes = "select changes from outbox.relay";
        sqlx::query_scalar::<_, i64>(changes).fetch_one(pool).await.unwrap()
    };
    let rest = |changes: i64| {
        let query =
            sqlx::query(include_str!("../../outbox/src/log/sql/rest.sql")).bind("default").bind(first);
        let query = query.bind(300.0).bind(LEASE.as_secs_f64()).bind(changes);
        let pool = pool.clone();
        tokio::spawn(async move { query.execute(&pool).await.unwrap().rows_affected() })
    };
    assert_eq!(rest(changes().await).await.unwrap(), 1);
    let mut joining = pool.begin().await.unwrap();
    let join = sqlx::query(include_str!("../../outbox/src/log/sql/join.sql"));
    let join = join.bind(second).bind("default").bind("pid 2").bind("0").bind(LEASE.as_secs_f64());
    join.execute(&mut *joining).await.unwrap();
    let resting = rest(changes().await);
    until("it waits", || async { waiting(pool).await == 1 }).await;
    joining.commit().await.unwrap();
    assert_eq!(resting.await.unwrap(), 0);
    let wake = sqlx::query(include_str!("../../outbox/src/log/sql/wake.sql")).bind("default").bind(second);
    assert_eq!(wake.execute(pool).await.unwrap().rows_affected(), 1);
    let ends = ends(pool, "process").await;
    assert!(ends.len() == 2 && ends[0] <= LEASE.as_secs_f64(), "{ends:?}");
    assert_eq!(rest(changes().await).await.unwrap(), 0, "it is not alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_while_another_lies_down_wakes_it_with_its_own_lease() {
    let database = Database::new("rest_lies_down").await;
    let pool = database.pool();
    let mut log = LogConnection::open(pool).await.unwrap();
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    Store::join(&mut log, "default", first, 1, Start::Beginning, LEASE).await.unwrap();
    let mut lying = pool.begin().await.unwrap();
    let changes: i64 =
        sqlx::query_scalar("select changes from outbox.relay").fetch_one(&mut *lying).await.unwrap();
    let rest = sqlx::query(include_str!("../../outbox/src/log/sql/rest.sql")).bind("default").bind(first);
    let rest = rest.bind(300.0).bind(LEASE.as_secs_f64()).bind(changes);
    assert_eq!(rest.execute(&mut *lying).await.unwrap().rows_affected(), 1);
    let through = pool.clone();
    let joining = tokio::spawn(async move {
        let mut log = LogConnection::open(&through).await.unwrap();
        // A lease of its own that is another.
        Store::join(&mut log, "default", second, 1, Start::Beginning, LEASE * 4).await.unwrap();
    });
    until("it waits", || async { waiting(pool).await == 1 }).await;
    lying.commit().await.unwrap();
    joining.await.unwrap();
    let ends = ends(pool, "process").await;
    let leases = [LEASE * 4, LEASE].map(|lease| lease.as_secs_f64());
    assert!(ends.iter().zip(leases).all(|(end, lease)| (lease - 5.0..=lease).contains(end)), "{ends:?}");
}
