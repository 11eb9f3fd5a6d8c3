//! What a handler does to its transaction and its connection: it stays its own affair, and its effect happens once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod inbox_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use inbox::{HandlerError, admin};
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, note, placed, start};
use message::Message;
use sqlx::{AssertSqlSafe, Connection, Executor, PgTransaction};

/// Gives up waiting for a statement that takes so long.
async fn give_up(tx: &mut PgTransaction<'_>, sleep: &'static str) {
    assert!(tokio::time::timeout(Duration::from_millis(300), tx.execute(sleep)).await.is_err());
}

/// Gives up waiting for a savepoint the first time, and goes on without it: the driver rolls back the whole transaction, and
/// what is written then commits by itself. Ends each try as the note says.
#[derive(Clone, Default)]
struct GivesUpSavepoint(Arc<AtomicUsize>);

#[async_trait::async_trait]
impl inbox::Handler for GivesUpSavepoint {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        let first = self.0.fetch_add(1, Ordering::SeqCst) == 0;
        if first {
            // So that the savepoint's answer is not there yet.
            give_up(tx, "select pg_sleep(0.6)").await;
            let _ = tokio::time::timeout(Duration::ZERO, (**tx).begin()).await.unwrap_err();
        }
        effect(tx, message).await?;
        match &*note(message) {
            "errs" if first => Err(HandlerError::retry("not yet")),
            "panics" if first => panic!("not yet"),
            "hangs" if first => std::future::pending().await,
            _ => Ok(()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_handler_may_have_written_outside_of_its_transaction_is_not_made_again_by_itself() {
    for ends in ["well", "errs", "panics", "hangs"] {
        let service = Service::new("gave up a savepoint").await;
        let handler = GivesUpSavepoint::default();
        let consumer = service.consumer().with_handler_timeout(Duration::from_secs(5));
        let running = start(consumer.on(KIND, handler.clone()));
        service.publish(&[placed("a", ends)]).await;
        let parked = service.parked(1).await.remove(0);
        running.stop().await;
        assert!(parked.last_error.contains("may stay"), "{ends}: {}", parked.last_error);
        assert_eq!((parked.attempts, handler.0.load(Ordering::SeqCst)), (1, 1), "{ends}");
        assert_eq!(service.notes().await, [ends]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_sessions_are_read_only_by_default_a_handler_writes_in_its_transaction_or_nowhere() {
    for ends in ["well", "errs"] {
        let service = Service::new("guarded").await;
        let set = format!("alter database {} set default_transaction_read_only = on", service.database.name);
        service.database.admin().execute(AssertSqlSafe(set)).await.unwrap();
        let pool = outbox::pool_options().max_connections(24).connect(service.database.url()).await.unwrap();
        let service = Service { pool, ..service };
        let running = start(service.consumer().on(KIND, GivesUpSavepoint::default()));
        service.publish(&[placed("a", ends)]).await;
        service.acknowledged().await;
        service.nothing_is_held().await;
        running.stop().await;
        assert_eq!(service.notes().await, [ends]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_is_cut_off_while_it_waits_for_a_savepoint_is_tried_again() {
    let service = Service::new("waits for a savepoint").await;
    static TRIES: AtomicUsize = AtomicUsize::new(0);
    let handler = async |tx: &mut PgTransaction<'_>, message: &Message| {
        if TRIES.fetch_add(1, Ordering::SeqCst) == 0 {
            give_up(tx, "select pg_sleep(600)").await;
            drop((**tx).begin().await?);
        }
        effect(tx, message).await
    };
    let running = start(service.consumer().with_handler_timeout(Duration::from_secs(2)).on(KIND, handler));
    service.publish(&[placed("a", "1")]).await;
    service.acknowledged().await;
    service.nothing_is_held().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_is_cut_off_after_a_statement_that_failed_is_tried_again() {
    let service = Service::new("cut off").await;
    static TRIES: AtomicUsize = AtomicUsize::new(0);
    let handler = async |tx: &mut PgTransaction<'_>, message: &Message| {
        effect(tx, message).await?;
        let tried = TRIES.fetch_add(1, Ordering::SeqCst);
        if tried < 2 {
            let failed = tx.execute("select 1 / 0").await;
            assert!(tried == 0, "{failed:?}");
            std::future::pending().await
        }
        Ok(())
    };
    let running = start(service.consumer().with_handler_timeout(Duration::from_secs(2)).on(KIND, handler));
    service.publish(&[placed("a", "1")]).await;
    service.acknowledged().await;
    service.nothing_is_held().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_a_statement_that_a_handler_gave_up_does_not_make_its_message_unstorable() {
    for (says, error) in [
        ("retry", "the statement took too long"),
        ("ok", "the handler passed over a statement that failed: database error 22012"),
    ] {
        let service = Service::new("gave up a statement").await;
        let handler = async |tx: &mut PgTransaction<'_>, message: &Message| {
            give_up(tx, "select 1 / (select count(*)::int - 1 from pg_sleep(1))").await;
            match note(message) == "retry" {
                true => Err(HandlerError::retry("the statement took too long")),
                false => Ok(()),
            }
        };
        service.publish(&[placed("a", says)]).await;
        let running = start(service.consumer().with_max_attempts(2).on(KIND, handler));
        let parked = service.parked(1).await.remove(0);
        running.stop().await;
        let mut connection = service.pool.acquire().await.unwrap();
        let held = admin::held_messages(&mut connection, CONSUMER, parked.hold, 10).await.unwrap();
        assert!(
            held[0].received.is_ok() && parked.attempts == 2,
            "{says}: {parked:?}, {:?}",
            held[0].received
        );
        assert!(parked.last_error.contains(error), "{says}: {}", parked.last_error);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_statement_that_a_handler_gave_up_is_counted_and_ended_in_time() {
    for says in ["retry", "ok"] {
        let service = Service::new("gave up a hanging one").await;
        let handler = async |tx: &mut PgTransaction<'_>, message: &Message| {
            give_up(tx, "select pg_sleep(600)").await;
            match note(message) == "retry" {
                true => Err(HandlerError::retry("the statement took too long")),
                false => Ok(()),
            }
        };
        let consumer = service.consumer().with_max_attempts(2).with_handler_timeout(Duration::from_secs(2));
        let running = start(consumer.on(KIND, handler));
        service.publish(&[placed("a", says)]).await;
        let parked = service.parked(1).await.remove(0);
        assert_eq!(parked.attempts, 2, "{}", parked.last_error);
        let sleeping = "select count(*) from pg_stat_activity
            where datname = current_database() and state = 'active' and query like '%pg_sleep%' and pid <> pg_backend_pid()";
        eventually("no backend goes on", async || (service.count(sleeping).await == 0).then_some(())).await;
        running.stop().await;
    }
}

/// Works under a role of its tenant, as services with row-level security do, and does not wait for the disk.
struct AsTenant(String, AtomicUsize);

#[async_trait::async_trait]
impl inbox::Handler for AsTenant {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        let set = format!("set local role {}; set local synchronous_commit = off", self.0);
        tx.execute(AssertSqlSafe(set)).await?;
        if note(message) == "fails once" && self.1.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(HandlerError::retry("not yet"));
        }
        effect(tx, message).await
    }
}

/// What a deferred trigger sees, which runs at the very end.
const AT_COMMIT: &str = "
    create table seen (role name, waits text);
    create function look() returns trigger language plpgsql as $$
        begin
            insert into public.seen values (current_user, current_setting('synchronous_commit'));
            return null;
        end
    $$;
    create constraint trigger look after insert on effect deferrable initially deferred
        for each row execute function look();";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_sets_a_local_role_is_done_with_a_retry_as_with_a_first_try() {
    let service = Service::new("local role").await;
    sqlx::raw_sql(AT_COMMIT).execute(&service.pool).await.unwrap();
    let role = format!("tenant_{}", uuid::Uuid::new_v4().simple());
    let make = format!(
        "create role {role}; grant insert on effect, seen to {role}; grant usage on sequence effect_number_seq to {role}"
    );
    service.pool.execute(AssertSqlSafe(make)).await.unwrap();
    let handler = AsTenant(role.clone(), AtomicUsize::new(0));
    let running = start(service.consumer().with_max_attempts(3).on(KIND, handler));
    service.publish(&[placed("a", "first try"), placed("b", "fails once")]).await;
    service.acknowledged().await;
    let done = eventually("both are handled", async || {
        (service.count("select count(*) from effect").await == 2 && service.held().await.is_empty())
            .then_some(())
    });
    let done = tokio::time::timeout(Duration::from_secs(45), done).await;
    let seen: Vec<(String, String)> =
        sqlx::query_as("select role::text, waits from seen").fetch_all(&service.pool).await.unwrap();
    let held = service.held().await;
    running.stop().await;
    let clean = format!("drop owned by {role}; drop role {role}");
    service.pool.execute(AssertSqlSafe(clean)).await.unwrap();
    assert!(done.is_ok(), "{held:?}");
    assert_eq!(seen, vec![(role, "on".to_owned()); 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_handler_has_set_and_cannot_be_taken_back_is_counted_and_said() {
    let service = Service::new("made read-only").await;
    let handler = async |tx: &mut PgTransaction<'_>, message: &Message| {
        effect(tx, message).await?;
        tx.execute("set transaction read only").await?;
        if note(message) == "fails once" {
            static TRIES: AtomicUsize = AtomicUsize::new(0);
            if TRIES.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err(HandlerError::retry("not yet"));
            }
        }
        Ok(())
    };
    let running = start(service.consumer().with_max_attempts(2).on(KIND, handler));
    service.publish(&[placed("a", "first try"), placed("b", "fails once")]).await;
    service.acknowledged().await;
    let parked = service.parked(1).await.remove(0);
    running.stop().await;
    assert_eq!(parked.attempts, 2);
    assert!(parked.last_error.contains("cannot be taken back"), "{}", parked.last_error);
    assert_eq!(service.notes().await, ["first try"]);
}
