//! Moves what is due into the log. The upkeep's holder does it, and what keeps it from being done twice is the database.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use message::clock_difference;
use sqlx::Row;
use sqlx::postgres::PgConnection;
use tokio::time::Instant;
use uuid::Uuid;

use crate::bell;
use crate::log::preflight;
use crate::relay::chain;
use crate::statement::{self, alone, fill, literal, within};

const NEXT: &str = include_str!("sql/next.sql");
const MOVE: &str = include_str!("sql/move.sql");
const FIRST_DUE: &str = include_str!("sql/first_due.sql");

/// How often it is looked whether something has been scheduled that is due before what was known.
const LOOK: Duration = Duration::from_secs(2);
/// How long a look may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a batch may take; one that takes longer is tried again with fewer.
const MOVED: Duration = Duration::from_secs(120);
/// How often one that the log did not take is tried again: a person may have mended what kept it.
const AGAIN: Duration = Duration::from_secs(5);
/// Messages in one transaction.
const BATCH: i64 = 1000;
/// While somebody holds a snapshot, what was moved stays in the index as dead entries, and whoever looks for the first one
/// that is alive walks over all of them. So one batch after another is looked for above the time of the last that was moved, less
/// this; and everywhere only as often as it is looked at all, for what was scheduled, or committed, when its time had passed.
const SLACK: TimeDelta = TimeDelta::seconds(5);

/// A look everywhere that took long is not made again before so many times as long.
const SHARE: u32 = 20;

/// Where the mover stands.
#[derive(Debug)]
pub(crate) struct Mover {
    /// What is due up to here has been moved, but for what came late.
    moved_to: Option<DateTime<Utc>>,
    look_everywhere_at: Instant,
    next_at: Instant,
    /// The log may be written to: it was not restored into another cluster, for instance. Since the last failure.
    is_safe: bool,
    batch: i64,
    /// The next one is moved by itself: one of those that are due cannot be moved, and keeps the others of its batch.
    alone: bool,
    /// Those that cannot be moved as they are, by number, each with its key; they stay where they are, and so do the others of
    /// these keys, which come after them.
    refused: BTreeMap<i64, Option<String>>,
    /// When the next of them is tried again, and from which number on.
    again_at: Instant,
    tried_again: i64,
    /// The clocks of the database and of this process differ: nothing is moved.
    clocks_differ: bool,
}

impl Mover {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Mover {
            moved_to: None,
            look_everywhere_at: now,
            next_at: now,
            is_safe: false,
            batch: BATCH,
            alone: false,
            refused: BTreeMap::new(),
            again_at: now,
            tried_again: 0,
            clocks_differ: false,
        }
    }

    /// The database did not answer, and may be another now.
    pub(crate) fn doubt(&mut self) {
        self.is_safe = false;
    }

    /// When there is something to look at or to move.
    pub(crate) fn next_at(&self) -> Instant {
        self.next_at
    }

    /// Moves one batch of what is due, if anything is, for the process that has the upkeep. Answers whether that is at rest, as
    /// it saw on the way.
    pub(crate) async fn move_due(
        &mut self,
        connection: &mut PgConnection,
        holder: Uuid,
    ) -> Result<bool, sqlx::Error> {
        let began = Instant::now();
        let everywhere = self.look_everywhere_at <= began;
        if everywhere {
            self.moved_to = None;
        }
        let above = self.moved_to.map_or(DateTime::UNIX_EPOCH - SLACK, |moved_to| moved_to - SLACK);
        let next = fill(NEXT, &[literal(&above.to_rfc3339()), literal(&holder.to_string())]);
        let asked = Utc::now();
        let look = sqlx::raw_sql(alone(&next)).fetch_one(&mut *connection);
        // The connection is kept, and nobody has asked it how it is.
        let row = within(ANSWER, look).await?;
        let due_in: Option<f64> = row.try_get("due_in")?;
        let rests: bool = row.try_get("rests")?;
        if everywhere {
            self.look_everywhere_at = Instant::now() + LOOK.max(began.elapsed() * SHARE);
        }
        if due_in.is_none_or(|due_in| due_in > 0.0) {
            let due_in = due_in.and_then(|due_in| Duration::try_from_secs_f64(due_in).ok());
            self.next_at = Instant::now() + due_in.unwrap_or(LOOK).min(LOOK);
            return Ok(rests);
        }
        if self.compare_clocks(row.try_get("now")?, asked) {
            self.next_at = Instant::now() + LOOK;
            return Ok(rests);
        }
        if !self.is_safe {
            if let Err(error) = preflight(&mut *connection).await {
                tracing::debug!(error = chain(&error), "scheduled messages are not moved into this log");
                self.next_at = Instant::now() + LOOK;
                return Ok(rests);
            }
            self.is_safe = true;
        }
        let only = self.only(&mut *connection, above).await?;
        let number = only.as_ref().map(|(number, _)| *number);
        let (refused, keys) = match number {
            None => self.refused(),
            Some(_) => Default::default(),
        };
        // One that was refused lies anywhere.
        let above = if only.is_some() { DateTime::UNIX_EPOCH - SLACK } else { above };
        let query = sqlx::query(MOVE).bind(holder).bind(above).bind(self.batch);
        let query = query.bind(refused).bind(number).bind(keys);
        // One that fails for what it holds, or takes too long, is tried again with fewer.
        let batch = self.batch;
        self.batch = (batch / 2).max(1);
        let row = match within(MOVED, statement::row(connection, query)).await {
            Ok(row) => row,
            Err(error) if statement::is_values_fault(&error) => {
                if only.is_some() {
                    self.batch = batch;
                }
                self.alone = batch == 1 && only.is_none();
                self.refuse(only, &error);
                self.next_at = Instant::now();
                return Ok(rests);
            }
            Err(error) => return Err(error),
        };
        self.batch = (batch * 2).min(BATCH);
        if let Some(number) = number {
            self.refused.remove(&number);
        }
        let moved: i64 = row.try_get("moved")?;
        if moved > 0 {
            metrics::counter!("outbox_scheduled_messages_moved_total").increment(moved.unsigned_abs());
            if number.is_none() {
                self.moved_to = row.try_get("last_due")?;
            }
            bell::ring();
        }
        // What was due and is not moved is being given up, or the upkeep is another's.
        self.next_at = Instant::now() + if moved > 0 { Duration::ZERO } else { LOOK };
        Ok(rests)
    }
}

impl Mover {
    /// Whether the clocks of the database and of this process differ by so much that one must be wrong. Then what is due is not
    /// known, and what was published cannot be taken back.
    fn compare_clocks(&mut self, database: DateTime<Utc>, asked: DateTime<Utc>) -> bool {
        let difference = clock_difference(database, asked, Utc::now());
        let was = std::mem::replace(&mut self.clocks_differ, difference.is_some());
        match difference {
            Some(difference) if !was => tracing::warn!(
                seconds = difference.num_seconds(),
                "clocks of database and process differ: no scheduled message is moved into the log"
            ),
            None if was => {
                tracing::info!("clocks of database and process agree: scheduled messages are moved")
            }
            _ => {}
        }
        difference.is_some()
    }

    /// The one to move by itself, if one is, and its key: the first that is due when a batch of one has failed, or now and then
    /// one that was refused before.
    async fn only(
        &mut self,
        connection: &mut PgConnection,
        above: DateTime<Utc>,
    ) -> Result<Option<(i64, Option<String>)>, sqlx::Error> {
        if std::mem::take(&mut self.alone) {
            let (refused, keys) = self.refused();
            let first = sqlx::query(FIRST_DUE).bind(above).bind(refused).bind(keys);
            let first = within(ANSWER, statement::optional(connection, first)).await?;
            return first.map(|row| Ok((row.try_get("number")?, row.try_get("key")?))).transpose();
        }
        if self.again_at > Instant::now() {
            return Ok(None);
        }
        self.again_at = Instant::now() + AGAIN;
        let next = self.refused.range(self.tried_again..).next().or_else(|| self.refused.first_key_value());
        let next = next.map(|(number, key)| (*number, key.clone()));
        self.tried_again = next.as_ref().map_or(0, |(number, _)| number + 1);
        Ok(next)
    }

    /// Those that are not moved, by number and by key.
    fn refused(&self) -> (Vec<i64>, Vec<&str>) {
        let numbers = self.refused.keys().copied().collect();
        (numbers, self.refused.values().flatten().map(String::as_str).collect())
    }

    fn refuse(&mut self, only: Option<(i64, Option<String>)>, error: &sqlx::Error) {
        let Some((number, key)) = only else { return };
        if self.refused.insert(number, key).is_none() {
            let error = chain(error);
            tracing::error!(
                number,
                error,
                "a scheduled message cannot be moved into the log as it is: it stays scheduled, and the later ones of its key with it"
            );
        }
    }
}
