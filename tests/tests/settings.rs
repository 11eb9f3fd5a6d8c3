//! What a role or a database may have set for all its sessions, and what our transactions and statements mean then: the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod inbox_support;
mod relay_support;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};

use brokers::memory::Broker;
use inbox::{HandlerError, Isolation};
use inbox_support::{KIND, Service, effect, eventually, note, placed};
use message::Message;
use migrations::Schema;
use outbox::admin;
use relay_support::{message, patient, start_named, until, until_published};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, PgTransaction};
use tests::Database;
use tokio::task::JoinSet;

/// Each changes what a statement means, how a value is read or written, or which transactions fail; or slows them down.
const SETTINGS: [(&str, &str); 29] = [
    ("default_transaction_isolation", "'serializable'"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("synchronous_commit", "off"),
    ("idle_in_transaction_session_timeout", "'5s'"),
    ("statement_timeout", "'20s'"),
    ("lock_timeout", "'10s'"),
    ("search_path", "public, pg_catalog"),
    ("standard_conforming_strings", "off"),
    ("escape_string_warning", "on"),
    ("backslash_quote", "off"),
    ("transform_null_equals", "on"),
    ("array_nulls", "off"),
    ("quote_all_identifiers", "on"),
    ("datestyle", "'SQL, DMY'"),
    ("intervalstyle", "'sql_standard'"),
    ("timezone", "'Asia/Kathmandu'"),
    ("bytea_output", "'escape'"),
    ("extra_float_digits", "-15"),
    ("client_encoding", "'LATIN1'"),
    ("client_min_messages", "'error'"),
    ("xmloption", "'document'"),
    ("row_security", "off"),
    ("session_replication_role", "'replica'"),
    ("check_function_bodies", "off"),
    ("plan_cache_mode", "'force_generic_plan'"),
    ("jit", "on"),
    ("max_parallel_workers_per_gather", "0"),
    ("vacuum_cost_delay", "0"),
];

/// A database whose sessions have all of these, migrated by one of them.
async fn database(claim: &str) -> Database {
    let database = Database::empty(claim).await;
    set(&database).await;
    let mut connection = database.connect().await;
    for schema in [Schema::Outbox, Schema::Inbox] {
        schema.migrate(&mut connection).await.expect("it migrates");
    }
    database
}

async fn set(database: &Database) {
    for (name, value) in SETTINGS {
        let sql = format!("alter database {} set {name} = {value}", database.name);
        database.admin().execute(AssertSqlSafe(sql)).await.expect(name);
    }
}

/// Writes as a service does that wants its own transactions serializable; whether it committed.
async fn write(connection: &mut PgConnection, messages: &[Message]) -> bool {
    let mut tx = connection.begin_with("begin isolation level serializable, read write").await.unwrap();
    let written = outbox::enqueue_all(&mut tx, messages).await;
    match written {
        Ok(()) => tx.commit().await.is_ok(),
        Err(_) => tx.rollback().await.map(|()| false).unwrap(),
    }
}

/// Four writers of keys of their own, until each has written these messages.
fn writers(pool: &PgPool, numbers: RangeInclusive<usize>) -> JoinSet<()> {
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let (pool, numbers) = (pool.clone(), numbers.clone());
        writers.spawn(async move {
            let mut connection = pool.acquire().await.unwrap();
            for number in numbers {
                while !write(&mut connection, &[message(&format!("k{writer}"), number)]).await {}
            }
        });
    }
    writers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_relays_started_together_beside_serializable_writers_publish_each_message_once() {
    const EACH: usize = 50;
    let database = database("settings_relays").await;
    for round in 0..6 {
        let name = format!("r{round}");
        let last = EACH * (round + 1);
        let mut writing = writers(database.pool(), EACH * round + 1..=last);
        let broker = Broker::new();
        let mut settings = patient();
        settings.start = outbox::log::Start::Beginning;
        let pools: Vec<PgPool> = (0..3)
            .map(|_| {
                let options = outbox::pool_options().max_connections(6);
                options.connect_lazy(database.url()).expect("a URL")
            })
            .collect();
        let relays: Vec<_> =
            pools.iter().map(|pool| start_named(&name, pool, broker.publisher(), settings.clone())).collect();
        while let Some(written) = writing.join_next().await {
            written.unwrap();
        }
        until_published(&broker, 4 * last).await;
        for relay in relays {
            assert!(!relay.task.is_finished(), "round {round}: a relay has ended: {:?}", relay.stop().await);
            relay.stop().await.expect("it ends in order");
        }
        for writer in 0..4 {
            let numbers = relay_support::numbers(&broker, &format!("k{writer}"));
            assert_eq!(numbers, (1..=last).collect::<Vec<_>>(), "round {round}: each once, in order");
        }
    }
    admin::status(database.pool()).await.expect("it is looked at");
    let minute = std::time::Duration::from_secs(60);
    admin::examine(database.pool(), minute, minute).await.expect("it is examined");
    outbox::prune(database.pool()).await.expect("it is pruned");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_scheduled_message_is_moved_and_a_held_key_is_redriven_under_any_settings() {
    let database = database("settings_held").await;
    let broker = Broker::new();
    broker.reject_key("held");
    let relay = start_named("default", database.pool(), broker.publisher(), relay_support::settings());
    let mut connection = database.connect().await;
    assert!(write(&mut connection, &[message("held", 1), message("held", 2), message("free", 1)]).await);
    let mut tx = connection.begin_with("begin isolation level repeatable read, read write").await.unwrap();
    let due = chrono::Utc::now();
    outbox::enqueue_all_at(&mut tx, &[message("later", 1)], due).await.unwrap();
    let given_up = outbox::enqueue_all_at(&mut tx, &[message("never", 1)], due).await.unwrap();
    assert!(outbox::cancel(&mut tx, given_up[0]).await.unwrap());
    tx.commit().await.unwrap();
    until_published(&broker, 2).await;
    until("the key is parked", || async {
        let held = admin::held_keys(database.pool(), "default").await.unwrap();
        held.iter().any(|key| key.is_parked() && key.messages == 2)
    })
    .await;
    broker.accept_key("held");
    let held = admin::held_keys(database.pool(), "default").await.unwrap();
    let who = ("ada", Some("mended"));
    assert!(admin::redrive(database.pool(), "default", held[0].position, who.0, who.1).await.unwrap());
    until_published(&broker, 4).await;
    relay.stop().await.expect("it ends in order");
    assert_eq!(relay_support::numbers(&broker, "held"), [1, 2]);
    assert!(relay_support::numbers(&broker, "never").is_empty());
}

/// How many of a database's sessions wait for a lock.
async fn waiting_for_a_lock(database: &Database) -> i64 {
    let waiting = "select count(*) from pg_stat_activity where datname = $1 and wait_event_type = 'Lock'";
    sqlx::query_scalar(waiting).bind(&database.name).fetch_one(database.admin()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_waits_too_long_for_a_lock_at_its_start_tries_again() {
    let database = Database::new("settings_lock").await;
    let set = format!("alter database {} set lock_timeout = '100ms'", database.name);
    database.admin().execute(AssertSqlSafe(set)).await.unwrap();
    let mut holder = database.connect().await;
    holder.execute("begin; lock table outbox.process in exclusive mode").await.unwrap();
    let broker = Broker::new();
    let relay = start_named("default", database.pool(), broker.publisher(), relay_support::settings());
    for _ in 0..2 {
        until("it waits", || async { waiting_for_a_lock(&database).await > 0 }).await;
        until("its time is over", || async { waiting_for_a_lock(&database).await == 0 }).await;
        assert!(!relay.task.is_finished(), "{:?}", relay.stop().await);
    }
    holder.execute("commit").await.unwrap();
    let mut connection = database.connect().await;
    assert!(write(&mut connection, &[message("k", 1)]).await);
    until_published(&broker, 1).await;
    relay.stop().await.expect("it ends in order");
}

/// Its own table and consumer, on a database that carries the settings.
async fn service(claim: &str) -> Service {
    let service = Service::new(claim).await;
    set(&service.database).await;
    // Sessions from now on.
    let pool = outbox::pool_options().max_connections(24).connect(service.database.url()).await.unwrap();
    Service { pool, ..service }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn consumers_started_together_handle_each_message_once_and_retry_under_any_settings() {
    let service = service("settings_consumer").await;
    static TRIES: AtomicUsize = AtomicUsize::new(0);
    let consumers: Vec<_> = (0..3)
        .map(|_| {
            let handler = async |tx: &mut PgTransaction<'_>, message: &Message| {
                if note(message).ends_with("-7") && TRIES.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                    return Err(HandlerError::from(std::io::Error::other("once more, please")));
                }
                effect(tx, message).await
            };
            inbox_support::start(service.consumer().on(KIND, handler))
        })
        .collect();
    let messages: Vec<Message> = (0..200)
        .map(|number| placed(&format!("k{}", number % 20), &format!("{}-{}", number % 20, number / 20)))
        .collect();
    service.publish(&messages).await;
    service.acknowledged().await;
    service.nothing_is_held().await;
    for consumer in consumers {
        consumer.stop().await;
    }
    let notes = service.notes().await;
    for key in 0..20 {
        let mine: Vec<&String> = notes.iter().filter(|note| note.starts_with(&format!("{key}-"))).collect();
        let expected: Vec<String> = (0..10).map(|number| format!("{key}-{number}")).collect();
        assert_eq!(mine, expected.iter().collect::<Vec<_>>());
    }
    inbox::prune(&service.pool).await.expect("it is pruned");
    let mut connection = service.pool.acquire().await.unwrap();
    inbox::admin::status(&mut connection).await.expect("it is looked at");
}

/// What a handler's transaction says of itself.
async fn seen_by_a_handler(service: &Service, isolation: Option<Isolation>, message: &Message) -> String {
    let handler = async |tx: &mut PgTransaction<'_>, message: &Message| {
        let settings = "insert into effect (message, note) select $1, current_setting('transaction_isolation') || ', '
            || current_setting('transaction_read_only') || ', ' || current_setting('synchronous_commit') || ', '
            || current_setting('search_path')";
        sqlx::query(settings).bind(message.id.as_uuid()).execute(&mut **tx).await?;
        Ok::<(), HandlerError>(())
    };
    let consumer = service.consumer();
    let consumer = isolation.into_iter().fold(consumer, inbox::Consumer::with_isolation);
    let consumer = inbox_support::start(consumer.on(KIND, handler));
    service.publish(std::slice::from_ref(message)).await;
    let note = eventually("it is handled", || async {
        let note =
            sqlx::query_scalar("select note from effect where message = $1").bind(message.id.as_uuid());
        note.fetch_optional(&service.pool).await.unwrap()
    })
    .await;
    consumer.stop().await;
    note
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handlers_transaction_has_the_level_that_the_consumer_names_and_its_commit_waits_for_the_disk() {
    let service = service("settings_handler").await;
    for (isolation, level) in [
        (None, "read committed"),
        (Some(Isolation::ReadCommitted), "read committed"),
        (Some(Isolation::RepeatableRead), "repeatable read"),
        (Some(Isolation::Serializable), "serializable"),
    ] {
        let seen = seen_by_a_handler(&service, isolation, &placed("k", "")).await;
        // How its names are found is its own.
        assert_eq!(seen, format!("{level}, off, on, public, pg_catalog"));
    }
}

#[tokio::test]
async fn the_limits_of_a_header_are_the_same_under_any_settings() {
    let database = database("settings_headers").await;
    let mut connection = database.connect().await;
    for (value, allowed) in
        [("plain", true), ("with x01 and \\\\x7f in words", true), ("\\u0001", false), ("\\u007f", false)]
    {
        let headers = format!("{{\"a\": \"{value}\"}}");
        let insert = "insert into outbox.message (id, correlation, source, topic, kind, headers, payload)
            values (gen_random_uuid(), gen_random_uuid(), '/x', 't', 'k', $1::jsonb, '')";
        let enqueue = "select outbox.enqueue('t', 'k', '{}'::text, headers => $1::jsonb)";
        for sql in [insert, enqueue] {
            let mut tx = connection.begin_with("begin read write").await.unwrap();
            let done = sqlx::query(sql).bind(&headers).execute(&mut *tx).await;
            assert_eq!(done.is_ok(), allowed, "{sql}: {value}: {done:?}");
            tx.rollback().await.unwrap();
        }
    }
}
