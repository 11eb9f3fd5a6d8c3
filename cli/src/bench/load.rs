//! Business transactions at a steady rate, and how soon what they enqueue is delivered.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use message::wire::structured;
use message::{Message, MessageId, Outcomes, Outgoing, Pipelining, Publisher};
use sqlx::postgres::PgPool;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::database;
use crate::exit::{Failure, chain};

/// When each message was about to be enqueued, or committed, and how long it then took.
#[derive(Debug, Default)]
pub(super) struct Clock {
    written: Mutex<HashMap<MessageId, Instant>>,
    took: Mutex<Vec<f64>>,
}

impl Clock {
    fn start(&self, id: MessageId) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Instant::now());
    }

    /// The first delivery of a message counts.
    fn stop(&self, id: MessageId) {
        let began = self.written.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(began) = began {
            let took = began.elapsed().as_secs_f64() * 1000.0;
            self.took.lock().unwrap_or_else(PoisonError::into_inner).push(took);
        }
    }

    /// Takes out what was measured, in milliseconds.
    pub(super) fn take(&self) -> Vec<f64> {
        std::mem::take(&mut *self.took.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn count(&self) -> usize {
        self.took.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[async_trait::async_trait]
impl Publisher for Clock {
    fn pipelining(&self) -> Pipelining {
        Pipelining::PerBatch
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        batch.iter().for_each(|outgoing| self.stop(outgoing.message.id));
        outcomes.confirm_all();
    }
}

/// What the state change of a transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It updates a row.
    Updates,
    /// It adds one: while somebody holds a snapshot, what is updated grows, and with it what an update costs, relay or no relay.
    Adds,
}

/// What a message's time is counted from: just before that is asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    Enqueue,
    Commit,
}

/// What is written: each transaction changes a row and enqueues a message of that account's key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Transactions a second.
    pub(super) rate: u32,
    /// Connections that share them.
    pub(super) writers: u32,
    /// Bytes of payload.
    pub(super) payload: u32,
    pub(super) change: Change,
    pub(super) since: Since,
    /// Without, the transaction changes its row and no more.
    pub(super) enqueues: bool,
}

const ACCOUNTS: i32 = 10_000;

impl Load {
    /// Makes the rows that the transactions change.
    pub(super) async fn prepare(pool: &PgPool) -> Result<(), sqlx::Error> {
        sqlx::query(include_str!("sql/account.sql")).execute(pool).await?;
        sqlx::query(include_str!("sql/accounts.sql")).bind(ACCOUNTS).execute(pool).await?;
        sqlx::query(include_str!("sql/entries.sql")).execute(pool).await?;
        Ok(())
    }

    /// Writes for so many seconds: each transaction at its own time, however long the one before it took.
    pub(super) async fn write(self, pool: &PgPool, clock: &Arc<Clock>, seconds: u32) -> Result<(), Failure> {
        let began = tokio::time::Instant::now();
        let mut writers = JoinSet::new();
        for writer in 0..self.writers {
            let (pool, clock) = (pool.clone(), Arc::clone(clock));
            writers.spawn(async move {
                for number in (writer..self.rate * seconds).step_by(self.writers as usize) {
                    let due = began + Duration::from_secs_f64(f64::from(number) / f64::from(self.rate));
                    tokio::time::sleep_until(due).await;
                    self.transact(&pool, &clock, number).await?;
                }
                Ok::<(), sqlx::Error>(())
            });
        }
        while let Some(ended) = writers.join_next().await {
            ended.map_err(Failure::failed)?.map_err(|error| database::failed("bench", &error))?;
        }
        Ok(())
    }

    /// One of the transactions.
    pub(super) async fn transact(self, pool: &PgPool, clock: &Clock, number: u32) -> Result<(), sqlx::Error> {
        let account = i32::try_from(number.wrapping_mul(7919) % ACCOUNTS.unsigned_abs()).unwrap_or_default();
        let mut tx = pool.begin().await?;
        let change = match self.change {
            Change::Updates => include_str!("sql/business.sql"),
            Change::Adds => include_str!("sql/entry.sql"),
        };
        sqlx::query(change).bind(account).execute(&mut *tx).await?;
        let message = Message::new("bench", "bench.done", vec![b'x'; self.payload as usize])
            .with_key(format!("account-{account}"));
        clock.start(message.id);
        if self.enqueues {
            let enqueued = outbox::enqueue_all(&mut tx, std::slice::from_ref(&message)).await;
            enqueued.map_err(|error| sqlx::Error::Protocol(chain(&error)))?;
        }
        if self.since == Since::Commit {
            clock.start(message.id);
        }
        tx.commit().await?;
        if !self.enqueues {
            clock.stop(message.id);
        }
        Ok(())
    }
}

/// Waits for the last delivery, as long as there are any.
pub(super) async fn until_delivered(
    clock: &Clock,
    wanted: usize,
    relays: &mut JoinSet<Result<(), Failure>>,
) -> Result<(), Failure> {
    let mut last = (clock.count(), Instant::now());
    while clock.count() < wanted {
        if let Some(ended) = relays.try_join_next() {
            ended.map_err(Failure::failed)??;
            return Err(Failure::failed("bench: the relay ended by itself"));
        }
        if clock.count() > last.0 {
            last = (clock.count(), Instant::now());
        } else if last.1.elapsed() > Duration::from_secs(30) {
            return Err(Failure::failed(format!(
                "bench: {} of {wanted} messages were delivered",
                clock.count()
            )));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// `outbox relay` as a process of its own, whose standard output is the broker.
pub(super) async fn separate(
    url: String,
    flags: &'static [&'static str],
    clock: Arc<Clock>,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(Failure::failed)?;
    let mut relay = Command::new(program)
        .args(["relay", "--relay", "bench", "--broker", "file:-"])
        .args(flags)
        .env(database::VARIABLE, url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Failure::failed(format!("bench: cannot start the relay: {error}")))?;
    let Some(output) = relay.stdout.take() else {
        return Err(Failure::failed("bench: the relay has no output"));
    };
    let mut lines = BufReader::new(output).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => match line {
                Ok(Some(line)) => {
                    if let Ok(message) = structured::decode(line.as_bytes(), "bench") {
                        clock.stop(message.id);
                    }
                }
                _ => return Err(Failure::failed("bench: the relay ended by itself")),
            },
            () = stop.cancelled() => break,
        }
    }
    relay.kill().await.map_err(|error| Failure::failed(format!("bench: cannot stop the relay: {error}")))
}
