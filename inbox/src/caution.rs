//! After a process of the consumer has died: first tries are counted before they begin too, for a while.
//!
//! A first try leaves nothing behind when the process dies in it, so a message that kills its process would do so for
//! ever. A try that is counted costs three transactions more, so it is not the rule. A process that dies is noticed when
//! its heartbeat is missed, by the next one to start or by another.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{PgPool, Row};
use uuid::Uuid;

use crate::hold::milliseconds;
use crate::statement::{self, PgQuery};

/// How often a process says that it lives.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(10);
/// When it is taken for dead.
const EXPIRY: Duration = Duration::from_secs(30);
/// Longer than brokers wait before they deliver again what the dead one had in hand.
const CAUTIOUS: Duration = Duration::from_secs(90);

/// Whether to be cautious now.
#[derive(Debug)]
pub(crate) struct Caution {
    process: Uuid,
    until: Mutex<Option<Instant>>,
}

impl Default for Caution {
    fn default() -> Self {
        Caution { process: Uuid::new_v4(), until: Mutex::new(None) }
    }
}

impl Caution {
    /// Whether a process has died lately.
    pub(crate) fn is_due(&self) -> bool {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Says that this process lives; answers how many have died.
    pub(crate) async fn beat(&self, pool: &PgPool, consumer: &str) -> Result<i64, sqlx::Error> {
        let query = sqlx::query(include_str!("sql/heartbeat.sql"))
            .bind(self.process)
            .bind(consumer)
            .bind(milliseconds(EXPIRY));
        let dead: i64 = statement::row(pool, query).await?.try_get(0)?;
        if dead > 0 {
            let until = Instant::now() + CAUTIOUS;
            *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        }
        Ok(dead)
    }

    /// This process ends in good order.
    pub(crate) fn goodbye(&self) -> PgQuery<'static> {
        sqlx::query(include_str!("sql/goodbye.sql")).bind(self.process)
    }
}
