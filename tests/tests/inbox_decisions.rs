//! What a person decides about a held key: about the message that was looked at, in the state in which it was.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod inbox_support;

use std::time::Duration;

use inbox::HandlerError;
use inbox::admin::{self, DecisionError};
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, placed, start};
use message::Message;
use sqlx::PgTransaction;

async fn reject(_: &mut PgTransaction<'_>, _: &Message) -> Result<(), HandlerError> {
    Err(HandlerError::reject("not today"))
}

#[tokio::test]
async fn of_two_persons_who_skip_one_parked_message_only_one_gives_something_up() {
    let service = Service::new("two skip").await;
    service.publish(&[placed("a", "1"), placed("a", "2")]).await;
    let running = start(service.consumer().on(KIND, reject));
    service.parked(1).await;
    service.acknowledged().await;
    running.stop().await;
    let first = service.held().await[0].first.unwrap();
    let skip = async |who: &str| {
        let mut connection = service.pool.acquire().await.unwrap();
        admin::skip(&mut connection, CONSUMER, first, who, "it is poison").await.unwrap()
    };
    let (one, two) = tokio::join!(skip("ada"), skip("bob"));
    let given_up = [one, two].into_iter().flatten().count();
    let running = start(service.consumer().on(KIND, effect));
    service.nothing_is_held().await;
    running.stop().await;
    assert_eq!((given_up, service.notes().await), (1, vec!["2".to_owned()]));
}

#[tokio::test]
async fn a_skip_after_a_redrive_gives_up_no_message_that_was_not_parked() {
    let service = Service::new("redrive and skip").await;
    service.publish(&[placed("a", "1"), placed("a", "2"), placed("a", "3")]).await;
    let running = start(service.consumer().on(KIND, reject));
    service.parked(1).await;
    service.acknowledged().await;
    running.stop().await;
    let parked = service.held().await.remove(0);
    let slow = async |tx: &mut PgTransaction<'_>, message: &Message| {
        tokio::time::sleep(Duration::from_millis(300)).await;
        effect(tx, message).await
    };
    let running = start(service.consumer().on(KIND, slow));
    let mut connection = service.pool.acquire().await.unwrap();
    assert!(admin::redrive(&mut connection, CONSUMER, parked.hold, "ada", None).await.unwrap());
    eventually("the first is handled", async || (service.notes().await == ["1"]).then_some(())).await;
    let given_up = admin::skip(&mut connection, CONSUMER, parked.first.unwrap(), "bob", "poison").await.unwrap();
    service.nothing_is_held().await;
    running.stop().await;
    assert!(given_up.is_none(), "{given_up:?}");
    assert_eq!(service.notes().await, ["1", "2", "3"]);
}

#[tokio::test]
async fn a_key_that_is_tried_again_is_neither_skipped_nor_discarded() {
    let service = Service::new("not parked").await;
    let fails = async |_: &mut PgTransaction<'_>, _: &Message| Err(HandlerError::retry("not yet"));
    service.publish(&[placed("a", "1"), placed("a", "2")]).await;
    let running = start(service.consumer().with_max_attempts(1_000).on(KIND, fails));
    service.acknowledged().await;
    running.stop().await;
    let held = service.held().await.remove(0);
    let (first, last) = (held.first.unwrap(), held.last.unwrap());
    let mut connection = service.pool.acquire().await.unwrap();
    let skipped = admin::skip(&mut connection, CONSUMER, first, "ada", "poison").await;
    assert!(matches!(skipped, Err(DecisionError::NotParked)), "{skipped:?}");
    let discarded = admin::discard(&mut connection, CONSUMER, held.hold, last, "ada", "poison").await;
    assert!(matches!(discarded, Err(DecisionError::NotParked)), "{discarded:?}");
    assert_eq!(service.held().await[0].messages, 2);
}
