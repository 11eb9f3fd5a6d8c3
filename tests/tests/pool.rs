//! The driver's bug that `outbox::pool_options` guards against: a cancelled `begin` can leave a connection in the pool
//! inside a transaction that nobody owns, on which a later insert answers `Ok` and is lost. If a new driver has none of
//! it, the first test says so, and the guard can go.

#![allow(clippy::expect_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, PgPool};
use tests::{Database, Proxy};
use tokio::time::timeout;

/// Cancels `begin` a little later each time, and after each writes a row outside any transaction; until `enough` says so.
/// Answers the tries and how many of the rows that were answered with `Ok` are not there afterwards.
async fn probe(database: &Database, options: PgPoolOptions, enough: impl Fn(i64, i64) -> bool) -> (i64, i64) {
    let pool = options.max_connections(1).connect(database.url()).await.expect("a pool");
    pool.execute("create table public.probe (try bigint)").await.expect("a table");
    let usual = usual_begin(&pool).await;
    let (mut tries, mut lost) = (0, 0);
    while !enough(tries, lost) {
        for part in 1..=100 {
            // What no user may do: the future of `begin` dropped before it is done.
            drop(timeout(usual * part / 50, pool.begin()).await);
            let row = sqlx::query("insert into public.probe values ($1)").bind(tries).execute(&pool).await;
            row.expect("the pool says that the row is written");
            tries += 1;
        }
        // Seen from another pool, as everybody else sees it.
        let written: i64 = sqlx::query_scalar("select count(*) from public.probe")
            .fetch_one(database.pool())
            .await
            .expect("a count");
        lost = tries - written;
    }
    pool.close().await;
    database.pool().execute("drop table public.probe").await.expect("nobody holds it");
    (tries, lost)
}

async fn usual_begin(pool: &PgPool) -> Duration {
    let start = Instant::now();
    for _ in 0..20 {
        pool.begin().await.expect("a transaction").rollback().await.expect("a rollback");
    }
    start.elapsed() / 40
}

#[tokio::test]
async fn a_cancelled_begin_loses_later_writes_unless_the_pool_is_ours() {
    let database = Database::empty("cancelled_begin").await;
    let deadline = Instant::now() + Duration::from_secs(60);
    #[expect(clippy::disallowed_methods, reason = "the driver's own behaviour is the subject")]
    let (tries, lost) =
        probe(&database, PgPoolOptions::new(), |_, lost| lost > 0 || Instant::now() > deadline).await;
    assert!(lost > 0, "in {tries} tries the driver lost nothing: is it mended? Then the guard can go");

    let (guarded, lost) =
        probe(&database, outbox::pool_options(), |done, _| done >= (4 * tries).max(2_000)).await;
    assert_eq!(lost, 0, "of {guarded} rows");
}

#[tokio::test]
async fn the_guard_throws_no_healthy_connection_away() {
    let database = Database::empty("healthy_connection").await;
    let pool = outbox::pool_options().max_connections(1).connect(database.url()).await.expect("a pool");
    let mut backends = BTreeSet::new();
    for _ in 0..200 {
        let mut tx = pool.begin().await.expect("a transaction");
        let backend: i32 =
            sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *tx).await.expect("a number");
        tx.commit().await.expect("a commit");
        backends.insert(backend);
    }
    assert_eq!(backends.len(), 1, "{backends:?}");
}

#[tokio::test]
async fn connections_that_have_fallen_silent_keep_no_other_from_being_opened() {
    let database = Database::empty("silent_connections").await;
    let network = Proxy::start(&database.url().parse().expect("a URL")).await.expect("a port");
    let pool = outbox::pool_options().connect_with(network.options()).await.expect("a pool");
    let begun = [pool.begin().await, pool.begin().await, pool.begin().await];
    for tx in begun {
        tx.expect("a transaction").commit().await.expect("a commit");
    }
    while pool.num_idle() < 3 {
        tokio::task::yield_now().await;
    }
    network.fall_silent();
    // sqlx by itself would ask the first of them until it gives up.
    pool.acquire().await.expect("one that answers");
}
