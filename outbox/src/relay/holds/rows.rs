//! The statements about held keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use message::{Headers, Message, MessageId};
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};
use uuid::Uuid;

use super::{ANSWER, Holds};
use crate::log::moment_in;
use crate::relay::{backoff, chain};
use crate::statement::{self, within};

/// Longest error kept, in bytes; the schema says the same.
const ERROR_BYTES: usize = 4096;

/// Held keys that one statement reads or routes anew, where all of them are.
const PART: i64 = 10_000;

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

impl<P> Holds<P> {
    /// What is held from before.
    pub(in crate::relay) async fn load(
        pool: &PgPool,
        relay: &str,
        shards: i16,
        owned: &[i16],
    ) -> Result<Loaded, sqlx::Error> {
        let (mut loaded, mut after) = (Loaded::default(), i64::MIN);
        loop {
            let query = sqlx::query(include_str!("../sql/held_keys.sql")).bind(relay).bind(shards);
            let rows = statement::rows(pool, query.bind(owned).bind(after).bind(PART)).await?;
            for row in &rows {
                let key = row.try_get::<Option<&str>, _>("key")?.map(Arc::from);
                after = row.try_get("position")?;
                loaded.keys.insert(after, key);
                if let Some(destination) = row.try_get::<Option<&str>, _>("destination")?
                    && !loaded.destinations.contains(destination)
                {
                    loaded.destinations.insert(destination.into());
                }
            }
            if i64::try_from(rows.len()).is_ok_and(|rows| rows < PART) {
                return Ok(loaded);
            }
        }
    }

    fn owned(&self) -> Vec<i16> {
        self.epochs.keys().copied().collect()
    }

    /// Keys that wait for a destination to which their message does not go any more wait for the one to which it goes. A part
    /// of them at a time, and again until it is done: they may be millions.
    pub(super) async fn reroute(&self) {
        if self.availability.with(|state| state.waited_for().is_empty()) {
            return;
        }
        let (mut after, mut failures) = (0, 0);
        while !self.stop.is_cancelled() {
            match self.reroute_part(after).await {
                Ok(None) => return,
                Ok(Some(last)) => (after, failures) = (last, 0),
                Err(error) => {
                    failures += 1;
                    if u32::is_power_of_two(failures) {
                        let error = chain(&error);
                        tracing::warn!(
                            relay = self.relay,
                            error,
                            failures,
                            "held keys are not routed anew yet"
                        );
                    }
                    let pause = self.settings.unavailable.after(failures, backoff::chance());
                    self.stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                }
            }
        }
    }

    /// Routes the next keys anew. Answers the position of the last; `None`: there are no more.
    async fn reroute_part(&self, after: i64) -> Result<Option<i64>, sqlx::Error> {
        let query = sqlx::query(include_str!("../sql/first_topics.sql")).bind(&self.relay).bind(self.shards);
        let query = query.bind(self.owned()).bind(after).bind(PART);
        let mut last = None;
        for row in within(ANSWER, statement::rows(&self.pool, query)).await? {
            let to: i64 = row.try_get("last")?;
            last = Some(to);
            let (known, topic): (&str, Option<&str>) = (row.try_get("destination")?, row.try_get("topic")?);
            let Some(topic) = topic else { continue };
            let destination = self.settings.routes.destination(topic);
            if *destination == *known {
                continue;
            }
            let query = sqlx::query(include_str!("../sql/reroute.sql")).bind(&self.relay).bind(self.shards);
            let query = query.bind(self.owned()).bind(known).bind(topic).bind(&*destination);
            within(ANSWER, statement::run(&self.pool, query.bind(after).bind(to))).await?;
            let now = tokio::time::Instant::now();
            self.availability.with(|state| state.has_waited(destination, now));
        }
        Ok(last)
    }

    /// Keys whose time has come.
    pub(super) async fn due(&self, limit: usize) -> Result<Vec<Due>, sqlx::Error> {
        let query = sqlx::query(include_str!("../sql/due.sql")).bind(&self.relay).bind(self.shards);
        let query = query.bind(self.owned()).bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let longest = self.settings.retry.ceiling.max(self.settings.unavailable.ceiling);
        let query = query.bind(longest.as_secs_f64());
        self.keys(&within(ANSWER, statement::first_rows(&self.pool, query)).await?)
    }

    /// Keys that wait for destinations, by the destination; of each no more than its limit.
    pub(super) async fn waiting(
        &self,
        destinations: &[(&Arc<str>, usize)],
        but: Vec<i64>,
    ) -> Result<BTreeMap<String, Vec<Due>>, sqlx::Error> {
        let limit = |(_, limit): &(&Arc<str>, usize)| i64::try_from(*limit).unwrap_or(i64::MAX);
        let query = sqlx::query(include_str!("../sql/waiting.sql")).bind(&self.relay).bind(self.shards);
        let query = query.bind(self.owned()).bind(destinations.iter().map(limit).collect::<Vec<_>>());
        let names = destinations.iter().map(|(destination, _)| &***destination);
        let query = query.bind(names.collect::<Vec<_>>()).bind(but);
        let mut waiting: BTreeMap<String, Vec<Due>> = BTreeMap::new();
        for row in within(ANSWER, statement::first_rows(&self.pool, query)).await? {
            let keys = self.keys(std::slice::from_ref(&row))?;
            waiting.entry(row.try_get("destination")?).or_default().extend(keys);
        }
        Ok(waiting)
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
