//! The details of reading the log that decide whether it is right, and that it stays cheap, each as the experiment that
//! showed it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod relay_support;

use std::time::Duration;

use brokers::memory::Broker;
use message::{Message, MessageId};
use outbox::Upkeep;
use outbox::log::{
    CursorRecord, Eras, HoldReason, LogConnection, NewHold, PageRange, Reading, Record, Seen, Start, Store,
    Window,
};
use relay_support::{message, patient, settings, start, until, until_published, write};
use serde_json::Value;
use servers::{Postgres, PostgresOptions};
use sqlx::postgres::{PgArguments, PgConnection, PgPool};
use sqlx::{Arguments, AssertSqlSafe, Executor};
use tests::Database;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

#[path = "log/costs.rs"]
mod costs;

/// A server on which nobody else spends a transaction id: what a snapshot holds is what the test has done.
async fn server_of_our_own() -> (Postgres, PgPool) {
    let server = PostgresOptions::new().with_setting("autovacuum", "off").start().expect("PostgreSQL starts");
    let pool = outbox::pool_options().connect(&server.url("postgres")).await.unwrap();
    migrations::Schema::Outbox.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    (server, pool)
}

async fn xid(connection: &mut PgConnection) -> u64 {
    let xid = "select pg_current_xact_id()::text";
    sqlx::query_scalar::<_, String>(xid).fetch_one(connection).await.unwrap().parse().unwrap()
}

/// Reads everything that a look shows; its messages' numbers.
async fn read(log: &mut LogConnection, reading: &mut Reading, proven: i64) -> Vec<usize> {
    let look = log.look("test").await.unwrap();
    let mut numbers = Vec::new();
    if !reading.advance(1, &look, proven, &Eras::default()) {
        return numbers;
    }
    while let (Some(window), Some(range)) = (reading.window().cloned(), reading.page()) {
        let (messages, _) = log.page(&window, &range, 1000, usize::MAX, 1, &[0]).await.unwrap();
        let text = |message: &Message| std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
        numbers.extend(messages.iter().map(|log| -> usize { text(&log.message) }));
        reading.read(range.to);
    }
    reading.close();
    numbers
}

/// The lower bound of what is new rests on it. The sequence is locked, so that whoever wants a position stands still.
#[tokio::test]
async fn a_transaction_has_its_id_before_it_draws_a_position_however_it_writes() {
    let database = Database::new("log_id_first").await;
    let pool = database.pool();
    let copied = Uuid::now_v7();
    let line = format!("{copied}\t{copied}\t/test\torders\torder.changed\t\\\\x31\n");
    for form in ["rust", "function", "insert", "copy"] {
        let mut lock = pool.begin().await.unwrap();
        lock.execute("alter sequence outbox.message_position_seq cache 1").await.unwrap();
        let (writer, line) = (pool.clone(), line.clone());
        let written = tokio::spawn(async move {
            match form {
                "rust" => write(&writer, &[message("a", 1)]).await,
                "function" => {
                    let call = "select outbox.enqueue('orders', 'order.changed', '1', key => 'a')";
                    writer.execute(call).await.unwrap();
                }
                "insert" => {
                    let insert = "insert into outbox.message (id, correlation, source, topic, kind, payload)
                        select id, id, '/test', 'orders', 'order.changed', '1' from gen_random_uuid() id";
                    writer.execute(insert).await.unwrap();
                }
                _ => {
                    let mut connection = writer.acquire().await.unwrap();
                    let copy =
                        "copy outbox.message (id, correlation, source, topic, kind, payload) from stdin";
                    let mut copy = connection.copy_in_raw(copy).await.unwrap();
                    copy.send(line.into_bytes()).await.unwrap();
                    copy.finish().await.unwrap();
                }
            }
        });
        let waiting = "select backend_xid is not null from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock' and wait_event = 'relation'";
        let waits = || async { sqlx::query_scalar::<_, bool>(waiting).fetch_optional(pool).await.unwrap() };
        until("somebody waits for a position", || async { waits().await.is_some() }).await;
        assert_eq!(waits().await, Some(true), "{form}: a position is drawn by a transaction without an id");
        lock.rollback().await.unwrap();
        written.await.unwrap();
    }
}

/// A snapshot's `xmax` follows the newest transaction that has *finished*: one that runs may lie above it, with a position
/// below a bound that was read just before.
#[tokio::test]
async fn whoever_has_drawn_a_position_below_the_bound_is_known_to_every_snapshot_after_the_proof() {
    let (_server, pool) = server_of_our_own().await;
    write(&pool, &[message("a", 1)]).await;
    let mut open = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut open, &[message("a", 2)]).await.unwrap();
    let writer = xid(&mut open).await;
    let mut log = LogConnection::open(&pool).await.unwrap();
    let before = log.look("test").await.unwrap();
    assert_eq!(before.last_position, 2);
    // What makes the proof necessary: at that position, the snapshot knows nothing of the writer.
    assert!(before.snapshot.xmax() <= writer, "the snapshot knows the writer: the test proves nothing");
    let bound = log.prove_bound().await.unwrap();
    let after = log.look("test").await.unwrap();
    assert_eq!((bound, after.snapshot.running()), (2, &[writer][..]));
}

/// The last value of a sequence that was never used is 1, and nobody has drawn it.
#[tokio::test]
async fn the_first_message_of_a_log_lies_above_the_bound_that_was_proven_before_it() {
    let (_server, pool) = server_of_our_own().await;
    let mut log = LogConnection::open(&pool).await.unwrap();
    let mut reading = Reading::new(vec![0], Eras::default().beginning());
    let proven = log.prove_bound().await.unwrap();
    // Somebody else's transaction, which is seen and has written nothing.
    pool.execute("select pg_current_xact_id()").await.unwrap();
    assert_eq!(read(&mut log, &mut reading, proven).await, [0; 0]);
    assert_eq!((proven, log.look("test").await.unwrap().last_position), (0, 0));
    write(&pool, &[message("a", 1)]).await;
    assert_eq!(read(&mut log, &mut reading, proven).await, [1]);
}

/// "The sequence has not moved since the last look" is not idle: the last position may belong to a transaction that was
/// open, and whose id was the next one.
#[tokio::test]
async fn a_position_that_was_held_uncommitted_at_the_last_looks_is_found_when_it_commits() {
    let (_server, pool) = server_of_our_own().await;
    write(&pool, &[message("a", 1)]).await;
    let mut log = LogConnection::open(&pool).await.unwrap();
    let mut reading = Reading::new(vec![0], Eras::default().beginning());
    let proven = log.prove_bound().await.unwrap();
    assert_eq!(read(&mut log, &mut reading, proven).await, [1]);
    assert_eq!(read(&mut log, &mut reading, proven).await, [0; 0]);
    let mut open = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut open, &[message("a", 2)]).await.unwrap();
    let writer = xid(&mut open).await;
    for _ in 0..3 {
        assert_eq!(read(&mut log, &mut reading, proven).await, [0; 0]);
    }
    let look = log.look("test").await.unwrap();
    assert_eq!((look.last_position, look.snapshot.xmax()), (2, writer));
    outbox::commit(open).await.unwrap();
    assert_eq!(log.look("test").await.unwrap().last_position, 2);
    assert_eq!(read(&mut log, &mut reading, proven).await, [2]);
}

/// Nothing lies above the bound, and somebody has finished who was running.
#[tokio::test]
async fn what_was_running_at_the_last_look_is_found_when_it_commits_though_nothing_is_written_after_it() {
    let (_server, pool) = server_of_our_own().await;
    let mut log = LogConnection::open(&pool).await.unwrap();
    let mut reading = Reading::new(vec![0], Eras::default().beginning());
    let mut open = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut open, &[message("a", 1)]).await.unwrap();
    write(&pool, &[message("b", 2)]).await;
    let proven = log.prove_bound().await.unwrap();
    assert_eq!(read(&mut log, &mut reading, proven).await, [2]);
    assert_eq!(read(&mut log, &mut reading, proven).await, [0; 0]);
    outbox::commit(open).await.unwrap();
    assert_eq!((log.look("test").await.unwrap().last_position, proven), (2, 2));
    assert_eq!(read(&mut log, &mut reading, proven).await, [1]);
}

/// Each look scans what lies above the bound, seen or not, and the bound moves only by a write.
#[tokio::test(flavor = "multi_thread")]
async fn many_positions_that_nobody_can_see_are_worth_one_transaction_id() {
    let (_server, pool) = server_of_our_own().await;
    let broker = Broker::new();
    let mut settings = patient();
    settings.lease = Duration::from_secs(600);
    settings.read.page = 10;
    // What was read is soon no reason to prove anything any more, and nothing is recorded.
    settings.read.proof_interval = Duration::from_millis(20);
    settings.record_interval = Duration::from_secs(3600);
    let relay = start(&pool, broker.publisher(), settings);
    write(&pool, &[message("a", 1)]).await;
    until_published(&broker, 1).await;
    // Ids given to transactions that have ended; and how many statements were run.
    let spent = || async {
        let xmax = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
        sqlx::query_scalar::<_, i64>(xmax).fetch_one(&pool).await.unwrap()
    };
    let quiet = || async {
        let statements = "select xact_commit from pg_stat_database where datname = 'postgres'";
        let statements = || sqlx::query_scalar::<_, i64>(statements).fetch_one(&pool);
        let (before, begun) = (spent().await, statements().await.unwrap());
        // Statistics come late; each look is a transaction that committed.
        until("twenty looks", || async { statements().await.unwrap() > begun + 20 }).await;
        spent().await == before
    };
    until("idle", quiet).await;
    let mut open = pool.begin().await.unwrap();
    let messages: Vec<Message> = (0..100).map(|number| message("a", number)).collect();
    let before = spent().await;
    outbox::enqueue_all(&mut open, &messages).await.unwrap();
    until("the bound is proven anew", || async { spent().await > before }).await;
    until("idle again", quiet).await;
    open.rollback().await.unwrap();
    relay.stop().await.unwrap();
}

/// Blocks that a page of a hundred messages may touch: its messages, and the way to them.
const FEW: i64 = 200;

async fn places(pool: &PgPool) -> Vec<String> {
    let places = "select ctid::text from outbox.cursor order by shard";
    sqlx::query_scalar(places).fetch_all(pool).await.unwrap()
}

/// Where a cursor was recorded last, another shard's may stand now.
#[tokio::test]
async fn a_record_at_a_place_that_another_shards_row_has_taken_is_written_to_its_own() {
    let database = Database::new("log_place").await;
    let pool = database.pool();
    let mut log = LogConnection::open(pool).await.unwrap();
    let (process, lease) = (Uuid::now_v7(), Duration::from_secs(3600));
    let mut store = Store::join(&mut log, "default", process, 2, Start::Beginning, lease).await.unwrap();
    store.acquire(log.connection(), 2).await.unwrap();
    let before = places(pool).await;
    pool.execute("create table moved as select * from outbox.cursor").await.unwrap();
    pool.execute("delete from outbox.cursor").await.unwrap();
    pool.execute("vacuum outbox.cursor").await.unwrap();
    // What was never committed takes up the places before.
    for _ in 1..before[0].trim_matches(['(', ')']).split_once(',').unwrap().1.parse().unwrap() {
        let mut tx = pool.begin().await.unwrap();
        tx.execute("insert into outbox.cursor select * from moved limit 1").await.unwrap();
        tx.rollback().await.unwrap();
    }
    pool.execute("insert into outbox.cursor select * from moved order by shard desc").await.unwrap();
    assert_eq!(
        places(pool).await[1],
        before[0],
        "no row stands where another's stood: the test proves nothing"
    );
    let seen = Seen { era: 1, snapshot: log.look("default").await.unwrap().snapshot, bound: 0 };
    let cursor = |shard, after| CursorRecord { shard, seen: seen.clone(), until: Some(seen.clone()), after };
    for (shard, after, expected) in [(0, 7, [7, 0]), (1, 8, [7, 8])] {
        let record = Record { cursors: vec![cursor(shard, after)], ..Record::default() };
        assert!(log.record(&mut store, record).await.unwrap().is_empty());
        let recorded = "select after from outbox.cursor order by shard";
        let recorded: Vec<i64> = sqlx::query_scalar(recorded).fetch_all(pool).await.unwrap();
        assert_eq!(recorded, expected);
    }
}

/// A row that is written thousands of times while somebody holds a snapshot is the next bloat.
#[tokio::test(flavor = "multi_thread")]
async fn no_message_and_no_heartbeat_writes_a_cursors_row_before_its_time() {
    let database = Database::new("log_rate").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut settings = settings();
    settings.record_interval = Duration::from_secs(3600);
    let relay = start(pool, broker.publisher(), settings);
    write(pool, &[message("a", 0)]).await;
    until_published(&broker, 1).await;
    // Where a row stands says nothing: a place is used again.
    let writers = || async {
        let writers = "select xmin::text from outbox.cursor order by shard";
        sqlx::query_scalar::<_, String>(writers).fetch_all(pool).await.unwrap()
    };
    let before = writers().await;
    for number in 1..=50 {
        write(pool, &[message("a", number)]).await;
        until_published(&broker, number + 1).await;
    }
    for _ in 0..3 {
        let heard = "select expires_at::text from outbox.process";
        let heard = || sqlx::query_scalar::<_, String>(heard).fetch_one(pool);
        let last = heard().await.unwrap();
        until("the owner is heard of", || async { heard().await.unwrap() != last }).await;
    }
    assert_eq!(writers().await, before, "a cursor's row was written");
    relay.stop().await.unwrap();
    let relay = start(pool, broker.publisher(), patient());
    write(pool, &[message("a", 51)]).await;
    until_published(&broker, 52).await;
    relay.stop().await.unwrap();
    assert_eq!(broker.published().len(), 52, "the stop did not record");
}
