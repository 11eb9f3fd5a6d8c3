//! This process among those of its consumer: its heartbeat, the deaths of others, and what it has in hand.
//!
//! A first try leaves nothing behind when its process dies, so a message that kills its process would do so again and
//! again. After a death each process therefore declares, for a while, which messages it is about to try: the next death
//! names its suspects, which go to the quarantine and are tried alone. Declaring costs a small statement for several
//! messages, without a wait for the disk, so it is not done all the time.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgPool, Row};
use uuid::Uuid;

use crate::hold::milliseconds;
use crate::horizon::Clocks;
use crate::statement::{self, PgQuery};

/// How often a process renews its heartbeat.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// When it is taken for dead. A process that lives and is taken for dead loses nothing: what it had declared is tried
/// alone later, if it was not handled.
const EXPIRY: Duration = Duration::from_secs(8);
/// How long a death is recent: longer than brokers wait before they deliver again what the dead process had in hand.
const RECENT: Duration = Duration::from_secs(90);
/// When a message leaves the quarantine that the broker has not delivered again.
const FORGOTTEN: Duration = Duration::from_secs(86_400);

/// A process of a consumer.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) id: Uuid,
    declares_until: Mutex<Option<Instant>>,
    /// Whether its row was written, or may have been.
    is_written: AtomicBool,
    /// Whether something that it has declared is in hand.
    keeps_declared: AtomicBool,
    /// What the database's clock said at the last heartbeat, and when that was.
    database_clock: Mutex<Option<(DateTime<Utc>, Instant)>>,
}

/// What a heartbeat found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deaths {
    pub(crate) processes: i64,
    /// Messages that are in quarantine because of them.
    pub(crate) quarantined: i64,
}

impl Default for Process {
    fn default() -> Self {
        Process {
            id: Uuid::new_v4(),
            declares_until: Mutex::new(None),
            is_written: AtomicBool::new(false),
            keeps_declared: AtomicBool::new(false),
            database_clock: Mutex::new(None),
        }
    }
}

impl Process {
    /// Whether a process of the consumer died lately, so that first tries are to be declared.
    pub(crate) fn declares(&self) -> bool {
        let until = *self.declares_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether its row was written, or may have been.
    pub(crate) fn is_written(&self) -> bool {
        self.is_written.load(Relaxed)
    }

    /// Whether heartbeats keep what is declared, also when no death is recent any more: a message that kills its process may
    /// take longer than that.
    pub(crate) fn keep_declared(&self, keeps: bool) {
        self.keeps_declared.store(keeps, Relaxed);
    }

    /// Renews this process's heartbeat and removes processes whose heartbeat has expired.
    pub(crate) async fn beat(&self, pool: &PgPool, consumer: &str) -> Result<Deaths, sqlx::Error> {
        self.is_written.store(true, Relaxed);
        let query = sqlx::query(include_str!("sql/heartbeat.sql"))
            .bind(self.id)
            .bind(consumer)
            .bind(milliseconds(EXPIRY))
            .bind(self.declares() || self.keeps_declared.load(Relaxed))
            .bind(milliseconds(RECENT))
            .bind(milliseconds(FORGOTTEN));
        let row = statement::row_without_flush(pool, query).await?;
        let said = (row.try_get("now")?, Instant::now());
        *self.database_clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
        let recent = u64::try_from(row.try_get::<i64, _>("recent")?).unwrap_or(0);
        if recent > 0 {
            // By this process's own clock from now on, which does not jump.
            let until = Instant::now() + Duration::from_millis(recent).min(RECENT);
            let mut declares_until = self.declares_until.lock().unwrap_or_else(PoisonError::into_inner);
            *declares_until = (*declares_until).max(Some(until));
        }
        Ok(Deaths { processes: row.try_get("dead")?, quarantined: row.try_get("quarantined")? })
    }

    /// What the time is.
    pub(crate) fn clocks(&self) -> Clocks {
        let said = *self.database_clock.lock().unwrap_or_else(PoisonError::into_inner);
        let own = Utc::now();
        // The clock of this process may have jumped since, not what it measures time with.
        let elapsed = |at: Instant| TimeDelta::from_std(at.elapsed()).unwrap_or_default();
        let database = said.and_then(|(database, at)| database.checked_add_signed(elapsed(at)));
        Clocks { own, database: database.unwrap_or(own) }
    }

    /// Declares the messages that this process is about to try for the first time, and those it is trying.
    pub(crate) async fn declare(
        &self,
        pool: &PgPool,
        consumer: &str,
        messages: &[Uuid],
    ) -> Result<(), sqlx::Error> {
        let sql = declaration(include_str!("sql/declare.sql"), self.id, messages);
        for _ in 0..2 {
            if statement::run_as_text(pool, &sql).await? > 0 {
                return Ok(());
            }
            // Others took this process for dead and removed its row.
            self.beat(pool, consumer).await?;
        }
        Err(sqlx::Error::RowNotFound)
    }

    /// This process ends in good order.
    pub(crate) fn deregister(&self) -> PgQuery<'static> {
        sqlx::query(include_str!("sql/deregister.sql")).bind(self.id)
    }
}

/// The statement with its parameters as literals, which takes one round trip instead of two.
fn declaration(sql: &str, process: Uuid, messages: &[Uuid]) -> String {
    let messages: Vec<String> = messages.iter().map(Uuid::to_string).collect();
    sql.replace("$1", &format!("'{process}'")).replace("$2", &format!("'{{{}}}'", messages.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_names_process_and_messages() {
        let (process, message) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let sql = |messages: &[Uuid]| {
            declaration("set in_hand = $2::uuid[] where id = $1::uuid", process, messages)
        };
        assert_eq!(
            sql(&[message, message]),
            format!("set in_hand = '{{{message},{message}}}'::uuid[] where id = '{process}'::uuid")
        );
        assert_eq!(sql(&[]), format!("set in_hand = '{{}}'::uuid[] where id = '{process}'::uuid"));
    }
}
