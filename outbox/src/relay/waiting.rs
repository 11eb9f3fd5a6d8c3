//! A process that waits for its broker says so in the database: it has joined nothing yet, and would count as absent.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::PgPool;
use tokio::sync::watch;
use uuid::Uuid;

use super::chain;
use super::holds::shorten;
use crate::statement::{self, within};

/// How long the database may take to answer. Nothing depends on it.
const ANSWER: Duration = Duration::from_secs(5);

/// How often it says so at least.
const OFTEN: Duration = Duration::from_secs(5);

/// A process that has asked its broker whether it is ready.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    pool: &'a PgPool,
    relay: &'a str,
    process: Uuid,
    lease: Duration,
    reason: watch::Sender<String>,
    said: AtomicBool,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(pool: &'a PgPool, relay: &'a str, process: Uuid, lease: Duration) -> Self {
        let reason = watch::Sender::new("it has not answered yet".to_owned());
        Waiting { pool, relay, process, lease, reason, said: AtomicBool::new(false) }
    }

    /// What the broker has answered last.
    pub(super) fn because(&self, reason: &str) {
        self.reason.send_replace(shorten(reason).to_owned());
    }

    /// Says so when the broker has answered, and now and then.
    pub(super) async fn say(&self) -> Infallible {
        let mut reason = self.reason.subscribe();
        loop {
            tokio::select! {
                Ok(()) = reason.changed() => {}
                () = tokio::time::sleep((self.lease / 4).min(OFTEN)) => {}
            }
            let text = reason.borrow_and_update().clone();
            let query = sqlx::query(include_str!("sql/waits.sql")).bind(self.process).bind(self.relay);
            let query = query.bind(format!("pid {}", std::process::id())).bind(text);
            let query = query.bind(self.lease.as_secs_f64());
            self.said.store(true, Ordering::Relaxed);
            if let Err(error) = within(ANSWER, statement::run(self.pool, query)).await {
                let error = chain(&error);
                tracing::debug!(relay = self.relay, error, "the database was not told that the relay waits");
            }
        }
    }

    /// It waits no more.
    pub(super) async fn over(&self) {
        if !self.said.load(Ordering::Relaxed) {
            return;
        }
        let query = sqlx::query(include_str!("sql/waits_no_more.sql")).bind(self.process);
        if let Err(error) = within(ANSWER, statement::run(self.pool, query)).await {
            let error = chain(&error);
            tracing::debug!(
                relay = self.relay,
                error,
                "what the database was told of the wait ends by itself"
            );
        }
    }
}
