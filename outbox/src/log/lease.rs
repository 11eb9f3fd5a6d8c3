//! A process's lease on its shards, renewed for as long as it works.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgPool;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::rest::{self, Next, Rest};
use super::share::Share;
use crate::statement;

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
    rest: Mutex<Rest>,
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
            let rest = Mutex::new(Rest::new(Instant::now()));
            Lease {
                pool,
                relay,
                process,
                lasts,
                shares: watch::Sender::new(share),
                nudge: Notify::new(),
                rest,
            }
        }))
    }

    /// How the process stands, as of each renewal.
    pub fn shares(&self) -> watch::Receiver<Share> {
        self.shares.subscribe()
    }

    /// A look that was asked for then saw that the sharing has changed so often: if that is news, the lease is renewed at once,
    /// and if it is not, a process at rest knows that nobody waits for it.
    pub fn has_seen(&self, changes: i64, asked: Instant) {
        let mut news = false;
        self.shares.send_if_modified(|share| {
            news = share.changes != changes;
            if !news && self.rest().looked(asked, self.lasts) {
                share.renewed = share.renewed.max(asked);
            }
            // To nobody's surprise.
            false
        });
        if news {
            self.nudge.notify_one();
        }
    }

    /// There is something to do: whoever waits for this process should not wait long.
    pub(crate) fn is_at_work(&self) {
        self.rest().works(Instant::now());
    }

    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the lease renewed at once: what was seen last is too old to decide by.
    pub fn look_again(&self) {
        self.nudge.notify_one();
    }

    /// Renews the lease four times while it lasts, when a look has seen a change, and when another process is about to be dead;
    /// hardly ever while the process is alone and has nothing to do.
    /// Returns `Ok` when the process was taken for dead, and an error when the lease could not be renewed for so long
    /// that somebody may soon think so.
    ///
    /// # Errors
    /// The database has not answered for half the lease.
    pub async fn keep(&self) -> Result<(), sqlx::Error> {
        let quarter = self.lasts / 4;
        let mut pause = self.pause(quarter);
        loop {
            let nudged = tokio::select! {
                () = tokio::time::sleep(pause) => false,
                () = self.nudge.notified() => true,
            };
            let share = self.shares.borrow().clone();
            let next = self.rest().next(&share, self.lasts, Instant::now());
            if next == Next::Nothing && !nudged {
                pause = quarter;
                continue;
            }
            let renewal = self.renew(next == Next::Rest && !nudged);
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

    /// For as long as it usually lasts, or for a rest, if nobody else is there.
    async fn renew(&self, rests: bool) -> Result<Option<Share>, sqlx::Error> {
        if rests {
            let known = self.shares.borrow().clone();
            let asked = Instant::now();
            statement::run(&self.pool, sqlx::query(include_str!("sql/bury.sql")).bind(&self.relay)).await?;
            let query = sqlx::query(include_str!("sql/rest.sql")).bind(&self.relay).bind(self.process);
            let query =
                query.bind(rest::LASTS.as_secs_f64()).bind(self.lasts.as_secs_f64()).bind(known.changes);
            if statement::run(&self.pool, query).await? > 0 {
                self.rest().renewed(asked, true);
                return Ok(Some(Share { renewed: asked, ..known }));
            }
        }
        // Before the answer: one that never comes may have been given.
        self.rest().renewed(Instant::now(), false);
        Share::renew(&self.pool, &self.relay, self.process, self.lasts).await
    }

    fn pause(&self, most: Duration) -> Duration {
        let end = self.shares.borrow().expires_in.map(|left| left + AFTER_THE_END);
        end.map_or(most, |end| end.min(most))
    }
}
