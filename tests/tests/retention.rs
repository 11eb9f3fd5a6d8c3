//! The log is a ring of leaves that are emptied whole: never before every relay has delivered what is in them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod relay_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use brokers::memory::Broker;
use message::Message;
use outbox::log::{LogConnection, LogError};
use outbox::{Pruned, Upkeep, admin, prune};
use relay_support::{PATIENCE, message, numbers, settings, start, until, write};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, PgTransaction};
use tests::Database;
use tokio_util::sync::CancellationToken;

/// Positions of a leaf; the schema says the same.
const LEAF: i64 = 1 << 20;

/// Has the log go on at a position, as if so many messages had been written.
async fn jump(pool: &PgPool, position: i64) {
    sqlx::query("select setval('outbox.message_position_seq', $1)")
        .bind(position)
        .execute(pool)
        .await
        .unwrap();
}

/// Makes every message of a leaf older than anybody wants it kept.
async fn age(pool: &PgPool, leaf: i64) {
    let update = format!("update outbox.message_{leaf} set enqueued_at = now() - interval '10 days'");
    pool.execute(AssertSqlSafe(update)).await.unwrap();
}

async fn count(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from outbox.message").fetch_one(pool).await.unwrap()
}

/// A relay that nobody runs and that has delivered everything visible now, in one shard.
async fn relay_that_saw_all(pool: &PgPool, name: &str) {
    for sql in [
        "insert into outbox.relay (name, shards, retention) values ($1, 1, interval '3 days')",
        "insert into outbox.cursor (relay, shard, era, seen, seen_l)
         select $1, 0, 1, pg_current_snapshot(), coalesce(pg_sequence_last_value('outbox.message_position_seq'), 0)",
    ] {
        sqlx::query(sql).bind(name).execute(pool).await.unwrap();
    }
}

async fn pins(pool: &PgPool, relay: &str) -> Vec<i64> {
    let status = admin::status(pool).await.unwrap();
    status.into_iter().find(|status| status.relay == relay).expect("the relay").pins
}

/// A relay that has just begun has said how long it wants messages kept.
async fn until_said(pool: &PgPool) {
    let said = "select exists (select from outbox.relay where retention is not null)";
    until("said", || async { sqlx::query_scalar(said).fetch_one(pool).await.unwrap() }).await;
}

fn emptied(leaves: &[i64]) -> Pruned {
    let mut pruned = Pruned::default();
    pruned.emptied = leaves.to_vec();
    pruned
}

fn pinned(leaves: &[i64]) -> Pruned {
    let mut pruned = Pruned::default();
    pruned.pinned = leaves.to_vec();
    pruned
}

fn locked(leaves: &[i64]) -> Pruned {
    let mut pruned = Pruned::default();
    pruned.locked = leaves.to_vec();
    pruned
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_is_emptied_when_it_is_delivered_and_old_and_no_other_is() {
    let database = Database::new("retention_old").await;
    let pool = database.pool();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    for leaf in 0..3 {
        jump(pool, leaf * LEAF + 1).await;
        write(pool, &[message("a", 1), message("b", 2)]).await;
    }
    jump(pool, 9 * LEAF).await;
    write(pool, &[message("a", 3)]).await;
    broker.wait_for_published(7).await;
    until_said(pool).await;
    relay.stop().await.unwrap();
    assert!(pins(pool, "default").await.is_empty());
    // Delivered, and all of it young.
    assert_eq!(prune(pool).await.unwrap(), Pruned::default());
    age(pool, 0).await;
    age(pool, 2).await;
    age(pool, 9).await;
    // One young message keeps a leaf of old ones.
    let first = "update outbox.message_1 set enqueued_at = now() - interval '10 days'
        where position = (select min(position) from outbox.message_1)";
    pool.execute(first).await.unwrap();
    // Not the one that is written, old as it is.
    assert_eq!(prune(pool).await.unwrap(), emptied(&[0, 2]));
    assert_eq!(prune(pool).await.unwrap(), Pruned::default());
    assert_eq!(count(pool).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_will_soon_write_over_is_emptied_young_if_it_is_delivered() {
    let database = Database::new("retention_ring").await;
    let pool = database.pool();
    for leaf in 0..6 {
        jump(pool, leaf * LEAF + 1).await;
        write(pool, &[message("a", 1)]).await;
    }
    relay_that_saw_all(pool, "done").await;
    // Leaf 15 is written and 0 is the next; 1 and 2 come after it.
    jump(pool, 15 * LEAF + 7).await;
    assert_eq!(prune(pool).await.unwrap(), emptied(&[1, 2]));
    for leaf in 0..6 {
        age(pool, leaf).await;
    }
    assert_eq!(prune(pool).await.unwrap(), emptied(&[3, 4, 5]));
    // In its next lap the log writes to leaf 0, then to 1.
    jump(pool, 16 * LEAF + 7).await;
    assert_eq!(prune(pool).await.unwrap(), Pruned::default());
    jump(pool, 17 * LEAF + 7).await;
    assert_eq!(prune(pool).await.unwrap(), emptied(&[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_not_finished_pins_what_it_has_yet_to_read() {
    let database = Database::new("retention_replay").await;
    let pool = database.pool();
    write(pool, &[message("a", 1), message("a", 2)]).await;
    relay_that_saw_all(pool, "done").await;
    age(pool, 0).await;
    jump(pool, 9 * LEAF).await;
    let replay = "insert into outbox.replay (name, era, seen, after, to_position) values ('again', 1, pg_current_snapshot(), 1, 2)";
    pool.execute(replay).await.unwrap();
    assert_eq!(prune(pool).await.unwrap(), pinned(&[0]));
    pool.execute("update outbox.replay set after = 2").await.unwrap();
    assert_eq!(prune(pool).await.unwrap(), emptied(&[0]));
}

/// Leaves 0 and 1 hold a message each, the second one not delivered by `behind`.
async fn one_behind(database: &Database) {
    let pool = database.pool();
    write(pool, &[message("a", 1)]).await;
    relay_that_saw_all(pool, "behind").await;
    jump(pool, LEAF).await;
    write(pool, &[message("a", 2)]).await;
    relay_that_saw_all(pool, "done").await;
    jump(pool, 9 * LEAF).await;
    age(pool, 0).await;
    age(pool, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_behind_pins_its_leaf_running_paused_or_abandoned_but_not_retired() {
    let database = Database::new("retention_behind").await;
    let pool = database.pool();
    one_behind(&database).await;
    let (behind, done) = (pins(pool, "behind").await, pins(pool, "done").await);
    assert_eq!((behind, done), (vec![1], vec![]));
    for state in ["running", "paused"] {
        sqlx::query("update outbox.relay set state = $1").bind(state).execute(pool).await.unwrap();
        jump(pool, 9 * LEAF).await;
        write(pool, &[message("a", 0)]).await;
        age(pool, 0).await;
        let pruned = prune(pool).await.unwrap();
        assert!(pruned.pinned.contains(&1) && !pruned.emptied.contains(&1), "{state}: {pruned:?}");
    }
    sqlx::query("update outbox.relay set state = 'retired' where name = 'behind'")
        .execute(pool)
        .await
        .unwrap();
    assert_eq!(prune(pool).await.unwrap(), emptied(&[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_cursors_pins_everything_and_so_does_a_log_that_no_relay_reads() {
    let database = Database::new("retention_unread").await;
    let pool = database.pool();
    write(pool, &[message("a", 1)]).await;
    age(pool, 0).await;
    jump(pool, 9 * LEAF).await;
    assert_eq!(prune(pool).await.unwrap(), Pruned::default());
    sqlx::query("insert into outbox.relay (name, state) values ('gone', 'retired')")
        .execute(pool)
        .await
        .unwrap();
    assert_eq!(prune(pool).await.unwrap(), Pruned::default());
    relay_that_saw_all(pool, "done").await;
    // It has begun to exist: its cursors follow.
    sqlx::query("insert into outbox.relay (name) values ('begun')").execute(pool).await.unwrap();
    assert_eq!(prune(pool).await.unwrap(), pinned(&[0]));
    sqlx::query("update outbox.relay set state = 'retired' where name = 'begun'")
        .execute(pool)
        .await
        .unwrap();
    assert_eq!(prune(pool).await.unwrap(), emptied(&[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_open_and_what_it_commits_late_are_never_emptied_away() {
    let database = Database::new("retention_straggler").await;
    let pool = database.pool();
    let mut late = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut late, &[message("late", 1)]).await.unwrap();
    write(pool, &[message("a", 1)]).await;
    age(pool, 0).await;
    // Delivered is what was visible; of the transaction, the cursor knows that it was running.
    relay_that_saw_all(pool, "default").await;
    jump(pool, 9 * LEAF).await;
    // While it is open nobody else gets the leaf for himself.
    assert_eq!(prune(pool).await.unwrap(), locked(&[0]));
    outbox::commit(late).await.unwrap();
    age(pool, 0).await;
    assert_eq!(prune(pool).await.unwrap(), pinned(&[0]));
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    broker.wait_for_published(1).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "late"), [1]);
    until("emptied", || async { prune(pool).await.unwrap().emptied == [0] || count(pool).await == 0 }).await;
}

/// As a REINDEX or a VACUUM FULL does.
#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_somebody_has_to_himself_keeps_no_other_from_being_emptied() {
    let database = Database::new("retention_exclusive").await;
    let pool = database.pool();
    for leaf in [0, 3] {
        jump(pool, leaf * LEAF + 1).await;
        write(pool, &[message("a", 1)]).await;
        age(pool, leaf).await;
    }
    relay_that_saw_all(pool, "done").await;
    jump(pool, 9 * LEAF).await;
    let mut alone = pool.begin().await.unwrap();
    alone.execute("lock table outbox.message_3 in access exclusive mode").await.unwrap();
    let pruned = tokio::time::timeout(PATIENCE, prune(pool)).await.expect("it waits for nobody").unwrap();
    assert_eq!((pruned.emptied, pruned.locked), (vec![0], vec![3]));
    alone.rollback().await.unwrap();
    assert_eq!(prune(pool).await.unwrap(), emptied(&[3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_commits_while_the_janitor_waits_for_the_leaf_is_seen_and_kept() {
    let database = Database::new("retention_between").await;
    let pool = database.pool();
    pool.execute("alter table outbox.message alter enqueued_at set default '2000-01-01'").await.unwrap();
    write(pool, &[message("a", 1)]).await;
    relay_that_saw_all(pool, "done").await;
    let waits =
        "select exists (select from pg_locks where relation = 'outbox.message_0'::regclass and not granted)";
    loop {
        // Of one transaction after another: the janitor waits for each only so long.
        jump(pool, 5).await;
        let mut late = pool.begin().await.unwrap();
        outbox::enqueue_all(&mut late, &[message("late", 1)]).await.unwrap();
        jump(pool, 9 * LEAF).await;
        let given_up = AtomicBool::new(false);
        let pruning = async {
            let pruned = prune(pool).await.unwrap();
            given_up.store(true, Ordering::Relaxed);
            pruned
        };
        let committing = async {
            // On a busy machine it may have waited and given up between two looks.
            let waits = || sqlx::query_scalar::<_, bool>(waits).fetch_one(pool);
            while !waits().await.unwrap() && !given_up.load(Ordering::Relaxed) {}
            outbox::commit(late).await.unwrap();
        };
        let pruned = tokio::join!(pruning, committing).0;
        if pruned == pinned(&[0]) {
            break;
        }
        assert_eq!(pruned, locked(&[0]));
        pool.execute("update outbox.cursor set seen = pg_current_snapshot()").await.unwrap();
    }
    assert!(count(pool).await > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_another_era_or_another_cluster_prove_nothing() {
    let database = Database::new("retention_era").await;
    let pool = database.pool();
    write(pool, &[message("a", 1), message("a", 2)]).await;
    relay_that_saw_all(pool, "done").await;
    age(pool, 0).await;
    jump(pool, 9 * LEAF).await;
    let era = |era: i32, first: i64| {
        let insert = "insert into outbox.cluster (era, system_identifier, first_position)
            select $1, system_identifier, $2 from pg_control_system()";
        sqlx::query(insert).bind(era).bind(first)
    };
    let run = |sql: &'static str| async move { pool.execute(sql).await.unwrap() };
    let is_pinned = || async { prune(pool).await.unwrap() == pinned(&[0]) };
    // A message that a later era wrote, by a cursor of the earlier one, to whose snapshot it looks as if seen.
    era(2, 2).execute(pool).await.unwrap();
    assert!(is_pinned().await);
    // A cursor of the later era that does not say that it is past what the earlier one wrote.
    run("update outbox.cursor set era = 2, seen_l = 0").await;
    run("update outbox.cluster set first_position = 3 where era = 2").await;
    assert!(is_pinned().await);
    run("update outbox.cursor set seen_l = 2").await;
    // The cluster went back to before the cursor was recorded.
    run("update outbox.cursor set seen = '9000000000:9000000000:'").await;
    assert!(is_pinned().await);
    run("update outbox.cursor set seen = pg_current_snapshot()").await;
    // The log stands in another cluster than the one in which it was written.
    run("update outbox.cluster set system_identifier = system_identifier + 1").await;
    assert!(is_pinned().await);
    run("update outbox.cluster set system_identifier = system_identifier - 1").await;
    assert_eq!(prune(pool).await.unwrap(), emptied(&[0]));
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

/// Some writers, one after another and side by side, in two leaves; on the way, what a reader would have seen.
async fn history(pool: &PgPool, dice: &mut Dice) -> Result<Vec<(String, i64)>, LogError> {
    let mut log = LogConnection::open(pool).await?;
    let mut seen = vec![("1:1:".to_owned(), 0)];
    let mut open: Vec<PgTransaction<'static>> = Vec::new();
    let mut longest = Some(pool.begin().await?);
    if let Some(longest) = &mut longest {
        outbox::enqueue_all(longest, &[message("k1", 0)]).await.unwrap();
    }
    for step in 0..120 {
        if step == 60 {
            jump(pool, LEAF + 3).await;
        }
        if step == 100 && dice.throw(2) == 0 {
            longest.take().expect("it was open until now").commit().await?;
        }
        match dice.throw(5) {
            0 if open.len() < 4 => open.push(pool.begin().await?),
            0 | 1 if !open.is_empty() => {
                let tx = open.swap_remove(dice.throw(open.len()));
                if dice.throw(4) == 0 { tx.rollback().await? } else { tx.commit().await? }
            }
            2 | 3 if !open.is_empty() => {
                let place = dice.throw(open.len());
                let message = message(&format!("k{}", dice.throw(5)), step);
                outbox::enqueue_all(&mut open[place], &[message]).await.unwrap();
            }
            _ => {
                let bound = log.prove_bound().await?;
                seen.push((log.look("nobody").await?.snapshot.to_string(), bound));
            }
        }
    }
    for tx in open {
        tx.commit().await?;
    }
    for longest in [longest, None] {
        let bound = log.prove_bound().await?;
        seen.push((log.look("nobody").await?.snapshot.to_string(), bound));
        if let Some(longest) = longest {
            longest.commit().await?;
        }
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pins_a_leaf_is_what_is_not_delivered_by_definition_wherever_the_cursors_stand() {
    let database = Database::new("retention_definition").await;
    let pool = PgPoolOptions::new().max_connections(8).connect(database.url()).await.unwrap();
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 1..=8 {
        let mut dice = Dice(seed);
        pool.execute("truncate outbox.message, outbox.cursor; delete from outbox.relay").await.unwrap();
        jump(&pool, 1).await;
        let seen = history(&pool, &mut dice).await.unwrap();
        for relay in 0..60 {
            let name = format!("r{relay}");
            sqlx::query("insert into outbox.relay (name, shards) values ($1, 2)")
                .bind(&name)
                .execute(&pool)
                .await
                .unwrap();
            for shard in 0..2_i16 {
                // Half of them are nearly through.
                let from = seen.len() - 1 - [dice.throw(4), dice.throw(seen.len())][dice.throw(2)];
                let to = (dice.throw(3) > 0).then(|| from + dice.throw(seen.len() - from));
                let until = to.map(|to| seen[to].clone()).unzip();
                let leaf = i64::try_from(dice.throw(2)).unwrap();
                let after = to.map_or(0, |_| leaf * LEAF + i64::try_from(dice.throw(40)).unwrap());
                sqlx::query(
                    "insert into outbox.cursor (relay, shard, era, seen, seen_l, until, until_l, after)
                     values ($1, $2, 1, $3::text::pg_snapshot, $4, $5::text::pg_snapshot, $6, $7)",
                )
                .bind(&name)
                .bind(shard)
                .bind(&seen[from].0)
                .bind(seen[from].1)
                .bind(until.0)
                .bind(until.1)
                .bind(after)
                .execute(&pool)
                .await
                .unwrap();
            }
        }
        let mut expected: Vec<(String, Vec<i64>)> = sqlx::query_as(
            "select r.name, array(
                 select distinct (m.position >> 20) & 15 as leaf
                 from outbox.cursor c
                 join outbox.message m on m.slot % r.shards = c.shard
                 where c.relay = r.name and not pg_visible_in_snapshot(m.tx, c.seen)
                     and not coalesce(pg_visible_in_snapshot(m.tx, c.until) and m.position <= c.after, false)
                 order by leaf)
             from outbox.relay r",
        )
        .fetch_all(&pool)
        .await
        .unwrap();
        expected.sort();
        let status = admin::status(&pool).await.unwrap();
        let mut found: Vec<(String, Vec<i64>)> =
            status.into_iter().map(|status| (status.relay, status.pins)).collect();
        found.sort();
        assert_eq!(found, expected, "seed {seed}");
        kinds.extend(expected.into_iter().map(|(_, pins)| pins));
    }
    assert_eq!(kinds.len(), 4, "shows too little: {kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_in_the_leaf_makes_the_janitor_give_way_and_no_writer_waits() {
    let database = Database::new("retention_reader").await;
    let pool = database.pool();
    one_behind(&database).await;
    let mut reader = pool.begin().await.unwrap();
    reader.execute("lock table outbox.message in access share mode").await.unwrap();
    // Whatever lock it meets, a writer that must wait for it fails.
    let mut writer = database.connect().await;
    writer.execute("set lock_timeout = '1ms'").await.unwrap();
    let writing = async {
        for _ in 0..200 {
            writer.execute("select outbox.enqueue('t', 'k', '')").await.unwrap();
        }
    };
    let pruning = async {
        let mut pruned = Vec::new();
        for _ in 0..5 {
            pruned.push(
                tokio::time::timeout(PATIENCE, prune(pool)).await.expect("it waits for nobody").unwrap(),
            );
        }
        pruned
    };
    let ((), pruned) = tokio::join!(writing, pruning);
    for pruned in pruned {
        assert_eq!((pruned.emptied, pruned.locked, pruned.pinned), (vec![], vec![0], vec![1]));
    }
    reader.rollback().await.unwrap();
    assert_eq!(prune(pool).await.unwrap().emptied, [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_janitors_at_once_empty_a_leaf_once_and_lose_nothing() {
    let database = Database::new("retention_two").await;
    let pool = database.pool();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    until_said(pool).await;
    pool.execute("update outbox.relay set retention = '0'").await.unwrap();
    let mut written = 0;
    let mut all_emptied = Vec::new();
    for lap in 0..8_i64 {
        let mut open = pool.begin().await.unwrap();
        for leaf in 0..4 {
            jump(pool, (lap * 16 + leaf) * LEAF + 10).await;
            let messages: Vec<Message> = (0..20).map(|key| message(&format!("k{key}"), written)).collect();
            written += messages.len();
            write(pool, &messages).await;
            outbox::enqueue_all(&mut open, &[message("late", written)]).await.unwrap();
            written += 1;
        }
        jump(pool, (lap * 16 + 9) * LEAF).await;
        let committing = async {
            tokio::task::yield_now().await;
            outbox::commit(open).await.unwrap();
        };
        // They begin while there is something to deliver, and end when all of it is.
        let janitor = || async {
            let mut emptied = Vec::new();
            let done =
                || async { broker.published().len() >= written && pins(pool, "default").await.is_empty() };
            while !done().await {
                emptied.extend(prune(pool).await.unwrap().emptied);
            }
            emptied.extend(prune(pool).await.unwrap().emptied);
            emptied
        };
        let ((), first, second) = tokio::join!(committing, janitor(), janitor());
        all_emptied.extend([first, second].concat());
    }
    broker.wait_for_published(written).await;
    relay.stop().await.unwrap();
    let mut ids: Vec<_> = broker.published().iter().map(|published| published.message.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), written);
    assert!(all_emptied.len() >= 8, "{all_emptied:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_laps_in_one_leaf_are_read_counted_and_kept_as_one_would_be() {
    let database = Database::new("retention_laps").await;
    let pool = PgPoolOptions::new().max_connections(8).connect(database.url()).await.unwrap();
    let pool = &pool;
    let broker = Broker::new();
    let mut settings = settings();
    settings.read.page = 2;
    let relay = start(pool, broker.publisher(), settings.clone());
    // In each of three laps over leaf 0: messages, and transactions that stay open, two across all laps.
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(pool.begin().await.unwrap());
    }
    for lap in 0..3_i64 {
        jump(pool, lap * 16 * LEAF + 5).await;
        for tx in &mut open {
            outbox::enqueue_all(tx, &[message("late", usize::try_from(lap).unwrap())]).await.unwrap();
        }
        let messages: Vec<Message> = (0..7).map(|_| message("a", usize::try_from(lap).unwrap())).collect();
        write(pool, &messages).await;
        broker.wait_for_published((usize::try_from(lap).unwrap() + 1) * 7).await;
    }
    until_said(pool).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2]);
    jump(pool, (32 + 9) * LEAF).await;
    pool.execute("update outbox.message_0 set enqueued_at = '2000-01-01'").await.unwrap();
    let status = |status: Vec<admin::RelayStatus>| (status[0].pending, status[0].pins.clone());
    assert_eq!(status(admin::status(pool).await.unwrap()), (0, vec![]));
    outbox::commit(open.remove(0)).await.unwrap();
    assert_eq!(status(admin::status(pool).await.unwrap()), (3, vec![0]));
    outbox::commit(open.remove(0)).await.unwrap();
    assert_eq!(status(admin::status(pool).await.unwrap()), (6, vec![0]));
    pool.execute("update outbox.message_0 set enqueued_at = '2000-01-01'").await.unwrap();
    assert_eq!(prune(pool).await.unwrap(), pinned(&[0]));
    let relay = start(pool, broker.publisher(), settings);
    broker.wait_for_published(27).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "late"), [0, 0, 1, 1, 2, 2]);
    until("emptied", || async { prune(pool).await.unwrap().emptied == [0] || count(pool).await == 0 }).await;
    assert_eq!(broker.published().len(), 27);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relays_role_suffices_for_all_of_the_upkeep() {
    let database = Database::new("retention_role").await;
    database.pool().execute(sqlx::raw_sql(migrations::roles())).await.unwrap();
    one_behind(&database).await;
    let role = |role: &'static str| {
        PgPoolOptions::new()
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    connection.execute(AssertSqlSafe(format!("set role {role}"))).await.map(|_| ())
                })
            })
            .connect_lazy(database.url())
            .unwrap()
    };
    let (relay, monitor) = (role("outbox_relay"), role("outbox_monitor"));
    assert_eq!(pins(&monitor, "behind").await, [1]);
    let stop = CancellationToken::new();
    let upkeep = Upkeep::new(relay, "behind", Duration::ZERO, Duration::from_secs(3600));
    let running = tokio::spawn(upkeep.run(stop.clone()));
    until("emptied", || async { count(database.pool()).await == 1 }).await;
    stop.cancel();
    running.await.unwrap();
    assert_eq!(holder(database.pool()).await, None);
    assert_eq!(pins(&monitor, "behind").await, [1]);
}

async fn holder(pool: &PgPool) -> Option<uuid::Uuid> {
    sqlx::query_scalar("select holder from outbox.upkeep").fetch_one(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_has_the_upkeep_a_stop_hands_it_over_and_a_death_ends_with_the_lease() {
    let database = Database::new("retention_lease").await;
    let pool = database.pool();
    let broker = Broker::new();
    // A pool for each process, and one that a killed process cannot leave inside a transaction.
    let begin = |lease: u64| {
        let pool = outbox::pool_options().max_connections(5).connect_lazy(database.url()).unwrap();
        let mut settings = settings();
        settings.lease = Duration::from_secs(lease);
        start(&pool, broker.publisher(), settings)
    };
    let first = begin(3600);
    until("held", || async { holder(pool).await.is_some() }).await;
    let held_by = holder(pool).await;
    let second = begin(5);
    write(pool, &[message("a", 1)]).await;
    broker.wait_for_published(1).await;
    assert_eq!(holder(pool).await, held_by);
    first.stop().await.unwrap();
    until("taken", || async { holder(pool).await.is_some_and(|holder| Some(holder) != held_by) }).await;
    // Killed: nobody says goodbye.
    let held_by = holder(pool).await;
    second.task.abort();
    let _ = second.task.await;
    let third = begin(5);
    until("relieved", || async { holder(pool).await.is_some_and(|holder| Some(holder) != held_by) }).await;
    third.stop().await.unwrap();
    assert_eq!(holder(pool).await, None);
}

#[tokio::test]
async fn who_waits_for_the_upkeep_writes_nothing_unless_it_is_at_rest() {
    let database = Database::new("retention_waits").await;
    let hold =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../outbox/src/upkeep/sql/hold.sql"));
    let hold = hold.unwrap();
    let mut tx = database.pool().begin().await.unwrap();
    let mut spends = async |holder: uuid::Uuid, lasts: f64, rests: Option<f64>| {
        let query = sqlx::query_as::<_, (bool, f64)>(AssertSqlSafe(hold.clone())).bind(holder).bind(lasts);
        let (held, ends_in) = query.bind(rests).fetch_one(&mut *tx).await.unwrap();
        let spent = "select pg_current_xact_id_if_assigned() is not null";
        let spent: bool = sqlx::query_scalar(spent).fetch_one(&mut *tx).await.unwrap();
        tx.execute("commit; begin").await.unwrap();
        (held, spent, ends_in.round() as i64)
    };
    let (holder, other) = (uuid::Uuid::now_v7(), uuid::Uuid::now_v7());
    assert_eq!(spends(holder, 3600.0, None).await, (true, true, 3600));
    assert_eq!(
        spends(other, 60.0, None).await,
        (false, false, 3600),
        "a lease that is long is not for a rest"
    );
    assert_eq!(spends(holder, 300.0, Some(20.0)).await, (true, true, 300));
    assert_eq!(spends(other, 60.0, None).await, (false, true, 20), "its own lease, not that of who waits");
    assert_eq!(spends(other, 60.0, None).await, (false, false, 20));
    assert_eq!(spends(holder, 60.0, None).await, (true, true, 60));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_retention_of_all_relays_counts() {
    let database = Database::new("retention_longest").await;
    let pool = database.pool();
    write(pool, &[message("a", 1)]).await;
    relay_that_saw_all(pool, "short").await;
    relay_that_saw_all(pool, "long").await;
    jump(pool, 9 * LEAF).await;
    age(pool, 0).await;
    sqlx::query("update outbox.relay set retention = interval '30 days' where name = 'long'")
        .execute(pool)
        .await
        .unwrap();
    assert_eq!(prune(pool).await.unwrap(), Pruned::default());
    sqlx::query("update outbox.relay set state = 'retired' where name = 'long'").execute(pool).await.unwrap();
    assert_eq!(prune(pool).await.unwrap(), emptied(&[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_since_when_nobody_runs_a_relay() {
    let database = Database::new("retention_unattended").await;
    // One that a killed process cannot leave inside a transaction.
    let pool = outbox::pool_options().max_connections(6).connect_lazy(database.url()).unwrap();
    let pool = &pool;
    let broker = Broker::new();
    let since = || async { admin::status(pool).await.unwrap().pop().unwrap().unattended_since };
    let now = || async { sqlx::query_scalar("select clock_timestamp()").fetch_one(pool).await.unwrap() };
    relay_that_saw_all(pool, "default").await;
    assert!(since().await.is_some_and(|since| since <= chrono::Utc::now() + chrono::TimeDelta::minutes(1)));
    for polite in [true, false] {
        let relay = start(pool, broker.publisher(), settings());
        until("it runs", || async { since().await.is_none() }).await;
        let running: chrono::DateTime<chrono::Utc> = now().await;
        if polite {
            relay.stop().await.unwrap();
        } else {
            relay.task.abort();
            let _ = relay.task.await;
        }
        until("nobody runs it", || async { since().await.is_some() }).await;
        let (left, now): (_, chrono::DateTime<chrono::Utc>) = (since().await.unwrap(), now().await);
        assert!(running <= left && left <= now, "{running} {left} {now}");
    }
}
