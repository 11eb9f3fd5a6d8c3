//! A process's lease on its shards, renewed for as long as it works.

use std::time::Duration;

use sqlx::postgres::PgPool;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::share::Share;

/// How long after another process's end its shards are looked for: the clocks of two statements differ a little.
const AFTER_THE_END: Duration = Duration::from_millis(20);

/// A process's lease, and how it sees its share of the work.
#[derive(Debug)]
pub struct Lease {
    pool: PgPool,
    relay: String,
    process: Uuid,
    lasts: Duration,
    shares: watch::Sender<Share>,
    nudge: Notify,
}

impl Lease {
    /// The lease of a process that has joined, renewed once. `None`: it was thought dead meanwhile.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn begin(
        pool: PgPool,
        relay: String,
        process: Uuid,
        lasts: Duration,
    ) -> Result<Option<Self>, sqlx::Error> {
        let share = Share::renew(&pool, &relay, process, lasts).await?;
        Ok(share.map(|share| {
            let (shares, nudge) = (watch::Sender::new(share), Notify::new());
            Lease { pool, relay, process, lasts, shares, nudge }
        }))
    }

    /// How the process stands, as of each renewal.
    pub fn shares(&self) -> watch::Receiver<Share> {
        self.shares.subscribe()
    }

    /// A look saw that the sharing has changed so often: if that is news, the lease is renewed at once.
    pub fn has_seen(&self, changes: i64) {
        if self.shares.borrow().changes != changes {
            self.nudge.notify_one();
        }
    }

    /// Has the lease renewed at once: what was seen last is too old to decide by.
    pub fn look_again(&self) {
        self.nudge.notify_one();
    }

    /// Renews the lease four times while it lasts, when a look has seen a change, and when another process is about to be dead.
    /// Returns `Ok` when the process was taken for dead, and an error when the lease could not be renewed for so long
    /// that somebody may soon think so.
    ///
    /// # Errors
    /// The database has not answered for half the lease.
    pub async fn keep(&self) -> Result<(), sqlx::Error> {
        let quarter = self.lasts / 4;
        let mut pause = self.pause(quarter);
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.nudge.notified() => {}
            }
            let renewal = Share::renew(&self.pool, &self.relay, self.process, self.lasts);
            let failed = match tokio::time::timeout(quarter, renewal).await {
                Ok(Ok(Some(share))) => {
                    self.shares.send_replace(share);
                    pause = self.pause(quarter);
                    continue;
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => sqlx::Error::PoolTimedOut,
            };
            // The local clock's patience is shorter than the lease by the database's.
            if self.shares.borrow().renewed.elapsed() >= self.lasts / 2 {
                return Err(failed);
            }
            pause = quarter / 4;
        }
    }

    fn pause(&self, most: Duration) -> Duration {
        let end = self.shares.borrow().expires_in.map(|left| left + AFTER_THE_END);
        end.map_or(most, |end| end.min(most))
    }
}
