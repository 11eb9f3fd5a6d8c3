//! Many databases relayed by one process within a budget of connections.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod relay_support;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use brokers::memory::{Broker, MemoryPublisher};
use message::{Message, Outcomes, Outgoing, Pipelining, PublishError, Publisher};
use outbox::Fleet;
use relay_support::{PATIENCE, message, numbers, settings, start, until, until_published, write};
use sqlx::postgres::PgConnectOptions;
use tests::Database;
use tokio_util::sync::CancellationToken;

fn options(database: &Database) -> PgConnectOptions {
    database.url().parse::<PgConnectOptions>().unwrap().application_name("fleet-test")
}

/// Connections of the fleet to one of these databases.
async fn connections(databases: &[Database]) -> i64 {
    let names: Vec<&str> = databases.iter().map(|database| database.name.as_str()).collect();
    let count =
        "select count(*) from pg_stat_activity where application_name = 'fleet-test' and datname = any ($1)";
    sqlx::query_scalar(count).bind(names).fetch_one(databases[0].admin()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn more_databases_than_connections_take_turns_and_none_starves_or_exceeds_the_budget() {
    let mut databases = Vec::new();
    for number in 0..6 {
        databases.push(Database::new(&format!("fleet_{number}")).await);
    }
    let broker = Broker::new();
    let mut fleet = Fleet::new("default", broker.publisher())
        .with_connections(8)
        .with_turn(Duration::from_millis(300))
        .with_look(Duration::from_millis(100))
        .with_settings(settings());
    for (number, database) in databases.iter().enumerate() {
        fleet = fleet.with_database(number.to_string(), options(database));
    }
    let stop = CancellationToken::new();
    let running = tokio::spawn(fleet.run(stop.clone()));
    // Two databases have work without end, which would keep both places for ever; the others a message now and then.
    let ended = CancellationToken::new();
    let busy: Vec<_> = (0..2)
        .map(|number| {
            let (pool, ended) = (databases[number].pool().clone(), ended.clone());
            tokio::spawn(async move {
                let mut written = 0;
                while !ended.is_cancelled() {
                    let batch: Vec<Message> =
                        (1..=20).map(|n| message(&format!("busy{number}"), written + n)).collect();
                    write(&pool, &batch).await;
                    written += 20;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                written
            })
        })
        .collect();
    for round in 1..=3 {
        for (number, database) in databases.iter().enumerate().skip(2) {
            write(database.pool(), &[message(&format!("quiet{number}"), round)]).await;
        }
        for number in 2..6 {
            let key = format!("quiet{number}");
            until("a quiet database had its turn", || async { numbers(&broker, &key).len() == round }).await;
            let connections = connections(&databases).await;
            assert!(connections <= 8, "{connections} connections");
        }
    }
    ended.cancel();
    for (number, writer) in busy.into_iter().enumerate() {
        let written = writer.await.unwrap();
        let key = format!("busy{number}");
        until("the backlog is published", || async { numbers(&broker, &key).len() >= written }).await;
        assert_eq!(numbers(&broker, &key), (1..=written).collect::<Vec<_>>());
    }
    stop.cancel();
    tokio::time::timeout(PATIENCE, running).await.expect("it stops").unwrap().unwrap();
    for number in 2..6 {
        assert_eq!(numbers(&broker, &format!("quiet{number}")), [1, 2, 3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_relayed_delays_no_other_and_is_taken_up_when_it_can() {
    let (fine, broken) = (Database::new("fleet_fine").await, Database::new("fleet_broken").await);
    sqlx::raw_sql("alter sequence outbox.message_position_seq cache 32")
        .execute(broken.pool())
        .await
        .unwrap();
    let broker = Broker::new();
    let stop = CancellationToken::new();
    let nowhere = "postgres://nobody@127.0.0.1:9/nowhere".parse().unwrap();
    let fleet = Fleet::new("default", broker.publisher())
        .with_connections(4)
        .with_look(Duration::from_millis(50))
        .with_settings(settings())
        .with_database("broken", options(&broken))
        .with_database("nowhere", nowhere)
        .with_database("fine", options(&fine));
    let running = tokio::spawn(fleet.run(stop.clone()));
    write(fine.pool(), &[message("a", 1)]).await;
    write(broken.pool(), &[message("b", 1)]).await;
    broker.wait_for_published(1).await;
    assert_eq!((numbers(&broker, "a"), numbers(&broker, "b")), (vec![1], vec![]));
    sqlx::raw_sql("alter sequence outbox.message_position_seq cache 1").execute(broken.pool()).await.unwrap();
    broker.wait_for_published(2).await;
    stop.cancel();
    tokio::time::timeout(PATIENCE, running).await.expect("it stops").unwrap().unwrap();
    assert_eq!(numbers(&broker, "b"), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_work_is_only_looked_at() {
    let databases = [Database::new("fleet_idle").await, Database::new("fleet_other").await];
    let broker = Broker::new();
    let stop = CancellationToken::new();
    let mut fleet = Fleet::new("default", broker.publisher())
        .with_connections(4)
        .with_look(Duration::from_millis(20))
        .with_settings(settings());
    for database in &databases {
        fleet = fleet.with_database(&database.name, options(database));
        write(database.pool(), &[message("a", 1)]).await;
    }
    let running = tokio::spawn(fleet.run(stop.clone()));
    broker.wait_for_published(2).await;
    // A visit takes the shards anew, each at a new epoch; a look does not.
    let epochs = || async {
        let sum = "select coalesce(sum(epoch), 0)::bigint from outbox.cursor";
        let mut epochs = Vec::new();
        for database in &databases {
            epochs.push(sqlx::query_scalar::<_, i64>(sum).fetch_one(database.pool()).await.unwrap());
        }
        epochs
    };
    let looks = || async {
        let looks = "select xact_commit from pg_stat_database where datname = $1";
        sqlx::query_scalar::<_, i64>(looks)
            .bind(&databases[0].name)
            .fetch_one(databases[0].admin())
            .await
            .unwrap()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let (mut visits, mut looked) = (epochs().await, looks().await);
    while looks().await < looked + 20 {
        assert!(tokio::time::Instant::now() < deadline, "each look is a visit, or there is none");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = epochs().await;
        if now != visits {
            (visits, looked) = (now, looks().await);
        }
    }
    stop.cancel();
    tokio::time::timeout(PATIENCE, running).await.expect("it stops").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_shard_has_seen_is_no_work() {
    let database = Database::new("fleet_shards").await;
    let pool = database.pool();
    let has_work = async || {
        let query = sqlx::query_scalar::<_, bool>(include_str!("../../outbox/src/fleet/sql/has_work.sql"));
        query.bind("default").fetch_one(pool).await.unwrap()
    };
    assert!(has_work().await, "it has no cursors");
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("a", 1)]).await;
    until_published(&broker, 1).await;
    let recorded = || async {
        let recorded = "select count(distinct seen::text) = 2 from outbox.cursor where until is null";
        sqlx::query_scalar::<_, bool>(recorded).fetch_one(pool).await.unwrap()
    };
    until("only the shard that had a message is recorded", recorded).await;
    // Killed: what the other shards have seen is not written down.
    relay.task.abort();
    assert!(relay.task.await.unwrap_err().is_cancelled());
    assert!(recorded().await);
    assert!(!has_work().await);
    let slot_of = async |key: &str| {
        let slot = "select (hashtextextended($1 collate \"C\", 0) & 15)::int";
        sqlx::query_scalar::<_, i32>(slot).bind(key).fetch_one(pool).await.unwrap()
    };
    let mut other = 0;
    while slot_of(&format!("k{other}")).await == slot_of("a").await {
        other += 1;
    }
    write(pool, &[message(&format!("k{other}"), 1)]).await;
    assert!(has_work().await);
}

/// A publisher whose second check panics: the fleet's own is the first.
struct Nervous(MemoryPublisher, AtomicUsize);

#[async_trait::async_trait]
impl Publisher for Nervous {
    fn pipelining(&self) -> Pipelining {
        self.0.pipelining()
    }

    async fn check(&self) -> Result<(), PublishError> {
        assert!(self.1.fetch_add(1, SeqCst) != 1, "a panic on purpose");
        self.0.check().await
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        self.0.publish(batch, outcomes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_relay_panics_is_taken_up_again() {
    let database = Database::new("fleet_panic").await;
    let broker = Broker::new();
    let publisher = Nervous(broker.publisher(), AtomicUsize::new(0));
    let fleet = Fleet::new("default", publisher)
        .with_connections(4)
        .with_database(&database.name, options(&database))
        .with_settings(settings());
    write(database.pool(), &[message("a", 1)]).await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(fleet.run(stop.clone()));
    until_published(&broker, 1).await;
    stop.cancel();
    tokio::time::timeout(PATIENCE, running).await.expect("it stops").unwrap().unwrap();
}
