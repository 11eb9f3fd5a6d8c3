//! What a person decides about a held key: about the message that was looked at, in the state in which it was.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod inbox_support;

use std::time::Duration;

use inbox::HandlerError;
use inbox::admin::{self, DecisionError, ForgetKindError, HeldKey, LowerFloorError};
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, note, placed, start};
use message::Message;
use sqlx::{AssertSqlSafe, Executor, PgTransaction, Row};
use uuid::Uuid;

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
        match admin::skip(&mut connection, CONSUMER, first, who, "it is poison").await {
            Err(DecisionError::NotParked) => None,
            skipped => skipped.unwrap(),
        }
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
    let given_up = admin::skip(&mut connection, CONSUMER, parked.first.unwrap(), "bob", "poison").await;
    service.nothing_is_held().await;
    running.stop().await;
    assert!(matches!(given_up, Ok(None) | Err(DecisionError::NotParked)), "{given_up:?}");
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

/// A transaction of the caller's whose first statement has fixed what all of them see.
async fn above_read_committed(service: &Service) -> PgTransaction<'static> {
    let mut tx = service.pool.begin_with("begin isolation level repeatable read").await.unwrap();
    tx.execute("select 1").await.unwrap();
    tx
}

#[tokio::test]
async fn no_floor_is_lowered_and_no_kind_forgotten_by_what_an_old_snapshot_shows() {
    let service = Service::new("old snapshot").await;
    let mut tx = above_read_committed(&service).await;
    let lowered = admin::lower_floor(&mut tx).await;
    assert!(matches!(lowered, Err(LowerFloorError::Isolation)), "{lowered:?}");
    let forgotten = admin::forget_kind(&mut tx, CONSUMER, KIND, "ada", "rolled back").await;
    assert!(matches!(forgotten, Err(ForgetKindError::Isolation)), "{forgotten:?}");
    tx.rollback().await.unwrap();
}

/// What a consumer's claim of held keys returns of each: its attempts with this try, and whether a key went to the quarantine.
async fn claim(service: &Service, process: Uuid) -> Vec<(Option<i32>, bool)> {
    let rows = sqlx::query(include_str!("../../inbox/src/sql/claim.sql"))
        .bind(CONSUMER)
        .bind(10_i64)
        .bind(60_000_i64)
        .bind([KIND])
        .bind(process)
        .fetch_all(&service.pool)
        .await
        .unwrap();
    rows.iter().map(|row| (row.get("attempts"), row.get("unfinished"))).collect()
}

/// One held key that two messages wait in, that another process tries.
async fn tried(claim: &str) -> (Service, HeldKey, Uuid) {
    let service = Service::new(claim).await;
    service.publish(&[placed("a", "1"), placed("a", "2")]).await;
    let running = start(service.consumer().on(KIND, reject));
    service.acknowledged().await;
    let held = service.parked(1).await.remove(0);
    running.stop().await;
    let process = Uuid::new_v4();
    let tried =
        "update inbox.held_key set state = 'retrying', attempts = 1, next_attempt_at = now(), tried_by = $1";
    sqlx::query(tried).bind(process).execute(&service.pool).await.unwrap();
    (service, held, process)
}

#[tokio::test]
async fn a_try_that_did_not_end_in_its_time_is_a_death_only_if_its_process_lives_no_more() {
    for lives in [true, false] {
        let (service, _, process) = tried("did not end").await;
        let expires = if lives { "now() + interval '40 seconds'" } else { "now() - interval '1 second'" };
        let row = format!(
            "insert into inbox.process (id, consumer, expires_at) values ('{process}', '{CONSUMER}', {expires})"
        );
        service.pool.execute(AssertSqlSafe(row)).await.unwrap();
        let claimed = claim(&service, Uuid::new_v4()).await;
        assert_eq!(claimed, if lives { [(Some(1), false)] } else { [(None, true)] });
        let suspects = service.count("select count(*) from inbox.quarantine").await;
        assert_eq!(suspects, i64::from(!lives));
    }
}

#[tokio::test]
async fn a_try_that_ends_late_says_nothing_of_the_next_message_of_its_key() {
    let (service, held, process) = tried("ends late").await;
    // A person has given up the first one meanwhile, and this process tries the second.
    service
        .pool
        .execute("delete from inbox.held_message where convert_from(payload, 'UTF8') = '1'")
        .await
        .unwrap();
    let postpone = sqlx::query(include_str!("../../inbox/src/sql/postpone.sql"))
        .bind(CONSUMER)
        .bind(held.hold)
        .bind(1)
        .bind(1)
        .bind("parked")
        .bind(None::<i64>)
        .bind("of the first")
        .bind(process)
        .bind(None::<Uuid>)
        .bind(held.first);
    postpone.execute(&service.pool).await.unwrap();
    let left = "select count(*) from inbox.held_key where state = 'retrying' and tried_by is not null and last_error <> 'of the first'";
    assert_eq!(service.count(left).await, 1);
}

#[tokio::test]
async fn only_messages_of_parked_keys_wait_for_a_person() {
    let service = Service::new("wait for a person").await;
    let fails = async |_: &mut PgTransaction<'_>, message: &Message| match &*note(message) {
        "parks" => Err(HandlerError::reject("no")),
        _ => Err(HandlerError::retry("not yet")),
    };
    service.publish(&[placed("a", "parks"), placed("b", "1"), placed("b", "2")]).await;
    let running = start(service.consumer().with_max_attempts(1_000).on(KIND, fails));
    service.acknowledged().await;
    running.stop().await;
    let mut connection = service.pool.acquire().await.unwrap();
    let status = admin::status(&mut connection).await.unwrap().remove(0);
    assert_eq!((status.messages, status.parked_messages, status.parked), (3, 1, 1));
}
