//! The longest time, the largest number and the furthest moment that a caller can give: none of them panics.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod inbox_support;
mod relay_support;

use std::time::Duration;

use brokers::memory::Broker;
use brokers::postgres::PostgresSubscriber;
use chrono::{DateTime, Utc};
use inbox::{Backoff, Consumer};
use inbox_support::{KIND, Service, effect, eventually, placed, start};
use message::{Event, Message, MessageId};
use outbox::log::{ReadSettings, Start};
use outbox::{EnqueueError, Settings};
use relay_support::{message, numbers, until_published, write};
use serde::Serialize;
use tests::Database;

const ENDS: [DateTime<Utc>; 2] = [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC];

fn endless() -> Settings {
    let mut settings = Settings::default();
    for time in [
        &mut settings.record_interval,
        &mut settings.lease,
        &mut settings.retention,
        &mut settings.drain,
        &mut settings.publish_timeout,
        &mut settings.read.busy_poll,
        &mut settings.read.poll_ceiling,
        &mut settings.read.doorbell_ceiling,
        &mut settings.read.proof_interval,
        &mut settings.retry.first,
        &mut settings.retry.ceiling,
        &mut settings.unavailable.first,
        &mut settings.unavailable.ceiling,
    ] {
        *time = Duration::MAX;
    }
    let ReadSettings { page, page_bytes, .. } = &mut settings.read;
    for count in [
        page,
        page_bytes,
        &mut settings.batch,
        &mut settings.max_on_wire,
        &mut settings.max_unrecorded,
        &mut settings.max_bytes,
    ] {
        *count = usize::MAX;
    }
    (settings.shards, settings.max_attempts) = (i16::MAX, u32::MAX);
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_runs_with_the_longest_settings_and_from_the_first_moment() {
    let database = Database::new("endless relay").await;
    write(database.pool(), &[message("a", 1), message("a", 2)]).await;
    for (name, begin) in [("moment", Start::AtTime(ENDS[0])), ("position", Start::AtPosition(i64::MIN))] {
        let broker = Broker::new();
        let mut settings = endless();
        settings.start = begin;
        let running = relay_support::start_named(name, database.pool(), broker.publisher(), settings);
        until_published(&broker, 2).await;
        assert_eq!(numbers(&broker, "a"), [1, 2], "{name}");
        running.stop().await.unwrap();
    }
    for begin in [Start::AtTime(ENDS[1]), Start::AtPosition(i64::MAX)] {
        let mut settings = endless();
        settings.start = begin;
        let broker = Broker::new();
        let running = relay_support::start_named("ahead", database.pool(), broker.publisher(), settings);
        let ended = tokio::time::timeout(relay_support::PATIENCE, running.task).await.expect("it is refused");
        let refused = format!("{:?}", ended.expect("no panic").expect_err("it is to begin ahead"));
        assert!(refused.contains("StartAhead"), "{begin:?}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_runs_with_the_longest_settings() {
    let service = Service::new("endless consumer").await;
    let backoff = Backoff::default().with_first(Duration::MAX).with_ceiling(Duration::MAX);
    let endless = |consumer: Consumer| {
        consumer
            .with_backoff(backoff)
            .with_handler_timeout(Duration::MAX)
            .with_extend_every(Duration::MAX)
            .with_grace(Duration::MAX)
            .with_concurrency(usize::MAX)
            .with_prefetch(usize::MAX)
            .with_max_attempts(u32::MAX)
            .on(KIND, effect)
            .on("order.refused", async |_: &mut sqlx::PgTransaction<'_>, _: &Message| Err("no stock".into()))
    };
    let running = start(endless(service.consumer()));
    service.publish(&[placed("a", "1"), Message::new("orders", "order.refused", "").with_key("b")]).await;
    service.acknowledged().await;
    eventually("it is held for a century", || async { (service.held().await.len() == 1).then_some(()) })
        .await;
    running.stop().await;
    assert_eq!(service.notes().await, ["1"]);

    write(&service.pool, &[placed("a", "2")]).await;
    let subscriber = PostgresSubscriber::new(service.pool.clone(), "endless".parse().unwrap())
        .with_lease(Duration::MAX)
        .with_retention(Duration::MAX)
        .with_poll_ceiling(Duration::MAX)
        .with_record_interval(Duration::MAX)
        .with_redelivery_after(Duration::MAX)
        .with_max_unanswered(usize::MAX);
    let running = start(endless(Consumer::new("endless", service.pool.clone(), subscriber)));
    eventually("from a log", || async { (service.notes().await.len() == 2).then_some(()) }).await;
    running.stop().await;
}

#[derive(Serialize)]
struct Reminded;

impl Event for Reminded {
    const TOPIC: &'static str = "orders";
    const KIND: &'static str = "order.reminded";
}

#[tokio::test]
async fn a_moment_out_of_every_calendar_is_refused_and_a_commit_may_take_for_ever() {
    let database = Database::new("moments").await;
    let mut tx = database.pool().begin().await.unwrap();
    for moment in ENDS {
        let scheduled = outbox::enqueue_at(&mut tx, &Reminded, moment).await;
        assert!(matches!(scheduled, Err(EnqueueError::DueAt)), "{moment}");
        let occurred = Message::new("orders", KIND, "").with_occurred_at(moment);
        let enqueued = outbox::enqueue_all(&mut tx, &[occurred]).await;
        assert!(matches!(enqueued, Err(EnqueueError::Invalid { .. })), "{moment}");
        assert!(MessageId::at(moment).made_at().is_some());
    }
    let leap = "2016-12-31T23:59:60.9999999Z".parse().unwrap();
    outbox::enqueue_all(&mut tx, &[Message::new("orders", KIND, "").with_occurred_at(leap)]).await.unwrap();
    outbox::commit_within(tx, Duration::MAX).await.unwrap();
}
