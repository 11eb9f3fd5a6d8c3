//! Admission: one first copy, whatever happens at once; refused past the horizon; and what pruning takes away.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use chrono::{TimeDelta, Utc};
use futures_util::future::join_all;
use inbox::{Admission, AdmitError, Horizon, Refusal, admit, admit_all, admit_within, prune};
use inbox_support::{CONSUMER, Service, placed};
use message::{Message, MessageId};
use sqlx::{AssertSqlSafe, Connection, Executor, SqlSafeStr};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_copies_at_once_have_one_effect() {
    let service = Service::new("sixteen copies").await;
    for _ in 0..20 {
        let message = placed("a", "");
        let copy = async || {
            let mut tx = service.pool.begin().await.unwrap();
            let admission = admit(&mut tx, CONSUMER, &message).await.unwrap();
            if admission == Admission::First {
                inbox_support::effect(&mut tx, &message).await.unwrap();
            }
            tx.commit().await.unwrap();
            admission
        };
        let admissions = join_all((0..16).map(|_| copy())).await;
        assert_eq!(admissions.iter().filter(|admission| **admission == Admission::First).count(), 1);
    }
    assert_eq!(service.count("select count(*) from effect").await, 20);
}

#[tokio::test]
async fn a_rolled_back_admission_was_none() {
    let service = Service::new("rolled back admission").await;
    let message = placed("a", "");
    for _ in 0..2 {
        let mut tx = service.pool.begin().await.unwrap();
        assert_eq!(admit(&mut tx, CONSUMER, &message).await.unwrap(), Admission::First);
        assert_eq!(admit(&mut tx, CONSUMER, &message).await.unwrap(), Admission::Repeat);
        assert_eq!(admit(&mut tx, "another", &message).await.unwrap(), Admission::First);
        tx.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn an_id_past_the_horizon_or_ahead_or_undated_is_refused_and_the_transaction_goes_on() {
    let service = Service::new("refused ids").await;
    let with_id = |id| placed("a", "").with_id(id);
    let mut tx = service.pool.begin().await.unwrap();
    for (id, refusal) in [
        (MessageId::at(Utc::now() - TimeDelta::days(7) - TimeDelta::seconds(1)), Refusal::TooOld),
        (MessageId::at(Utc::now() + TimeDelta::minutes(61)), Refusal::Future),
        (MessageId::foreign("/a", "1"), Refusal::Undated),
    ] {
        let refused = admit(&mut tx, CONSUMER, &with_id(id)).await.unwrap_err();
        assert!(matches!(refused, AdmitError::Refused(found) if found == refusal), "{refused}");
    }
    assert!(matches!(admit(&mut tx, "", &placed("a", "")).await, Err(AdmitError::Consumer)));
    let undated = Horizon::default().with_undated();
    let foreign = with_id(MessageId::foreign("/a", "1"));
    assert_eq!(admit_within(&mut tx, CONSUMER, &foreign, undated).await.unwrap(), Admission::First);
    assert_eq!(admit_within(&mut tx, CONSUMER, &foreign, undated).await.unwrap(), Admission::Repeat);
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn batches_that_cross_do_not_deadlock_and_admit_each_message_once() {
    let service = Service::new("crossing batches").await;
    let [first, middle, last] = [placed("", ""), placed("", ""), placed("", "")];
    let mut open = service.pool.begin().await.unwrap();
    admit(&mut open, CONSUMER, &middle).await.unwrap();
    let batch = async |messages: [&Message; 4]| {
        let messages = messages.map(Clone::clone);
        let mut tx = service.pool.begin().await.unwrap();
        let admissions = admit_all(&mut tx, CONSUMER, &messages, Horizon::default()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(admissions[3], Admission::Repeat);
        admissions.into_iter().filter(|admission| *admission == Admission::First).count()
    };
    // Both wait for the middle one; taken in the order given, each would then wait for the other.
    let both_wait = async {
        let waiting = "select count(*) from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock'";
        inbox_support::eventually("both wait", || async {
            (service.count(waiting).await == 2).then_some(())
        })
        .await;
        open.rollback().await.unwrap();
    };
    let forth = batch([&first, &middle, &last, &first]);
    let back = batch([&last, &middle, &first, &last]);
    let (forth, back, ()) = tokio::join!(forth, back, both_wait);
    assert_eq!(forth + back, 3);
}

#[tokio::test]
async fn what_pruning_may_have_removed_is_refused_under_a_longer_horizon_too() {
    let service = Service::new("floor").await;
    let old = placed("a", "").with_id(MessageId::at(Utc::now() - TimeDelta::days(15)));
    let long = Horizon::new(std::time::Duration::from_secs(20 * 86_400)).unwrap();
    let mut tx = service.pool.begin().await.unwrap();
    assert_eq!(admit_within(&mut tx, CONSUMER, &old, long).await.unwrap(), Admission::First);
    tx.commit().await.unwrap();

    let pruned = prune(&service.pool).await.unwrap();
    assert_eq!((pruned.days, pruned.locked), (1, 0));
    assert_eq!(service.count("select count(*) from inbox.message").await, 0);
    let mut tx = service.pool.begin().await.unwrap();
    let refused = admit_within(&mut tx, CONSUMER, &old, long).await.unwrap_err();
    assert!(matches!(refused, AdmitError::Refused(Refusal::TooOld)));
    let refused = admit_all(&mut tx, CONSUMER, &[old], long).await.unwrap_err();
    assert!(matches!(refused, AdmitError::Refused(Refusal::TooOld)));
}

#[tokio::test]
async fn pruning_keeps_every_row_within_the_longest_horizon_of_a_consumer() {
    let service = Service::new("prune keeps").await;
    sqlx::query("insert into inbox.consumer (name, horizon) values ('slow', interval '20 days'), ('b', interval '1 day')")
        .execute(&service.pool)
        .await
        .unwrap();
    let long = Horizon::new(std::time::Duration::from_secs(29 * 86_400)).unwrap().with_undated();
    let mut tx = service.pool.begin().await.unwrap();
    for days in 0..29 {
        let message = placed("", "").with_id(MessageId::at(Utc::now() - TimeDelta::days(days)));
        admit_within(&mut tx, CONSUMER, &message, long).await.unwrap();
    }
    // The oldest and the newest that may come, besides.
    let ahead = placed("", "").with_id(MessageId::at(Utc::now() + TimeDelta::minutes(59)));
    admit_within(&mut tx, CONSUMER, &ahead, long).await.unwrap();
    for id in ["1", "2"] {
        let foreign = placed("", "").with_id(MessageId::foreign("/a", id));
        admit_within(&mut tx, CONSUMER, &foreign, long).await.unwrap();
    }
    sqlx::query("update inbox.message set handled_at = now() - interval '30 days' where message_id = $1")
        .bind(MessageId::foreign("/a", "1").as_uuid())
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();

    let pruned = prune(&service.pool).await.unwrap();
    // Days 0 to 20, the margin's, and the part of a day by which the floor is rounded down.
    assert_eq!(pruned.undated, 1);
    assert_eq!(pruned.days, 29 - 22);
    assert_eq!(service.count("select count(*) from inbox.message").await, 22 + 1 + 1);
    assert_eq!(prune(&service.pool).await.unwrap().days, 0);
}

#[tokio::test]
async fn pruning_waits_for_nobody() {
    let service = Service::new("prune waits").await;
    let long = Horizon::new(std::time::Duration::from_secs(20 * 86_400)).unwrap();
    let old = placed("a", "").with_id(MessageId::at(Utc::now() - TimeDelta::days(15)));
    let mut open = service.pool.begin().await.unwrap();
    admit_within(&mut open, CONSUMER, &old, long).await.unwrap();
    // Nothing of the open transaction is visible, so it takes a second row to make the partition worth truncating.
    let second = placed("a", "").with_id(MessageId::at(Utc::now() - TimeDelta::days(15)));
    let mut tx = service.pool.begin().await.unwrap();
    admit_within(&mut tx, CONSUMER, &second, long).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(prune(&service.pool).await.unwrap().locked, 1);
    open.rollback().await.unwrap();
    assert_eq!(prune(&service.pool).await.unwrap().days, 1);
}

#[tokio::test]
async fn every_statement_is_valid_in_the_migrated_schema() {
    let service = Service::new("statements").await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../inbox/src/sql");
    let mut connection = service.pool.acquire().await.unwrap();
    let mut statements = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let sql = std::fs::read_to_string(&path).unwrap();
        assert!(sql.starts_with("-- "), "{path:?} begins with its promise");
        let sql = sql.replace("{slot}", "35");
        let mut tx = connection.begin().await.unwrap();
        let prepared = (&mut *tx).prepare(AssertSqlSafe(sql).into_sql_str()).await;
        assert!(prepared.is_ok(), "{path:?}: {:?}", prepared.err());
        statements += 1;
    }
    assert!(statements > 20);
}
