//! What keeps a leaf from being emptied.

use super::*;

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
    let pool = outbox::pool_options().max_connections(8).connect(database.url()).await.unwrap();
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
