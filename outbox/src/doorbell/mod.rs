//! The doorbell: an enqueue in this process tells the relays in other processes that a commit is coming.
//!
//! Beside the service's own connections, and on none of them: whatever becomes of it, the service goes on, and relays find
//! what is committed by polling. Like the [bell](crate::bell) it says that a commit is coming, not that one happened, and a
//! ring that is lost costs the poll's ceiling.

mod listen;

use std::convert::Infallible;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio_util::sync::CancellationToken;

use crate::bell::Ear;
use crate::relay::{Backoff, chain, chance};
use crate::statement::within;

pub(crate) use listen::listen;

const NOTIFY: &str = include_str!("sql/notify.sql");

/// Between two rings, however much is enqueued: what is enqueued meanwhile is rung for at its end.
const INTERVAL: Duration = Duration::from_millis(40);
/// So long nothing is said before the connection is tried: one that dies without a word is not found by the next ring.
const QUIET: Duration = Duration::from_secs(30);
/// A server that has not answered by then is thought gone.
const ANSWER: Duration = Duration::from_secs(5);
const RECONNECT: Backoff = Backoff { first: Duration::from_millis(50), ceiling: Duration::from_secs(5) };

/// Rings for the relays in other processes whenever this process enqueues, so that they need not poll often to be quick.
///
/// Opt-in, for a service whose relay runs elsewhere and [listens](crate::Settings::doorbell); a relay in the service's own
/// process hears every enqueue without. It takes a connection of its own beside the pool's, and rings at most
/// twenty-five times a second, in transactions of its own. A doorbell that cannot ring delays and fails nothing.
///
/// ```no_run
/// use tokio_util::sync::CancellationToken;
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = outbox::pool_options().connect("postgres://localhost/orders").await?;
/// let stop = CancellationToken::new();
/// let doorbell = tokio::spawn(outbox::Doorbell::new(pool.clone()).run(stop.clone()));
/// // … the service …
/// stop.cancel();
/// doorbell.await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Doorbell {
    pool: PgPool,
    ear: Ear,
}

impl Doorbell {
    /// The doorbell of the database behind `pool`, of which it takes the address and no connection. What is enqueued
    /// from now on is rung for.
    pub fn new(pool: PgPool) -> Self {
        Doorbell { pool, ear: Ear::new() }
    }

    /// Rings until `stop` is cancelled. Goes on through failures of the database.
    pub async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(self.ring()).await;
    }

    async fn ring(&mut self) {
        let mut failures = 0;
        loop {
            let Err(error) = self.ring_on_one_connection(&mut failures).await;
            failures += 1;
            let pause = RECONNECT.after(failures, chance());
            let error = chain(&error);
            if failures == 1 {
                tracing::warn!(
                    error,
                    ?pause,
                    "the doorbell is broken: relays elsewhere find messages by polling"
                );
            } else {
                tracing::debug!(error, ?pause, "the doorbell is broken still");
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn ring_on_one_connection(&mut self, failures: &mut u32) -> Result<Infallible, sqlx::Error> {
        let options = (*self.pool.connect_options()).clone().application_name("outbox doorbell, ringing");
        let mut connection: PgConnection = within(ANSWER, options.connect()).await?;
        loop {
            // The first time, too: for what was enqueued while there was no connection.
            self.ear.heard();
            within(ANSWER, connection.execute(sqlx::raw_sql(NOTIFY))).await?;
            if std::mem::take(failures) > 0 {
                tracing::info!("the doorbell rings again");
            }
            tokio::time::sleep(INTERVAL).await;
            while tokio::time::timeout(QUIET, self.ear.wait()).await.is_err() {
                within(ANSWER, connection.ping()).await?;
            }
        }
    }
}
