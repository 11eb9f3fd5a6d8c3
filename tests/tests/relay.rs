//! What the relay promises, on a real database: laws 1 to 4, 6 and 8, each against its naive breach.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "relay/held.rs"]
mod held;
mod relay_support;

use std::collections::HashMap;
use std::time::Duration;

use brokers::memory::{Broker, Fault};
use message::{Message, MessageId};
use relay_support::{PATIENCE, firsts, message, numbers, settings, start, until, write};
use tests::Database;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_published_and_what_is_rolled_back_is_not() {
    let database = Database::new("relay_committed").await;
    let broker = Broker::new();
    let mut tx = database.pool().begin().await.unwrap();
    outbox::enqueue_all(&mut tx, &[message("gone", 1)]).await.unwrap();
    tx.rollback().await.unwrap();
    write(database.pool(), &[message("a", 1), message("a", 2)]).await;
    let relay = start(database.pool(), broker.publisher(), settings());
    write(database.pool(), &[message("a", 3)]).await;
    broker.wait_for_published(3).await;
    relay.stop().await.unwrap();
    assert_eq!((numbers(&broker, "a"), numbers(&broker, "gone")), (vec![1, 2, 3], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_arrives_as_it_was_written() {
    let database = Database::new("relay_bytes").await;
    let broker = Broker::new();
    let cause = Message::new("t", "k", "");
    let written = Message::new("orders.eu", "order.placed", vec![0_u8, 255, 10])
        .with_key("k\né")
        .with_header("tenant", "\"é\" 100%")
        .with_content_type("application/octet-stream")
        .caused_by(&cause);
    write(database.pool(), std::slice::from_ref(&written)).await;
    let relay = start(database.pool(), broker.publisher(), settings());
    let published = broker.wait_for_published(1).await;
    relay.stop().await.unwrap();
    let mut arrived = (*published[0].message).clone();
    assert_eq!(arrived.source.take().as_deref(), Some(&*format!("/{}", database.name)));
    assert_eq!(arrived, written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_left_open_delays_nobody_and_its_messages_come_when_it_commits() {
    let database = Database::new("relay_straggler").await;
    let broker = Broker::new();
    let relay = start(database.pool(), broker.publisher(), settings());
    let mut open = database.pool().begin().await.unwrap();
    outbox::enqueue_all(&mut open, &[message("late", 1)]).await.unwrap();
    for number in 1..=50 {
        write(database.pool(), &[message("a", number)]).await;
    }
    broker.wait_for_published(50).await;
    assert_eq!(numbers(&broker, "late"), Vec::<usize>::new());
    outbox::commit(open).await.unwrap();
    broker.wait_for_published(51).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "late"), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_takes_over_finds_what_an_open_transaction_wrote_before_it() {
    let database = Database::new("relay_resumed").await;
    let broker = Broker::new();
    let mut open = database.pool().begin().await.unwrap();
    outbox::enqueue_all(&mut open, &[message("late", 1)]).await.unwrap();
    for life in 0..3 {
        let relay = start(database.pool(), broker.publisher(), settings());
        write(database.pool(), &[message("a", life)]).await;
        broker.wait_for_published(life + 1).await;
        relay.stop().await.unwrap();
    }
    outbox::commit(open).await.unwrap();
    let relay = start(database.pool(), broker.publisher(), settings());
    broker.wait_for_published(4).await;
    relay.stop().await.unwrap();
    assert_eq!((numbers(&broker, "late"), numbers(&broker, "a")), (vec![1], vec![0, 1, 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_polite_stop_makes_no_duplicate() {
    let database = Database::new("relay_stop").await;
    let broker = Broker::new();
    let mut written = 0;
    for _ in 0..5 {
        let relay = start(database.pool(), broker.publisher(), settings());
        let messages: Vec<Message> =
            (0..300).map(|number| message(&format!("k{}", number % 7), number)).collect();
        write(database.pool(), &messages).await;
        written += messages.len();
        broker.wait_for_published(written - 250).await;
        relay.stop().await.unwrap();
    }
    let relay = start(database.pool(), broker.publisher(), settings());
    broker.wait_for_published(written).await;
    relay.stop().await.unwrap();
    assert_eq!(broker.published().len(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_repeats_nothing_that_was_confirmed_before_an_earlier_message_was_sent() {
    let database = Database::new("relay_stop_gap").await;
    let broker = Broker::new();
    let mut settings = settings();
    settings.shards = 1;
    let relay = start(database.pool(), broker.publisher().one_per_key(), settings.clone());
    broker.hold_confirmations();
    // While the first one of `a` is on the wire the second waits, and `b`, which comes after it, does not.
    write(database.pool(), &[message("a", 1), message("a", 2), message("b", 1)]).await;
    broker.wait_for_published(2).await;
    assert_eq!((numbers(&broker, "a"), numbers(&broker, "b")), (vec![1], vec![1]));
    relay.token.cancel();
    broker.release_confirmations();
    relay.task.await.unwrap().unwrap();
    let relay = start(database.pool(), broker.publisher().one_per_key(), settings);
    broker.wait_for_published(3).await;
    write(database.pool(), &[message("c", 1)]).await;
    until("the last one is there", || async { !numbers(&broker, "c").is_empty() }).await;
    relay.stop().await.unwrap();
    assert_eq!((numbers(&broker, "a"), numbers(&broker, "b")), (vec![1, 2], vec![1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_down_parks_nobody_and_loses_nothing() {
    let database = Database::new("relay_down").await;
    let broker = Broker::new();
    let relay = start(database.pool(), broker.publisher(), settings());
    broker.go_down();
    for number in 1..=20 {
        write(database.pool(), &[message("a", number), message("b", number)]).await;
    }
    broker.fail_next(3, Fault::Unavailable);
    broker.come_up();
    broker.wait_for_published(40).await;
    relay.stop().await.unwrap();
    let expected: Vec<usize> = (1..=20).collect();
    assert_eq!((numbers(&broker, "a"), numbers(&broker, "b")), (expected.clone(), expected));
    assert!(outbox::admin::held_keys(database.pool(), "default").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_connections_are_killed_goes_on_and_loses_nothing() {
    let database = Database::new("relay_terminated").await;
    let pool = outbox::pool_options().max_connections(4).connect(database.url()).await.unwrap();
    let broker = Broker::new();
    let relay = start(&pool, broker.publisher(), settings());
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
    let mut distinct = HashMap::new();
    for number in 1..=200_usize {
        if number % 20 == 0 {
            sqlx::query(kill).bind(&database.name).execute(database.admin()).await.unwrap();
        }
        // The writer's connection is killed, too: it tries again under the same id.
        let message = message("a", number).with_id(MessageId::new());
        distinct.insert(message.id, number);
        loop {
            let written = async {
                let mut tx = database.pool().begin().await?;
                let known: i64 = sqlx::query_scalar("select count(*) from outbox.message where id = $1")
                    .bind(message.id.as_uuid())
                    .fetch_one(&mut *tx)
                    .await?;
                if known == 0 {
                    outbox::enqueue_all(&mut tx, std::slice::from_ref(&message))
                        .await
                        .map_err(|_| sqlx::Error::PoolClosed)?;
                }
                tx.commit().await
            };
            if written.await.is_ok() {
                break;
            }
        }
    }
    until("all arrived", || async {
        let numbers = numbers(&broker, "a");
        (1..=200).all(|number| numbers.contains(&number))
    })
    .await;
    relay.stop().await.unwrap();
    assert_eq!(firsts(&numbers(&broker, "a")), (1..=200).collect::<Vec<_>>());
}

/// On a server of its own: transaction ids are spent by a whole cluster.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_relay_spends_no_transaction_id() {
    let server = servers::PostgresOptions::new().start().expect("PostgreSQL starts");
    let pool = outbox::pool_options().connect(&server.url("postgres")).await.unwrap();
    migrations::Schema::Outbox.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    let broker = Broker::new();
    let mut settings = settings();
    settings.lease = Duration::from_secs(600);
    let relay = start(&pool, broker.publisher(), settings);
    write(&pool, &[message("a", 1)]).await;
    broker.wait_for_published(1).await;
    let observe = || async {
        let both = "select pg_snapshot_xmax(pg_current_snapshot())::text, xact_commit from pg_stat_database where datname = 'postgres'";
        let (next_id, statements): (String, i64) = sqlx::query_as(both).fetch_one(&pool).await.unwrap();
        (next_id, statements)
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let before = observe().await;
        let mut now = before.clone();
        // Statistics come late; each look is a transaction that committed.
        while now.1 < before.1 + 20 {
            assert!(tokio::time::Instant::now() < deadline, "the relay looks, and spends an id each time");
            tokio::time::sleep(Duration::from_millis(50)).await;
            now = observe().await;
        }
        // A vacuum may spend one meanwhile; a relay that spends one a look never passes.
        if now.0 == before.0 {
            break;
        }
    }
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsafe_log_is_refused_by_name() {
    for (change, expected) in [
        ("alter sequence outbox.message_position_seq cache 32", "cache above 1"),
        ("update outbox.cluster set system_identifier = 1", "another cluster"),
        ("alter table outbox.message_3 set unlogged", "unlogged"),
        ("drop schema outbox cascade", "missing"),
        ("insert into outbox.relay (name, state) values ('default', 'retired')", "retired"),
    ] {
        let database = Database::new("relay_refused").await;
        sqlx::raw_sql(change).execute(database.pool()).await.unwrap();
        let error =
            start(database.pool(), Broker::new().publisher(), settings()).task.await.unwrap().unwrap_err();
        let mut text = String::new();
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            text.push_str(&error.to_string());
            cause = error.source();
        }
        assert!(text.contains(expected), "{change}: {text}");
    }
}
