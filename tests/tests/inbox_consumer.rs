//! A consumer at work: each effect once, each failure counted once and without a trace, and an end in good order.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use inbox::{Consumer, ConsumerError, HandlerError, Isolation};
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, placed, start};
use message::Message;
use sqlx::PgTransaction;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_log_three_times_and_duplicates_have_each_effect_once_and_in_order() {
    let service = Service::new("replayed log").await;
    let messages: Vec<Message> =
        (0..600).map(|n| placed(&format!("key-{}", n % 7), &format!("{n:03}"))).collect();
    service.broker.duplicate_deliveries(200);
    for _ in 0..3 {
        service.publish(&messages).await;
    }
    let running = [start(service.consumer().on(KIND, effect)), start(service.consumer().on(KIND, effect))];
    service.acknowledged().await;
    for running in running {
        running.stop().await;
    }
    assert_eq!(service.count("select count(*) from effect").await, 600);
    assert_eq!(service.count("select count(distinct message) from effect").await, 600);
    let inversions = "select count(*) from effect a join effect b on a.number < b.number
        and a.note::int % 7 = b.note::int % 7 and a.note > b.note";
    assert_eq!(service.count(inversions).await, 0);
    assert_eq!(service.count("select count(*) from inbox.message where attempts = 1").await, 600);
}

#[tokio::test]
async fn a_kind_nobody_handles_is_acknowledged_and_leaves_nothing() {
    let service = Service::new("unhandled kind").await;
    service.publish(&[Message::new("orders", "order.dreamt", "").with_key("a"), placed("a", "1")]).await;
    let running = start(service.consumer().on(KIND, effect));
    service.acknowledged().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["1"]);
    assert!(service.held().await.is_empty());
    assert_eq!(service.count("select count(*) from inbox.message").await, 1);
}

/// What a handler does after it has written its effect.
#[derive(Clone, Copy)]
enum Failing {
    Errs,
    Panics,
    Hangs,
    HangsInSql,
    Swallows,
    EndsTheTransaction,
    DefersAConstraint,
    CannotReachItsPartner,
}

struct Handler {
    failing: Failing,
    tries: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl inbox::Handler for Handler {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        effect(tx, message).await?;
        match self.failing {
            Failing::Errs => Err(std::io::Error::other("no stock"))?,
            Failing::Panics => panic!("the shelf fell over"),
            Failing::Hangs => std::future::pending().await,
            Failing::HangsInSql => {
                sqlx::query("select pg_sleep(600)").execute(&mut **tx).await?;
            }
            Failing::Swallows => {
                let _ = sqlx::query("select 1 / 0").execute(&mut **tx).await;
            }
            Failing::EndsTheTransaction => {
                sqlx::raw_sql("rollback").execute(&mut **tx).await?;
            }
            Failing::DefersAConstraint => {
                sqlx::raw_sql(
                    "create table part (id int unique deferrable initially deferred); insert into part values (1), (1)",
                )
                .execute(&mut **tx)
                .await?;
            }
            Failing::CannotReachItsPartner => Err(sqlx::Error::PoolTimedOut)?,
        }
        Ok(())
    }
}

/// Two messages whose handler fails: parked after three tries each, counted exactly, without a trace of them, and
/// without a backend that goes on.
async fn parks_without_a_trace(claim: &str, failing: Failing, error: &str) {
    parks(claim, failing, error, 3).await;
}

async fn parks(claim: &str, failing: Failing, error: &str, attempts: i32) {
    let service = Service::new(claim).await;
    let tries = Arc::new(AtomicUsize::new(0));
    service.publish(&[placed("a", "1"), placed("b", "2")]).await;
    let handler = Handler { failing, tries: tries.clone() };
    let consumer = service.consumer().with_max_attempts(3).with_handler_timeout(Duration::from_millis(300));
    let running = start(consumer.on(KIND, handler));
    service.acknowledged().await;
    let parked = service.parked(2).await;
    running.stop().await;
    for key in parked {
        assert!(key.last_error.contains(error), "{}", key.last_error);
        assert_eq!((key.attempts, key.messages), (attempts, 1));
    }
    assert_eq!(tries.load(Ordering::SeqCst), 2 * attempts as usize);
    assert_eq!(service.count("select count(*) from effect").await, 0);
    assert_eq!(service.count("select count(*) from inbox.message").await, 0);
    let busy =
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
        and (state like 'idle in%' or query like '%pg_sleep%' and state = 'active')";
    eventually("no backend goes on", || async { (service.count(busy).await == 0).then_some(()) }).await;
}

#[tokio::test]
async fn a_handler_that_errs_leaves_nothing_and_counts_one_attempt() {
    parks_without_a_trace("handler errs", Failing::Errs, "no stock").await;
}

#[tokio::test]
async fn a_handler_that_panics_leaves_nothing_and_counts_one_attempt() {
    parks_without_a_trace("handler panics", Failing::Panics, "panicked: the shelf fell over").await;
}

#[tokio::test]
async fn a_handler_that_hangs_leaves_nothing_and_counts_one_attempt() {
    parks_without_a_trace("handler hangs", Failing::Hangs, "took longer than 300ms").await;
}

#[tokio::test]
async fn a_statement_that_hangs_is_ended_with_its_try() {
    parks_without_a_trace("statement hangs", Failing::HangsInSql, "took longer than 300ms").await;
}

#[tokio::test]
async fn a_handler_that_swallows_an_sql_error_leaves_nothing_and_counts_one_attempt() {
    parks_without_a_trace("error swallowed", Failing::Swallows, "passed over a statement that failed").await;
}

/// What it has written after that may have been committed by itself, so it is not tried again unless a person says so.
#[tokio::test]
async fn a_handler_that_ends_its_transaction_is_not_taken_for_a_success() {
    parks("transaction ended", Failing::EndsTheTransaction, "ended the transaction", 1).await;
}

#[tokio::test]
async fn a_constraint_that_fails_at_commit_counts_one_attempt() {
    parks_without_a_trace("deferred constraint", Failing::DefersAConstraint, "23505").await;
}

#[tokio::test]
async fn another_server_that_does_not_answer_is_the_handlers_affair() {
    parks_without_a_trace("other server", Failing::CannotReachItsPartner, "timed out").await;
}

#[tokio::test]
async fn a_rejected_message_is_parked_at_once() {
    let service = Service::new("rejected").await;
    service.publish(&[placed("a", "1"), placed("a", "2")]).await;
    let reject = async |tx: &mut PgTransaction<'_>, message: &Message| {
        effect(tx, message).await?;
        Err(HandlerError::reject("unknown article"))
    };
    let running = start(service.consumer().on(KIND, reject));
    service.acknowledged().await;
    let parked = service.parked(1).await;
    running.stop().await;
    assert_eq!((parked.len(), parked[0].attempts, parked[0].messages), (1, 1, 2));
    assert_eq!(parked[0].last_error, "unknown article");
    assert!(service.notes().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serialization_failure_is_retried_and_not_counted() {
    let service = Service::new("serialization failure").await;
    sqlx::raw_sql("create table stock (items int); insert into stock values (0)")
        .execute(&service.pool)
        .await
        .unwrap();
    let pool = outbox::pool_options().max_connections(20).connect(service.database.url()).await.unwrap();
    let tries = Arc::new(AtomicUsize::new(0));
    let messages: Vec<Message> = (0..40).map(|n| placed(&format!("key-{n}"), "")).collect();
    service.publish(&messages).await;
    let consumer = Consumer::new(CONSUMER, pool, service.broker.subscriber(CONSUMER, ["orders"]));
    let running = start(
        consumer.with_isolation(Isolation::Serializable).with_max_attempts(1).on(KIND, Takes(tries.clone())),
    );
    service.acknowledged().await;
    running.stop().await;
    assert!(service.held().await.is_empty());
    assert_eq!(service.count("select items::bigint from stock").await, 40);
    assert!(tries.load(Ordering::SeqCst) > 40, "no transactions met: the test proves nothing");
}

/// Takes one from stock, in a way that only serializable transactions make right.
struct Takes(Arc<AtomicUsize>);

#[async_trait::async_trait]
impl inbox::Handler for Takes {
    async fn handle(&self, tx: &mut PgTransaction<'_>, _: &Message) -> Result<(), HandlerError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let items: i32 = sqlx::query_scalar("select items from stock").fetch_one(&mut **tx).await?;
        sqlx::query("update stock set items = $1").bind(items + 1).execute(&mut **tx).await?;
        Ok(())
    }
}

#[tokio::test]
async fn a_stopped_consumer_finishes_and_acknowledges_what_is_in_hand() {
    let service = Service::new("graceful stop").await;
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, waits) = (begun.clone(), go_on.clone());
    let messages: Vec<Message> = (0..20).map(|n| placed("a", &format!("{n:02}"))).collect();
    service.publish(&messages).await;
    let handler = Waits { begins, waits };
    let running = start(service.consumer().on(KIND, handler));
    begun.notified().await;
    running.stop.cancel();
    service.publish(&[placed("b", "late")]).await;
    go_on.notify_one();
    running.stop().await;
    // The prefetched ones are in hand too, and the one that came later is not.
    assert_eq!(service.notes().await.len(), 20);
    assert_eq!(service.broker.unacknowledged(CONSUMER), 1);
}

#[tokio::test]
async fn a_consumer_whose_pool_is_closed_ends_and_leaves_the_rest_to_the_next() {
    let service = Service::new("pool closed").await;
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = Waits { begins: begun.clone(), waits: go_on.clone() };
    let messages: Vec<Message> = (0..20).map(|n| placed("a", &format!("{n:02}"))).collect();
    service.publish(&messages).await;
    let own = outbox::pool_options().connect(service.database.url()).await.unwrap();
    let subscriber = service.broker.subscriber(CONSUMER, ["orders"]);
    let running = start(Consumer::new(CONSUMER, own.clone(), subscriber).on(KIND, handler));
    begun.notified().await;
    let closing = own.close();
    go_on.notify_one();
    closing.await;
    running.ended().await;
    assert_eq!(service.notes().await, ["00"]);
    let next = start(service.consumer().on(KIND, effect));
    service.acknowledged().await;
    next.stop().await;
    let all: Vec<String> = (0..20).map(|n| format!("{n:02}")).collect();
    assert_eq!(service.notes().await, all);
}

/// Waits in the first message.
struct Waits {
    begins: Arc<Notify>,
    waits: Arc<Notify>,
}

#[async_trait::async_trait]
impl inbox::Handler for Waits {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        if inbox_support::note(message) == "00" {
            self.begins.notify_one();
            self.waits.notified().await;
        }
        effect(tx, message).await
    }
}

#[tokio::test]
async fn a_consumer_refuses_to_run_as_it_cannot_keep_its_promise() {
    let service = Service::new("refuses to run").await;
    let subscriber = || service.broker.subscriber(CONSUMER, ["orders"]);
    let consumer = |name| Consumer::new(name, service.pool.clone(), subscriber());
    let run = |consumer: Consumer| consumer.run(CancellationToken::new());
    assert!(matches!(run(consumer("")).await, Err(ConsumerError::Name)));
    let month = Duration::from_secs(30 * 86_400);
    assert!(matches!(run(consumer("a").with_horizon(month)).await, Err(ConsumerError::Horizon(_))));
    let empty = tests::Database::empty("no schema").await;
    let consumer = Consumer::new("a", empty.pool().clone(), subscriber());
    assert!(matches!(run(consumer).await, Err(ConsumerError::Schema(_))));
}
