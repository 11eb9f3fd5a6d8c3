//! A process that has lost its shards and is just being told so: nothing of them is sent any more.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod relay_support;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use brokers::memory::{Broker, Fault};
use chrono::{DateTime, Utc};
use relay_support::{PATIENCE, message, settings, start, until, write};
use sqlx::{Executor, PgPool};
use tests::Database;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Stops the thread that logs a line, until it is told to go on: the session, between an outcome and what it does next.
struct Gate {
    line: &'static str,
    reached: Mutex<Sender<()>>,
    go_on: Mutex<Receiver<()>>,
}

struct Says<'l>(&'l str, bool);

impl Visit for Says<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.1 |= field.name() == "message" && format!("{value:?}").contains(self.0);
    }
}

impl<S: tracing::Subscriber> Layer<S> for Gate {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut says = Says(self.line, false);
        event.record(&mut says);
        if says.1 {
            let _ = self.reached.lock().unwrap_or_else(PoisonError::into_inner).send(());
            // The other tasks of this thread go on elsewhere.
            tokio::task::block_in_place(|| {
                let _ = self.go_on.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(PATIENCE);
            });
        }
    }
}

async fn lease_ends(pool: &PgPool) -> Option<DateTime<Utc>> {
    let query = "select expires_at from outbox.process where label like 'pid %'";
    sqlx::query_scalar(query).fetch_optional(pool).await.unwrap()
}

/// The renewal is a lease that holds and the news that the shards are another's, and both come with one answer: whoever
/// takes the first and not yet the second would send what the new owner sends, too, also what was written long after the loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_renewal_that_says_that_the_shards_are_lost_lets_nothing_of_them_be_sent() {
    let (reached_sender, reached) = channel();
    let (go_on, go_on_receiver) = channel();
    let gate = Gate {
        line: "published again",
        reached: Mutex::new(reached_sender),
        go_on: Mutex::new(go_on_receiver),
    };
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(gate)).unwrap();

    let database = Database::new("lost_shards").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.fail_next(1, Fault::Unknown);
    let mut settings = settings();
    (settings.lease, settings.max_on_wire) = (Duration::from_secs(2), 1);
    // The first is sent and not kept; the second waits for room on the wire.
    write(pool, &[message("a", 1), message("b", 1)]).await;
    let relay = start(pool, broker.publisher(), settings);
    tokio::task::spawn_blocking(move || reached.recv_timeout(PATIENCE)).await.unwrap().unwrap();

    // Meanwhile another process takes all shards, as if this one's lease had ended.
    pool.execute(
        "with taker as (
             insert into outbox.process (id, relay, label, build, expires_at)
             values (gen_random_uuid(), 'default', 'taker', '', now() + interval '1 hour') returning id
         )
         update outbox.cursor set owner = taker.id, epoch = epoch + 1 from taker",
    )
    .await
    .unwrap();
    // Two renewals later the answer of the first has been taken in.
    for _ in 0..2 {
        let before = lease_ends(pool).await;
        until("a renewal", || async { lease_ends(pool).await > before }).await;
    }
    go_on.send(()).unwrap();
    drop(go_on);
    let stands_by = "select count(*) = 0 from outbox.cursor c join outbox.process p on p.id = c.owner
                     where p.label like 'pid %'";
    assert!(sqlx::query_scalar::<_, bool>(stands_by).fetch_one(pool).await.unwrap());
    relay.stop().await.unwrap();
    assert_eq!(broker.published().len(), 0, "what is another's was sent");
}
