//! Writing from Rust: what goes wrong says whose fault it is, and leaves nothing half done.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use message::{Field, Message};
use outbox::{CommitError, EnqueueError, TransactionStatus};
use sqlx::postgres::PgArguments;
use sqlx::{Arguments, PgPool, Row};
use tests::Database;

fn message(key: &str) -> Message {
    Message::new("orders", "order.placed", "{}").with_key(key)
}

async fn count(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from outbox.message").fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_message_outside_the_limits_is_refused_before_any_sql_and_the_transaction_goes_on() {
    let database = Database::new("enqueue_invalid").await;
    for (bad, field) in [
        (Message::new("orders", "k", vec![0; 983_041]), Field::Payload),
        (message("a\0b"), Field::Key),
        (message("a").with_header("x", "card 4111\r\ny: z"), Field::Headers),
        (Message::new("orders.*", "k", ""), Field::Topic),
    ] {
        let mut tx = database.pool().begin().await.unwrap();
        let error = outbox::enqueue_all(&mut tx, &[message("good"), bad]).await.unwrap_err();
        assert!(
            matches!(&error, EnqueueError::Invalid { index: 1, fault } if fault.field == field),
            "{error}"
        );
        assert!(!format!("{error} {error:?}").contains("4111"), "{error:?}");
        outbox::enqueue_all(&mut tx, &[message("after")]).await.unwrap();
        outbox::commit(tx).await.unwrap();
    }
    assert_eq!(count(database.pool()).await, 4);
}

#[tokio::test]
async fn what_is_no_key_is_not_locked_and_the_transaction_goes_on() {
    let database = Database::new("lock_no_key").await;
    let long = "k".repeat(513);
    for bad in ["a\0b", "", &long] {
        let mut tx = database.pool().begin().await.unwrap();
        let error = outbox::lock_keys(&mut tx, &["good", bad]).await.unwrap_err();
        assert!(
            matches!(&error, EnqueueError::Key { index: 1, fault } if fault.field == Field::Key),
            "{error}"
        );
        outbox::lock_keys(&mut tx, &["good"]).await.unwrap();
        outbox::enqueue_all(&mut tx, &[message("good")]).await.unwrap();
        outbox::commit(tx).await.unwrap();
    }
    assert_eq!(count(database.pool()).await, 3);
}

#[tokio::test]
async fn an_aborted_transaction_is_named_and_does_not_count_as_committed() {
    let database = Database::new("enqueue_aborted").await;
    let mut tx = database.pool().begin().await.unwrap();
    outbox::enqueue_all(&mut tx, &[message("a")]).await.unwrap();
    sqlx::query("select 1 / 0").execute(&mut *tx).await.unwrap_err();
    let error = outbox::enqueue_all(&mut tx, &[message("b")]).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Aborted), "{error}");
    assert!(matches!(outbox::commit(tx).await, Err(CommitError::NotCommitted(_))));
    assert_eq!(count(database.pool()).await, 0);
}

#[tokio::test]
async fn a_read_only_transaction_is_named() {
    let database = Database::new("enqueue_read_only").await;
    let mut tx = database.pool().begin().await.unwrap();
    sqlx::query("set transaction read only").execute(&mut *tx).await.unwrap();
    let error = outbox::enqueue_all(&mut tx, &[message("a")]).await.unwrap_err();
    assert!(matches!(error, EnqueueError::ReadOnly), "{error}");
}

#[tokio::test]
async fn a_missing_schema_says_what_to_run() {
    let database = Database::empty("enqueue_schema").await;
    let mut tx = database.pool().begin().await.unwrap();
    let error = outbox::enqueue_all(&mut tx, &[message("a")]).await.unwrap_err();
    assert!(
        matches!(error, EnqueueError::Schema(_)) && error.to_string().contains("outbox migrate"),
        "{error}"
    );
}

#[tokio::test]
async fn nothing_to_enqueue_is_nothing_done() {
    let database = Database::empty("enqueue_nothing").await;
    let mut tx = database.pool().begin().await.unwrap();
    outbox::enqueue_all(&mut tx, &[]).await.unwrap();
}

#[tokio::test]
async fn beside_a_statement_the_message_is_written_after_the_statement_has_run() {
    let database = Database::new("enqueue_beside").await;
    let pool = database.pool();
    sqlx::raw_sql(
        "create table account (id int primary key, balance int not null); insert into account values (7, 1)",
    )
    .execute(pool)
    .await
    .unwrap();
    let mut tx = pool.begin().await.unwrap();
    let mut arguments = PgArguments::default();
    arguments.add(5).unwrap();
    arguments.add(7).unwrap();
    let sql = "update account set balance = balance + $1 where id = $2 returning balance";
    let messages = [message("7"), message("7")];
    let rows = outbox::enqueue_beside(&mut tx, sql, arguments, &messages).await.unwrap();
    assert_eq!((rows.len(), rows[0].get::<i32, _>("balance")), (1, 6));
    outbox::commit(tx).await.unwrap();
    let ids: Vec<uuid::Uuid> =
        sqlx::query_scalar("select id from outbox.message order by position").fetch_all(pool).await.unwrap();
    assert_eq!(ids, [*messages[0].id.as_uuid(), *messages[1].id.as_uuid()]);

    // Whoever waits for the row waits with its position, too.
    let mut first = pool.begin().await.unwrap();
    sqlx::query("update account set balance = 0 where id = 7").execute(&mut *first).await.unwrap();
    let second = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut tx = pool.begin().await.unwrap();
            let sql = "update account set balance = balance + 1 where id = 7 returning id";
            outbox::enqueue_beside(&mut tx, sql, PgArguments::default(), &[message("second")]).await.unwrap();
            outbox::commit(tx).await.unwrap();
        }
    });
    let waiting = "select count(*) from pg_locks l join pg_stat_activity a using (pid) where not l.granted and a.datname = current_database()";
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(pool).await.unwrap() == 0 {
        tokio::task::yield_now().await;
    }
    outbox::enqueue_all(&mut first, &[message("first")]).await.unwrap();
    outbox::commit(first).await.unwrap();
    second.await.unwrap();
    let keys: Vec<String> =
        sqlx::query_scalar("select key from outbox.message where key <> '7' order by position")
            .fetch_all(pool)
            .await
            .unwrap();
    assert_eq!(keys, ["first", "second"]);
}

#[tokio::test]
async fn a_transaction_whose_connection_died_before_its_commit_is_not_committed_and_the_server_says_so() {
    let database = Database::new("commit_unknown").await;
    let pool = outbox::pool_options().max_connections(2).connect(database.url()).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut tx, &[message("a")]).await.unwrap();
    let id: String =
        sqlx::query_scalar("select pg_current_xact_id()::text").fetch_one(&mut *tx).await.unwrap();
    let id: u64 = id.parse().unwrap();
    assert_eq!(outbox::transaction_status(&pool, id).await.unwrap(), TransactionStatus::InProgress);
    outbox::commit(tx).await.unwrap();
    assert_eq!(outbox::transaction_status(&pool, id).await.unwrap(), TransactionStatus::Committed);

    let mut tx = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut tx, &[message("b")]).await.unwrap();
    let row = sqlx::query("select pg_backend_pid(), pg_current_xact_id()::text as id")
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    let (pid, id): (i32, String) = (row.get(0), row.get("id"));
    sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(database.admin()).await.unwrap();
    // Found before COMMIT was sent: certain.
    assert!(matches!(outbox::commit(tx).await, Err(CommitError::NotCommitted(_))));
    // The server says good-bye before it ends the transaction: `InProgress` means ask again.
    let id = id.parse().unwrap();
    let status = loop {
        match outbox::transaction_status(&pool, id).await.unwrap() {
            TransactionStatus::InProgress => tokio::task::yield_now().await,
            ended => break ended,
        }
    };
    assert_eq!(status, TransactionStatus::NotCommitted);
}
