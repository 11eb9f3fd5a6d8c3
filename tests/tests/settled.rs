//! What is done with of a held key, published or given up by a person or a policy, while the cursor still stands before it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod relay_support;

use std::time::Duration;

use brokers::memory::{Broker, Fault};
use outbox::log::{CursorRecord, HoldReason, LogConnection, LogMessage, NewHold, Record, Seen, Start, Store};
use outbox::replay::{Filter, Replay};
use outbox::{Backoff, Policies, Policy, Settings, admin};
use relay_support::{Running, message, numbers, settings, start, start_named, until, until_published, write};
use sqlx::PgPool;
use tests::Database;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What is not answered waits for longer than any test takes, and a stop does not wait for it.
fn stuck() -> Settings {
    let mut settings = settings();
    settings.shards = 1;
    settings.unavailable = Backoff { first: Duration::from_secs(600), ceiling: Duration::from_secs(600) };
    settings.drain = Duration::from_millis(200);
    settings
}

/// A relay whose cursor stands before `first`, which is not answered, while `bad` behind it is parked with two messages.
async fn parked_behind_a_message_that_waits(pool: &PgPool, broker: &Broker, settings: Settings) -> Running {
    broker.fail_next(1, Fault::Unknown);
    broker.reject_key("bad");
    let relay = start(pool, broker.publisher(), settings);
    write(pool, &[message("first", 1), message("bad", 1), message("bad", 2)]).await;
    until("parked", || async {
        let held = admin::held_keys(pool, "default").await.unwrap();
        held.first().is_some_and(|held| held.is_parked() && held.messages == 2)
    })
    .await;
    broker.accept_key("bad");
    relay
}

async fn until_nothing_is_held(pool: &PgPool) {
    until("released", || async { admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
}

async fn skip(pool: &PgPool) {
    let held = admin::held_keys(pool, "default").await.unwrap();
    assert!(admin::skip(pool, "default", held[0].first_position.unwrap(), "ada", "lost").await.unwrap());
}

async fn redrive(pool: &PgPool) {
    let held = admin::held_keys(pool, "default").await.unwrap();
    assert!(admin::redrive(pool, "default", held[0].position, "ada", None).await.unwrap());
}

async fn settled(pool: &PgPool) -> Vec<i64> {
    let settled = "select position from outbox.settled_message order by position";
    sqlx::query_scalar(settled).fetch_all(pool).await.unwrap()
}

/// Everything is read once more, to its end.
async fn read_again(pool: &PgPool, broker: &Broker) {
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("last", 1)]).await;
    until("all is read", || async {
        !numbers(broker, "last").is_empty() && !numbers(broker, "first").is_empty()
    })
    .await;
    until_nothing_is_held(pool).await;
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_message_is_never_published() {
    let database = Database::new("settled_skip").await;
    let pool = database.pool();
    let broker = Broker::new();
    let relay = parked_behind_a_message_that_waits(pool, &broker, stuck()).await;
    skip(pool).await;
    until_published(&broker, 1).await;
    until_nothing_is_held(pool).await;
    relay.stop().await.unwrap();
    assert_eq!(settled(pool).await, [2, 3]);
    read_again(pool, &broker).await;
    assert_eq!((numbers(&broker, "first"), numbers(&broker, "bad")), (vec![1], vec![2]));
    assert_eq!(settled(pool).await, [0_i64; 0], "the cursor has passed them");

    // It is this relay that has settled them: another one has its own way, and a replay asks for all.
    let other = Broker::new();
    let relay = start_named("audit", pool, other.publisher(), settings());
    until_published(&other, 4).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&other, "bad"), [1, 2]);
    let replayed = Broker::new();
    let replay =
        Replay::new("again", pool.clone(), replayed.publisher(), "ada").with_filter(Filter::default());
    replay.run(CancellationToken::new()).await.unwrap();
    assert_eq!(numbers(&replayed, "bad"), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_confirmed_before_a_stop_is_not_repeated_though_an_earlier_message_is_not_answered() {
    let database = Database::new("settled_stranded").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.fail_next(1, Fault::Unknown);
    // The pages and windows are several: what is confirmed stands before the cursor in each.
    let mut stuck = stuck();
    stuck.read.page = 2;
    // What it hands over may take as long as what it waits for, and no lease ends meanwhile, however slow this machine is.
    (stuck.drain, stuck.lease) = (Duration::from_secs(5), Duration::from_secs(3600));
    let relay = start(pool, broker.publisher(), stuck);
    write(pool, &[message("first", 1), message("a", 1), message("a", 2)]).await;
    until_published(&broker, 2).await;
    write(pool, &[message("b", 1), message("a", 3)]).await;
    until_published(&broker, 4).await;
    relay.stop().await.unwrap();
    assert_eq!(settled(pool).await, [2, 3, 4, 5]);
    read_again(pool, &broker).await;
    assert_eq!(numbers(&broker, "first"), [1]);
    assert_eq!((numbers(&broker, "a"), numbers(&broker, "b")), (vec![1, 2, 3], vec![1]));
    assert_eq!(settled(pool).await, [0_i64; 0], "the cursor has passed them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_of_what_was_looked_at_gives_up_no_other_message_of_its_key() {
    let database = Database::new("settled_looked_at").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("bad", 1), message("bad", 2)]).await;
    let parked = async |first: i64| {
        until("parked", || async {
            let held = admin::held_keys(pool, "default").await.unwrap();
            held.first().is_some_and(|held| held.is_parked() && held.first_position == Some(first))
        })
        .await;
    };
    parked(1).await;
    let seen = admin::held_keys(pool, "default").await.unwrap().remove(0);
    // Another person decides about the first message meanwhile, and the second parks.
    assert!(admin::skip(pool, "default", 1, "bob", "lost").await.unwrap());
    parked(2).await;
    assert_eq!(admin::held_keys(pool, "default").await.unwrap()[0].position, seen.position, "one hold");
    assert!(!admin::skip(pool, "default", seen.first_position.unwrap(), "ada", "lost").await.unwrap());
    parked(2).await;
    let skips = "select count(*) from outbox.audit where action = 'skip'";
    assert_eq!(sqlx::query_scalar::<_, i64>(skips).fetch_one(pool).await.unwrap(), 1);
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_skipped_while_no_process_runs_is_not_published_by_the_next() {
    let database = Database::new("settled_idle").await;
    let pool = database.pool();
    let broker = Broker::new();
    let relay = parked_behind_a_message_that_waits(pool, &broker, stuck()).await;
    relay.task.abort();
    let _ = relay.task.await;
    skip(pool).await;
    assert_eq!(settled(pool).await, [2]);
    read_again(pool, &broker).await;
    assert_eq!((numbers(&broker, "first"), numbers(&broker, "bad")), (vec![1], vec![2]));
    assert_eq!(settled(pool).await, [0_i64; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_message_that_was_published_before_a_stop_or_a_crash_is_not_published_after_it() {
    let database = Database::new("settled_redrive").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut lives = 0;
    let relay = parked_behind_a_message_that_waits(pool, &broker, stuck()).await;
    redrive(pool).await;
    until_published(&broker, 2).await;
    until_nothing_is_held(pool).await;
    relay.stop().await.unwrap();
    // The one before them is not answered in these lives either.
    for life in [false, true] {
        broker.fail_next(1, Fault::Unknown);
        let relay = start(pool, broker.publisher(), stuck());
        lives += 1;
        write(pool, &[message("last", lives)]).await;
        until("all is read", || async { numbers(&broker, "last").contains(&lives) }).await;
        if life {
            relay.stop().await.unwrap();
        } else {
            relay.task.abort();
            let _ = relay.task.await;
        }
    }
    read_again(pool, &broker).await;
    assert_eq!((numbers(&broker, "first"), numbers(&broker, "bad")), (vec![1], vec![1, 2]));
    // A stop whose last record is not answered in time leaves it to the next process.
    let relay = start(pool, broker.publisher(), settings());
    until("what the cursor has passed is forgotten", || async { settled(pool).await.is_empty() }).await;
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_its_policy_gave_up_is_not_published_after_a_stop() {
    let database = Database::new("settled_policy").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut stuck = stuck();
    stuck.policies = Policies::default().with("orders".parse().unwrap(), Policy::Skip);
    broker.fail_next(1, Fault::Unknown);
    broker.reject_key("bad");
    let relay = start(pool, broker.publisher(), stuck);
    write(pool, &[message("first", 1), message("bad", 1)]).await;
    until("given up", || async { settled(pool).await == [2] }).await;
    until_nothing_is_held(pool).await;
    relay.stop().await.unwrap();
    broker.accept_key("bad");
    read_again(pool, &broker).await;
    assert_eq!((numbers(&broker, "first"), numbers(&broker, "bad")), (vec![1], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cursor_has_passed_is_not_kept_as_settled() {
    let database = Database::new("settled_passed").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("bad", 1), message("bad", 2)]).await;
    until("parked", || async {
        let held = admin::held_keys(pool, "default").await.unwrap();
        held.first().is_some_and(|held| held.is_parked() && held.messages == 2)
    })
    .await;
    // Its cursor moves with what comes after them, and is recorded.
    write(pool, &[message("a", 1)]).await;
    until("recorded", || async {
        let passed = "select not exists (
            select from outbox.cursor c join outbox.message m on m.slot % 16 = c.shard
            where not pg_visible_in_snapshot(m.tx, c.seen)
                and not (c.until is not null and m.position <= c.after and pg_visible_in_snapshot(m.tx, c.until)))";
        sqlx::query_scalar::<_, bool>(passed).fetch_one(pool).await.unwrap()
    })
    .await;
    sqlx::raw_sql(
        "create function public.refuse() returns trigger language plpgsql as $$ begin raise exception 'passed'; end $$;
         create trigger refuse before insert on outbox.settled_message for each row execute function public.refuse()",
    )
    .execute(pool)
    .await
    .unwrap();
    broker.accept_key("bad");
    skip(pool).await;
    until_nothing_is_held(pool).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "bad"), [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_relay_keeps_nothing_as_settled() {
    let database = Database::new("settled_retired").await;
    let pool = database.pool();
    let broker = Broker::new();
    let relay = parked_behind_a_message_that_waits(pool, &broker, stuck()).await;
    skip(pool).await;
    until_nothing_is_held(pool).await;
    relay.stop().await.unwrap();
    assert_eq!(settled(pool).await, [2, 3]);
    assert!(admin::retire(pool, "default", "ada", "replaced").await.unwrap());
    assert_eq!(settled(pool).await, [0_i64; 0]);
}

/// A process that has taken over reads the message again while a person skips it.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_message_that_is_being_skipped_waits_and_copies_nothing() {
    let database = Database::new("settled_copy").await;
    let pool = database.pool();
    let mut log = LogConnection::open(pool).await.unwrap();
    let (process, lease) = (Uuid::now_v7(), Duration::from_secs(3600));
    let mut store = Store::join(&mut log, "default", process, 1, Start::Beginning, lease).await.unwrap();
    let cursors = store.acquire(log.connection(), 1).await.unwrap();
    write(pool, &[message("bad", 1), message("bad", 2)]).await;
    let slot: i16 = sqlx::query_scalar("select min(slot) from outbox.message").fetch_one(pool).await.unwrap();
    let hold = |position| NewHold {
        position,
        slot,
        key: Some("bad".into()),
        retry_in: None,
        attempts: 1,
        error: "no".to_owned(),
        reason: HoldReason::Failed,
        destination: None,
    };
    let copy = |position: i64| {
        let mut message = message("bad", usize::try_from(position).unwrap());
        message.source = Some("/test".into());
        (
            1,
            LogMessage {
                position,
                slot,
                enqueued_at: chrono::Utc::now(),
                message: message.into(),
                fault: None,
            },
        )
    };
    let record = |holds, copies| Record {
        // It stays where it was.
        cursors: cursors.iter().map(|cursor| cursor.record.clone()).collect::<Vec<CursorRecord>>(),
        holds,
        copies,
        ..Record::default()
    };
    let held = record(vec![hold(1)], vec![copy(1), copy(2)]);
    assert!(log.record(&mut store, held).await.unwrap().is_empty());

    let mut person = pool.begin().await.unwrap();
    let query = sqlx::query(include_str!("../../outbox/src/admin/sql/skip.sql"));
    query.bind("default").bind(1_i64).bind("ada").bind("lost").execute(&mut *person).await.unwrap();
    let again = record(Vec::new(), vec![copy(1), copy(2)]);
    let copying = tokio::spawn(async move {
        let lost = log.record(&mut store, again).await.unwrap();
        (lost, log)
    });
    until("the copy waits", || async {
        let waits = "select count(*) from pg_stat_activity
            where wait_event_type = 'Lock' and datname = current_database()";
        sqlx::query_scalar::<_, i64>(waits).fetch_one(pool).await.unwrap() == 1
    })
    .await;
    person.commit().await.unwrap();
    let (lost, mut log) = copying.await.unwrap();
    assert!(lost.is_empty());
    let held: Vec<i64> =
        sqlx::query_scalar("select position from outbox.held_message").fetch_all(pool).await.unwrap();
    assert_eq!((held, settled(pool).await), (vec![2], vec![1]));

    // Whoever records a cursor that has passed them says what to forget.
    let mut store = Store::join(&mut log, "default", process, 1, Start::Beginning, lease).await.unwrap();
    store.acquire(log.connection(), 1).await.unwrap();
    let seen = Seen { era: 1, snapshot: log.look("default").await.unwrap().snapshot, bound: 2 };
    let cursor = CursorRecord { shard: 0, seen, until: None, after: 0 };
    let passed = Record { cursors: vec![cursor], forgotten: vec![(0, 1)], ..Record::default() };
    assert!(log.record(&mut store, passed).await.unwrap().is_empty());
    assert_eq!(settled(pool).await, [0_i64; 0]);
}
