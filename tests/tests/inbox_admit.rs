//! Admission: one first copy, whatever happens at once; refused past the horizon; and what pruning takes away.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use futures_util::future::join_all;
use inbox::{Admission, AdmitError, Horizon, Refusal, admit, admit_all, admit_within, prune};
use inbox_support::{CONSUMER, Service, placed};
use message::{Message, MessageId};
use sqlx::{AssertSqlSafe, Connection, Executor, PgTransaction, SqlSafeStr};

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
async fn a_source_that_no_message_may_have_is_refused_and_the_transaction_goes_on() {
    let service = Service::new("source refused").await;
    let mut tx = service.pool.begin().await.unwrap();
    for source in ["a\0b", "", "\u{1f600}"] {
        for all in [false, true] {
            let mut message = placed("a", "");
            message.source = Some(source.into());
            let refused = admitted(&mut tx, &message, Horizon::default(), all).await.unwrap_err();
            assert!(matches!(refused, AdmitError::Invalid(_)), "{refused:?}");
        }
    }
    assert_eq!(admit(&mut tx, CONSUMER, &placed("a", "")).await.unwrap(), Admission::First);
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

/// A message made fifteen days ago and handled then, for a horizon that pruning does not know of.
async fn handled_long_ago(service: &Service) -> (Message, Horizon) {
    let long = Horizon::new(Duration::from_secs(20 * 86_400)).unwrap();
    let old = placed("a", "").with_id(MessageId::at(Utc::now() - TimeDelta::days(15)));
    let mut tx = service.pool.begin().await.unwrap();
    assert_eq!(admit_within(&mut tx, CONSUMER, &old, long).await.unwrap(), Admission::First);
    tx.commit().await.unwrap();
    (old, long)
}

/// `admit_within`, or `admit_all` of one.
async fn admitted(
    tx: &mut PgTransaction<'_>,
    message: &Message,
    horizon: Horizon,
    all: bool,
) -> Result<Admission, AdmitError> {
    match all {
        false => admit_within(tx, CONSUMER, message, horizon).await,
        true => {
            let admissions = admit_all(tx, CONSUMER, std::slice::from_ref(message), horizon).await;
            admissions.map(|admissions| admissions[0])
        }
    }
}

#[tokio::test]
async fn a_transaction_that_was_open_across_a_pruning_is_rolled_back_and_admits_no_copy() {
    for isolation in ["repeatable read", "serializable"] {
        for all in [false, true] {
            let service = Service::new("open across a pruning").await;
            let (old, long) = handled_long_ago(&service).await;
            let begin = async || {
                let begin = AssertSqlSafe(format!("begin isolation level {isolation}"));
                let mut tx = service.pool.begin_with(begin).await.unwrap();
                sqlx::raw_sql("select count(*) from effect").execute(&mut *tx).await.unwrap();
                tx
            };
            let mut before = begin().await;
            assert_eq!(prune(&service.pool).await.unwrap().days, 1);
            let stale = admitted(&mut before, &old, long, all).await.unwrap_err();
            assert!(matches!(stale, AdmitError::Serialization(_)), "{isolation}: {stale:?}");
            before.rollback().await.unwrap();
            let mut after = begin().await;
            let refused = admitted(&mut after, &old, long, all).await.unwrap_err();
            assert!(matches!(refused, AdmitError::Refused(Refusal::TooOld)), "{isolation}: {refused:?}");
            assert_eq!(admitted(&mut after, &placed("a", ""), long, all).await.unwrap(), Admission::First);
            after.commit().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_transaction_that_has_read_the_floor_delays_pruning_and_is_not_waited_for() {
    let service = Service::new("floor is read").await;
    handled_long_ago(&service).await;
    let mut open = service.pool.begin_with("begin isolation level repeatable read").await.unwrap();
    admit(&mut open, CONSUMER, &placed("a", "")).await.unwrap();
    let pruned = prune(&service.pool).await.unwrap();
    assert_eq!((pruned.floor_locked, pruned.days), (true, 0));
    open.commit().await.unwrap();
    let pruned = prune(&service.pool).await.unwrap();
    assert_eq!((pruned.floor_locked, pruned.days), (false, 1));
}

#[tokio::test]
async fn an_admission_that_waits_for_a_day_that_is_being_emptied_lets_no_copy_through() {
    for all in [false, true] {
        let service = Service::new("waits for a day").await;
        let (old, long) = handled_long_ago(&service).await;
        let mut connection = service.pool.acquire().await.unwrap();
        // So often that the server keeps a plan for the statement.
        for _ in 0..8 {
            let mut tx = connection.begin().await.unwrap();
            let same_day = placed("a", "").with_id(MessageId::at(old.id.made_at().unwrap()));
            assert_eq!(admitted(&mut tx, &same_day, long, all).await.unwrap(), Admission::First);
            tx.commit().await.unwrap();
        }
        // As pruning does it, had the admission begun just before.
        let mut emptying = service.pool.begin().await.unwrap();
        let slot = "select inbox.slot($1)::text";
        let slot: String =
            sqlx::query_scalar(slot).bind(old.id.as_uuid()).fetch_one(&service.pool).await.unwrap();
        let lock = format!("lock table inbox.message_{slot} in access exclusive mode");
        emptying.execute(AssertSqlSafe(lock)).await.unwrap();
        let admission = async {
            let mut tx = connection.begin().await.unwrap();
            admitted(&mut tx, &old, long, all).await
        };
        let empty = async {
            let waiting = "select count(*) from pg_stat_activity
                where datname = current_database() and wait_event_type = 'Lock'";
            inbox_support::eventually("the admission waits", || async {
                (service.count(waiting).await == 1).then_some(())
            })
            .await;
            let sql = format!(
                "update inbox.retention set floor = now() - interval '8 days'; truncate inbox.message_{slot}"
            );
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *emptying).await.unwrap();
            emptying.commit().await.unwrap();
        };
        let (admission, ()) = tokio::join!(admission, empty);
        assert!(matches!(admission, Err(AdmitError::Refused(Refusal::TooOld))), "{admission:?}");
    }
}

#[tokio::test]
async fn one_id_from_another_source_is_no_repeat_and_is_refused() {
    let service = Service::new("another source").await;
    let from = |id: MessageId, source: Option<&str>| {
        let mut message = placed("a", "").with_id(id);
        message.source = source.map(Into::into);
        message
    };
    let horizon = Horizon::default().with_undated();
    for all in [false, true] {
        for id in [MessageId::new(), MessageId::foreign("/a", if all { "1" } else { "2" })] {
            let mut tx = service.pool.begin().await.unwrap();
            let first = admitted(&mut tx, &from(id, Some("/orders")), horizon, all).await.unwrap();
            assert_eq!(first, Admission::First);
            let refused = admitted(&mut tx, &from(id, Some("/stock")), horizon, all).await.unwrap_err();
            assert!(matches!(refused, AdmitError::Refused(Refusal::AnotherSource)), "{refused:?}");
            // The transaction goes on, and who does not know its source does not differ.
            for source in [Some("/orders"), None] {
                let repeat = admitted(&mut tx, &from(id, source), horizon, all).await.unwrap();
                assert_eq!(repeat, Admission::Repeat);
            }
            tx.commit().await.unwrap();
        }
        let id = MessageId::new();
        let mut tx = service.pool.begin().await.unwrap();
        assert_eq!(admitted(&mut tx, &from(id, None), horizon, all).await.unwrap(), Admission::First);
        let repeat = admitted(&mut tx, &from(id, Some("/stock")), horizon, all).await.unwrap();
        assert_eq!(repeat, Admission::Repeat);
    }
}

#[tokio::test]
async fn a_batch_with_an_id_that_is_known_from_another_source_admits_none() {
    let service = Service::new("batch of two sources").await;
    let from = |message: &Message, source: &str| {
        let mut message = message.clone();
        message.source = Some(source.into());
        message
    };
    let horizon = Horizon::default().with_undated();
    let (known, other) = (placed("a", ""), placed("b", ""));
    let foreign = placed("c", "").with_id(MessageId::foreign("/a", "1"));
    let mut tx = service.pool.begin().await.unwrap();
    admit(&mut tx, CONSUMER, &from(&known, "/orders")).await.unwrap();
    let batch = [from(&other, "/stock"), from(&known, "/stock"), from(&foreign, "/stock")];
    let twice = [from(&other, "/stock"), from(&other, "/orders")];
    for batch in [batch.as_slice(), twice.as_slice()] {
        let refused = admit_all(&mut tx, CONSUMER, batch, horizon).await.unwrap_err();
        assert!(matches!(refused, AdmitError::Refused(Refusal::AnotherSource)), "{refused:?}");
    }
    let admissions = admit_all(&mut tx, CONSUMER, &[other, foreign], horizon).await.unwrap();
    assert_eq!(admissions, [Admission::First; 2]);
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn of_two_sources_that_meet_with_one_id_one_is_handled_and_the_other_refused() {
    let service = Service::new("two sources meet").await;
    for all in [false, true] {
        let mut messages = [placed("a", ""), placed("a", "")];
        messages[1].id = messages[0].id;
        messages[0].source = Some("/orders".into());
        messages[1].source = Some("/stock".into());
        let mut open = service.pool.begin().await.unwrap();
        let first = admitted(&mut open, &messages[0], Horizon::default(), all).await.unwrap();
        assert_eq!(first, Admission::First);
        let second = async {
            let mut tx = service.pool.begin().await.unwrap();
            admitted(&mut tx, &messages[1], Horizon::default(), all).await
        };
        let commit = async {
            let waiting = "select count(*) from pg_stat_activity
                where datname = current_database() and wait_event_type = 'Lock'";
            inbox_support::eventually("the second waits", || async {
                (service.count(waiting).await == 1).then_some(())
            })
            .await;
            open.commit().await.unwrap();
        };
        let (second, ()) = tokio::join!(second, commit);
        assert!(matches!(second, Err(AdmitError::Refused(Refusal::AnotherSource))), "{second:?}");
    }
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

/// The last batch begins where the one before has ended.
#[tokio::test]
async fn pruning_reads_each_page_of_undated_ids_once_and_removes_every_old_row() {
    let service = Service::new("undated pages").await;
    let rows = "insert into inbox.message (message_id, handled_at, slot, consumer)
        select id, now() - interval '1 day' * (n % 40), inbox.slot(id), 'shipping'
        from (select n, gen_random_uuid() as id from generate_series(1, 40000) as n) as row";
    service.pool.execute(rows).await.unwrap();
    let old = "select count(*) from inbox.message where handled_at < now() - interval '9 days'";
    let count = service.count(old).await;
    assert!(count > 30_000);
    assert!(prune(&service.pool).await.unwrap().undated >= count.unsigned_abs());
    assert_eq!(service.count(old).await, 0);
    let sql = include_str!("../../inbox/src/sql/prune_slot.sql").replace("{slot}", "32");
    let sql = format!("explain {}", sql.replace("$1", "now()").replace("$2", "0").replace("$3", "128"));
    let plan: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&service.pool).await.unwrap();
    assert!(plan.iter().any(|line| line.contains("Tid Range Scan")), "{plan:?}");
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
        let sql = sql.replace("{slot}", "31").replace("{day}", "inbox.message_31");
        let sql = sql.replace("{days}", "inbox.message_30, inbox.message_31, inbox.message");
        let mut tx = connection.begin().await.unwrap();
        let prepared = (&mut *tx).prepare(AssertSqlSafe(sql).into_sql_str()).await;
        assert!(prepared.is_ok(), "{path:?}: {:?}", prepared.err());
        statements += 1;
    }
    assert!(statements > 20);
}
