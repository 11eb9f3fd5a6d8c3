//! Two events with one id, from two sources: the second is no copy of the first. Whatever becomes of it, it is parked where a
//! person sees it, alone, so that its key goes on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use inbox::HandlerError;
use inbox::admin::{self, HeldKey};
use inbox_support::{CONSUMER, KIND, Service, effect, placed, start};
use message::Message;
use sqlx::{AssertSqlSafe, Executor, PgTransaction};

const ANOTHER: &str = "id: known already from another source";
/// A kind that the processes of these tests do not handle.
const NEWER: &str = "order.amended";

fn from(source: &str, message: &Message) -> Message {
    let mut message = message.clone();
    message.source = Some(source.into());
    message
}

/// An event of another source with the id of `first`.
fn twin(key: &str, note: &str, first: &Message) -> Message {
    from("/stock", &placed(key, note).with_id(first.id))
}

async fn handle(service: &Service, messages: &[Message]) {
    let running = start(service.consumer().on(KIND, effect));
    service.publish(messages).await;
    service.acknowledged().await;
    running.stop().await;
}

/// The one message that is parked: alone, and as one of another source.
fn is_alone(parked: &[HeldKey]) {
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert_eq!((parked[0].key.as_deref(), parked[0].messages), (None, 1), "{parked:?}");
    assert!(parked[0].last_error.starts_with(ANOTHER), "{parked:?}");
}

/// A database that takes no header `card`, and none of the sources that are told.
async fn rules(service: &Service, refused_source: &str) {
    let sql = format!(
        "alter table inbox.held_message add constraint no_card check (headers is null or not headers ? 'card');
        alter table inbox.held_message add constraint no_source check (source is null or source <> '{refused_source}')"
    );
    service.pool.execute(AssertSqlSafe(sql)).await.unwrap();
}

#[tokio::test]
async fn one_that_the_inbox_cannot_store_is_parked_alone_and_not_taken_for_a_repeat() {
    for refused_source in ["", "/stock"] {
        let service = Service::new("unstorable twin").await;
        rules(&service, refused_source).await;
        let first = from("/orders", &placed("a", "first"));
        let second = twin("a", "second", &first).with_header("card", "4111");
        handle(&service, &[first.clone(), second.clone(), placed("a", "third")]).await;
        is_alone(&service.parked(1).await);
        assert_eq!(service.held().await[0].first_id, Some(first.id));
        assert_eq!(service.notes().await, ["first", "third"]);
        // Another copy of it is one.
        handle(&service, &[second]).await;
        is_alone(&service.parked(1).await);
    }
}

#[tokio::test]
async fn one_that_is_kept_in_plain_form_takes_nothing_from_one_of_another_source() {
    let service = Service::new("plain twin").await;
    rules(&service, "").await;
    let first = from("/orders", &placed("a", "first").with_header("card", "4111"));
    let reject = async |_: &mut PgTransaction<'_>, _: &Message| Err(HandlerError::reject("not today"));
    let running = start(service.consumer().on(KIND, reject));
    service.publish(std::slice::from_ref(&first)).await;
    service.acknowledged().await;
    service.publish(&[twin("b", "second", &first)]).await;
    service.acknowledged().await;
    let parked = service.parked(2).await;
    running.stop().await;
    let of_first = parked.iter().find(|held| held.key.as_deref() == Some("a")).unwrap();
    let of_second: Vec<HeldKey> = parked.iter().filter(|held| held.hold != of_first.hold).cloned().collect();
    is_alone(&of_second);
    // The id belongs to the first, also when it is given up.
    let mut connection = service.pool.acquire().await.unwrap();
    let message = of_first.first.unwrap();
    admin::skip(&mut connection, CONSUMER, message, "ada", "no such card").await.unwrap().unwrap();
    let known = "select count(*) from inbox.message where source_hash = inbox.source_hash('/orders')";
    assert_eq!(service.count(known).await, 1);
}

#[tokio::test]
async fn one_of_a_kind_that_another_process_handles_is_parked_alone() {
    let service = Service::new("unhandled twin").await;
    let first = from("/orders", &placed("a", "first"));
    handle(&service, std::slice::from_ref(&first)).await;
    let register = "insert into inbox.consumer_kind (consumer, kind) values ($1, $2)";
    sqlx::query(register).bind(CONSUMER).bind(NEWER).execute(&service.pool).await.unwrap();
    let mut second = twin("a", "second", &first);
    second.kind = NEWER.into();
    handle(&service, &[second, placed("a", "third")]).await;
    is_alone(&service.held().await);
    assert_eq!(service.notes().await, ["first", "third"]);
}

#[tokio::test]
async fn one_in_quarantine_is_parked_alone() {
    let service = Service::new("quarantined twin").await;
    let first = from("/orders", &placed("a", "first"));
    handle(&service, std::slice::from_ref(&first)).await;
    quarantine(&service, &first).await;
    handle(&service, &[twin("a", "second", &first), placed("a", "third")]).await;
    is_alone(&service.held().await);
    assert_eq!(service.notes().await, ["first", "third"]);
}

async fn quarantine(service: &Service, message: &Message) {
    let quarantine = "insert into inbox.quarantine (consumer, message_id) values ($1, $2)";
    let quarantine = sqlx::query(quarantine).bind(CONSUMER).bind(message.id.as_uuid());
    quarantine.execute(&service.pool).await.unwrap();
}

#[tokio::test]
async fn one_that_was_held_when_the_other_was_handled_is_parked_alone_when_it_is_tried() {
    let service = Service::new("held twin").await;
    let first = from("/orders", &placed("a", "first"));
    let second = twin("a", "second", &first);
    let reject = async |_: &mut PgTransaction<'_>, _: &Message| Err(HandlerError::reject("not today"));
    let running = start(service.consumer().on(KIND, reject));
    service.publish(&[second, placed("a", "third")]).await;
    service.acknowledged().await;
    service.parked(1).await;
    running.stop().await;
    // As a process leaves it behind that had admitted the first before the second was held, and committed after it.
    let handled = "insert into inbox.message (message_id, source_hash, slot, consumer)
        values ($1, inbox.source_hash('/orders'), inbox.slot($1), $2)";
    sqlx::query(handled).bind(first.id.as_uuid()).bind(CONSUMER).execute(&service.pool).await.unwrap();
    quarantine(&service, &first).await;
    let mut connection = service.pool.acquire().await.unwrap();
    admin::redrive_all(&mut connection, CONSUMER, "ada", None).await.unwrap();
    let running = start(service.consumer().on(KIND, effect));
    inbox_support::eventually("its key goes on", async || (service.notes().await == ["third"]).then_some(()))
        .await;
    is_alone(&service.parked(1).await);
    running.stop().await;
    assert_eq!(service.count("select count(*) from inbox.quarantine").await, 0);
}

#[tokio::test]
async fn what_is_given_up_with_its_kind_keeps_its_source() {
    let service = Service::new("forgotten twin").await;
    let mut first = from("/orders", &placed("a", "first"));
    first.kind = NEWER.into();
    handle(&service, &[]).await;
    let register = "insert into inbox.consumer_kind (consumer, kind, last_seen_at)
        values ($1, $2, now() - interval '8 days')";
    sqlx::query(register).bind(CONSUMER).bind(NEWER).execute(&service.pool).await.unwrap();
    handle(&service, std::slice::from_ref(&first)).await;
    assert_eq!(service.held().await.len(), 1);
    let mut connection = service.pool.acquire().await.unwrap();
    let forgotten = admin::forget_kind(&mut connection, CONSUMER, NEWER, "ada", "no more").await.unwrap();
    assert_eq!((forgotten.messages, forgotten.keys), (1, 1));
    // A copy counts as handled; another event with its id is not lost as one.
    let mut copy = first.clone();
    copy.kind = KIND.into();
    handle(&service, &[copy, twin("a", "second", &first)]).await;
    is_alone(&service.parked(1).await);
    assert!(service.notes().await.is_empty());
}
