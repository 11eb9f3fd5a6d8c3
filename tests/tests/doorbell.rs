//! The doorbell keeps to itself: few rings for much that is enqueued, on its own connection, and nothing that happens to it
//! reaches the service. That a relay hears it is a matter of two processes: cli/tests/doorbell.rs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use message::Message;
use outbox::Doorbell;
use sqlx::postgres::{PgListener, PgNotification};
use sqlx::{Connection, PgConnection, PgPool};
use tests::Database;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

/// Every doorbell of a process rings for every enqueue in it, so the tests do not run side by side.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

async fn listener(database: &Database) -> PgListener {
    let mut listener = PgListener::connect(database.url()).await.unwrap();
    listener.listen("outbox_doorbell").await.unwrap();
    listener
}

async fn ring(listener: &mut PgListener) -> PgNotification {
    tokio::time::timeout(PATIENCE, listener.recv()).await.expect("it rings").unwrap()
}

fn doorbell(pool: &PgPool) -> (CancellationToken, JoinHandle<()>) {
    let stop = CancellationToken::new();
    (stop.clone(), tokio::spawn(Doorbell::new(pool.clone()).run(stop)))
}

/// A business transaction; the server process that ran it.
async fn transact(connection: &mut PgConnection) -> u32 {
    let mut tx = connection.begin().await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *tx).await.unwrap();
    outbox::enqueue_all(&mut tx, &[Message::new("orders", "order.placed", "{}")]).await.unwrap();
    outbox::commit(tx).await.unwrap();
    pid.unsigned_abs()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_enqueues_ring_a_few_times_with_nothing_to_say_and_never_in_their_own_transactions() {
    let _alone = alone().await;
    let database = Database::new("doorbell_few").await;
    let mut listener = listener(&database).await;
    let (stop, ringing) = doorbell(database.pool());
    let first = ring(&mut listener).await;
    let mut service = database.connect().await;
    let (mut writers, began) = (BTreeSet::new(), tokio::time::Instant::now());
    for _ in 0..1000 {
        writers.insert(transact(&mut service).await);
    }
    let took = began.elapsed();
    // The last enqueue is rung for, too, within the interval: after it there is quiet.
    let mut rings = vec![ring(&mut listener).await];
    while let Ok(ring) = tokio::time::timeout(Duration::from_secs(1), listener.recv()).await {
        rings.push(ring.unwrap());
    }
    stop.cancel();
    ringing.await.unwrap();
    let most = took.as_millis() / 40 + 2;
    assert!((1..=most).contains(&(rings.len() as u128)), "{} rings in {took:?}", rings.len());
    for ring in rings {
        assert_eq!((ring.payload(), ring.process_id()), ("", first.process_id()));
        assert!(!writers.contains(&ring.process_id()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doorbell_whose_connection_is_ended_rings_on_another_for_what_was_enqueued_meanwhile() {
    let _alone = alone().await;
    let database = Database::new("doorbell_ended").await;
    let mut listener = listener(&database).await;
    let (stop, ringing) = doorbell(database.pool());
    let mut before = ring(&mut listener).await.process_id();
    let mut service = database.connect().await;
    for _ in 0..3 {
        let end = sqlx::query("select pg_terminate_backend($1, 10000)").bind(i32::try_from(before).unwrap());
        end.execute(database.admin()).await.unwrap();
        // Whether or not the doorbell knows by now that it is broken.
        transact(&mut service).await;
        let now = ring(&mut listener).await.process_id();
        assert_ne!(now, before);
        before = now;
    }
    stop.cancel();
    ringing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_doorbell_cannot_connect_enqueues_and_commits_as_ever() {
    let _alone = alone().await;
    let database = Database::new("doorbell_alone").await;
    // Nobody answers there.
    let nowhere = database.pool().connect_options().as_ref().clone().host("127.0.0.1").port(1);
    let (stop, ringing) = doorbell(&outbox::pool_options().connect_lazy_with(nowhere));
    let mut service = database.connect().await;
    for _ in 0..20 {
        transact(&mut service).await;
    }
    let written: i64 =
        sqlx::query_scalar("select count(*) from outbox.message").fetch_one(database.pool()).await.unwrap();
    assert_eq!(written, 20);
    assert!(!ringing.is_finished(), "it goes on trying");
    stop.cancel();
    tokio::time::timeout(PATIENCE, ringing).await.expect("it stops while it tries").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_from_elsewhere_is_not_passed_on() {
    let _alone = alone().await;
    let database = Database::new("doorbell_echo").await;
    let mut listener = listener(&database).await;
    let mut settings = outbox::Settings::default();
    settings.doorbell = true;
    let relay =
        outbox::Relay::new("default", database.pool().clone(), brokers::memory::Broker::new().publisher())
            .with_settings(settings);
    let stop_relay = CancellationToken::new();
    let relay = tokio::spawn(relay.run(stop_relay.clone()));
    // It listens when it has heard a ring of its own.
    ring(&mut listener).await;
    let (stop, ringing) = doorbell(database.pool());
    let own = ring(&mut listener).await.process_id();
    let mut other = database.connect().await;
    sqlx::query("notify outbox_doorbell").execute(&mut other).await.unwrap();
    assert_ne!(ring(&mut listener).await.process_id(), own);
    let echo = tokio::time::timeout(Duration::from_millis(500), listener.recv()).await;
    assert!(echo.is_err(), "{echo:?}");
    stop.cancel();
    ringing.await.unwrap();
    stop_relay.cancel();
    relay.await.unwrap().unwrap();
}
