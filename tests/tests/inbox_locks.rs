//! Decisions of people and the locks of the inbox: taken in one order, waited for with an end, and naming no process that lives.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use inbox::HandlerError;
use inbox::admin::{self, DecisionError, ForgetKindError, LowerFloorError};
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, placed, start};
use message::Message;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgTransaction};
use uuid::Uuid;

const WAITING: &str = "select count(*) from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock'";

async fn waiting(service: &Service, count: i64) {
    eventually("they wait for a lock", async || (service.count(WAITING).await == count).then_some(())).await;
}

/// Two messages of each key, parked. Answers the numbers of the holds.
async fn park(service: &Service, keys: &[&str]) -> Vec<i64> {
    let reject = async |_: &mut PgTransaction<'_>, _: &Message| Err(HandlerError::reject("not today"));
    let running = start(service.consumer().on(KIND, reject));
    let twice = |key: &&str| [placed(key, "first"), placed(key, "second")];
    service.publish(&keys.iter().flat_map(twice).collect::<Vec<_>>()).await;
    service.acknowledged().await;
    let mut holds: Vec<i64> = service.parked(keys.len()).await.iter().map(|held| held.hold).collect();
    running.stop().await;
    holds.sort();
    // Nobody handles the kind, so that it can be forgotten.
    service
        .pool
        .execute("update inbox.consumer_kind set last_seen_at = now() - interval '1 day'")
        .await
        .unwrap();
    holds
}

#[derive(Debug, Clone, Copy)]
enum Decision {
    Redrive,
    RedriveAll,
    AdmitLate,
    Skip,
    ForgetKind,
}

const DECISIONS: [Decision; 5] =
    [Decision::Redrive, Decision::RedriveAll, Decision::AdmitLate, Decision::Skip, Decision::ForgetKind];

#[derive(Debug, PartialEq, Eq)]
enum Decided {
    Done,
    Locked,
    Failed,
}

async fn decide(
    connection: &mut PgConnection,
    decision: Decision,
    hold: i64,
    kind: &str,
    who: &str,
) -> Decided {
    let held = "select min(arrival), max(arrival) from inbox.held_message where hold = $1";
    let (first, last): (Option<i64>, Option<i64>) =
        sqlx::query_as(held).bind(hold).fetch_one(&mut *connection).await.unwrap();
    let (first, last) = (first.unwrap_or_default(), last.unwrap_or_default());
    let decided = match decision {
        Decision::Redrive => admin::redrive(connection, CONSUMER, hold, who, None).await.map(drop),
        Decision::RedriveAll => admin::redrive_all(connection, CONSUMER, who, None).await.map(drop),
        Decision::AdmitLate => admin::admit_late(connection, CONSUMER, hold, last, who, None).await.map(drop),
        Decision::Skip => admin::skip(connection, CONSUMER, first, who, "why").await.map(drop),
        Decision::ForgetKind => {
            return match admin::forget_kind(connection, CONSUMER, kind, who, "why").await {
                Ok(_) => Decided::Done,
                Err(ForgetKindError::Locked(_)) => Decided::Locked,
                Err(_) => Decided::Failed,
            };
        }
    };
    match decided {
        Ok(()) => Decided::Done,
        Err(DecisionError::Locked(_)) => Decided::Locked,
        Err(_) => Decided::Failed,
    }
}

#[tokio::test]
async fn after_a_decision_a_key_names_no_process_that_lives_and_one_that_died_stays_named() {
    for (lives, decision) in DECISIONS.iter().flat_map(|decision| [(true, *decision), (false, *decision)]) {
        let service = Service::new("names a process").await;
        let hold = park(&service, &["a"]).await[0];
        // What is behind the first is of another kind, so that something is left when its kind is forgotten.
        let other = "update inbox.held_message set kind = 'order.other' where convert_from(payload, 'UTF8') = 'second'";
        service.pool.execute(other).await.unwrap();
        let process = Uuid::new_v4();
        sqlx::query("insert into inbox.process (id, consumer, expires_at) values ($1, $2, now() + interval '30 seconds' * $3)")
            .bind(process)
            .bind(CONSUMER)
            .bind(if lives { 1.0 } else { -1.0 })
            .execute(&service.pool)
            .await
            .unwrap();
        // As a person meets it whose statement has waited for a try, or for a claim.
        let tried = "update inbox.held_key set tried_by = $1, attempts = 1";
        sqlx::query(tried).bind(process).execute(&service.pool).await.unwrap();
        let mut connection = service.pool.acquire().await.unwrap();
        assert_eq!(decide(&mut connection, decision, hold, KIND, "ada").await, Decided::Done);
        let tried_by: Option<Uuid> =
            sqlx::query_scalar("select tried_by from inbox.held_key").fetch_one(&service.pool).await.unwrap();
        assert_eq!(tried_by, (!lives).then_some(process), "{decision:?}");
    }
}

#[tokio::test]
async fn a_decision_that_meets_a_lock_without_end_says_so_and_changes_nothing() {
    let service = Service::new("decision meets a lock").await;
    let hold = park(&service, &["a"]).await[0];
    let mut person = service.database.connect().await;
    person.execute("set lock_timeout = '50ms'").await.unwrap();
    let mut other = service.pool.begin().await.unwrap();
    other.execute("select from inbox.held_key for update").await.unwrap();
    other.execute("select from inbox.retention for update").await.unwrap();
    for decision in DECISIONS {
        assert_eq!(decide(&mut person, decision, hold, KIND, "ada").await, Decided::Locked, "{decision:?}");
    }
    let discarded = admin::discard(&mut person, CONSUMER, hold, i64::MAX, "ada", "why").await;
    assert!(matches!(discarded, Err(DecisionError::Locked(_))), "{discarded:?}");
    let lowered = admin::lower_floor(&mut person).await;
    assert!(matches!(lowered, Err(LowerFloorError::Locked(_))), "{lowered:?}");
    other.rollback().await.unwrap();
    assert_eq!(service.parked(1).await[0].messages, 2);
    assert_eq!(service.count("select count(*) from inbox.audit").await, 0);
}

#[tokio::test]
async fn no_statement_of_the_inbox_alone_waits_for_a_lock_without_end() {
    let service = Service::new("locks have an end").await;
    let sees = "create table public.seen (setting text);
        create function public.see() returns trigger language plpgsql as $$
        begin insert into public.seen values (tg_table_name || ': ' || current_setting('lock_timeout')); return new; end $$;
        create trigger see before insert on inbox.audit for each row execute function public.see();
        create trigger see before insert on inbox.consumer for each row execute function public.see();
        create trigger see before insert on inbox.process for each row execute function public.see();
        create trigger see before insert on inbox.consumer_kind for each row execute function public.see();
        create trigger see before insert on inbox.held_key for each row execute function public.see()";
    service.pool.execute(sees).await.unwrap();
    let hold = park(&service, &["a"]).await[0];
    let mut connection = service.pool.acquire().await.unwrap();
    for decision in [Decision::Skip, Decision::Redrive, Decision::RedriveAll, Decision::ForgetKind] {
        assert_eq!(decide(&mut connection, decision, hold, KIND, "ada").await, Decided::Done);
    }
    let seen: Vec<String> = sqlx::query_scalar("select distinct setting from public.seen order by setting")
        .fetch_all(&service.pool)
        .await
        .unwrap();
    assert_eq!(
        seen,
        ["audit: 1min", "consumer: 1min", "consumer_kind: 1min", "held_key: 1min", "process: 1min"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_people_who_decide_about_the_same_keys_at_once_do_not_wait_for_each_other() {
    let service = Service::new("two people").await;
    let holds = park(&service, &["a", "b"]).await;
    // The first key comes last in the table.
    let last = sqlx::query("update inbox.held_key set last_error = 'moved' where hold = $1").bind(holds[0]);
    last.execute(&service.pool).await.unwrap();
    let mut lock = service.pool.begin().await.unwrap();
    let first = sqlx::query("select from inbox.held_key where hold = $1 for update").bind(holds[0]);
    first.execute(&mut *lock).await.unwrap();
    let mut ada = service.database.connect().await;
    let mut bob = service.database.connect().await;
    bob.execute("set enable_indexscan = off; set enable_bitmapscan = off").await.unwrap();
    // She waits for the first key. He takes the second meanwhile, unless he takes them in the same order.
    let ada = tokio::spawn(async move { decide(&mut ada, Decision::ForgetKind, 0, KIND, "ada").await });
    waiting(&service, 1).await;
    let bob = tokio::spawn(async move { decide(&mut bob, Decision::RedriveAll, 0, KIND, "bob").await });
    waiting(&service, 2).await;
    lock.rollback().await.unwrap();
    assert_eq!((ada.await.unwrap(), bob.await.unwrap()), (Decided::Done, Decided::Done));
}

async fn register_kinds(connection: &mut PgConnection, kinds: [&str; 2]) -> Result<(), sqlx::Error> {
    let query = sqlx::query(include_str!("../../inbox/src/sql/register_kinds.sql"));
    query.bind(CONSUMER).bind(kinds).execute(connection).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_that_register_their_kinds_at_once_do_not_wait_for_each_other() {
    let service = Service::new("two processes").await;
    sqlx::query("insert into inbox.consumer (name, horizon) values ($1, '7 days')")
        .bind(CONSUMER)
        .execute(&service.pool)
        .await
        .unwrap();
    let mut connection = service.database.connect().await;
    register_kinds(&mut connection, ["a", "b"]).await.unwrap();
    connection
        .execute("update inbox.consumer_kind set last_seen_at = now() - interval '1 day'")
        .await
        .unwrap();
    let mut lock = service.pool.begin().await.unwrap();
    lock.execute("select from inbox.consumer_kind where kind = 'a' for update").await.unwrap();
    let mut one = service.database.connect().await;
    let one = tokio::spawn(async move { register_kinds(&mut one, ["a", "b"]).await });
    waiting(&service, 1).await;
    let other = tokio::spawn(async move { register_kinds(&mut connection, ["b", "a"]).await });
    waiting(&service, 2).await;
    lock.rollback().await.unwrap();
    one.await.unwrap().unwrap();
    other.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_decision_that_fails_leaves_the_callers_transaction_as_it_was() {
    let service = Service::new("decision fails").await;
    let hold = park(&service, &["a"]).await[0];
    let mut connection = service.database.connect().await;
    let mut tx = connection.begin().await.unwrap();
    tx.execute("insert into effect (message, note) values (gen_random_uuid(), 'of the caller')")
        .await
        .unwrap();
    for decision in DECISIONS {
        for (who, kind) in [("", KIND), ("a\0b", KIND), ("ada", "a\0b")] {
            let bad = matches!(decision, Decision::ForgetKind) || kind == KIND;
            if bad {
                assert_eq!(decide(&mut tx, decision, hold, kind, who).await, Decided::Failed, "{decision:?}");
            }
        }
    }
    tx.commit().await.unwrap();
    assert_eq!(service.notes().await, ["of the caller"]);
    assert_eq!(service.count("select count(*) from inbox.audit").await, 0);
    let role = "set role outbox_operator";
    service.pool.execute(sqlx::raw_sql(migrations::roles())).await.unwrap();
    connection.execute(AssertSqlSafe(role)).await.unwrap();
    // Who may decide has the rights for it.
    for decision in
        [Decision::Skip, Decision::Redrive, Decision::RedriveAll, Decision::AdmitLate, Decision::ForgetKind]
    {
        assert_eq!(decide(&mut connection, decision, hold, KIND, "ada").await, Decided::Done, "{decision:?}");
    }
}

#[tokio::test]
async fn a_message_that_is_appended_while_its_key_is_emptied_is_tried_after_the_others() {
    let service = Service::new("appended meanwhile").await;
    let hold = park(&service, &["a"]).await[0];
    let third = placed("a", "third");
    // As the statement of an append does, in a transaction that is slow to commit.
    let mut appending = service.pool.begin().await.unwrap();
    sqlx::query(
        "insert into inbox.held_message (consumer, hold, message_id, topic, kind, key, payload)
         values ($1, $2, $3, 'orders', $4, 'a', 'third')",
    )
    .bind(CONSUMER)
    .bind(hold)
    .bind(third.id.as_uuid())
    .bind(KIND)
    .execute(&mut *appending)
    .await
    .unwrap();
    let running = start(service.consumer().on(KIND, effect));
    let mut connection = service.pool.acquire().await.unwrap();
    admin::redrive_all(&mut connection, CONSUMER, "ada", None).await.unwrap();
    let notes = async |count| (service.notes().await.len() == count).then_some(());
    eventually("what was held is handled, and waits for no append", || notes(2)).await;
    appending.commit().await.unwrap();
    eventually("so is what was appended", || notes(3)).await;
    service.nothing_is_held().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["first", "second", "third"]);
}
