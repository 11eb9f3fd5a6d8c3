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
use crate::relay::{Routes, chain};
use crate::statement::{self, within};

/// How long the log may take for an answer, and the shortest pause between two looks.
const ANSWER: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(250);
/// How long a look lasts; the next one goes on where it ended.
const LOOK: Duration = Duration::from_secs(5);
/// A look takes at most 1 in so many parts of the time.
const PART: u32 = 20;
/// Rows of the log read at once.
const ROWS: i64 = 20_000;

/// What lies beyond.
struct Beyond {
    pool: PgPool,
    routes: Routes,
    from: i64,
    read_to: i64,
    shards: i16,
    owned: Vec<i16>,
    /// Destinations that are down.
    down: BTreeSet<Arc<str>>,
}

/// What a look came to.
pub(super) enum Found {
    /// A message waits whose destination is this one, which is not down.
    Destination(Arc<str>),
    /// All that waits goes to what is down.
    Nothing,
    /// Nothing yet: it began at the first position and came to the other.
    Unfinished(i64, i64),
}

impl Beyond {
    async fn look(mut self) -> Result<Found, sqlx::Error> {
        let began = Instant::now();
        // All of these go to what is down, and topics are many: each is routed once.
        let mut topics: BTreeSet<String> = BTreeSet::new();
        while began.elapsed() < LOOK {
            let query = sqlx::query(include_str!("../../log/sql/topics_beyond.sql")).bind(self.read_to);
            let query = query.bind(self.shards).bind(&self.owned).bind(ROWS);
            let rows = within(ANSWER, statement::rows(&self.pool, query)).await?;
            for row in &rows {
                let Some(topic) = row.try_get::<Option<&str>, _>("topic")? else { continue };
                if topics.contains(topic) {
                    continue;
                }
                let destination = self.routes.destination(topic);
                if !self.down.contains(&destination) {
                    return Ok(Found::Destination(destination));
                }
                topics.insert(topic.to_owned());
            }
            let last = rows.first().map(|row| row.try_get::<Option<i64>, _>("last")).transpose()?.flatten();
            let Some(last) = last else { return Ok(Found::Nothing) };
            self.read_to = last;
        }
        Ok(Found::Unfinished(self.from, self.read_to))
    }
}

impl<P: Publisher + 'static> Session<'_, P> {
    /// Whether twice as much is read as usual, because what waits beyond may show that a destination works.
    pub(super) fn reads_beyond(&self) -> bool {
        let now = Instant::now();
        self.has_room_beyond() && self.availability.with(|state| state.reads_beyond(now))
    }

    fn has_room_beyond(&self) -> bool {
        self.lanes.len() + self.unrecorded() < self.settings.max_unrecorded.saturating_mul(2)
            && self.lanes.bytes() + self.copied_bytes < self.settings.max_bytes
    }

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
        let looked_to = self.looked_to.filter(|(from, _)| *from == self.read_to);
        let beyond = Beyond {
            pool: self.relay.pool.clone(),
            from: self.read_to,
            read_to: looked_to.map_or(self.read_to, |(_, to)| to),
            shards: self.shards,
            owned: self.epochs.keys().copied().collect(),
            routes: self.settings.routes.clone(),
            down,
        };
        self.look_beyond_at = now;
        self.looking.spawn(beyond.look());
    }

    /// What was found there.
    pub(super) fn looked_beyond(&mut self, looked: Result<Result<Found, sqlx::Error>, JoinError>) {
        let now = Instant::now();
        let took = now - self.look_beyond_at;
        self.look_beyond_at = now + PAUSE.max(took * PART);
        self.looked_to = None;
        match looked {
            Ok(Ok(Found::Destination(destination))) => {
                let all = !self.has_room_beyond();
                self.availability.with(|state| state.found_beyond(&destination, all, now));
            }
            Ok(Ok(Found::Unfinished(from, to))) => self.looked_to = Some((from, to)),
            Ok(Ok(Found::Nothing)) | Err(_) => {}
            Ok(Err(error)) => {
                let error = chain(&error);
                tracing::warn!(relay = self.relay.name, error, "no look beyond what is read ahead");
            }
        }
    }
}
