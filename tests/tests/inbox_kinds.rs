//! Which kinds a consumer handles while its processes are of different builds: what one of them handles is kept for it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod inbox_support;

use std::collections::BTreeSet;
use std::time::Duration;

use inbox::admin::{self, ForgetKindError, HeldState};
use inbox::{Consumer, HandlerError};
use inbox_support::{CONSUMER, KIND, Running, Service, effect, eventually, placed, start};
use message::Message;
use sqlx::Row;

/// A kind that only a newer build handles.
const NEW: &str = "order.amended";

fn amended(key: &str, note: &str) -> Message {
    Message::new("orders", NEW, note.to_owned()).with_key(key)
}

fn newer(service: &Service) -> Consumer {
    service.consumer().on(KIND, effect).on(NEW, effect)
}

/// Starts an older build after a newer one has run here.
async fn older_after_newer(service: &Service) -> Running {
    let consumer = newer(service);
    let mut ready = consumer.ready();
    let running = start(consumer);
    assert!(ready.wait().await && ready.is_ready());
    running.stop().await;
    assert!(!ready.is_ready());
    start(service.consumer().on(KIND, effect))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_process_keeps_a_new_kind_for_one_that_handles_it() {
    let service = Service::new("kept kind").await;
    let older = older_after_newer(&service).await;
    service
        .publish(&[
            amended("a", "a1"),
            placed("a", "a2"),
            amended("a", "a3"),
            placed("b", "b1"),
            amended("b", "b2"),
        ])
        .await;
    service.acknowledged().await;
    eventually("what it handles is handled", || async { (service.notes().await == ["b1"]).then_some(()) })
        .await;
    let held = service.held().await;
    let of_key = |key: &str| held.iter().find(|held| held.key.as_deref() == Some(key)).unwrap();
    assert_eq!((of_key("a").messages, of_key("a").attempts, of_key("a").state), (3, 0, HeldState::Retrying));
    assert_eq!((of_key("b").messages, of_key("b").attempts), (1, 0));

    // The older one goes on trying what it handles, and so both are needed and neither passes the other.
    let newer = start(newer(&service));
    service.nothing_is_held().await;
    older.stop().await;
    newer.stop().await;
    let notes = service.notes().await;
    let in_order = |key: char| notes.iter().filter(move |note| note.starts_with(key)).cloned();
    assert_eq!(in_order('a').collect::<Vec<_>>(), ["a1", "a2", "a3"]);
    assert_eq!(in_order('b').collect::<Vec<_>>(), ["b1", "b2"]);
    assert_eq!(service.count("select count(*) from inbox.message where attempts > 1").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_ready_has_its_kinds_known_to_every_other() {
    let service = Service::new("ready").await;
    let older = start(service.consumer().on(KIND, effect));
    // It learns that none handles it, and believes so for a while.
    service.publish(&[amended("a", "too early")]).await;
    service.acknowledged().await;
    let consumer = newer(&service);
    let mut ready = consumer.ready();
    assert!(!ready.is_ready());
    let running = start(consumer);
    assert!(ready.wait().await);
    running.stop().await;
    service.publish(&[amended("a", "in time")]).await;
    service.acknowledged().await;
    assert_eq!(service.held().await.len(), 1);
    older.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_that_none_handles_cost_no_statement_each() {
    let service = Service::new("unhandled kinds").await;
    let running = start(service.consumer().on(KIND, effect));
    let messages: Vec<Message> = (0..600)
        .map(|n| {
            Message::new("orders", format!("order.dreamt.{}", n % 150), "").with_key(format!("{}", n % 50))
        })
        .collect();
    service.publish(&messages).await;
    service.acknowledged().await;
    running.stop().await;
    // A backend reports its scans when it ends.
    service.pool.close().await;
    let mut connection = service.database.connect().await;
    eventually("the backends have ended", || async {
        let others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
        let others: i64 = sqlx::query_scalar(others).fetch_one(service.database.pool()).await.unwrap();
        (others <= 1).then_some(())
    })
    .await;
    let scans = sqlx::query(
        "select seq_scan + coalesce(idx_scan, 0) as scans from pg_stat_user_tables
        where schemaname = 'inbox' and relname = 'consumer_kind'",
    );
    let scans: i64 = scans.fetch_one(&mut connection).await.unwrap().get("scans");
    assert!(scans < 60, "{scans} scans for 600 messages");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_kind_frees_the_keys_that_it_held() {
    let service = Service::new("forgotten kind").await;
    let older = older_after_newer(&service).await;
    let failing = placed("c", "c1");
    service.publish(&[amended("a", "a1"), placed("a", "a2"), amended("b", "b1")]).await;
    service.acknowledged().await;
    older.stop().await;
    let rejects = async |_: &mut sqlx::PgTransaction<'_>, _: &Message| Err(HandlerError::reject("not today"));
    let older = start(service.consumer().on(KIND, rejects));
    service.publish(&[failing, amended("c", "c2"), placed("c", "c3")]).await;
    service.acknowledged().await;
    older.stop().await;

    let mut connection = service.pool.acquire().await.unwrap();
    let recent = admin::forget_kind(&mut connection, CONSUMER, NEW, "ada", "no more").await;
    assert!(matches!(recent, Err(ForgetKindError::Handled)), "{recent:?}");
    assert_eq!(service.held().await.len(), 3);
    sqlx::query("update inbox.consumer_kind set last_seen_at = now() - interval '8 days' where kind = $1")
        .bind(NEW)
        .execute(&service.pool)
        .await
        .unwrap();
    let week = Duration::from_secs(7 * 86_400);
    let kinds = admin::kinds(&mut connection, Some(CONSUMER)).await.unwrap();
    let unhandled: Vec<_> = kinds.iter().filter(|kind| kind.is_unhandled(week)).collect();
    assert_eq!(unhandled.iter().map(|kind| (&*kind.kind, kind.messages)).collect::<Vec<_>>(), [(NEW, 3)]);

    let forgotten = admin::forget_kind(&mut connection, CONSUMER, NEW, "ada", "no more").await.unwrap();
    assert_eq!((forgotten.registered, forgotten.messages, forgotten.keys), (true, 3, 1));
    let audit = admin::audit(&mut connection, Some(CONSUMER), 100).await.unwrap();
    assert!(audit.iter().all(|entry| entry.action == "forget_kind" && entry.kind.as_deref() == Some(NEW)));
    assert_eq!(audit.iter().map(|entry| entry.hold).collect::<BTreeSet<_>>().len(), 4, "{audit:?}");

    // The key goes on; one that is parked for another reason stays parked, and what is behind it.
    let older = start(service.consumer().on(KIND, effect));
    eventually("a2 is handled", || async { (service.notes().await == ["a2"]).then_some(()) }).await;
    let held = service.parked(1).await;
    assert_eq!(
        held.iter().map(|held| (held.key.as_deref(), held.messages)).collect::<Vec<_>>(),
        [(Some("c"), 2)]
    );
    // And now it is as if none had ever handled it.
    service.publish(&[amended("a", "a4"), placed("a", "a5")]).await;
    service.acknowledged().await;
    older.stop().await;
    assert_eq!(service.notes().await, ["a2", "a5"]);
    assert_eq!(service.held().await.len(), 1);
}

#[tokio::test]
async fn what_is_kept_for_another_process_is_refused_by_the_same_rules() {
    let service = Service::new("kept refused").await;
    let older = older_after_newer(&service).await;
    // No consumer of this name takes ids without a date.
    let undated = amended("a", "a1").with_id(message::MessageId::foreign("/shop", "1"));
    service.publish(&[undated]).await;
    service.acknowledged().await;
    older.stop().await;
    let held = service.held().await;
    assert_eq!(held.iter().map(|held| held.state).collect::<Vec<_>>(), [HeldState::Parked]);
}
