//! One business transaction: locks its keys, writes its rows, enqueues what it says, and ends.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Result;
use message::Message;
use serde::Serialize;
use sqlx::postgres::PgArguments;
use sqlx::{Acquire, Arguments, PgTransaction};
use uuid::Uuid;

use super::ledger::Fact;
use super::shape::{Lock, Savepoint, Shape};
use super::wire::{Payload, Wire};

/// How long a straggler waits for its successors to be delivered.
const OVERTAKEN_WITHIN: Duration = Duration::from_secs(3);

/// What the workload has done, as proof that it was one.
#[derive(Debug, Default, Serialize)]
pub(super) struct Tally {
    pub(super) committed: AtomicU64,
    pub(super) rolled_back: AtomicU64,
    /// That slept with a transaction id before they locked anything.
    pub(super) early: AtomicU64,
    /// That committed after a message had been delivered that was enqueued after theirs.
    pub(super) stragglers: AtomicU64,
    pub(super) savepoints_released: AtomicU64,
    pub(super) savepoints_rolled_back: AtomicU64,
    pub(super) of_several_events: AtomicU64,
    pub(super) of_several_keys: AtomicU64,
}

/// What all transactions share.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) wire: std::sync::Arc<Wire>,
    pub(super) tally: Tally,
    pub(super) stamps: AtomicU64,
    /// The planted writers: how long between drawing a position and having a transaction id.
    pub(super) positions_first: Option<Duration>,
}

/// What one write has enqueued.
struct Written {
    messages: u64,
    stamp: u64,
}

impl Scene {
    fn stamp(&self) -> u64 {
        self.stamps.fetch_add(1, Relaxed)
    }

    /// Runs the transaction. Answers how many messages it has committed.
    pub(super) async fn play(&self, mut tx: PgTransaction<'_>, shape: &Shape) -> Result<u64> {
        if let Some(nap) = shape.early {
            sqlx::query(include_str!("sql/take_id.sql")).execute(&mut *tx).await?;
            tokio::time::sleep(nap).await;
            self.tally.early.fetch_add(1, Relaxed);
        }
        let written = match shape.savepoint {
            Savepoint::None => self.write(&mut tx, shape).await?,
            Savepoint::Released => {
                let mut savepoint = tx.begin().await?;
                let written = self.write(&mut savepoint, shape).await?;
                savepoint.commit().await?;
                self.tally.savepoints_released.fetch_add(1, Relaxed);
                written
            }
            Savepoint::RolledBack => {
                let mut savepoint = tx.begin().await?;
                self.write(&mut savepoint, shape).await?;
                savepoint.rollback().await?;
                self.tally.savepoints_rolled_back.fetch_add(1, Relaxed);
                self.write(&mut tx, shape).await?
            }
        };
        tokio::time::sleep(shape.linger).await;
        if shape.straggles {
            self.is_overtaken(written.stamp).await;
        }
        if shape.rolled_back {
            tx.rollback().await?;
            self.tally.rolled_back.fetch_add(1, Relaxed);
            return Ok(0);
        }
        let straggles = self.wire.newest_stamp() > written.stamp;
        outbox::commit(tx).await?;
        self.tally.stragglers.fetch_add(straggles.into(), Relaxed);
        self.tally.of_several_events.fetch_add((shape.events > 1).into(), Relaxed);
        self.tally.of_several_keys.fetch_add((shape.keys.len() > 1).into(), Relaxed);
        self.tally.committed.fetch_add(1, Relaxed);
        Ok(written.messages)
    }

    /// Waits until something written later is delivered; not for ever, since the relay may be down.
    async fn is_overtaken(&self, stamp: u64) {
        let since = Instant::now();
        while self.wire.newest_stamp() <= stamp && since.elapsed() < OVERTAKEN_WITHIN {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn write(&self, tx: &mut PgTransaction<'_>, shape: &Shape) -> Result<Written> {
        let mut facts = Vec::new();
        if shape.lock == Lock::Key {
            let names: Vec<String> = shape.keys.iter().map(i32::to_string).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            outbox::lock_keys(tx, &names).await?;
        }
        for key in &shape.keys {
            let versions = lock(tx, shape, *key).await?;
            facts.extend(versions.map(|version| Fact { key: *key, version }));
        }
        tokio::time::sleep(shape.think).await;
        let messages: Vec<Message> = facts.iter().map(|fact| self.message(*fact)).collect::<Result<_>>()?;
        match (shape.lock, self.positions_first) {
            (Lock::RowBeside, _) => {
                let mut arguments = PgArguments::default();
                let bound = arguments.add(shape.keys[0]).and_then(|()| arguments.add(shape.events));
                bound.map_err(sqlx::Error::Encode)?;
                let advance = include_str!("sql/advance_row.sql");
                outbox::enqueue_beside(tx, advance, arguments, &messages).await?;
            }
            (Lock::Key, Some(nap)) => enqueue_at(tx, nap, &messages).await?,
            _ => outbox::enqueue_all(tx, &messages).await?,
        }
        let stamp = self.stamp();
        if shape.lock == Lock::Key {
            for key in &shape.keys {
                let advance =
                    sqlx::query(include_str!("sql/advance_counter.sql")).bind(*key).bind(shape.events);
                advance.execute(&mut **tx).await?;
            }
        }
        sqlx::query(include_str!("sql/biz.sql"))
            .bind(messages.iter().map(|message| Uuid::from(message.id)).collect::<Vec<Uuid>>())
            .bind(facts.iter().map(|fact| fact.key).collect::<Vec<i32>>())
            .bind(facts.iter().map(|fact| fact.version).collect::<Vec<i64>>())
            .execute(&mut **tx)
            .await?;
        Ok(Written { messages: messages.len() as u64, stamp })
    }

    fn message(&self, fact: Fact) -> Result<Message> {
        let payload = Payload { key: fact.key, version: fact.version, stamp: self.stamp() };
        Ok(Message::new("soak", "soak.fact", serde_json::to_vec(&payload)?).with_key(fact.key.to_string()))
    }
}

/// Makes the transaction the only writer of the key, and answers the versions it may write.
async fn lock(
    tx: &mut PgTransaction<'_>,
    shape: &Shape,
    key: i32,
) -> Result<std::ops::RangeInclusive<i64>, sqlx::Error> {
    let events = shape.events;
    let (query, advances) = match shape.lock {
        Lock::Row => (sqlx::query_scalar(include_str!("sql/lock_row.sql")).bind(key).bind(events), true),
        Lock::RowBeside => (sqlx::query_scalar(include_str!("sql/peek_row.sql")).bind(key), false),
        Lock::Key => (sqlx::query_scalar(include_str!("sql/read_counter.sql")).bind(key), false),
    };
    let version: i64 = query.fetch_one(&mut **tx).await?;
    let before = if advances { version - events } else { version };
    Ok(before + 1..=before + events)
}

/// The planted writers: a position first, the transaction's id some time later.
async fn enqueue_at(tx: &mut PgTransaction<'_>, nap: Duration, messages: &[Message]) -> Result<()> {
    let positions: Vec<i64> = sqlx::query_scalar(include_str!("sql/draw_positions.sql"))
        .bind(messages.len() as i64)
        .fetch_all(&mut **tx)
        .await?;
    tokio::time::sleep(nap).await;
    sqlx::query(include_str!("sql/enqueue_at.sql"))
        .bind(positions)
        .bind(messages.iter().map(|message| Uuid::from(message.id)).collect::<Vec<Uuid>>())
        .bind(messages.iter().map(|message| message.key.as_deref()).collect::<Vec<Option<&str>>>())
        .bind(messages.iter().map(|message| message.payload.to_vec()).collect::<Vec<Vec<u8>>>())
        .execute(&mut **tx)
        .await?;
    Ok(())
}
