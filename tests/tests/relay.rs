//! What the relay promises, on a real database: laws 1 to 4, 6 and 8, each against its naive breach.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod relay_support;

use std::collections::HashMap;
use std::time::Duration;

use brokers::memory::{Broker, Fault, MemoryPublisher};
use message::{Message, MessageId, Outcomes, Outgoing, Pipelining, PublishError, Publisher};
use outbox::{Backoff, Policies, Policy};
use relay_support::{PATIENCE, firsts, message, numbers, patient, settings, start, until, write};
use sqlx::Executor;
use tests::Database;
use tokio::sync::Notify;

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
async fn a_skip_gives_up_the_first_message_and_no_other() {
    let database = Database::new("relay_skip").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("bad", 1), message("bad", 2), message("bad", 3)]).await;
    until("parked", || async {
        let held = outbox::admin::held_keys(pool, "default").await.unwrap();
        held.first().is_some_and(|held| held.is_parked() && held.messages == 3)
    })
    .await;
    let held = outbox::admin::held_keys(pool, "default").await.unwrap();
    // It holds more, but what is not the first is not skipped.
    let second = held[0].position + 1;
    assert!(!outbox::admin::skip(pool, "default", second, "ada", "lost").await.unwrap());
    broker.accept_key("bad");
    assert!(
        outbox::admin::skip(pool, "default", held[0].first_position.unwrap(), "ada", "lost").await.unwrap()
    );
    broker.wait_for_published(2).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "bad"), [2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_held_alone_is_not_published_from_the_log_again_after_a_crash() {
    let database = Database::new("relay_alone").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut settings = settings();
    settings.shards = 1;
    settings.unavailable = Backoff { first: Duration::from_secs(600), ceiling: Duration::from_secs(600) };
    settings.retry = settings.unavailable;
    // The first message rests, unconfirmed, so the cursor stays before the second, which is held.
    broker.fail_next(1, Fault::Unknown);
    broker.fail_next(1, Fault::Rejected);
    let alone = Message::new("orders", "order.changed", "2");
    write(pool, &[message("a", 1), alone.clone()]).await;
    let relay = start(pool, broker.publisher(), settings.clone());
    until("held", || async { !outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    relay.task.abort();
    let _ = relay.task.await;

    let relay = start(pool, broker.publisher(), settings);
    broker.wait_for_published(1).await;
    write(pool, &[message("a", 2)]).await;
    broker.wait_for_published(2).await;
    let held = outbox::admin::held_keys(pool, "default").await.unwrap();
    assert_eq!((held.len(), held[0].first), (1, Some(alone.id)));
    assert!(outbox::admin::redrive(pool, "default", held[0].position, "ada", None).await.unwrap());
    broker.wait_for_published(3).await;
    relay.stop().await.unwrap();
    let ids: Vec<MessageId> = broker.published().iter().map(|published| published.message.id).collect();
    assert_eq!((ids.len(), ids[2]), (3, alone.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_never_answered_is_held_and_others_go_on() {
    let database = Database::new("relay_unanswered").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.fail_next(6, Fault::Unknown);
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("a", 1), message("a", 2)]).await;
    until("held", || async { !outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    write(pool, &[message("b", 1), message("a", 3)]).await;
    broker.wait_for_published(4).await;
    until("released", || async { outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    relay.stop().await.unwrap();
    assert_eq!((numbers(&broker, "a"), numbers(&broker, "b")), (vec![1, 2, 3], vec![1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_do_not_come_park_no_message_and_give_none_up() {
    let database = Database::new("relay_never_answered").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut settings = settings();
    // More often than a message is sent before it is held, and than it may be rejected.
    broker.fail_next(5 + 4 * usize::try_from(settings.max_attempts).unwrap(), Fault::Unknown);
    settings.policies = Policies::default().with("orders".parse().unwrap(), Policy::Skip);
    let relay = start(pool, broker.publisher(), settings);
    write(pool, &[message("a", 1)]).await;
    broker.wait_for_published(1).await;
    until("released", || async { outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    relay.stop().await.unwrap();
    let given_up = "select count(*) from outbox.audit";
    assert_eq!(sqlx::query_scalar::<_, i64>(given_up).fetch_one(pool).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_a_held_message_is_being_published_makes_no_duplicate() {
    let database = Database::new("relay_stop_held").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("a");
    let mut relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("a", 1), message("a", 2)]).await;
    until("held", || async { !outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    broker.hold_confirmations();
    broker.accept_key("a");
    broker.wait_for_published(1).await;
    relay.token.cancel();
    // It must still be there for the confirmation; one that lets go is gone at once.
    let gone = tokio::time::timeout(Duration::from_secs(1), &mut relay.task).await;
    assert!(gone.is_err(), "the relay left while a held message was on the wire");
    broker.release_confirmations();
    relay.stop().await.unwrap();
    let relay = start(pool, broker.publisher(), settings());
    broker.wait_for_published(2).await;
    until("released", || async { outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_message_whose_delivery_cannot_be_recorded_at_once_is_published_once() {
    let database = Database::new("relay_unrecorded_held").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("a");
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("a", 1), message("a", 2)]).await;
    until("held", || async { !outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    pool.execute(
        "create sequence public.deletion;
         create function public.refuse() returns trigger language plpgsql as $$
         begin
             if nextval('public.deletion') <= 3 then raise exception 'not now'; end if;
             return old;
         end $$;
         create trigger refuse before delete on outbox.held_message for each row execute function public.refuse()",
    )
    .await
    .unwrap();
    broker.accept_key("a");
    until("released", || async { outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), [1, 2]);
    let deletions: i64 =
        sqlx::query_scalar("select last_value from public.deletion").fetch_one(pool).await.unwrap();
    assert_eq!(deletions, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_closed_is_let_go_also_while_a_held_message_is_on_the_wire() {
    let database = Database::new("relay_closed").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("a");
    let own = outbox::pool_options().connect(database.url()).await.unwrap();
    let relay = start(&own, broker.publisher(), patient());
    write(pool, &[message("a", 1)]).await;
    until("held", || async { !outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    broker.hold_confirmations();
    broker.accept_key("a");
    write(pool, &[message("b", 1)]).await;
    broker.wait_for_published(2).await;
    let closed = own.clone();
    let closing = tokio::spawn(async move { own.close().await });
    until("the pool is closed", || async { closed.is_closed() }).await;
    // It can renew its lease no more.
    end_leases(pool).await;
    broker.release_confirmations();
    tokio::time::timeout(relay_support::PATIENCE, closing)
        .await
        .expect("its connections are given back")
        .unwrap();
    relay.stop().await.unwrap();
    let relay = start(pool, broker.publisher(), patient());
    until("released", || async { outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    relay.stop().await.unwrap();
    assert_eq!((firsts(&numbers(&broker, "a")), numbers(&broker, "b")), (vec![1], vec![1]));
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

/// As when the leases of all processes are over.
async fn end_leases(pool: &sqlx::PgPool) {
    pool.execute("update outbox.process set expires_at = clock_timestamp() - interval '1 second'")
        .await
        .unwrap();
}

/// Ends the process, as far as it can be ended in a test, when it is asked to publish one key.
struct Deadly {
    publisher: MemoryPublisher,
    died: std::sync::Arc<Notify>,
}

#[async_trait::async_trait]
impl Publisher for Deadly {
    fn pipelining(&self) -> Pipelining {
        self.publisher.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        if batch.iter().any(|outgoing| outgoing.message.key.as_deref() == Some("deadly")) {
            self.died.notify_one();
            return std::future::pending().await;
        }
        self.publisher.publish(batch, outcomes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_kills_its_process_parks_and_the_others_of_its_shard_are_published() {
    let database = Database::new("relay_deadly").await;
    let pool = database.pool();
    let broker = Broker::new();
    // No process is taken for dead that lives, however slow this machine is.
    let mut settings = patient();
    settings.shards = 1;
    settings.max_attempts = 4;
    let mut messages: Vec<Message> = (0..30).map(|key| message(&format!("k{key}"), 1)).collect();
    messages.insert(10, message("deadly", 1));
    messages.insert(20, Message::new("orders", "order.changed", "0"));
    messages.push(message("deadly", 2));
    messages.push(message("k5", 2));
    write(pool, &messages).await;
    let parked = || async {
        let held = outbox::admin::held_keys(pool, "default").await.unwrap();
        held.first().is_some_and(|held| held.is_parked() && held.key.as_deref() == Some("deadly"))
    };
    let mut deaths = 0;
    loop {
        let died = std::sync::Arc::new(Notify::new());
        let deadly = Deadly { publisher: broker.publisher(), died: std::sync::Arc::clone(&died) };
        let relay = start(pool, deadly, settings.clone());
        tokio::select! {
            () = died.notified() => deaths += 1,
            () = until("parked", parked) => {
                write(pool, &[message("k5", 3)]).await;
                broker.wait_for_published(33).await;
                let one_held = || async { outbox::admin::held_keys(pool, "default").await.unwrap().len() == 1 };
                until("all others are released", one_held).await;
                relay.stop().await.unwrap();
                break;
            }
        }
        assert!(deaths < 10, "the message kills one process after another");
        relay.task.abort();
        let _ = relay.task.await;
        end_leases(pool).await;
    }
    // Two before it is suspected, and those that its attempts allow.
    assert_eq!(deaths, 4);
    let held = outbox::admin::held_keys(pool, "default").await.unwrap();
    assert_eq!((held.len(), held[0].attempts, held[0].messages), (1, 4, 2), "{held:?}");
    assert_eq!(numbers(&broker, "k5"), [1, 2, 3]);
    assert_eq!(broker.published().len(), 33);
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

/// Says of every message of a key, in words that no column of text holds, that it is not wanted.
struct Refusing(MemoryPublisher);

#[async_trait::async_trait]
impl Publisher for Refusing {
    fn pipelining(&self) -> Pipelining {
        self.0.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        if batch.iter().any(|outgoing| outgoing.message.key.as_deref() == Some("bad")) {
            return outcomes.fail_all(PublishError::Rejected("answer: \0\u{1f600}".to_owned()));
        }
        self.0.publish(batch, outcomes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_in_words_that_no_column_holds_parks_its_message_and_stops_no_other() {
    let database = Database::new("relay_words").await;
    let broker = Broker::new();
    let mut settings = settings();
    settings.batch = 1;
    write(database.pool(), &[message("bad", 1), message("good", 1)]).await;
    let relay = start(database.pool(), Refusing(broker.publisher()), settings);
    until("the bad one is parked, the good one published", || async {
        let held = outbox::admin::held_keys(database.pool(), "default").await.unwrap();
        held.iter().any(|held| held.is_parked()) && numbers(&broker, "good") == [1]
    })
    .await;
    relay.stop().await.unwrap();
}
