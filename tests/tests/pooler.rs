//! A pooler in transaction mode between everybody and the database, with so few server connections that each transaction
//! may run on another one: nothing is lost, every key is in order, and all go on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod relay_support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use brokers::memory::{Broker, Fault};
use inbox::{Backoff, Consumer, HandlerError};
use message::Message;
use outbox::Settings;
use relay_support::{message, numbers, start, until, write};
use servers::{Pgbouncer, Postgres, PostgresOptions};
use sqlx::{Executor, PgPool, PgTransaction, Row};
use tests::Database;
use tokio_util::sync::CancellationToken;

/// Fewer than the clients.
const SERVER_CONNECTIONS: u32 = 3;

/// A renewal may have to wait for its turn at the pooler.
fn settings() -> Settings {
    let mut settings = relay_support::settings();
    settings.lease = Duration::from_secs(10);
    settings
}

async fn pool(url: &str, connections: u32) -> PgPool {
    outbox::pool_options().max_connections(connections).connect(url).await.unwrap()
}

/// As everybody must behind such a pooler: no statement is named.
async fn effect(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    let number = std::str::from_utf8(&message.payload)?.to_owned();
    sqlx::query("insert into effect (message, key, number) values ($1, $2, $3::int)")
        .bind(message.id.as_uuid())
        .bind(message.key.as_deref())
        .bind(number)
        .persistent(false)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Fails now and then, so that keys are held and tried again.
struct Fragile(AtomicUsize);

#[async_trait::async_trait]
impl inbox::Handler for Fragile {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        effect(tx, message).await?;
        let tried = self.0.fetch_add(1, Ordering::SeqCst);
        if tried.is_multiple_of(17) { Err(HandlerError::retry("now and then")) } else { Ok(()) }
    }
}

/// Writes messages as a service does, in order for each key, through clients of its own.
async fn service(url: String, writer: usize, transactions: usize) {
    let pool = pool(&url, 3).await;
    for step in 0..transactions {
        let key = format!("k{}", (writer * 7 + step * 3) % 10);
        let mut tx = pool.begin().await.unwrap();
        let update = "update account set version = version + 1 where key = $1 returning version";
        let version = sqlx::query(update).bind(&key).persistent(false).fetch_one(&mut *tx).await.unwrap();
        let number = usize::try_from(version.get::<i32, _>(0)).unwrap();
        outbox::enqueue_all(&mut tx, &[message(&key, number)]).await.unwrap();
        outbox::commit(tx).await.unwrap();
    }
}

/// The server processes that answer one client.
async fn backends(pool: &PgPool) -> usize {
    let mut client = pool.acquire().await.unwrap();
    let mut backends = BTreeSet::new();
    for _ in 0..10 {
        let row = client.fetch_one(sqlx::raw_sql("select pg_backend_pid()")).await.unwrap();
        backends.insert(row.get::<i32, _>(0));
    }
    backends.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn services_a_relay_and_a_consumer_lose_nothing_and_keep_every_key_in_order() {
    const WRITERS: usize = 4;
    const TRANSACTIONS: usize = 100;
    const ALL: usize = WRITERS * TRANSACTIONS;
    let database = Database::new("pooler").await;
    let schema = "create table account (key text primary key, version int not null);
        insert into account select 'k' || n, 0 from generate_series(0, 9) n;
        create table effect (place bigserial, message uuid not null, key text not null, number int not null)";
    database.pool().execute(sqlx::raw_sql(schema)).await.unwrap();
    // A process of the consumer has died, so messages are declared before they are tried.
    let dead = "insert into inbox.consumer (name, horizon) values ('stock', '7 days');
        insert into inbox.process (id, consumer, expires_at) values (gen_random_uuid(), 'stock', now())";
    database.pool().execute(sqlx::raw_sql(dead)).await.unwrap();
    let pooler = Pgbouncer::start(&Postgres::start().unwrap(), SERVER_CONNECTIONS).unwrap();
    let url = pooler.url(&database.name);

    let broker = Broker::new();
    broker.fail_next(3, Fault::Rejected);
    let relay = start(&pool(&url, 4).await, broker.publisher(), settings());
    let stop = CancellationToken::new();
    let backoff = Backoff::default().with_first(Duration::from_millis(20));
    let consumer = Consumer::new("stock", pool(&url, 12).await, broker.subscriber("stock", ["orders"]))
        .with_backoff(backoff)
        .on("order.changed", Fragile(AtomicUsize::new(0)));
    let consumer = tokio::spawn(consumer.run(stop.clone()));
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(service(url.clone(), writer, TRANSACTIONS))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    tokio::time::timeout(relay_support::PATIENCE, broker.wait_for_published(ALL)).await.expect("all arrive");
    let effects = "select count(distinct message) from effect";
    until("all have their effect", || async {
        let count: i64 = sqlx::query_scalar(effects).fetch_one(database.pool()).await.unwrap();
        count == i64::try_from(ALL).unwrap()
    })
    .await;
    stop.cancel();
    consumer.await.unwrap().unwrap();
    relay.stop().await.unwrap();

    assert!(
        backends(&pool(&url, 1).await).await > 1,
        "one server process answers a client: nothing is tested"
    );
    for key in 0..10 {
        let numbers = numbers(&broker, &format!("k{key}"));
        assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>(), "k{key}, without a copy");
    }
    let direct = database.pool();
    let count = async |sql: &'static str| sqlx::query_scalar::<_, i64>(sql).fetch_one(direct).await.unwrap();
    assert_eq!(count("select count(*) from effect").await, i64::try_from(ALL).unwrap());
    let inversions = "select count(*) from effect a join effect b on a.place < b.place and a.key = b.key
        and a.number > b.number";
    assert_eq!(count(inversions).await, 0);
    assert!(outbox::admin::held_keys(database.pool(), "default").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_looked_after_through_the_pooler() {
    let database = Database::new("pooler_held").await;
    let pooler = Pgbouncer::start(&Postgres::start().unwrap(), SERVER_CONNECTIONS).unwrap();
    let pool = pool(&pooler.url(&database.name), 6).await;
    let broker = Broker::new();
    broker.reject_key("bad");
    let relay = start(&pool, broker.publisher(), settings());
    write(&pool, &[message("bad", 1), message("bad", 2), message("good", 1)]).await;
    until("parked", || async {
        let held = outbox::admin::held_keys(&pool, "default").await.unwrap();
        held.first().is_some_and(|held| held.is_parked() && held.messages == 2)
    })
    .await;
    broker.accept_key("bad");
    let held = outbox::admin::held_keys(&pool, "default").await.unwrap();
    assert!(outbox::admin::redrive(&pool, "default", held[0].position, "test", None).await.unwrap());
    until("released", || async { outbox::admin::held_keys(&pool, "default").await.unwrap().is_empty() })
        .await;
    assert_eq!(outbox::admin::status(&pool).await.unwrap()[0].parked, 0);
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "bad"), [1, 2]);
}

/// Statements of its own, named as the driver names them, are the service's to avoid; ours do not bring them about.
#[tokio::test(flavor = "multi_thread")]
async fn no_statement_of_ours_is_named_where_the_service_names_none() {
    let server = PostgresOptions::new().start().unwrap();
    let direct = outbox::pool_options().connect(&server.url("postgres")).await.unwrap();
    for schema in [migrations::Schema::Outbox, migrations::Schema::Inbox] {
        schema.migrate(&mut direct.acquire().await.unwrap()).await.unwrap();
    }
    direct
        .execute("create table effect (place bigserial, message uuid, key text, number int)")
        .await
        .unwrap();
    let pooler = Pgbouncer::start(&server, 1).unwrap();
    let pool = pool(&pooler.url("postgres"), 12).await;
    let broker = Broker::new();
    broker.fail_next(2, Fault::Rejected);
    let relay = start(&pool, broker.publisher(), settings());
    let stop = CancellationToken::new();
    let consumer = Consumer::new("stock", pool.clone(), broker.subscriber("stock", ["orders"]))
        .with_backoff(Backoff::default().with_first(Duration::from_millis(20)))
        .on("order.changed", Fragile(AtomicUsize::new(0)));
    let consumer = tokio::spawn(consumer.run(stop.clone()));
    for number in 1..=20 {
        let mut tx = pool.begin().await.unwrap();
        outbox::lock_keys(&mut tx, &["a"]).await.unwrap();
        outbox::enqueue_all(&mut tx, &[message("a", number)]).await.unwrap();
        outbox::commit(tx).await.unwrap();
    }
    broker.wait_for_published(20).await;
    until("all have their effect", || async {
        let row = pool.fetch_one(sqlx::raw_sql("select count(distinct message) from effect")).await.unwrap();
        row.get::<i64, _>(0) == 20
    })
    .await;
    stop.cancel();
    consumer.await.unwrap().unwrap();
    relay.stop().await.unwrap();
    // The one server connection has served them all.
    let rows = pool.fetch_all(sqlx::raw_sql("select statement from pg_prepared_statements")).await.unwrap();
    let left: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert!(left.is_empty(), "{left:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_goes_on_while_its_server_connections_are_replaced_one_after_the_other() {
    let database = Database::new("pooler_replaced").await;
    let pooler = Pgbouncer::start(&Postgres::start().unwrap(), SERVER_CONNECTIONS).unwrap();
    let client = pool(&pooler.url(&database.name), 4).await;
    let broker = Broker::new();
    let relay = start(&client, broker.publisher(), settings());
    for number in 1..=60 {
        // One idle server process at a time, as a pooler does when one has become old.
        let kill = "select pg_terminate_backend(pid) from pg_stat_activity
            where datname = $1 and state = 'idle' order by backend_start limit 1";
        if number % 10 == 0 {
            sqlx::query(kill).bind(&database.name).execute(database.admin()).await.unwrap();
        }
        write(database.pool(), &[message("a", number)]).await;
        until("it arrives", || async { numbers(&broker, "a").contains(&number) }).await;
    }
    relay.stop().await.unwrap();
    let mut first = Vec::new();
    for number in numbers(&broker, "a") {
        if !first.contains(&number) {
            first.push(number);
        }
    }
    assert_eq!(first, (1..=60).collect::<Vec<_>>());
}
