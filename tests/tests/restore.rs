//! A dump of the log, restored into another cluster: refused by name, repaired, and nothing lost, doubled or overtaken.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod eras_support;
mod relay_support;

use std::time::Duration;

use brokers::memory::Broker;
use eras_support::life::{KEYS, Life, deliver, kill, refused, repair, settle};
use eras_support::{Cluster, arrived, chain, in_order, message, sorted};
use outbox::admin::{self, RepairError};
use outbox::log::Start;
use outbox::replay::{Filter, Replay, list, preview};
use relay_support::{settings, until, write};
use sqlx::{Postgres, Transaction};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A transaction whose id a message of an earlier life bears, too.
async fn homonym(cluster: &Cluster) -> Transaction<'static, Postgres> {
    for _ in 0..1000 {
        let mut tx = cluster.pool.begin().await.unwrap();
        let query = "select count(*) from outbox.message where tx = pg_current_xact_id()";
        let old: i64 = sqlx::query_scalar(query).fetch_one(&mut *tx).await.unwrap();
        if old > 0 {
            return tx;
        }
        tx.rollback().await.unwrap();
    }
    panic!("no transaction has the id of an old message: the test tests nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_dump_is_refused_and_after_the_repair_nothing_is_lost_doubled_or_overtaken() {
    let life = Life::lived().await;
    let owed = life.owed().await;
    assert!(!owed[0].is_empty() && owed[1].len() > 190 && owed[2].len() > 100);
    let cluster = life.cluster.dumped().await;
    let ahead = "select min(pg_snapshot_xmax(seen)::text::bigint) from outbox.cursor where relay = 'ahead'";
    assert!(cluster.number(ahead).await > cluster.next_id().await + 2000);
    for (name, _) in life.brokers() {
        assert!(refused(&cluster, name).await.contains("another cluster"));
    }

    let found = admin::survey(&cluster.pool).await.unwrap();
    assert!(found.is_elsewhere() && found.ids_behind && !found.positions_behind && found.written_since == 0);
    let Err(RepairError::Alive { processes, .. }) = admin::repair(&cluster.pool, "ada", None).await else {
        panic!("it repairs a log that is being read");
    };
    assert!(processes.len() == 1 && processes[0].ends_with(&format!(" (pid {})", std::process::id())));
    assert_eq!(cluster.number("select count(*) from outbox.cluster").await, 1);
    let found = repair(&cluster).await;
    assert_eq!(found.first_position, found.last_drawn + 1);
    assert!(matches!(admin::repair(&cluster.pool, "ada", None).await, Err(RepairError::Sound)));
    for ((name, _), owed) in life.brokers().into_iter().zip(&owed) {
        assert_eq!(cluster.pending(name).await, owed.len(), "{name}");
    }

    // New messages, one of them of a transaction that is still open when all relays stop.
    let mut open = homonym(&cluster).await;
    outbox::enqueue_all(&mut open, &[message("late", 2)]).await.unwrap();
    cluster.write(&KEYS, 102..=110).await;
    write(&cluster.pool, &[message("bad", 3)]).await;
    let new = cluster.ids_above(found.first_position - 1).await;
    let bad = cluster.number("select count(*) from outbox.message where key = 'bad' and payload = '3'").await;
    assert_eq!((new.len(), bad), (46, 1));
    for ((name, _), owed) in life.brokers().into_iter().zip(&owed) {
        assert_eq!(cluster.pending(name).await, owed.len() + new.len(), "{name}");
    }
    let mut after = Vec::new();
    for ((name, before), owed) in life.brokers().into_iter().zip(&owed) {
        let broker = Broker::new();
        let held = usize::from(name == "ahead");
        deliver(&cluster, name, &broker, owed.len() + new.len() - held).await;
        if held == 1 {
            let held = admin::held_keys(&cluster.pool, name).await.unwrap();
            assert_eq!((held.len(), held[0].messages, held[0].is_parked()), (1, 3, true));
            admin::redrive(&cluster.pool, name, held[0].position, "test", None).await.unwrap();
            deliver(&cluster, name, &broker, owed.len() + new.len() + 2).await;
        }
        in_order(&[before, &broker]);
        after.push(broker);
    }
    outbox::commit(open).await.unwrap();
    let late = cluster.ids_above(found.first_position - 1).await.len() - new.len();
    assert_eq!(late, 1);
    for (((name, _), owed), broker) in life.brokers().into_iter().zip(&owed).zip(&after) {
        let held = if name == "ahead" { 2 } else { 0 };
        deliver(&cluster, name, broker, owed.len() + new.len() + held + 1).await;
        let mut expected = cluster.ids_above(found.first_position - 1).await;
        expected.extend(owed);
        if name == "ahead" {
            let bad = "select id from outbox.message where key = 'bad' order by position limit 2";
            let bad: Vec<Uuid> = sqlx::query_scalar(bad).fetch_all(&cluster.pool).await.unwrap();
            expected.extend(bad);
        }
        assert_eq!(sorted(arrived(broker)), sorted(expected), "{name}: each once, and no other");
    }
    assert_eq!(cluster.number("select count(*) from outbox.cursor where era = 2").await, 48);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_restored_twice_is_read_through_all_its_lives() {
    let life = Life::lived().await;
    let owed = life.owed().await;
    let second = life.cluster.dumped().await;
    let found = repair(&second).await;
    second.write(&KEYS, 102..=103).await;
    let mut open = second.pool.begin().await.unwrap();
    outbox::enqueue_all(&mut open, &[message("late", 2)]).await.unwrap();
    // `ahead` lives through the second life; `half` does not; `lagging` is killed in the last window of the first one.
    let ahead = Broker::new();
    deliver(&second, "ahead", &ahead, 11).await;
    let mut few = settings();
    (few.batch, few.max_on_wire, few.lease) = (4, 4, Duration::from_secs(3600));
    let lagging = Broker::new();
    lagging.delay_confirmations(Duration::from_millis(100));
    let relay = second.relay("lagging", &lagging, few);
    lagging.wait_for_published(20).await;
    lagging.go_down();
    let last_window = "select count(*) from outbox.cursor
        where relay = 'lagging' and era = 1 and pg_snapshot_xmin(until)::text = '9223372036854775807' and after > 0";
    until("half a last window is recorded", || async { second.number(last_window).await > 0 }).await;
    kill(relay).await;
    outbox::commit(open).await.unwrap();
    let first_life = found.first_position - 1;
    let lagging_owes = second.pending("lagging").await;

    let third = second.dumped().await;
    assert!(refused(&third, "lagging").await.contains("another cluster"));
    let found = repair(&third).await;
    assert_eq!((found.era, third.number("select max(era)::bigint from outbox.cluster").await), (2, 3));
    third.write(&KEYS, 104..=105).await;
    let (second_life, third_life) =
        (third.ids_above(first_life).await, third.ids_above(found.first_position - 1).await);
    assert_eq!((second_life.len(), third_life.len()), (21, 10));

    let (ahead_too, lagging_too, half) = (Broker::new(), Broker::new(), Broker::new());
    deliver(&third, "ahead", &ahead_too, 11).await;
    in_order(&[&life.ahead, &ahead, &ahead_too]);
    let mut expected = second_life.clone();
    expected.retain(|id| !arrived(&ahead).contains(id));
    assert_eq!(sorted(arrived(&ahead_too)), sorted(expected));

    deliver(&third, "half", &half, owed[2].len() + 21).await;
    in_order(&[&life.half, &half]);
    assert_eq!(sorted(arrived(&half)), sorted([&owed[2][..], &second_life].concat()));

    deliver(&third, "lagging", &lagging_too, lagging_owes + 10).await;
    in_order(&[&life.lagging, &lagging, &lagging_too]);
    assert_eq!(arrived(&lagging_too).len(), lagging_owes + 10, "no more than was not recorded");
    let both = [arrived(&lagging), arrived(&lagging_too)].concat();
    let mut lost = [&owed[1][..], &second_life].concat();
    lost.retain(|id| !both.contains(id));
    assert_eq!(lost, Vec::<Uuid>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_new_after_a_repair_reads_every_life_or_from_a_place_in_one() {
    let life = Cluster::new().await;
    // The old ids are far ahead of those of now.
    life.do_sql("do $$ begin for i in 1..2000 loop perform pg_current_xact_id(); commit; end loop; end $$")
        .await;
    life.write(&KEYS, 1..=10).await;
    let cluster = life.dumped().await;
    let found = repair(&cluster).await;
    cluster.write(&KEYS, 11..=12).await;
    let (all, new) = (Broker::new(), Broker::new());
    let mut from_now = settings();
    from_now.start = Start::Now;
    let relay = cluster.relay("new", &new, from_now);
    until("it has begun", || async {
        cluster.number("select count(*) from outbox.cursor where relay = 'new' and owner is not null").await
            == 16
    })
    .await;
    cluster.write(&KEYS, 13..=14).await;
    new.wait_for_published(10).await;
    relay.stop().await.unwrap();
    deliver(&cluster, "all", &all, 70).await;
    in_order(&[&all]);
    in_order(&[&new]);
    assert_eq!(sorted(arrived(&all)), sorted(cluster.ids_above(0).await));
    assert_eq!(sorted(arrived(&new)), sorted(cluster.ids_above(found.first_position + 9).await));

    let (mut at, some) = (settings(), Broker::new());
    at.start = Start::AtPosition(46);
    let relay = cluster.relay("some", &some, at);
    until("the rest of it", || async { some.published().len() >= 25 }).await;
    until("all recorded", || async { cluster.pending("some").await == 0 }).await;
    relay.stop().await.unwrap();
    in_order(&[&some]);
    assert_eq!(sorted(arrived(&some)), sorted(cluster.ids_above(45).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_owes_nothing_of_an_era_records_that_it_has_left_it() {
    let life = Cluster::new().await;
    life.write(&KEYS, 1..=2).await;
    deliver(&life, "default", &Broker::new(), 10).await;
    let cluster = life.dumped().await;
    repair(&cluster).await;
    let broker = Broker::new();
    let relay = cluster.relay("default", &broker, settings());
    until("every shard has left it", || async {
        cluster.number("select count(*) from outbox.cursor where era = 2 and until is null").await == 16
    })
    .await;
    relay.stop().await.unwrap();
    assert_eq!(arrived(&broker), Vec::<Uuid>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_after_a_repair_publishes_what_was_written_in_every_life() {
    let life = Cluster::new().await;
    life.do_sql("do $$ begin for i in 1..2000 loop perform pg_current_xact_id(); commit; end loop; end $$")
        .await;
    life.write(&KEYS, 1..=10).await;
    let cluster = life.dumped().await;
    repair(&cluster).await;
    cluster.write(&KEYS, 11..=12).await;
    let future = "select count(*) from outbox.message where tx >= pg_snapshot_xmax(pg_current_snapshot())";
    assert_eq!(cluster.number(future).await, 50, "the old ids are far ahead");
    let broker = Broker::new();
    let filter = Filter::default().with_topic("orders".parse().unwrap());
    let replay = Replay::new("again", cluster.pool.clone(), broker.publisher(), "ada").with_filter(filter);
    broker.go_down();
    let replay = tokio::spawn(replay.run(CancellationToken::new()));
    let begun = || async { !list(&cluster.pool).await.unwrap().is_empty() };
    until("it has begun", begun).await;
    assert_eq!(preview(&cluster.pool, "again", None).await.unwrap().messages, 60);
    broker.come_up();
    let replayed = replay.await.unwrap().unwrap();
    assert_eq!(replayed.published, 60);
    in_order(&[&broker]);
    assert_eq!(sorted(arrived(&broker)), sorted(cluster.ids_above(0).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_was_restored_behind_the_log_is_set_ahead() {
    let life = Cluster::new().await;
    life.write(&KEYS, 1..=10).await;
    deliver(&life, "default", &Broker::new(), 50).await;
    // In the same cluster, too: somebody loaded the rows and not the sequence.
    for cluster in [life.dumped().await, life] {
        cluster.do_sql("select setval('outbox.message_position_seq', 7)").await;
        let refusal = refused(&cluster, "default").await;
        let found = repair(&cluster).await;
        assert!(
            found.positions_behind && (found.is_elsewhere() || refusal.contains("sequence")),
            "{refusal}"
        );
        assert_eq!((found.last_drawn, found.last_written, found.first_position), (7, 50, 51));
        cluster.write(&["k0"], 11..=11).await;
        let broker = Broker::new();
        deliver(&cluster, "default", &broker, 1).await;
        assert_eq!(arrived(&broker), cluster.ids_above(50).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_services_wrote_between_the_restore_and_the_repair_is_delivered() {
    let life = Life::lived().await;
    let owed = life.owed().await;
    let cluster = life.cluster.dumped().await;
    cluster.write(&KEYS, 102..=104).await;
    // In a savepoint the row bears another id than its transaction.
    let mut tx = cluster.pool.begin().await.unwrap();
    sqlx::raw_sql("savepoint inner_one").execute(&mut *tx).await.unwrap();
    outbox::enqueue_all(&mut tx, &[message("k0", 105)]).await.unwrap();
    outbox::commit(tx).await.unwrap();
    cluster.write(&KEYS, 106..=107).await;
    let found = repair(&cluster).await;
    assert_eq!(found.written_since, 26);
    assert_eq!(cluster.ids_above(found.first_position - 1).await.len(), 26);
    settle(&cluster, &life, &owed, found.first_position - 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_has_written_and_is_still_open_is_waited_for_and_not_passed_over() {
    let cluster = Cluster::new().await;
    cluster.do_sql("update outbox.cluster set system_identifier = 1").await;
    let mut open = cluster.pool.begin().await.unwrap();
    outbox::enqueue_all(&mut open, &[message("a", 1)]).await.unwrap();
    sqlx::raw_sql("prepare transaction 'forgotten'").execute(&mut *open).await.unwrap();
    drop(open);
    let busy = admin::repair(&cluster.pool, "ada", None).await.unwrap_err();
    assert!(matches!(busy, RepairError::Busy(_)), "{}", chain(&busy));
    cluster.do_sql("commit prepared 'forgotten'").await;
    let found = admin::repair(&cluster.pool, "ada", None).await.unwrap();
    assert_eq!((found.last_written, found.first_position), (1, 2));
}
