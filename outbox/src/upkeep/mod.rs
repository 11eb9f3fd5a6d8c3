//! The upkeep of a log: what must be done for it as a whole, by one process at a time, whichever relay that process runs.
//!
//! A lease in the database says whose turn it is. It spares the work of doing things twice, and nothing more: each thing
//! is safe if two do it at once.

mod prune;

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection, Postgres, Row};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) use prune::pins;
pub use prune::{Pruned, prune};

use crate::log::rest;
use crate::relay::chain;
use crate::schedule::Mover;
use crate::statement::{self, within};
use prune::{summarize, sweep};

/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);
/// The clocks of two statements differ a little.
const AFTER_THE_END: Duration = Duration::from_millis(20);
/// A relay that is new is known to the database when its first session begins.
const SAY_AGAIN: Duration = Duration::from_millis(25);
/// How often the leaves are looked over while messages are written, and while none are.
const SWEEP: Duration = Duration::from_secs(5);
const IDLE_SWEEP: Duration = Duration::from_secs(60);
/// How often at most the newest blocks are summarized.
const SUMMARY: Duration = Duration::from_secs(60);
/// A sweep that took long, over leaves that are pinned, is not begun again before so many times as long.
const SWEEP_SHARE: u32 = 20;
/// How long a small statement may take: the connection is kept, and nobody has asked it how it is.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a sweep may take.
const SWEPT: Duration = Duration::from_secs(600);
/// The pause after a first failure, as when the connection that was kept is lost, and the longest after more.
const TRY_AT_ONCE: Duration = Duration::from_millis(25);
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Failures in a row after which somebody should know.
const WORTH_A_WARNING: u32 = 3;

/// A process's part in the upkeep of one log.
#[derive(Debug)]
pub struct Upkeep {
    pool: PgPool,
    relay: String,
    retention: Duration,
    lease: Duration,
    holder: Uuid,
    /// The database knows how long this relay wants messages kept; until then, how long to wait before the next attempt.
    said: bool,
    say_again: Duration,
    /// Whether the lease is ours, and was taken for a rest; when to try for it again, and when somebody was last seen to wait
    /// for it.
    held: bool,
    rests: bool,
    try_at: Instant,
    awaited: Option<Instant>,
    /// Kept while the lease is ours and the pool has another: whoever has it looks every other second, and a pool asks a
    /// connection how it is each time that it comes back.
    connection: Option<PoolConnection<Postgres>>,
    sweep_at: Instant,
    last_position: Option<i64>,
    summarized: Option<Instant>,
    mover: Mover,
}

impl Upkeep {
    /// Takes part in the upkeep of the log behind `pool`, for a relay that wants delivered messages kept for `retention`.
    /// Who has not been heard of for `lease` is relieved.
    pub fn new(pool: PgPool, relay: impl Into<String>, retention: Duration, lease: Duration) -> Self {
        let now = Instant::now();
        Upkeep {
            pool,
            relay: relay.into(),
            retention,
            lease,
            holder: Uuid::now_v7(),
            said: false,
            say_again: SAY_AGAIN,
            held: false,
            rests: false,
            try_at: now,
            awaited: None,
            connection: None,
            sweep_at: now,
            last_position: None,
            summarized: None,
            mover: Mover::new(),
        }
    }

    /// Works until it is told to stop, then hands over. Goes on through failures of the database.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let next = match self.round(&stop).await {
                Ok(next) => {
                    if failures >= WORTH_A_WARNING {
                        tracing::info!(relay = self.relay, "the upkeep of the log goes on");
                    }
                    failures = 0;
                    next
                }
                Err(error) => {
                    self.mover.doubt();
                    failures += 1;
                    if failures == WORTH_A_WARNING {
                        tracing::warn!(
                            relay = self.relay,
                            error = chain(&error),
                            "the upkeep of the log fails: no leaf is emptied, or nothing that is due is moved"
                        );
                    } else {
                        tracing::debug!(
                            relay = self.relay,
                            error = chain(&error),
                            "the upkeep of the log failed"
                        );
                    }
                    let pause = if failures == 1 { TRY_AT_ONCE } else { TRY_AGAIN };
                    self.try_at = Instant::now() + (self.lease / 2).min(pause);
                    self.sweep_at = self.sweep_at.max(self.try_at);
                    self.try_at
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
        if self.held {
            let let_go = sqlx::query(include_str!("sql/let_go.sql")).bind(self.holder);
            let let_go = async {
                match self.connection.as_deref_mut() {
                    Some(kept) => statement::run(kept, let_go).await,
                    None => statement::run(&self.pool, let_go).await,
                }
            };
            if !matches!(tokio::time::timeout(GOODBYE, let_go).await, Ok(Ok(_))) {
                tracing::debug!(relay = self.relay, "the upkeep is free when its lease ends");
            }
        }
    }

    /// Starts [`run`](Self::run) as a task of its own, which ends when what is answered is dropped.
    pub(crate) fn spawn(self, stop: CancellationToken) -> JoinSet<()> {
        let mut task = JoinSet::new();
        task.spawn(self.run(stop));
        task
    }

    /// Does what is due, and answers when something is due again.
    async fn round(&mut self, stop: &CancellationToken) -> Result<Instant, sqlx::Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            // What is begun on a connection is finished; only a pool that has none to give is not waited for.
            None => match stop.run_until_cancelled(self.pool.acquire()).await {
                Some(connection) => connection?,
                None => return Ok(self.try_at),
            },
        };
        if self.try_at <= Instant::now() {
            self.hold(&mut connection).await?;
        }
        if !self.held {
            return Ok(self.try_at);
        }
        // Neither waits for the other to succeed.
        let (mut moved, mut swept) = (Ok(()), Ok(()));
        if self.mover.next_at() <= Instant::now() {
            let rests = self.mover.move_due(&mut connection, self.holder).await;
            moved = rests.map(|rests| self.is_at_rest(rests));
        }
        if matches!(moved, Err(sqlx::Error::Io(_))) {
            // What has not answered will not answer the sweep, which may wait for long.
            return moved.map(|()| self.try_at);
        }
        if self.sweep_at <= Instant::now() {
            swept = self.sweep(&mut connection, stop).await;
        }
        moved.and(swept)?;
        self.connection = self.has_room().then_some(connection);
        Ok(self.try_at.min(self.sweep_at).min(self.mover.next_at()))
    }

    /// Whether the pool has a connection for others beside the one that is kept.
    fn has_room(&self) -> bool {
        let busy = (self.pool.size() as usize).saturating_sub(self.pool.num_idle());
        busy < self.pool.options().get_max_connections() as usize
    }

    /// Whether nobody is known to wait for the lease, so that it need not be renewed for long.
    fn may_rest(&self) -> bool {
        rest::suits(self.lease) && self.awaited.is_none_or(|at| at.elapsed() >= rest::LASTS)
    }

    /// If the lease was taken for a rest and is at rest no more, somebody waits.
    fn is_at_rest(&mut self, rests: bool) {
        if self.rests && !rests {
            self.rests = false;
            self.awaited = Some(Instant::now());
            self.try_at = Instant::now();
        }
    }

    /// Takes the lease if nobody has it, or renews it.
    async fn hold(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        if !self.said {
            let say = sqlx::query(include_str!("sql/want_kept.sql")).bind(&self.relay);
            let say = say.bind(self.retention.as_secs_f64());
            self.said = within(ANSWER, statement::row(&mut *connection, say)).await?.try_get(0)?;
        }
        let rests = self.may_rest();
        let lasts = if rests { rest::LASTS } else { self.lease };
        let hold = sqlx::query(include_str!("sql/hold.sql")).bind(self.holder).bind(lasts.as_secs_f64());
        let hold = hold.bind(rests.then_some(self.lease.as_secs_f64()));
        let row = within(ANSWER, statement::row(connection, hold)).await?;
        let held: bool = row.try_get("is_held")?;
        if held && !self.held {
            tracing::debug!(relay = self.relay, "this process has the upkeep of the log");
            self.sweep_at = Instant::now();
            self.mover = Mover::new();
        }
        (self.held, self.rests) = (held, held && rests);
        let ends_in: f64 = row.try_get::<Option<f64>, _>("ends_in")?.unwrap_or_default();
        let half = self.lease / 2;
        // A lease that is about to end may not be renewed.
        let ends_in = Duration::try_from_secs_f64(ends_in).unwrap_or_default() + AFTER_THE_END;
        let pause = match (self.said, held) {
            (false, _) => {
                self.say_again *= 2;
                half.min(self.say_again)
            }
            (true, true) => lasts / 2,
            (true, false) => half.min(ends_in),
        };
        self.try_at = Instant::now() + pause;
        Ok(())
    }

    async fn sweep(
        &mut self,
        connection: &mut PgConnection,
        stop: &CancellationToken,
    ) -> Result<(), sqlx::Error> {
        let began = Instant::now();
        within(ANSWER, connection.ping()).await?;
        let swept = within(SWEPT, sweep(&mut *connection, stop)).await?;
        let Pruned { emptied, pinned, locked } = &swept.pruned;
        if !emptied.is_empty() {
            tracing::info!(leaves = ?emptied, "leaves of the log are emptied: every relay has delivered them");
        }
        tracing::debug!(?emptied, ?pinned, ?locked, "leaves looked over");
        let moved = self.last_position != swept.last_position;
        if let Some(last) = swept.last_position.filter(|_| moved)
            && self.summarized.is_none_or(|at| at.elapsed() >= SUMMARY)
        {
            within(SWEPT, summarize(connection, last)).await?;
            self.summarized = Some(Instant::now());
        }
        self.last_position = swept.last_position;
        let busy = moved || !locked.is_empty();
        let pause = if busy { SWEEP } else { IDLE_SWEEP };
        self.sweep_at = Instant::now() + pause.max(began.elapsed() * SWEEP_SHARE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_was_waited_for_rests_again_in_its_time() {
        let pool = PgPool::connect_lazy("postgres://localhost/none").unwrap();
        let (day, lease) = (Duration::from_secs(86_400), Duration::from_secs(10));
        let mut upkeep = Upkeep::new(pool, "default", day, lease);
        upkeep.rests = true;
        upkeep.is_at_rest(false);
        let awaited = upkeep.awaited;
        assert!(awaited.is_some() && !upkeep.may_rest());
        // Looks go on while the lease is a usual one.
        upkeep.is_at_rest(false);
        assert_eq!(upkeep.awaited, awaited);
        upkeep.awaited = Instant::now().checked_sub(rest::LASTS);
        assert!(upkeep.may_rest());
        upkeep.is_at_rest(false);
        assert!(upkeep.may_rest(), "it has not rested yet");
    }
}
