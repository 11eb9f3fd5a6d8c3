//! Whether messages of other destinations wait beyond a look-ahead that is full of what cannot be sent.
//!
//! While one destination is down and no other confirms, nothing is copied to the database: it may be the broker. But the
//! look-ahead may also hold nothing but messages of that destination. Then the log is asked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use message::Publisher;
use sqlx::Row;
use sqlx::postgres::PgPool;
use tokio::task::JoinError;
use tokio::time::Instant;

use super::Session;
use crate::relay::Routes;
use crate::statement::{self, within};

/// How long the log may take for an answer, and the shortest pause between two.
const ANSWER: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(250);
/// A look takes at most 1 in so many parts of the time.
const PART: u32 = 20;
/// Topics told apart in one look.
const TOPICS: usize = 200;

/// What lies beyond.
struct Beyond {
    pool: PgPool,
    routes: Routes,
    read_to: i64,
    shards: i16,
    owned: Vec<i16>,
    /// Destinations that are down, and topics that go there.
    down: BTreeSet<Arc<str>>,
    topics: BTreeSet<Arc<str>>,
}

impl Beyond {
    /// Whether a message waits there whose destination is not down.
    async fn look(mut self) -> Result<bool, sqlx::Error> {
        while self.topics.len() < TOPICS {
            let topics: Vec<&str> = self.topics.iter().map(|topic| &**topic).collect();
            let query = sqlx::query(include_str!("../../log/sql/other_topic.sql"));
            let query = query.bind(self.read_to).bind(topics).bind(self.shards).bind(&self.owned);
            let Some(row) = statement::optional(&self.pool, query).await? else { return Ok(false) };
            let topic: &str = row.try_get("topic")?;
            if !self.down.contains(&self.routes.destination(topic)) {
                return Ok(true);
            }
            self.read_to = row.try_get("position")?;
            self.topics.insert(topic.into());
        }
        // So many topics go to what is down that there is no telling.
        Ok(false)
    }
}

impl<P: Publisher + 'static> Session<'_, P> {
    /// Looks beyond a look-ahead that is full, if destinations are down.
    pub(super) fn look_beyond(&mut self) {
        let now = Instant::now();
        if self.has_room(1) || !self.looking.is_empty() || now < self.look_beyond_at {
            return;
        }
        let down: BTreeSet<Arc<str>> = self.availability.with(|state| match state.paused_until(now) {
            Some(_) => BTreeSet::new(),
            None => state.down().cloned().collect(),
        });
        if down.is_empty() || !self.lanes.closed().any(|(_, waits)| waits) {
            return;
        }
        let routes = self.settings.routes.clone();
        let beyond = Beyond {
            pool: self.relay.pool.clone(),
            read_to: self.read_to,
            shards: self.shards,
            owned: self.epochs.keys().copied().collect(),
            topics: self.lanes.topics().filter(|topic| down.contains(&routes.destination(topic))).collect(),
            routes,
            down,
        };
        self.look_beyond_at = now;
        self.looking.spawn(within(ANSWER, beyond.look()));
    }

    /// What was found there.
    pub(super) fn looked_beyond(&mut self, looked: Result<Result<bool, sqlx::Error>, JoinError>) {
        let now = Instant::now();
        let took = now - self.look_beyond_at;
        self.look_beyond_at = now + PAUSE.max(took * PART);
        match looked {
            Ok(Ok(true)) => self.availability.with(|state| state.found_beyond(now)),
            Ok(Ok(false)) | Err(_) => {}
            Ok(Err(error)) => {
                tracing::warn!(relay = self.relay.name, %error, "no look beyond what is read ahead");
            }
        }
    }
}
