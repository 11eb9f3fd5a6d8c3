//! Held keys: each is tried again in its time, drained in order when that succeeds, and parked when it will not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use message::{Headers, Message, MessageId, Outgoing, PublishError, Publisher, publish_all};
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::claim::Unmade;
use super::settled::SettledMessage;
use super::{Policy, Settings, backoff, chain};
use crate::log::moment_in;
use crate::statement::{self, within};

/// How often due keys are looked for while any key is held. A redrive by an operator is noticed as soon.
const LOOK: Duration = Duration::from_millis(250);
/// Held keys tried side by side. One that was tried more than once is tried alone: if an attempt at it ends the process, no
/// other key's attempt ends with it.
const SIDE_BY_SIDE: usize = 8;
/// How long the database may take to answer: a network can swallow the connection of a held key and no other, so that the
/// session goes on, and these keys would wait for its end.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest error kept, in bytes; the schema says the same.
const ERROR_BYTES: usize = 4096;

/// What the session must know of a hold.
#[derive(Debug)]
pub(super) enum Notice {
    /// Nothing is held in the database any more. May the key go? Not while copies of it are on their way.
    MayRelease(i64, oneshot::Sender<bool>),
    /// The key went, and these of its messages are settled; or it did not go after all.
    Released(i64, Option<Vec<SettledMessage>>),
    /// A held message was published.
    Published,
    /// A held message was published or given up, and the cursor has not passed it.
    Settled(SettledMessage),
}

/// Tries the held keys of the shards that a session owns.
#[derive(Debug)]
pub(super) struct Holds<P> {
    pub(super) relay: String,
    pub(super) pool: PgPool,
    pub(super) publisher: Arc<P>,
    pub(super) settings: Settings,
    pub(super) shards: i16,
    pub(super) epochs: BTreeMap<i16, i64>,
    pub(super) notices: mpsc::Sender<Notice>,
    pub(super) unmade: Unmade,
    /// No further attempt begins.
    pub(super) stop: CancellationToken,
}

pub(super) struct Due {
    pub(super) position: i64,
    pub(super) shard: i16,
    pub(super) epoch: i64,
    attempts: i32,
}

impl<P: Publisher> Holds<P> {
    /// The keys held from before, by the position that names the hold.
    pub(super) async fn load(
        pool: &PgPool,
        relay: &str,
        shards: i16,
        owned: &[i16],
    ) -> Result<Vec<(i64, Option<Arc<str>>)>, sqlx::Error> {
        let query = sqlx::query(include_str!("sql/held_keys.sql")).bind(relay).bind(shards).bind(owned);
        let rows = statement::rows(pool, query).await?;
        rows.iter()
            .map(|row| Ok((row.try_get("position")?, row.try_get::<Option<&str>, _>("key")?.map(Arc::from))))
            .collect()
    }

    /// Works while keys are held (`held` says how many), until the session ends. What is being published is recorded then.
    pub(super) async fn run(self, mut held: watch::Receiver<usize>) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                known = held.wait_for(|count| *count > 0) => if known.is_err() { return },
            }
            // The log is read on another connection, which may well be fine: only these keys wait.
            match self.round().await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => self.could_not_be_tried(&error),
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Tries the keys that are due; whether it is worth looking for more at once.
    async fn round(&self) -> Result<bool, sqlx::Error> {
        let due = self.due().await?;
        let some = !due.is_empty();
        let (alone, together): (Vec<Due>, Vec<Due>) = due.into_iter().partition(|due| due.attempts > 1);
        let attempts = stream::iter(together).map(|due| self.attempt(due)).buffer_unordered(SIDE_BY_SIDE);
        let mut results: Vec<Result<(), sqlx::Error>> = attempts.collect().await;
        for due in alone {
            results.push(self.attempt(due).await);
        }
        // A key whose attempt failed keeps no other waiting.
        let failures: Vec<sqlx::Error> = results.into_iter().filter_map(Result::err).collect();
        failures.iter().for_each(|error| self.could_not_be_tried(error));
        Ok(some && failures.is_empty())
    }

    fn could_not_be_tried(&self, error: &sqlx::Error) {
        tracing::warn!(relay = self.relay, error = chain(error), "a held key could not be tried");
    }

    async fn due(&self) -> Result<Vec<Due>, sqlx::Error> {
        let owned: Vec<i16> = self.epochs.keys().copied().collect();
        let query = sqlx::query(include_str!("sql/due.sql")).bind(&self.relay).bind(self.shards).bind(owned);
        let rows = within(ANSWER, statement::rows(&self.pool, query)).await?;
        let mut due = Vec::with_capacity(rows.len());
        for row in &rows {
            let shard = row.try_get::<i16, _>("slot")? % self.shards;
            if let Some(epoch) = self.epochs.get(&shard).copied() {
                let (position, attempts) = (row.try_get("position")?, row.try_get("attempts")?);
                due.push(Due { position, shard, epoch, attempts });
            }
        }
        Ok(due)
    }

    /// Drains a held key as far as it goes.
    async fn attempt(&self, due: Due) -> Result<(), sqlx::Error> {
        // If the process ends with the attempt, the key waits as after any failure. Nobody takes it for due meanwhile: only
        // this task tries it, and it ends its round first.
        let before = u32::try_from(due.attempts).unwrap_or_default();
        let again = self.settings.retry.after(before.saturating_add(1), backoff::chance());
        loop {
            let Some(row) = self.claim(&due, again).await? else { return Ok(()) };
            let attempts: i32 = row.try_get("attempts")?;
            let Some(position) = row.try_get::<Option<i64>, _>("position")? else {
                return self.release(&due).await;
            };
            let message = match held_message(&row) {
                Ok(message) => Arc::new(message),
                Err(error) => return self.unreadable(&due, &error).await,
            };
            let destination = self.settings.routes.destination(&message.topic);
            let batch = [Outgoing { destination, message }];
            let result =
                tokio::time::timeout(self.settings.publish_timeout, publish_all(&*self.publisher, &batch))
                    .await
                    .ok()
                    .and_then(|mut results| results.pop())
                    .unwrap_or_else(|| Err(PublishError::Unknown("no answer in time".to_owned())));
            match result {
                Ok(()) => {
                    self.delivered(&due, position).await?;
                    if self.notices.send(Notice::Published).await.is_err() || self.stop.is_cancelled() {
                        return Ok(());
                    }
                }
                Err(error) if self.is_given_up(&batch[0].message.topic, attempts, &error) => {
                    return self.give_up(&due, position, &error).await;
                }
                Err(error) => return self.failed(&due, attempts, &error).await,
            }
        }
    }

    /// Records that a message was published, again and again until the database has it or the session is ending: what is
    /// forgotten is published twice. Once the shard is another's it changes nothing.
    async fn delivered(&self, due: &Due, position: i64) -> Result<(), sqlx::Error> {
        let mut failures = 0;
        loop {
            let Err(error) = self.settle(due, position, None).await else { return Ok(()) };
            if self.stop.is_cancelled() {
                return Err(error);
            }
            failures += 1;
            tracing::warn!(
                relay = self.relay,
                error = chain(&error),
                "the delivery of a held message could not be recorded"
            );
            tokio::time::sleep(self.settings.unavailable.after(failures, backoff::chance())).await;
        }
    }

    async fn failed(&self, due: &Due, attempts: i32, error: &PublishError) -> Result<(), sqlx::Error> {
        let made = u32::try_from(attempts).unwrap_or(1);
        let messages_fault = matches!(error, PublishError::Rejected(_));
        let parked = messages_fault && made >= self.settings.max_attempts;
        let backoff = if messages_fault { self.settings.retry } else { self.settings.unavailable };
        let pause = backoff.after(made, backoff::chance());
        if parked {
            tracing::error!(relay = self.relay, position = due.position, %error, "parked: it waits for a person");
        }
        let query = sqlx::query(include_str!("sql/failed.sql"))
            .bind(&self.relay)
            .bind(due.position)
            .bind(due.shard)
            .bind(due.epoch)
            .bind(if parked { "parked" } else { "retrying" })
            .bind((!parked).then_some(pause.as_secs_f64()))
            .bind(shorten(&error.to_string()))
            .bind(i32::from(!messages_fault));
        within(ANSWER, statement::run(&self.pool, query)).await?;
        Ok(())
    }

    /// What is held cannot be read as a message: another attempt would end as this one.
    async fn unreadable(&self, due: &Due, error: &sqlx::Error) -> Result<(), sqlx::Error> {
        tracing::error!(relay = self.relay, position = due.position, %error, "parked: it waits for a person");
        let reason = format!("the row cannot be read as a message: {}", crate::relay::chain(error));
        let query = sqlx::query(include_str!("sql/failed.sql")).bind(&self.relay).bind(due.position);
        let query = query.bind(due.shard).bind(due.epoch).bind("parked").bind(None::<f64>);
        let query = query.bind(shorten(&reason)).bind(1);
        within(ANSWER, statement::run(&self.pool, query)).await?;
        Ok(())
    }

    /// Whether this was the last attempt at a message of a topic whose keys are not parked.
    fn is_given_up(&self, topic: &str, attempts: i32, error: &PublishError) -> bool {
        matches!(error, PublishError::Rejected(_))
            && u32::try_from(attempts).unwrap_or(1) >= self.settings.max_attempts
            && self.settings.policies.of(topic) == Policy::Skip
    }

    async fn give_up(&self, due: &Due, position: i64, error: &PublishError) -> Result<(), sqlx::Error> {
        tracing::warn!(relay = self.relay, position, %error, "given up: its topic's policy is to skip");
        self.settle(due, position, Some(&shorten(&error.to_string()))).await
    }

    /// Records that a message is done with: published, or given up for an error.
    async fn settle(&self, due: &Due, position: i64, error: Option<&str>) -> Result<(), sqlx::Error> {
        let query = sqlx::query(include_str!("sql/settle.sql")).bind(&self.relay).bind(due.position);
        let query = query.bind(position).bind(due.shard).bind(due.epoch).bind(error);
        let row = within(ANSWER, statement::optional(&self.pool, query)).await?;
        if let Some(settled) = row.as_ref().map(SettledMessage::from_row).transpose()?.flatten() {
            // A session that has ended has no use for it.
            let _ = self.notices.send(Notice::Settled(settled)).await;
        }
        Ok(())
    }

    async fn release(&self, due: &Due) -> Result<(), sqlx::Error> {
        let (answer, may) = oneshot::channel();
        let asked = self.notices.send(Notice::MayRelease(due.position, answer)).await.is_ok();
        if !asked || !may.await.unwrap_or(false) {
            return self.still_held(due).await;
        }
        let query = sqlx::query(include_str!("sql/release.sql"))
            .bind(&self.relay)
            .bind(due.position)
            .bind(due.shard)
            .bind(due.epoch);
        let rows = within(ANSWER, statement::rows(&self.pool, query)).await?;
        if rows.is_empty() {
            self.still_held(due).await?;
        }
        let settled: Vec<_> = rows.iter().map(SettledMessage::from_row).collect::<Result<_, _>>()?;
        let gone = (!settled.is_empty()).then(|| settled.into_iter().flatten().collect());
        let _ = self.notices.send(Notice::Released(due.position, gone)).await;
        Ok(())
    }

    /// Copies came, or are on their way: they are found when the key is due again, which is now. No attempt was made.
    async fn still_held(&self, due: &Due) -> Result<(), sqlx::Error> {
        let query = sqlx::query(include_str!("sql/failed.sql")).bind(&self.relay).bind(due.position);
        let query =
            query.bind(due.shard).bind(due.epoch).bind("retrying").bind(0.0).bind(None::<&str>).bind(1);
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
