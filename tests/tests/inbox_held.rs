//! What is held back: in order, alone, until it succeeds or a person decides.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use chrono::{TimeDelta, Utc};
use inbox::HandlerError;
use inbox::admin::{self, HeldState};
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, note, placed, start};
use message::{Message, MessageId};
use sqlx::PgTransaction;

/// Fails notes that begin with `bad`, unless told otherwise, and every note's first `flaky` tries.
#[derive(Clone, Default)]
struct Fragile {
    good: Arc<AtomicBool>,
    flaky: usize,
    tries: Arc<Mutex<HashMap<String, usize>>>,
}

#[async_trait::async_trait]
impl inbox::Handler for Fragile {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        effect(tx, message).await?;
        let tried = {
            let mut tries = self.tries.lock().unwrap();
            let tried = tries.entry(note(message)).or_default();
            *tried += 1;
            *tried
        };
        if tried <= self.flaky || (note(message).starts_with("bad") && !self.good.load(Ordering::SeqCst)) {
            return Err(HandlerError::retry("not today"));
        }
        Ok(())
    }
}

async fn notes_of(service: &Service, key: &str) -> Vec<String> {
    sqlx::query_scalar("select note from effect where note like $1 order by number")
        .bind(format!("%{key}-%"))
        .fetch_all(&service.pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_consumers_keep_each_key_in_order_through_retries_while_more_arrives() {
    let service = Service::new("order through retries").await;
    let fragile = Fragile { flaky: 2, ..Fragile::default() };
    let running = [
        start(service.consumer().on(KIND, fragile.clone())),
        start(service.consumer().on(KIND, fragile.clone())),
    ];
    for number in 0..25 {
        let messages: Vec<Message> =
            ["a", "b", "c"].iter().map(|key| placed(key, &format!("{key}-{number:02}"))).collect();
        service.publish(&messages).await;
        // New ones meet the key in every state: free, held, due, drained and just being released.
        let wanted = number;
        eventually("some arrive while others are held", || async {
            (notes_of(&service, "a").await.len() + 3 > wanted).then_some(())
        })
        .await;
    }
    service.acknowledged().await;
    service.nothing_is_held().await;
    for running in running {
        running.stop().await;
    }
    for key in ["a", "b", "c"] {
        let expected: Vec<String> = (0..25).map(|number| format!("{key}-{number:02}")).collect();
        assert_eq!(notes_of(&service, key).await, expected);
    }
    assert_eq!(service.count("select min(attempts)::bigint from inbox.message").await, 3);
    assert_eq!(service.count("select max(attempts)::bigint from inbox.message").await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_key_delays_no_other_and_is_redriven_in_order() {
    let service = Service::new("poisoned key").await;
    let fragile = Fragile::default();
    let mut messages = vec![placed("poison", "bad-0"), placed("", "bad-alone")];
    for number in 1..50 {
        messages.push(placed("poison", &format!("poison-{number:02}")));
        messages.push(placed(&format!("other-{number}"), &format!("other-{number:02}")));
    }
    service.publish(&messages).await;
    let running = start(service.consumer().with_max_attempts(2).on(KIND, fragile.clone()));
    service.acknowledged().await;
    let parked = service.parked(2).await;
    assert_eq!(notes_of(&service, "other").await.len(), 49);
    assert!(notes_of(&service, "poison").await.is_empty());
    let key = parked.iter().find(|held| held.key.as_deref() == Some("poison")).unwrap();
    assert_eq!((key.messages, key.attempts, key.first_id), (50, 2, Some(messages[0].id)));
    assert_eq!(key.first_kind.as_deref(), Some(KIND));
    assert_eq!(parked.iter().find(|held| held.key.is_none()).unwrap().messages, 1);

    // Copies of what is held, and of what is handled, change nothing.
    service.publish(&messages).await;
    service.acknowledged().await;
    assert_eq!(service.held().await.iter().map(|held| held.messages).sum::<i64>(), 51);

    fragile.good.store(true, Ordering::SeqCst);
    let mut connection = service.pool.acquire().await.unwrap();
    assert_eq!(admin::redrive_all(&mut connection, CONSUMER, "ada", None).await.unwrap(), 2);
    service.nothing_is_held().await;
    running.stop().await;
    let expected: Vec<String> = (1..50).map(|number| format!("poison-{number:02}")).collect();
    assert_eq!(notes_of(&service, "poison").await, expected);
    assert_eq!(service.count("select count(*) from effect").await, 100);
    assert_eq!(service.count("select count(distinct message) from effect").await, 100);
}

#[tokio::test]
async fn a_skipped_message_frees_those_behind_it_and_its_copy_is_a_repeat() {
    let service = Service::new("skip").await;
    let messages = [placed("a", "bad-1"), placed("a", "a-2"), placed("b", "bad-3"), placed("b", "b-4")];
    service.publish(&messages).await;
    let fragile = Fragile::default();
    let running = start(service.consumer().with_max_attempts(1).on(KIND, fragile.clone()));
    service.acknowledged().await;
    let parked = service.parked(2).await;
    let mut connection = service.pool.acquire().await.unwrap();
    let of = |key: &str| parked.iter().find(|held| held.key.as_deref() == Some(key)).unwrap();
    let first = of("a").first.unwrap();
    let skipped = admin::skip(&mut connection, CONSUMER, first, "ada", "lost").await.unwrap().unwrap();
    assert_eq!(skipped.received.unwrap(), messages[0]);
    let last = of("b").last.unwrap();
    let discarded =
        admin::discard(&mut connection, CONSUMER, of("b").hold, last, "ada", "lost").await.unwrap();
    let discarded: Vec<Message> = discarded.into_iter().map(|held| held.received.unwrap()).collect();
    assert_eq!(discarded, messages[2..]);
    let first = of("b").first.unwrap();
    assert!(admin::skip(&mut connection, CONSUMER, first, "ada", "lost").await.unwrap().is_none());
    service.nothing_is_held().await;
    fragile.good.store(true, Ordering::SeqCst);
    service.publish(&messages).await;
    service.publish(&[placed("b", "b-5")]).await;
    service.acknowledged().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["a-2", "b-5"]);
}

#[tokio::test]
async fn what_cannot_be_understood_or_told_from_a_copy_is_parked_as_it_came() {
    let service = Service::new("malformed").await;
    service.broker.put_foreign(
        "orders",
        &[("ce-specversion", "1.0"), ("ce-type", KIND)],
        "no identity \u{0}",
    );
    service.broker.put_foreign("orders", &[], "not an event");
    let mut connection = service.pool.acquire().await.unwrap();
    // The memory broker has no wire form that would have refused it.
    service.publish(&[placed("k\0ey", "nul"), placed("a", "good")]).await;
    let running = start(service.consumer().on(KIND, effect));
    service.acknowledged().await;
    let parked = service.parked(3).await;
    assert_eq!(service.notes().await, ["good"]);
    let mut payloads = Vec::new();
    for held in &parked {
        assert_eq!((held.key.as_ref(), held.first_id, held.attempts), (None, None, 0));
        assert!(!held.last_error.is_empty());
        let messages = admin::held_messages(&mut connection, CONSUMER, held.hold, 10).await.unwrap();
        let unreadable = messages[0].received.clone().unwrap_err();
        assert_eq!(unreadable.destination, "orders");
        payloads.push(String::from_utf8(unreadable.payload).unwrap());
    }
    payloads.sort();
    assert_eq!(payloads, ["no identity \u{0}", "not an event", "nul"]);
    // Redriven, it is still no message.
    admin::redrive(&mut connection, CONSUMER, parked[0].hold, "ada", None).await.unwrap();
    service.parked(3).await;
    running.stop().await;
    assert_eq!(service.notes().await, ["good"]);
}

#[tokio::test]
async fn a_copy_past_the_horizon_is_parked_and_admitted_only_by_a_person() {
    let service = Service::new("past the horizon").await;
    let late = placed("a", "late").with_id(MessageId::at(Utc::now() - TimeDelta::days(8)));
    service.publish(&[late, placed("a", "on time")]).await;
    let running = start(service.consumer().on(KIND, effect));
    service.acknowledged().await;
    let parked = service.parked(1).await;
    // Its key does not wait for a person: it is nearly always a repeat.
    assert_eq!(service.notes().await, ["on time"]);
    assert_eq!((parked[0].key.as_ref(), parked[0].attempts), (None, 0));
    let mut connection = service.pool.acquire().await.unwrap();
    sqlx::raw_sql("update inbox.retention set floor = now() - interval '8 days' + interval '1 hour'")
        .execute(&mut *connection)
        .await
        .unwrap();
    admin::redrive(&mut connection, CONSUMER, parked[0].hold, "ada", None).await.unwrap();
    assert_eq!(service.parked(1).await[0].last_error, "id: made before the horizon");
    let last = parked[0].last.unwrap();
    assert!(
        admin::admit_late(&mut connection, CONSUMER, parked[0].hold, last, "ada", Some("never handled"))
            .await
            .unwrap()
    );
    service.nothing_is_held().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["on time", "late"]);
}

#[tokio::test]
async fn an_id_ahead_or_undated_holds_its_key_unless_undated_ones_are_wanted() {
    let service = Service::new("ahead or undated").await;
    let ahead = placed("a", "ahead").with_id(MessageId::at(Utc::now() + TimeDelta::hours(2)));
    let foreign = placed("b", "foreign").with_id(MessageId::foreign("/elsewhere", "1"));
    service.publish(&[ahead, placed("a", "behind"), foreign.clone()]).await;
    let running = start(service.consumer().on(KIND, effect));
    service.acknowledged().await;
    let parked = service.parked(2).await;
    running.stop().await;
    assert!(service.notes().await.is_empty());
    let of = |key: &str| parked.iter().find(|held| held.key.as_deref() == Some(key)).unwrap();
    assert_eq!((of("a").last_error.as_str(), of("a").messages), ("id: made more than an hour from now", 2));
    assert_eq!((of("b").last_error.as_str(), of("b").messages), ("id: not a UUIDv7, so without a date", 1));

    service.publish(&[foreign.with_key("c").with_id(MessageId::foreign("/elsewhere", "2"))]).await;
    let running = start(service.consumer().with_undated().on(KIND, effect));
    service.acknowledged().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["foreign"]);
}

#[tokio::test]
async fn a_process_that_dies_in_every_try_parks_its_message_in_the_end() {
    let service = Service::new("dies in every try").await;
    service.publish(&[placed("a", "bad-1"), placed("a", "a-2")]).await;
    let fragile = Fragile::default();
    let running = start(service.consumer().with_max_attempts(1).on(KIND, fragile.clone()));
    service.acknowledged().await;
    service.parked(1).await;
    running.stop().await;
    // As the last of three lone tries leaves it behind, its process killed.
    sqlx::raw_sql(
        "update inbox.held_key
            set state = 'retrying', attempts = 3, next_attempt_at = now(), tried_by = gen_random_uuid();
        insert into inbox.quarantine (consumer, message_id)
            select consumer, message_id from inbox.held_message order by arrival limit 1",
    )
    .execute(&service.pool)
    .await
    .unwrap();
    fragile.good.store(true, Ordering::SeqCst);
    let running = start(service.consumer().with_max_attempts(3).on(KIND, fragile));
    let parked = service.parked(1).await;
    running.stop().await;
    assert!(parked[0].last_error.starts_with("attempts used up"), "{}", parked[0].last_error);
    // The fourth was not made, and is not counted.
    assert_eq!(parked[0].attempts, 3);
    assert!(service.notes().await.is_empty());
    // It is known to kill: a person's redrive has it tried alone, too.
    assert_eq!(service.count("select count(*) from inbox.quarantine").await, 1);
}

#[tokio::test]
async fn a_build_without_the_handler_leaves_a_held_message_to_one_that_has_it() {
    let service = Service::new("older build").await;
    let fragile = Fragile::default();
    service.publish(&[placed("a", "bad-1")]).await;
    let running = start(service.consumer().with_max_attempts(1).on(KIND, fragile.clone()));
    service.parked(1).await;
    running.stop().await;
    let mut connection = service.pool.acquire().await.unwrap();
    admin::redrive_all(&mut connection, CONSUMER, "ada", None).await.unwrap();
    let older = start(service.consumer().on("order.other", effect));
    service.publish(&[Message::new("orders", "order.other", "other")]).await;
    eventually("the older build is at work", || async { (service.notes().await == ["other"]).then_some(()) })
        .await;
    fragile.good.store(true, Ordering::SeqCst);
    let newer = start(service.consumer().on(KIND, fragile));
    service.nothing_is_held().await;
    older.stop().await;
    newer.stop().await;
    assert_eq!(service.notes().await, ["other", "bad-1"]);
}

#[tokio::test]
async fn status_tells_each_consumer_and_what_it_holds() {
    let service = Service::new("status").await;
    service.publish(&[placed("a", "bad-1"), placed("a", "2"), placed("b", "3")]).await;
    let running = start(service.consumer().with_max_attempts(1).on(KIND, Fragile::default()));
    service.acknowledged().await;
    service.parked(1).await;
    running.stop().await;
    let mut connection = service.pool.acquire().await.unwrap();
    let status = admin::status(&mut connection).await.unwrap();
    assert_eq!(status.len(), 1);
    assert_eq!((status[0].consumer.as_str(), status[0].parked, status[0].retrying), (CONSUMER, 1, 0));
    assert_eq!(status[0].messages, 2);
    assert!(status[0].started_at.is_some() && status[0].oldest_held_at.is_some());
    let held = service.held().await;
    assert!(admin::redrive(&mut connection, CONSUMER, held[0].hold, "ada", None).await.unwrap());
    assert_eq!(service.held().await[0].state, HeldState::Retrying);
    assert!(!admin::redrive(&mut connection, "another", held[0].hold, "ada", None).await.unwrap());
}

async fn prune_and_count(service: &Service, sql: &'static str) -> i64 {
    inbox::prune(&service.pool).await.unwrap();
    service.count(sql).await
}

#[tokio::test]
async fn what_was_not_looked_at_is_neither_skipped_nor_discarded_nor_admitted_late() {
    let service = Service::new("looked at").await;
    let messages = [placed("a", "bad-1"), placed("a", "bad-2"), placed("a", "bad-3"), placed("a", "bad-4")];
    service.publish(&messages[..3]).await;
    let running = start(service.consumer().with_max_attempts(1).on(KIND, Fragile::default()));
    service.acknowledged().await;
    let seen = service.parked(1).await.remove(0);
    let (first, last) = (seen.first.unwrap(), seen.last.unwrap());
    let mut connection = service.pool.acquire().await.unwrap();
    // Another person gives up the first one meanwhile, and another message comes.
    assert!(admin::skip(&mut connection, CONSUMER, first, "bob", "lost").await.unwrap().is_some());
    service.publish(&messages[3..]).await;
    service.acknowledged().await;
    until_parked_with(&service, 3).await;
    assert!(admin::skip(&mut connection, CONSUMER, first, "ada", "lost").await.unwrap().is_none());
    // A message that is not the first of its key is not skipped either.
    assert!(admin::skip(&mut connection, CONSUMER, last, "ada", "lost").await.unwrap().is_none());
    assert_eq!(until_parked_with(&service, 3).await.first_id, Some(messages[1].id));

    assert!(admin::admit_late(&mut connection, CONSUMER, seen.hold, last, "ada", None).await.unwrap());
    let late = "select count(*) from inbox.held_message where late";
    assert_eq!(service.count(late).await, 2);
    until_parked_with(&service, 3).await;
    let discarded = admin::discard(&mut connection, CONSUMER, seen.hold, last, "ada", "lost").await.unwrap();
    let discarded: Vec<Message> = discarded.into_iter().map(|held| held.received.unwrap()).collect();
    assert_eq!(discarded, messages[1..3]);
    assert_eq!(until_parked_with(&service, 1).await.first_id, Some(messages[3].id));
    running.stop().await;
}

/// The one key that is parked, once it holds so many messages.
async fn until_parked_with(service: &Service, messages: i64) -> admin::HeldKey {
    let parked = async {
        loop {
            let held = service.parked(1).await.remove(0);
            if held.messages == messages {
                return held;
            }
            tokio::task::yield_now().await;
        }
    };
    let parked = tokio::time::timeout(std::time::Duration::from_secs(30), parked).await;
    parked.unwrap_or_else(|_| panic!("no key holds {messages} messages"))
}

#[tokio::test]
async fn an_id_ahead_is_not_admitted_by_a_person_either_before_its_time() {
    let service = Service::new("ahead and redriven").await;
    let ahead = placed("a", "ahead").with_id(MessageId::at(Utc::now() + TimeDelta::days(3)));
    service.publish(&[ahead]).await;
    let running = start(service.consumer().on(KIND, effect));
    service.acknowledged().await;
    let hold = service.parked(1).await[0].hold;
    let mut connection = service.pool.acquire().await.unwrap();
    for late in [false, true] {
        let asked = match late {
            false => admin::redrive(&mut connection, CONSUMER, hold, "ada", None).await,
            true => admin::admit_late(&mut connection, CONSUMER, hold, i64::MAX, "ada", None).await,
        };
        assert!(asked.unwrap());
        let parked = service.parked(1).await;
        assert_eq!(parked[0].last_error, "id: made more than an hour from now");
    }
    running.stop().await;
    assert!(service.notes().await.is_empty());
    assert_eq!(service.count("select count(*) from inbox.message").await, 0);
}

#[tokio::test]
async fn what_is_skipped_ahead_of_its_time_is_remembered_until_its_day_has_passed() {
    let service = Service::new("ahead and skipped").await;
    let days = [3, 40, 3_650];
    let ahead: Vec<Message> = days
        .iter()
        .map(|days| placed("", "ahead").with_id(MessageId::at(Utc::now() + TimeDelta::days(*days))))
        .collect();
    service.publish(&ahead).await;
    let running = start(service.consumer().on(KIND, effect));
    service.acknowledged().await;
    let mut connection = service.pool.acquire().await.unwrap();
    for held in service.parked(days.len()).await {
        let first = held.first.unwrap();
        admin::skip(&mut connection, CONSUMER, first, "ada", "a wrong clock").await.unwrap().unwrap();
    }
    // In the partition of one of them there are rows of a month before, which go.
    let old = MessageId::at(Utc::now() - TimeDelta::days(29));
    sqlx::query(
        "insert into inbox.message (message_id, slot, consumer) values ($1, inbox.slot($1), 'another')",
    )
    .bind(old.as_uuid())
    .execute(&service.pool)
    .await
    .unwrap();
    let rows = "select count(*) from inbox.message where consumer = 'shipping'";
    assert_eq!(prune_and_count(&service, rows).await, 3);
    assert_eq!(service.count("select count(*) from inbox.message").await, 3);
    let emptied = "select count(*) from inbox.emptied_day where day = (now() - interval '29 days')::date";
    assert_eq!(service.count(emptied).await, 1);
    // Their copies are repeats, now and when their day has come.
    service.publish(&ahead).await;
    service.acknowledged().await;
    assert!(service.held().await.is_empty());
    running.stop().await;
    assert!(service.notes().await.is_empty());
    for (floor, left) in [
        ("update inbox.retention set floor = now() + interval '2 days'", 3),
        ("update inbox.retention set floor = now() + interval '4 days'", 2),
        ("update inbox.retention set floor = now() + interval '41 days'", 1),
        ("update inbox.retention set floor = now() + interval '3651 days'", 0),
    ] {
        sqlx::raw_sql(floor).execute(&service.pool).await.unwrap();
        assert_eq!(prune_and_count(&service, rows).await, left, "{floor}");
    }
}

fn from(source: &str, message: &Message) -> Message {
    let mut message = message.clone();
    message.source = Some(source.into());
    message
}

const ANOTHER: &str = "id: known already from another source";

#[tokio::test]
async fn an_event_with_a_known_id_from_another_source_is_parked_alone_and_can_only_be_skipped() {
    let service = Service::new("another source").await;
    let first = placed("a", "first");
    let second = from("/stock", &placed("a", "second").with_id(first.id));
    service.publish(&[from("/orders", &first)]).await;
    let running = start(service.consumer().on(KIND, effect));
    service.acknowledged().await;
    let third = from("/stock", &placed("a", "third"));
    service.publish(&[second.clone(), third, from("/orders", &first), second.clone()]).await;
    service.acknowledged().await;
    let parked = service.parked(1).await;
    assert_eq!(parked.len(), 1);
    assert_eq!((parked[0].last_error.as_str(), parked[0].key.as_ref()), (ANOTHER, None));
    let mut connection = service.pool.acquire().await.unwrap();
    let held = admin::held_messages(&mut connection, CONSUMER, parked[0].hold, 10).await.unwrap();
    assert_eq!((held.len(), held[0].received.as_ref().unwrap()), (1, &second));
    admin::redrive(&mut connection, CONSUMER, parked[0].hold, "ada", None).await.unwrap();
    assert_eq!(service.parked(1).await[0].last_error, ANOTHER);
    let first = parked[0].first.unwrap();
    admin::skip(&mut connection, CONSUMER, first, "ada", "published anew").await.unwrap().unwrap();
    service.nothing_is_held().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["first", "third"]);
}

#[tokio::test]
async fn an_event_with_the_id_of_a_held_one_from_another_source_is_parked_beside_it_and_takes_nothing_from_it()
 {
    for key_of_second in ["a", "b"] {
        let service = Service::new("another source held").await;
        let fragile = Fragile::default();
        let first = placed("a", "bad-first");
        let second = from("/stock", &placed(key_of_second, "second").with_id(first.id));
        service.publish(&[from("/orders", &first)]).await;
        let running = start(service.consumer().with_max_attempts(1).on(KIND, fragile.clone()));
        service.acknowledged().await;
        service.parked(1).await;
        service.publish(&[second.clone(), second, from("/orders", &first), first.clone()]).await;
        service.acknowledged().await;
        let parked = service.parked(2).await;
        assert_eq!(parked.iter().map(|held| held.messages).collect::<Vec<_>>(), [1, 1]);
        let of_second = parked.iter().find(|held| held.key.is_none()).unwrap();
        assert_eq!(of_second.last_error, ANOTHER);
        let mut connection = service.pool.acquire().await.unwrap();
        fragile.good.store(true, Ordering::SeqCst);
        // The id belongs to the one that came first.
        admin::redrive(&mut connection, CONSUMER, of_second.hold, "ada", None).await.unwrap();
        assert_eq!(service.parked(2).await.len(), 2);
        assert!(service.notes().await.is_empty());
        admin::skip(&mut connection, CONSUMER, of_second.first.unwrap(), "ada", "published anew")
            .await
            .unwrap();
        admin::redrive_all(&mut connection, CONSUMER, "ada", None).await.unwrap();
        service.nothing_is_held().await;
        running.stop().await;
        assert_eq!(service.notes().await, ["bad-first"]);
    }
}
