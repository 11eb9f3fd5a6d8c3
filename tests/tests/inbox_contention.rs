//! Serialization failures and deadlocks without end: nobody is to blame, so nothing is counted; and nobody else waits.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use inbox::admin::HeldState;
use inbox::{Backoff, HandlerError};
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, note, placed, start};
use message::{Message, MessageId};
use sqlx::PgTransaction;

/// Meets another transaction whenever it handles a note that says so, until it is told that there is none any more.
#[derive(Clone, Default)]
struct Meets {
    nobody: Arc<AtomicBool>,
    tries: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl inbox::Handler for Meets {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        effect(tx, message).await?;
        let sql = match note(message).split_once('-') {
            Some(("serialization", _)) => "do 'begin raise serialization_failure; end'",
            Some(("deadlock", _)) => "do 'begin raise deadlock_detected; end'",
            _ => return Ok(()),
        };
        if !self.nobody.load(Ordering::SeqCst) {
            self.tries.fetch_add(1, Ordering::SeqCst);
            sqlx::query(sql).execute(&mut **tx).await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_meet_others_for_ever_stop_nobody_and_are_tried_with_pauses_and_never_parked() {
    let service = Service::new("meets for ever").await;
    let meets = Meets::default();
    let mut messages = Vec::new();
    for number in 0..3 {
        messages.push(placed("a", &format!("serialization-a{number}")));
        messages.push(placed("b", &format!("deadlock-b{number}")));
        messages.push(placed("c", &format!("serialization-c{number}")));
    }
    messages.push(placed("", "deadlock-alone"));
    messages.extend((0..30).map(|number| placed(&format!("other-{number}"), "other")));
    service.publish(&messages).await;
    let begun = Instant::now();
    // One counted try would park.
    let consumer = || service.consumer().with_max_attempts(1).with_concurrency(2);
    let running = start(consumer().on(KIND, meets.clone()));
    service.acknowledged().await;
    assert_eq!(service.count("select count(*) from effect where note = 'other'").await, 30);
    let held = service.held().await;
    assert_eq!((held.len(), held.iter().map(|key| key.messages).sum::<i64>()), (4, 10));
    for key in &held {
        assert!(key.last_error.contains("40001") || key.last_error.contains("40P01"), "{}", key.last_error);
    }
    // Held, each is tried again, and again.
    let first = meets.tries.load(Ordering::SeqCst);
    eventually("they are tried again", || async {
        (meets.tries.load(Ordering::SeqCst) > first + 80).then_some(())
    })
    .await;
    let held = service.held().await;
    assert!(held.iter().all(|key| key.state == HeldState::Retrying), "{held:?}");
    let (tries, seconds) = (meets.tries.load(Ordering::SeqCst), begun.elapsed().as_secs() + 1);
    // Two places, and a second or two for ten tries in each.
    assert!(tries as u64 <= 40 + 40 * seconds, "{tries} tries in {seconds} s");

    meets.nobody.store(true, Ordering::SeqCst);
    service.nothing_is_held().await;
    running.stop().await;
    assert_eq!(service.count("select count(*) from effect").await, 40);
    assert_eq!(service.count("select max(attempts)::bigint from inbox.message").await, 1);
    let inversions = "select count(*) from effect a join effect b on a.number < b.number
        and left(a.note, -1) = left(b.note, -1) and a.note > b.note and a.note <> 'other'";
    assert_eq!(service.count(inversions).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_key_that_meets_others_again_waits_again_and_counts_nothing() {
    let service = Service::new("meets again").await;
    let meets = Meets::default();
    service.publish(&[placed("a", "serialization-1")]).await;
    let patient = Backoff::default().with_first(Duration::from_secs(600)).with_ceiling(Duration::MAX);
    let running =
        start(service.consumer().with_max_attempts(1).with_backoff(patient).on(KIND, meets.clone()));
    service.acknowledged().await;
    let before = meets.tries.load(Ordering::SeqCst);
    let mut connection = service.pool.acquire().await.unwrap();
    for round in 1..=2 {
        let hold = service.held().await[0].hold;
        assert!(inbox::admin::redrive(&mut connection, CONSUMER, hold, "test", None).await.unwrap());
        let key = eventually("it is tried, and waits again", || async {
            let held = service.held().await;
            // While it is tried, its time is that of a try.
            let waits = held[0].next_attempt_at > Some(Utc::now() + TimeDelta::minutes(4));
            (waits && meets.tries.load(Ordering::SeqCst) > before * round).then(|| held[0].clone())
        })
        .await;
        assert_eq!((key.state, key.attempts), (HeldState::Retrying, 0));
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_stops_amid_serialization_failures_without_end_and_loses_nothing() {
    let service = Service::new("stops amid failures").await;
    let meets = Meets::default();
    service.publish(&[placed("a", "serialization-1"), placed("a", "serialization-2")]).await;
    let running = start(service.consumer().with_max_attempts(1).on(KIND, meets.clone()));
    eventually("it is tried", || async { (meets.tries.load(Ordering::SeqCst) > 2).then_some(()) }).await;
    // Not for as long as a handler may take.
    tokio::time::timeout(Duration::from_secs(15), running.stop()).await.unwrap();
    meets.nobody.store(true, Ordering::SeqCst);
    let running = start(service.consumer().with_max_attempts(1).on(KIND, meets));
    service.acknowledged().await;
    service.nothing_is_held().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["serialization-1", "serialization-2"]);
}

/// As a broker may deliver them: without a key, and refused at once, here since the id is undated.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn copies_of_a_refused_message_leave_no_parked_key_without_a_message() {
    let service = Service::new("phantoms").await;
    let copies: Vec<Message> = (0..200)
        .flat_map(|n| {
            let message = placed("", "").with_id(MessageId::foreign("/elsewhere", &n.to_string()));
            [message.clone(), message]
        })
        .collect();
    service.publish(&copies).await;
    let running = start(service.consumer().on(KIND, effect));
    service.acknowledged().await;
    running.stop().await;
    let held = service.held().await;
    let phantoms = held.iter().filter(|held| held.messages == 0).count();
    assert_eq!((held.len(), phantoms), (200, 0));
}
