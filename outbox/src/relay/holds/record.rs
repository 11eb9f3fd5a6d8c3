//! What is recorded after a try: which messages are done with, what becomes of a key, and which keys are let go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;

use super::rows::{Due, shorten};
use super::{ANSWER, Holds};
use crate::relay::settled::SettledMessage;
use crate::relay::{backoff, chain};
use crate::statement::{self, within};

/// A held message that is done with.
#[derive(Debug, Clone)]
pub(super) struct Done {
    pub(super) key: Due,
    /// `None`: the key holds none, and goes.
    pub(super) position: Option<i64>,
    /// It is given up for this; `None`: it is published.
    pub(super) error: Option<String>,
    /// The attempts in the key's row, if it is given up only while they are these: a person may have had it tried afresh.
    pub(super) attempts: Option<i32>,
}

/// What was recorded of messages that are done with.
#[derive(Debug, Default)]
pub(super) struct Settlement {
    /// Those that the cursors have not passed.
    pub(super) settled: Vec<SettledMessage>,
    /// The holds that went, each with its messages that were settled before.
    pub(super) released: BTreeMap<i64, Vec<SettledMessage>>,
}

/// What becomes of a key after an attempt.
#[derive(Debug, Clone)]
pub(super) struct After {
    pub(super) key: Due,
    /// How long until the next attempt; `None`: parked.
    pub(super) retry_in: Option<Duration>,
    /// `None`: the one it has.
    pub(super) error: Option<String>,
    pub(super) taken_back: i32,
    /// The attempts in its row, if this is to be so only while they are these: a person may have had it tried afresh.
    pub(super) attempts: Option<i32>,
    /// `None`: the one it has.
    pub(super) reason: Option<&'static str>,
    pub(super) destination: Option<Arc<str>>,
}

impl<P> Holds<P> {
    /// Records that messages are done with, and lets go of those keys that may go and hold nothing any more; again and again
    /// until the database has it or the session is ending: what is forgotten is published twice, and a key that went without
    /// an answer would be taken for held. Once the shard is another's it changes nothing. One that is given up, and whose record
    /// is refused for what is written into it, is parked.
    pub(super) async fn settle(&self, done: &[Done], may_go: &[i64]) -> Result<Settlement, sqlx::Error> {
        let mut failures = 0;
        loop {
            let error = match self.settle_once(done, may_go).await {
                Ok(settlement) if failures == 0 => return Ok(settlement),
                // An attempt that was not answered may have been made.
                Ok(settlement) => match self.released(may_go).await {
                    Ok(released) => return Ok(Settlement { released, ..settlement }),
                    Err(error) => error,
                },
                // What was published is recorded in the end, or it is published twice.
                Err(error)
                    if statement::is_values_fault(&error) && done.iter().any(|done| done.error.is_some()) =>
                {
                    return self.settle_apart(done, may_go, &error).await;
                }
                Err(error) => error,
            };
            if self.stop.is_cancelled() {
                return Err(error);
            }
            failures += 1;
            let error = chain(&error);
            tracing::warn!(relay = self.relay, error, "the delivery of held messages could not be recorded");
            tokio::time::sleep(self.settings.unavailable.after(failures, backoff::chance())).await;
        }
    }

    /// Settles what was published, and then each that is given up by itself, after they were refused together.
    async fn settle_apart(
        &self,
        done: &[Done],
        may_go: &[i64],
        error: &sqlx::Error,
    ) -> Result<Settlement, sqlx::Error> {
        if let [one] = done {
            let (position, error) = (one.position, chain(error));
            tracing::error!(
                relay = self.relay,
                position,
                error,
                "parked: that it was given up is refused; it waits for a person"
            );
            self.failed(&[After {
                key: one.key,
                retry_in: None,
                error: Some(format!("that it was given up cannot be recorded: {error}")),
                taken_back: 0,
                attempts: None,
                reason: Some("failed"),
                destination: None,
            }])
            .await?;
            return Ok(Settlement::default());
        }
        let (given_up, published): (Vec<_>, Vec<_>) =
            done.iter().cloned().partition(|done| done.error.is_some());
        let mut settlement = Settlement::default();
        if !published.is_empty() {
            settlement = Box::pin(self.settle(&published, may_go)).await?;
        }
        for one in given_up {
            let may_go: Vec<i64> = may_go.iter().copied().filter(|held| *held == one.key.position).collect();
            let more = Box::pin(self.settle(&[one], &may_go)).await?;
            settlement.settled.extend(more.settled);
            settlement.released.extend(more.released);
        }
        Ok(settlement)
    }

    async fn settle_once(&self, done: &[Done], may_go: &[i64]) -> Result<Settlement, sqlx::Error> {
        fn column<'d, T>(done: &'d [Done], value: impl Fn(&'d Done) -> T) -> Vec<T> {
            done.iter().map(value).collect()
        }
        let query = sqlx::query(include_str!("../sql/settle.sql"))
            .bind(&self.relay)
            .bind(column(done, |done| done.key.position))
            .bind(column(done, |done| done.position))
            .bind(column(done, |done| done.key.shard))
            .bind(column(done, |done| done.key.epoch))
            .bind(column(done, |done| done.error.as_deref().map(shorten)))
            .bind(column(done, |done| done.attempts))
            .bind(may_go);
        let mut settlement = Settlement::default();
        for row in &within(ANSWER, statement::rows(&self.pool, query)).await? {
            let message = SettledMessage::from_row(row)?;
            match row.try_get("released")? {
                Some(held) => settlement.released.entry(held).or_default().extend(message),
                None => settlement.settled.extend(message),
            }
        }
        Ok(settlement)
    }

    /// Those of some keys that are not held any more, each with its messages that are settled.
    async fn released(&self, keys: &[i64]) -> Result<BTreeMap<i64, Vec<SettledMessage>>, sqlx::Error> {
        let query = sqlx::query(include_str!("../sql/released.sql")).bind(&self.relay).bind(keys);
        let mut released: BTreeMap<i64, Vec<SettledMessage>> = BTreeMap::new();
        for row in &within(ANSWER, statement::rows(&self.pool, query)).await? {
            released.entry(row.try_get("held")?).or_default().extend(SettledMessage::from_row(row)?);
        }
        Ok(released)
    }

    /// Records what became of keys whose attempts did not succeed, or were not made. One whose row is refused, for what is
    /// written into it, is parked, and keeps no other from being recorded.
    pub(super) async fn failed(&self, after: &[After]) -> Result<(), sqlx::Error> {
        let error = match self.failed_together(after).await {
            Err(error) if statement::is_values_fault(&error) => error,
            recorded => return recorded,
        };
        for one in after {
            let alone = std::slice::from_ref(one);
            let error = match after.len() {
                1 => chain(&error),
                _ => match self.failed_together(alone).await {
                    Ok(()) => continue,
                    Err(error) if statement::is_values_fault(&error) => chain(&error),
                    Err(error) => return Err(error),
                },
            };
            let position = one.key.position;
            tracing::error!(
                relay = self.relay,
                position,
                error,
                "parked: its row is refused; it waits for a person"
            );
            let error = Some(format!("outbox.held_key does not take what came of the attempt: {error}"));
            let (retry_in, reason, destination) = (None, Some("failed"), None);
            self.failed_together(&[After { retry_in, error, reason, destination, ..one.clone() }]).await?;
        }
        Ok(())
    }

    async fn failed_together(&self, after: &[After]) -> Result<(), sqlx::Error> {
        if after.is_empty() {
            return Ok(());
        }
        fn column<'a, T>(after: &'a [After], value: impl Fn(&'a After) -> T) -> Vec<T> {
            after.iter().map(value).collect()
        }
        let query = sqlx::query(include_str!("../sql/failed.sql"))
            .bind(&self.relay)
            .bind(column(after, |after| after.key.position))
            .bind(column(after, |after| after.key.shard))
            .bind(column(after, |after| after.key.epoch))
            .bind(column(after, |after| if after.retry_in.is_some() { "retrying" } else { "parked" }))
            .bind(column(after, |after| after.retry_in.map(|retry_in| retry_in.as_secs_f64())))
            .bind(column(after, |after| after.error.as_deref().map(shorten)))
            .bind(column(after, |after| after.taken_back))
            .bind(column(after, |after| after.reason))
            .bind(column(after, |after| after.destination.as_deref()))
            .bind(column(after, |after| after.attempts));
        within(ANSWER, statement::run(&self.pool, query)).await?;
        Ok(())
    }
}
