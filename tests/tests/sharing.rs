//! Several processes of one relay: they share its shards, hand over without a duplicate, and take over from the dead.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod relay_support;

use std::time::Duration;

use brokers::memory::Broker;
use message::Message;
use outbox::admin;
use outbox::log::{CursorRecord, LogConnection, Record, Seen, Share, Snapshot, Start, Store};
use relay_support::{Running, firsts, message, numbers, patient, settings, start, until, write};
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Database, Fate, Proxy};
use uuid::Uuid;

/// How many shards each process owns, ascending; those that nobody owns are not counted.
async fn owned(pool: &PgPool) -> Vec<i64> {
    let query = "select count(*) from outbox.cursor where relay = 'default' and owner is not null group by owner order by 1";
    sqlx::query_scalar(query).fetch_all(pool).await.unwrap()
}

async fn until_owned(pool: &PgPool, expected: &[i64]) {
    until(&format!("owned {expected:?}"), || async { owned(pool).await == expected }).await;
}

/// Writes messages of all keys until told to stop; answers how many of each.
async fn load(pool: PgPool, mut stop: tokio::sync::oneshot::Receiver<()>) -> usize {
    let mut number = 0;
    while stop.try_recv().is_err() {
        number += 1;
        let messages: Vec<Message> = (0..40).map(|key| message(&format!("k{key}"), number)).collect();
        write(&pool, &messages).await;
    }
    number
}

async fn kill(relay: Running) {
    relay.task.abort();
    assert!(relay.task.await.unwrap_err().is_cancelled());
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_come_and_go_politely_under_load_and_share_fairly_without_a_duplicate() {
    let database = Database::new("sharing_polite").await;
    let pool = database.pool();
    let broker = Broker::new();
    let begin = || start(pool, broker.publisher(), patient());
    let first = begin();
    until_owned(pool, &[16]).await;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let load = tokio::spawn(load(pool.clone(), stopped));
    let second = begin();
    until_owned(pool, &[8, 8]).await;
    let third = begin();
    until_owned(pool, &[5, 5, 6]).await;
    first.stop().await.unwrap();
    until_owned(pool, &[8, 8]).await;
    let fourth = begin();
    until_owned(pool, &[5, 5, 6]).await;
    second.stop().await.unwrap();
    third.stop().await.unwrap();
    until_owned(pool, &[16]).await;
    stop.send(()).unwrap();
    let written = load.await.unwrap();
    broker.wait_for_published(written * 40).await;
    fourth.stop().await.unwrap();
    let expected: Vec<usize> = (1..=written).collect();
    for key in 0..40 {
        assert_eq!(numbers(&broker, &format!("k{key}")), expected, "key {key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_process_is_replaced_when_its_lease_ends_and_no_key_is_overtaken() {
    let database = Database::new("sharing_dead").await;
    let pool = database.pool();
    let broker = Broker::new();
    let (first, second) =
        (start(pool, broker.publisher(), settings()), start(pool, broker.publisher(), settings()));
    until_owned(pool, &[8, 8]).await;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let load = tokio::spawn(load(pool.clone(), stopped));
    broker.wait_for_published(400).await;
    kill(first).await;
    until_owned(pool, &[16]).await;
    stop.send(()).unwrap();
    let written = load.await.unwrap();
    let complete = || async { (0..40).all(|key| numbers(&broker, &format!("k{key}")).contains(&written)) };
    until("all arrived", complete).await;
    second.stop().await.unwrap();
    for key in 0..40 {
        let first = firsts(&numbers(&broker, &format!("k{key}")));
        assert_eq!(first, (1..=written).collect::<Vec<_>>(), "key {key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_beyond_the_number_of_shards_stands_by_and_takes_over_at_once() {
    let database = Database::new("sharing_standby").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut settings = patient();
    settings.shards = 1;
    let first = start(pool, broker.publisher(), settings.clone());
    until_owned(pool, &[1]).await;
    let second = start(pool, broker.publisher(), settings);
    write(pool, &[message("a", 1)]).await;
    broker.wait_for_published(1).await;
    first.stop().await.unwrap();
    write(pool, &[message("a", 2)]).await;
    broker.wait_for_published(2).await;
    second.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_thought_dead_before_it_had_a_shard_joins_again() {
    let database = Database::new("sharing_forgotten").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut settings = patient();
    settings.shards = 1;
    // Renewed every half a second, and seen to be forgotten.
    settings.lease = Duration::from_secs(2);
    let first = start(pool, broker.publisher(), settings.clone());
    until_owned(pool, &[1]).await;
    let second = start(pool, broker.publisher(), settings);
    until("both joined", || async { processes(pool).await == 2 }).await;
    let forget =
        "delete from outbox.process p where not exists (select from outbox.cursor c where c.owner = p.id)";
    sqlx::query(forget).execute(pool).await.unwrap();
    until("both joined again", || async { processes(pool).await == 2 }).await;
    first.stop().await.unwrap();
    write(pool, &[message("a", 1)]).await;
    broker.wait_for_published(1).await;
    second.stop().await.unwrap();
}

async fn processes(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from outbox.process").fetch_one(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_relay_lets_go_and_goes_on_when_it_is_resumed() {
    let database = Database::new("sharing_paused").await;
    let pool = database.pool();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), patient());
    write(pool, &[message("a", 1)]).await;
    broker.wait_for_published(1).await;
    set_state(pool, "paused").await;
    until_owned(pool, &[]).await;
    write(pool, &[message("a", 2)]).await;
    set_state(pool, "running").await;
    broker.wait_for_published(2).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), [1, 2]);
}

async fn set_state(pool: &PgPool, state: &str) {
    let update = "update outbox.relay set state = $1, changes = changes + 1 where name = 'default'";
    sqlx::query(update).bind(state).execute(pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_record_changes_nothing_of_a_shard_that_was_lost_and_all_of_the_others() {
    let database = Database::new("sharing_zombie").await;
    let pool = database.pool();
    let lease = Duration::from_secs(3600);
    let mut log = LogConnection::open(pool).await.unwrap();
    let (old, new) = (Uuid::now_v7(), Uuid::now_v7());
    let join = async |log: &mut LogConnection, process| {
        Store::join(log, "default", process, 2, Start::Beginning, lease).await.unwrap()
    };
    let mut zombie = join(&mut log, old).await;
    assert_eq!(zombie.acquire(log.connection(), 2).await.unwrap().len(), 2);
    // Shard 0 goes to another process, as if the lease had ended.
    let take = "update outbox.cursor set owner = $1, epoch = epoch + 1 where relay = 'default' and shard = 0";
    sqlx::query(take).bind(new).execute(pool).await.unwrap();
    write(pool, &[message("a", 1)]).await;
    let seen = Seen { era: 1, snapshot: log.look("default").await.unwrap().snapshot, bound: 1 };
    let cursor = |shard| CursorRecord { shard, seen: seen.clone(), until: None, after: 0 };
    let record = Record { cursors: vec![cursor(0), cursor(1)], ..Record::default() };
    assert_eq!(log.record(&mut zombie, record).await.unwrap(), [0]);
    let bounds: Vec<i64> =
        sqlx::query_scalar("select seen_l from outbox.cursor order by shard").fetch_all(pool).await.unwrap();
    assert_eq!(bounds, [0, 1]);
    assert!(admin::held_keys(pool, "default").await.unwrap().is_empty());
    assert_ne!(seen.snapshot, Snapshot::nothing());
}

/// Acquires with a statement that stands still when it has seen who is dead, until the advisory lock is free.
fn acquiring_slowly(pool: &PgPool, process: Uuid) -> tokio::task::JoinHandle<usize> {
    let sql = include_str!("../../outbox/src/log/sql/acquire.sql");
    let place = "select c.shard, c.epoch,";
    let slowly = sql.replacen(place, &format!("{place} pg_advisory_xact_lock(7)::text,"), 1);
    assert_ne!(slowly, sql);
    let pool = pool.clone();
    tokio::spawn(async move {
        let query = sqlx::query(AssertSqlSafe(slowly)).bind("default").bind(process).bind(2_i64);
        query.fetch_all(&pool).await.unwrap().len()
    })
}

async fn until_it_stands_still(pool: &PgPool) {
    until("it stands still", || async {
        let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted and objid = 7
            and database = (select oid from pg_database where datname = current_database())";
        sqlx::query_scalar::<_, i64>(waits).fetch_one(pool).await.unwrap() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_acquires_takes_nothing_of_one_that_has_just_joined() {
    let database = Database::new("sharing_joined").await;
    let pool = database.pool();
    let mut log = LogConnection::open(pool).await.unwrap();
    let lease = Duration::from_secs(3600);
    let join = async |process| {
        let mut log = LogConnection::open(pool).await.unwrap();
        Store::join(&mut log, "default", process, 2, Start::Beginning, lease).await.unwrap()
    };
    let slow = Uuid::now_v7();
    join(slow).await;
    let mut gate = pool.begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(7)").execute(&mut *gate).await.unwrap();
    let acquiring = acquiring_slowly(pool, slow);
    until_it_stands_still(pool).await;
    let mut quick = join(Uuid::now_v7()).await;
    assert_eq!(quick.acquire(log.connection(), 2).await.unwrap().len(), 2);
    gate.commit().await.unwrap();
    assert_eq!(acquiring.await.unwrap(), 0, "it took what another owns, who lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_wakes_up_while_another_takes_its_shards_knows_that_it_has_lost_them() {
    let database = Database::new("sharing_wakes").await;
    let pool = database.pool();
    let mut log = LogConnection::open(pool).await.unwrap();
    let lease = Duration::from_secs(3600);
    let (slow, other) = (Uuid::now_v7(), Uuid::now_v7());
    let mut still = Store::join(&mut log, "default", slow, 2, Start::Beginning, lease).await.unwrap();
    assert_eq!(still.acquire(log.connection(), 2).await.unwrap().len(), 2);
    Store::join(&mut log, "default", other, 2, Start::Beginning, lease).await.unwrap();
    sqlx::query("update outbox.process set expires_at = clock_timestamp() where id = $1")
        .bind(slow)
        .execute(pool)
        .await
        .unwrap();
    let mut gate = pool.begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(7)").execute(&mut *gate).await.unwrap();
    let acquiring = acquiring_slowly(pool, other);
    until_it_stands_still(pool).await;
    let through = pool.clone();
    let renewing = tokio::spawn(async move { Share::renew(&through, "default", slow, lease).await.unwrap() });
    until("the renewal waits", || async {
        let waits = "select count(*) from pg_stat_activity where datname = current_database()
            and wait_event_type = 'Lock' and wait_event <> 'advisory'";
        sqlx::query_scalar::<_, i64>(waits).fetch_one(pool).await.unwrap() == 1
    })
    .await;
    gate.commit().await.unwrap();
    assert_eq!(acquiring.await.unwrap(), 2);
    assert_eq!(renewing.await.unwrap().expect("its row is there").owned, []);
}

/// The shards that a process takes which has just joined: of two, once those of others that it may take are to be had.
async fn until_another_takes_both(pool: &PgPool) {
    let mut log = LogConnection::open(pool).await.unwrap();
    let lease = Duration::from_secs(3600);
    let joined = Store::join(&mut log, "default", Uuid::now_v7(), 2, Start::Beginning, lease).await;
    let mut other = joined.unwrap();
    let deadline = tokio::time::Instant::now() + relay_support::PATIENCE;
    while other.acquire(log.connection(), 2).await.unwrap().len() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "it keeps them");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stands_still_while_it_takes_shards_keeps_them_from_nobody() {
    let database = Database::new("sharing_still_taking").await;
    let pool = database.pool();
    let proxy = Proxy::start(&database.url().parse().unwrap()).await.unwrap();
    let through = outbox::pool_options().connect_with(proxy.options()).await.unwrap();
    let mut log = LogConnection::open(&through).await.unwrap();
    let lease = Duration::from_secs(3600);
    let joined = Store::join(&mut log, "default", Uuid::now_v7(), 2, Start::Beginning, lease).await;
    let mut still = joined.unwrap();
    proxy.at_commit(Fate::IsWithheld);
    let taking = tokio::spawn(async move { still.acquire(log.connection(), 2).await.is_err() });
    proxy.until_withheld().await;
    until_another_takes_both(pool).await;
    assert!(taking.await.unwrap(), "it has not taken them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stands_still_while_it_records_loses_its_shards_when_its_lease_ends() {
    let database = Database::new("sharing_still_recording").await;
    let pool = database.pool();
    let proxy = Proxy::start(&database.url().parse().unwrap()).await.unwrap();
    let through = outbox::pool_options().connect_with(proxy.options()).await.unwrap();
    let mut log = LogConnection::open(&through).await.unwrap();
    let lease = Duration::from_millis(500);
    let joined = Store::join(&mut log, "default", Uuid::now_v7(), 2, Start::Beginning, lease).await;
    let mut still = joined.unwrap();
    assert_eq!(still.acquire(log.connection(), 2).await.unwrap().len(), 2);
    let seen = Seen { era: 1, snapshot: log.look("default").await.unwrap().snapshot, bound: 1 };
    let cursor = |shard| CursorRecord { shard, seen: seen.clone(), until: None, after: 0 };
    let record = Record { cursors: vec![cursor(0), cursor(1)], ..Record::default() };
    proxy.at_commit(Fate::IsWithheld);
    let recording = tokio::spawn(async move { log.record(&mut still, record).await.is_err() });
    proxy.until_withheld().await;
    until_another_takes_both(pool).await;
    assert!(recording.await.unwrap(), "it has not recorded");
}

/// A statement that is still coming in is not somebody who stands still.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_over_a_slow_line_arrives() {
    let database = Database::new("sharing_slow").await;
    let proxy = Proxy::start(&database.url().parse().unwrap()).await.unwrap();
    let through = outbox::pool_options().connect_with(proxy.options()).await.unwrap();
    proxy.be_slow(Duration::from_secs(2));
    let long = Message::new("orders", "order.changed", vec![b'x'; 600 << 10]);
    let mut connection = through.acquire().await.unwrap();
    outbox::log::append(&mut connection, &[long]).await.unwrap();
    let rows =
        sqlx::query_scalar::<_, i64>("select count(*) from outbox.message").fetch_one(database.pool()).await;
    assert_eq!(rows.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stands_still_at_its_start_starts_over() {
    let database = Database::new("sharing_still_starting").await;
    let pool = database.pool();
    let proxy = Proxy::start(&database.url().parse().unwrap()).await.unwrap();
    let through = outbox::pool_options().connect_with(proxy.options()).await.unwrap();
    let broker = Broker::new();
    write(pool, &[message("a", 1)]).await;
    proxy.at_commit(Fate::IsWithheld);
    let relay = start(&through, broker.publisher(), settings());
    proxy.until_withheld().await;
    proxy.at_commit(Fate::Passes);
    let published = tokio::time::timeout(relay_support::PATIENCE, broker.wait_for_published(1)).await;
    assert!(published.is_ok(), "it has ended");
    relay.stop().await.unwrap();
}

/// As when one process after another dies: there is always one that seems to be alive and takes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn shards_that_are_left_to_who_does_not_take_them_are_taken_by_another() {
    let database = Database::new("sharing_overdue").await;
    let pool = database.pool();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    until_owned(pool, &[16]).await;
    let dead = "insert into outbox.process (id, relay, label, build, expires_at)
        values (gen_random_uuid(), 'default', 'dead', '0', clock_timestamp() + interval '1 hour')";
    sqlx::query(dead).execute(pool).await.unwrap();
    until_owned(pool, &[8]).await;
    until_owned(pool, &[12]).await;
    // Given back again, for it may be alive after all.
    until_owned(pool, &[8]).await;
    relay.stop().await.unwrap();
}
