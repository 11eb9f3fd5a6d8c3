//! The statements about held keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use message::{Headers, Message, MessageId};
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};
use uuid::Uuid;

use super::{ANSWER, Holds};
use crate::log::moment_in;
use crate::relay::settled::SettledMessage;
use crate::relay::{backoff, chain};
use crate::statement::{self, within};

/// Longest error kept, in bytes; the schema says the same.
const ERROR_BYTES: usize = 4096;

/// A held key that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::relay) struct Due {
    pub(in crate::relay) position: i64,
    pub(in crate::relay) shard: i16,
    pub(in crate::relay) epoch: i64,
    pub(super) attempts: i32,
}

/// What was held before a session began.
#[derive(Debug, Default)]
pub(in crate::relay) struct Loaded {
    /// The keys, by the position that names the hold.
    pub(in crate::relay) keys: BTreeMap<i64, Option<Arc<str>>>,
    /// The destinations that some of them wait for.
    pub(in crate::relay) destinations: BTreeSet<Arc<str>>,
}

/// A key whose attempt was counted, and its first messages.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) key: Due,
    pub(super) attempts: i32,
    pub(super) messages: Vec<(i64, Message)>,
    /// Why the message after them cannot be read, if that is so.
    pub(super) fault: Option<String>,
}

/// A held message that is done with.
#[derive(Debug)]
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
#[derive(Debug)]
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
    /// What is held from before.
    pub(in crate::relay) async fn load(
        pool: &PgPool,
        relay: &str,
        shards: i16,
        owned: &[i16],
    ) -> Result<Loaded, sqlx::Error> {
        let query = sqlx::query(include_str!("../sql/held_keys.sql")).bind(relay).bind(shards).bind(owned);
        let mut loaded = Loaded::default();
        for row in statement::rows(pool, query).await? {
            let key = row.try_get::<Option<&str>, _>("key")?.map(Arc::from);
            loaded.keys.insert(row.try_get("position")?, key);
            if let Some(destination) = row.try_get::<Option<&str>, _>("destination")?
                && !loaded.destinations.contains(destination)
            {
                loaded.destinations.insert(destination.into());
            }
        }
        Ok(loaded)
    }

    fn owned(&self) -> Vec<i16> {
        self.epochs.keys().copied().collect()
    }

    /// Keys that wait for a destination to which their message does not go any more wait for the one to which it goes.
    pub(super) async fn reroute(&self) -> Result<(), sqlx::Error> {
        if self.availability.with(|state| state.waited_for().is_empty()) {
            return Ok(());
        }
        let query = sqlx::query(include_str!("../sql/first_topics.sql")).bind(&self.relay).bind(self.shards);
        for row in within(ANSWER, statement::rows(&self.pool, query.bind(self.owned()))).await? {
            let (known, topic): (&str, &str) = (row.try_get("destination")?, row.try_get("topic")?);
            let destination = self.settings.routes.destination(topic);
            if *destination == *known {
                continue;
            }
            let query = sqlx::query(include_str!("../sql/reroute.sql")).bind(&self.relay).bind(self.shards);
            let query = query.bind(self.owned()).bind(known).bind(topic).bind(&*destination);
            within(ANSWER, statement::run(&self.pool, query)).await?;
            let now = tokio::time::Instant::now();
            self.availability.with(|state| state.has_waited(destination, now));
        }
        Ok(())
    }

    /// Keys whose time has come.
    pub(super) async fn due(&self, limit: usize) -> Result<Vec<Due>, sqlx::Error> {
        let query = sqlx::query(include_str!("../sql/due.sql")).bind(&self.relay).bind(self.shards);
        let query = query.bind(self.owned()).bind(i64::try_from(limit).unwrap_or(i64::MAX));
        self.keys(&within(ANSWER, statement::first_rows(&self.pool, query)).await?)
    }

    /// Keys that wait for a destination.
    pub(super) async fn waiting(
        &self,
        destination: &str,
        limit: usize,
        but: Vec<i64>,
    ) -> Result<Vec<Due>, sqlx::Error> {
        let query = sqlx::query(include_str!("../sql/waiting.sql")).bind(&self.relay).bind(self.shards);
        let query = query.bind(self.owned()).bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let query = query.bind(destination).bind(but);
        self.keys(&within(ANSWER, statement::first_rows(&self.pool, query)).await?)
    }

    fn keys(&self, rows: &[PgRow]) -> Result<Vec<Due>, sqlx::Error> {
        let mut keys = Vec::with_capacity(rows.len());
        for row in rows {
            let shard = row.try_get::<i16, _>("slot")? % self.shards;
            if let Some(epoch) = self.epochs.get(&shard).copied() {
                let (position, attempts) = (row.try_get("position")?, row.try_get("attempts")?);
                keys.push(Due { position, shard, epoch, attempts });
            }
        }
        Ok(keys)
    }

    /// Counts an attempt at each key and answers what to try: of each key at most so many messages.
    pub(super) async fn begin_attempts(
        &self,
        keys: &[Due],
        messages: usize,
    ) -> Result<Vec<Begun>, sqlx::Error> {
        // If the process ends with the attempt, the key waits as after any failure.
        let before = keys.iter().map(|key| key.attempts).max().unwrap_or_default();
        let before = u32::try_from(before).unwrap_or_default();
        let again = self.settings.retry.after(before.saturating_add(1), backoff::chance());
        let (claimed, rows) = self.claim(keys, again, messages).await?;
        let known: BTreeMap<i64, Due> = keys.iter().map(|key| (key.position, *key)).collect();
        let mut begun: BTreeMap<i64, Begun> = BTreeMap::new();
        for claimed in claimed {
            if let Some(key) = known.get(&claimed.held).copied() {
                let attempts = claimed.attempts;
                begun.insert(claimed.held, Begun { key, attempts, messages: Vec::new(), fault: None });
            }
        }
        for row in &rows {
            let begun = begun.get_mut(&row.try_get("held")?).filter(|begun| begun.fault.is_none());
            let Some(begun) = begun else { continue };
            match held_message(row) {
                Ok(message) => begun.messages.push((row.try_get("position")?, message)),
                Err(error) => {
                    begun.fault = Some(format!("the row cannot be read as a message: {}", chain(&error)));
                }
            }
        }
        Ok(begun.into_values().collect())
    }

    /// Records that messages are done with, and lets go of those keys that may go and hold nothing any more; again and again
    /// until the database has it or the session is ending: what is forgotten is published twice, and a key that went without
    /// an answer would be taken for held. Once the shard is another's it changes nothing.
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

    /// Records what became of keys whose attempts did not succeed, or were not made.
    pub(super) async fn failed(&self, after: &[After]) -> Result<(), sqlx::Error> {
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

fn held_message(row: &PgRow) -> Result<Message, sqlx::Error> {
    let id = |id: Uuid| MessageId::try_from(id).map_err(|error| sqlx::Error::Decode(error.into()));
    let text = |name: &str| row.try_get::<String, _>(name);
    let mut message = Message::new(text("topic")?, text("kind")?, row.try_get::<Vec<u8>, _>("payload")?)
        .with_id(id(row.try_get("id")?)?)
        .with_source(text("source")?)
        .with_occurred_at(moment_in(row, "occurred_at")?);
    message.key = row.try_get::<Option<String>, _>("key")?.map(Into::into);
    message.correlation = id(row.try_get("correlation")?)?;
    message.causation = row.try_get::<Option<Uuid>, _>("causation")?.map(id).transpose()?;
    if let Some(json) = row.try_get::<Option<String>, _>("headers")? {
        message.headers =
            Headers::from_json(json.as_bytes()).map_err(|error| sqlx::Error::Decode(error.into()))?;
    }
    Ok(message)
}

/// An error's text as the database keeps it: without NUL, cut at a character's end.
pub(crate) fn shorten(error: &str) -> String {
    let mut error = error.replace('\0', "\u{fffd}");
    error.truncate(error.floor_char_boundary(ERROR_BYTES));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_error_is_cut_at_a_characters_end() {
        assert_eq!(shorten("short"), "short");
        assert_eq!(shorten("a\0b"), "a\u{fffd}b");
        let long = "é".repeat(3000);
        assert_eq!(shorten(&long).len(), 4096);
        assert_eq!(shorten(&format!("a{long}")).len(), 4095);
    }
}
