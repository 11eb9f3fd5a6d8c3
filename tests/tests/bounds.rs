//! What a person decides waits for no lock without end, and says that nothing was changed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use brokers::memory::Broker;
use outbox::admin::{self, AdminError, StateError};
use outbox::replay::{self, CancelError, Filter, Replay, ReplayError};
use sqlx::Executor;
use tests::Database;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_waits_for_a_lock_for_a_while_only_and_changes_nothing() {
    let database = Database::new("bounds").await;
    let pool = outbox::pool_options().max_connections(10).connect(database.url()).await.unwrap();
    let broker = Broker::new();
    pool.execute(
        "insert into outbox.relay (name, shards) values ('default', 1);
         insert into outbox.held_key (relay, position, slot, state, attempts, last_error)
         values ('default', 1, 0, 'parked', 9, 'no');
         insert into outbox.held_message (relay, position, held, id) values ('default', 1, 1, gen_random_uuid());
         insert into outbox.replay (name, era, seen, after, to_position) values ('r', 1, pg_current_snapshot(), 0, 1)",
    )
    .await
    .unwrap();
    // As a transaction that stands open in a person's session.
    let mut open = database.pool().begin().await.unwrap();
    open.execute("select from outbox.relay for update; select from outbox.held_key for update")
        .await
        .unwrap();
    open.execute("select from outbox.replay for update").await.unwrap();
    let again = || Replay::new("r", pool.clone(), broker.publisher(), "ada");
    let (redriven, skipped, paused, cancelled, replayed) = tokio::join!(
        admin::redrive(&pool, "default", 1, "ada", None),
        admin::skip(&pool, "default", 1, "ada", "lost"),
        admin::pause(&pool, "default", "ada", None),
        replay::cancel(&pool, "r", "ada", "enough"),
        again().run(CancellationToken::new()),
    );
    assert!(matches!(redriven, Err(AdminError::Locked(_))), "{redriven:?}");
    assert!(matches!(skipped, Err(AdminError::Locked(_))), "{skipped:?}");
    assert!(matches!(paused, Err(StateError::Admin(AdminError::Locked(_)))), "{paused:?}");
    assert!(matches!(cancelled, Err(CancelError::Admin(AdminError::Locked(_)))), "{cancelled:?}");
    assert!(matches!(replayed, Err(ReplayError::Locked(_))), "{replayed:?}");
    // One that begins waits for the name.
    let mut begins = database.pool().begin().await.unwrap();
    begins.execute("insert into outbox.replay (name, era, seen, after, to_position) values ('s', 1, pg_current_snapshot(), 0, 1)")
        .await
        .unwrap();
    let new = Replay::new("s", pool.clone(), broker.publisher(), "ada").with_filter(Filter::default());
    let begun = new.run(CancellationToken::new()).await;
    assert!(matches!(begun, Err(ReplayError::Locked(_))), "{begun:?}");
    open.rollback().await.unwrap();
    begins.rollback().await.unwrap();
    let decided: i64 =
        sqlx::query_scalar("select count(*) from outbox.audit").fetch_one(&pool).await.unwrap();
    assert_eq!(decided, 0);
    assert!(admin::skip(&pool, "default", 1, "ada", "lost").await.unwrap());
}
