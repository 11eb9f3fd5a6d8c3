//! Who empties leaves, beside whom.

use super::*;

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
async fn the_relays_role_suffices_for_all_of_the_upkeep() {
    let database = Database::new("retention_role").await;
    database.pool().execute(sqlx::raw_sql(migrations::roles())).await.unwrap();
    one_behind(&database).await;
    let role = |role: &'static str| {
        outbox::pool_options()
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
