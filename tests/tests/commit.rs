//! A commit whose answer does not come: whether it happened is unknown, is said to be, and can be asked afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use message::Message;
use outbox::{CommitError, TransactionStatus};
use sqlx::{PgPool, PgTransaction};
use tests::{Database, Fate, Proxy};

const PATIENCE: Duration = Duration::from_secs(30);

struct Service {
    database: Database,
    proxy: Proxy,
    /// Through the proxy, one connection.
    pool: PgPool,
}

impl Service {
    async fn new(claim: &str) -> Self {
        let database = Database::new(claim).await;
        let proxy = Proxy::start(&database.url().parse().unwrap()).await.unwrap();
        let pool = outbox::pool_options().max_connections(1).connect_with(proxy.options()).await.unwrap();
        Service { database, proxy, pool }
    }

    /// A transaction that has enqueued, and its id.
    async fn transaction(&self) -> (PgTransaction<'static>, u64) {
        let mut tx = self.pool.begin().await.unwrap();
        let message = Message::new("orders", "order.placed", "{}").with_key("a");
        outbox::enqueue_all(&mut tx, &[message]).await.unwrap();
        let id: String =
            sqlx::query_scalar("select pg_current_xact_id()::text").fetch_one(&mut *tx).await.unwrap();
        (tx, id.parse().unwrap())
    }

    /// What became of the transaction, once the server knows.
    async fn status(&self, transaction: u64) -> TransactionStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = outbox::transaction_status(self.database.pool(), transaction).await.unwrap();
            if status != TransactionStatus::InProgress {
                return status;
            }
            assert!(Instant::now() < deadline, "the transaction stays open");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn messages(&self) -> i64 {
        sqlx::query_scalar("select count(*) from outbox.message")
            .fetch_one(self.database.pool())
            .await
            .unwrap()
    }
}

/// The transaction that it cannot say more about.
fn unknown(committed: Result<(), CommitError>) -> u64 {
    match committed {
        Err(CommitError::Unknown { transaction, .. }) => transaction.expect("it had written"),
        other => panic!("not unknown: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_unknown_and_the_server_says_that_it_happened() {
    let service = Service::new("commit_answer_lost").await;
    let (tx, id) = service.transaction().await;
    service.proxy.at_commit(Fate::LosesItsAnswer);
    assert_eq!(unknown(outbox::commit(tx).await), id);
    assert_eq!(service.status(id).await, TransactionStatus::Committed);
    assert_eq!(service.messages().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_never_arrived_is_unknown_and_the_server_says_that_it_did_not_happen() {
    let service = Service::new("commit_never_arrived").await;
    let (tx, id) = service.transaction().await;
    service.proxy.at_commit(Fate::NeverArrives);
    assert_eq!(unknown(outbox::commit(tx).await), id);
    assert_eq!(service.status(id).await, TransactionStatus::NotCommitted);
    assert_eq!(service.messages().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_never_answered_is_unknown_when_its_time_is_over_and_costs_no_connection() {
    let service = Service::new("commit_never_answered").await;
    let (tx, id) = service.transaction().await;
    service.proxy.at_commit(Fate::IsNeverAnswered);
    let committed = outbox::commit_within(tx, Duration::from_millis(300));
    assert_eq!(unknown(tokio::time::timeout(PATIENCE, committed).await.expect("it ends in time")), id);
    assert_eq!(service.status(id).await, TransactionStatus::Committed);
    assert_eq!(service.messages().await, 1);
    // The pool has one connection, and that one will never answer.
    service.proxy.at_commit(Fate::Passes);
    let (tx, _) = service.transaction().await;
    outbox::commit_within(tx, PATIENCE).await.unwrap();
    assert_eq!(service.messages().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_falls_silent_before_its_commit_did_not_commit() {
    let service = Service::new("commit_silence").await;
    let (tx, id) = service.transaction().await;
    service.proxy.fall_silent();
    let committed = outbox::commit_within(tx, Duration::from_millis(300));
    let committed = tokio::time::timeout(PATIENCE, committed).await.expect("it ends in time");
    assert!(matches!(committed, Err(CommitError::NotCommitted(_))), "{committed:?}");
    // The server learns of it when somebody closes the connection.
    drop(service.proxy);
    let deadline = Instant::now() + PATIENCE;
    while outbox::transaction_status(service.database.pool(), id).await.unwrap()
        != TransactionStatus::NotCommitted
    {
        assert!(Instant::now() < deadline, "the transaction stays open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
