//! A log whose cluster was brought back by other ways than a dump: to a moment before the end, older than its outbox, or
//! as another release of PostgreSQL.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod eras_support;
mod relay_support;

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use brokers::memory::Broker;
use eras_support::life::{KEYS, Life, deliver, kill, refused, repair, settle};
use eras_support::{Cluster, arrived, in_order, message, restore, sorted};
use outbox::admin::{self, RepairError};
use outbox::log::{CursorRecord, LogConnection, Record, Seen, Snapshot, Start, Store};
use relay_support::{settings, until};
use servers::PostgresOptions;
use uuid::Uuid;

/// WAL goes to a folder beside the data.
fn archiving() -> PostgresOptions {
    PostgresOptions::new()
        .with_setting("archive_mode", "on")
        .with_setting("archive_command", "mkdir -p ../archive && cp %p ../archive/%f")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_to_a_moment_before_the_end_needs_no_repair_and_loses_nothing_that_it_recovered() {
    let mut cluster = Cluster::with_options(archiving()).await;
    let first = Broker::new();
    cluster.write(&KEYS, 1..=10).await;
    deliver(&cluster, "default", &first, 50).await;
    let folder = cluster.server.folder().unwrap().to_owned();
    let fetch = format!("cp {}/archive/%f %p", folder.display());
    let backup = PostgresOptions::new().with_setting("restore_command", &fetch);
    let mut backup = backup.copy_of(&cluster.server).expect("a base backup");

    // The time that comes back: something delivered, something not, a transaction that was running when the relay looked
    // and has committed since, and one that never will have.
    let mut open = cluster.pool.begin().await.unwrap();
    outbox::enqueue_all(&mut open, &[message("late", 1)]).await.unwrap();
    let mut never = cluster.pool.begin().await.unwrap();
    outbox::enqueue_all(&mut never, &[message("never", 1)]).await.unwrap();
    cluster.write(&KEYS, 11..=14).await;
    deliver(&cluster, "default", &first, 70).await;
    outbox::commit(open).await.unwrap();
    cluster.write(&KEYS, 15..=20).await;
    let owed = cluster.undelivered("default").await;
    assert_eq!(owed.len(), 31);
    let target: String = sqlx::query_scalar("select pg_current_wal_insert_lsn()::text")
        .fetch_one(&cluster.pool)
        .await
        .unwrap();

    // The time that does not: it is all delivered, under a cursor far ahead.
    outbox::commit(never).await.unwrap();
    cluster
        .do_sql("do $$ begin for i in 1..500 loop perform pg_current_xact_id(); commit; end loop; end $$")
        .await;
    let forgotten = 21..=25;
    cluster.write(&KEYS, forgotten).await;
    deliver(&cluster, "default", &first, 70 + 31 + 26).await;
    let archived = format!(
        "select count(*) from pg_stat_archiver where last_archived_wal >= pg_walfile_name('{target}')"
    );
    cluster.do_sql("select pg_switch_wal()").await;
    until("the WAL is archived", || async {
        let archived: i64 =
            sqlx::query_scalar(sqlx::AssertSqlSafe(archived.clone())).fetch_one(&cluster.pool).await.unwrap();
        archived > 0
    })
    .await;
    cluster.server.crash().unwrap();

    let data = backup.data().unwrap().to_owned();
    OpenOptions::new().create(true).append(true).open(data.join("recovery.signal")).unwrap();
    let mut conf = OpenOptions::new().append(true).open(data.join("postgresql.auto.conf")).unwrap();
    let before = "recovery_target_inclusive = off\nrecovery_target_action = 'promote'";
    writeln!(conf, "recovery_target_lsn = '{target}'\n{before}").unwrap();
    backup.restart().expect("it recovers");
    let recovered = Cluster::of(backup).await;
    let recovering = "select pg_is_in_recovery()::int::bigint";
    until("promoted", || async { recovered.number(recovering).await == 0 }).await;
    assert_eq!(
        recovered.number("select count(*) from outbox.message where key = 'never' or payload = '21'").await,
        0
    );

    let found = admin::survey(&recovered.pool).await.unwrap();
    assert!(!found.needs_repair(), "{found:?}");
    assert!(matches!(admin::repair(&recovered.pool, "ada", None).await, Err(RepairError::Sound)));
    assert_eq!(recovered.pending("default").await, owed.len());
    recovered.write(&KEYS, 21..=24).await;
    let second = Broker::new();
    deliver(&recovered, "default", &second, owed.len() + 20).await;
    let above = "select max(position) from outbox.message where payload = '20'";
    let new = recovered.ids_above(recovered.number(above).await).await;
    assert_eq!(new.len(), 20);
    in_order(&[&second]);
    assert_eq!(sorted(arrived(&second)), sorted([&owed[..], &new].concat()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_restored_into_an_older_copy_of_its_cluster_is_refused_and_repaired() {
    let life = Cluster::new().await;
    let before = Broker::new();
    life.write(&KEYS, 1..=10).await;
    deliver(&life, "default", &before, 50).await;
    let mut copy = PostgresOptions::new().copy_of(&life.server).expect("a base backup");
    life.do_sql("do $$ begin for i in 1..500 loop perform pg_current_xact_id(); commit; end loop; end $$")
        .await;
    life.write(&KEYS, 11..=20).await;
    let owed = life.undelivered("default").await;
    assert_eq!(owed.len(), 50);

    copy.restart().expect("it starts");
    let cluster = Cluster::of(copy).await;
    cluster.do_sql("drop schema outbox cascade").await;
    restore(&life.url(), &cluster.url());
    // No cursor is ahead: only what was written last tells.
    let ahead = "select count(*) from outbox.cursor where pg_snapshot_xmax(seen) > pg_snapshot_xmax(pg_current_snapshot())";
    assert_eq!(cluster.number(ahead).await, 0);
    assert!(refused(&cluster, "default").await.contains("transaction ids are behind"));
    let found = repair(&cluster).await;
    assert!(found.ids_behind && !found.is_elsewhere());
    cluster.write(&KEYS, 21..=22).await;
    let new = cluster.ids_above(found.first_position - 1).await;
    let broker = Broker::new();
    deliver(&cluster, "default", &broker, 60).await;
    in_order(&[&before, &broker]);
    assert_eq!(sorted(arrived(&broker)), sorted([&owed[..], &new].concat()));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_relay_whose_cursor_is_ahead_keeps_all_from_a_cluster_that_went_back() {
    let cluster = Cluster::new().await;
    cluster.write(&KEYS, 1..=2).await;
    for name in ["ahead", "behind"] {
        deliver(&cluster, name, &Broker::new(), 10).await;
    }
    cluster
        .do_sql("update outbox.cursor set until = '1000000:1000000:', until_l = 10 where relay = 'ahead' and shard = 3")
        .await;
    for name in ["ahead", "behind"] {
        assert!(refused(&cluster, name).await.contains("transaction ids are behind"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_cluster_keeps_its_ids_and_is_repaired_all_the_same() {
    let life = Life::lived().await;
    let owed: [Vec<Uuid>; 3] = life.owed().await;
    let mut new = PostgresOptions::new().start().expect("PostgreSQL starts");
    let mut life = life;
    life.cluster.pool.close().await;
    life.cluster.server.stop().unwrap();
    let programs = life.cluster.server.programs().expect("installed programs").to_owned();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let (programs, from) = (path(&programs), path(life.cluster.server.data().unwrap()));
    let to = path(new.data().unwrap());
    let (old_port, new_port) =
        (servers::free_port().unwrap().to_string(), servers::free_port().unwrap().to_string());
    new.program(
        "pg_upgrade",
        &[
            "--old-bindir",
            &programs,
            "--new-bindir",
            &programs,
            "--old-datadir",
            &from,
            "--new-datadir",
            &to,
            "--username=postgres",
            "--old-port",
            &old_port,
            "--new-port",
            &new_port,
        ],
    )
    .unwrap();
    // The roles come along, and with them the password.
    let url = life.cluster.url();
    new.restart().expect("it starts");
    let secret = url.split('@').next().unwrap().to_owned();
    let pool = eras_support::pool(&format!("{secret}@127.0.0.1:{}/postgres", new.port().unwrap())).await;
    let cluster = Cluster { pool, server: new };
    for (name, _) in life.brokers() {
        assert!(refused(&cluster, name).await.contains("another cluster"));
    }
    let found = admin::survey(&cluster.pool).await.unwrap();
    assert!(found.is_elsewhere() && !found.ids_behind && found.written_since == 0, "{found:?}");
    let found = repair(&cluster).await;
    cluster.write(&KEYS, 102..=104).await;
    settle(&cluster, &life, &owed, found.first_position - 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_era_is_recorded_also_where_the_row_has_moved() {
    let cluster = Cluster::new().await;
    let mut log = LogConnection::open(&cluster.pool).await.unwrap();
    let lease = Duration::from_secs(3600);
    let mut store =
        Store::join(&mut log, "default", Uuid::now_v7(), 2, Start::Beginning, lease).await.unwrap();
    store.acquire(log.connection(), 2).await.unwrap();
    cluster.do_sql("insert into outbox.cluster select 2, system_identifier, 1 from outbox.cluster").await;
    cluster.do_sql("update outbox.cursor set crashes = 0 where shard = 1").await;
    let seen = Seen { era: 2, snapshot: Snapshot::nothing(), bound: 0 };
    let cursor = |shard| CursorRecord { shard, seen: seen.clone(), until: None, after: 0 };
    let record = Record { cursors: vec![cursor(0), cursor(1)], ..Record::default() };
    assert_eq!(log.record(&mut store, record).await.unwrap(), Vec::<i16>::new());
    assert_eq!(cluster.number("select count(*) from outbox.cursor where era = 2").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_thought_dead_when_the_era_ended_records_nothing_in_the_old_one() {
    let cluster = Cluster::new().await;
    let broker = Broker::new();
    cluster.write(&KEYS, 1..=2).await;
    broker.hold_confirmations();
    let mut patient = settings();
    patient.lease = Duration::from_secs(3600);
    let zombie = cluster.relay("default", &broker, patient);
    broker.wait_for_published(10).await;
    // The cluster goes back under it, as far as the log can tell, and its lease is over.
    cluster.do_sql("update outbox.cluster set system_identifier = 1").await;
    let recorded =
        "select sum(epoch)::bigint from outbox.cursor where era = 1 and until is null and owner is null";
    let epochs = cluster.number("select sum(epoch)::bigint from outbox.cursor").await;
    repair(&cluster).await;
    assert_eq!(cluster.number(recorded).await, epochs + 16);
    broker.release_confirmations();
    until("it has lost its shards and taken them up in the next era", || async {
        cluster.number("select count(*) from outbox.cursor where era = 2 and owner is not null").await == 16
    })
    .await;
    let copies = broker.published().len();
    assert_eq!(copies, 20, "what it had delivered and not recorded comes again, once");
    in_order(&[&broker]);
    kill(zombie).await;
}
