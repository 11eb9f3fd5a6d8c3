//! What a replay would publish. Nothing is written.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use message::MessageId;
use sqlx::postgres::{PgPool, PgRow};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::{Filter, ReplayError, Replayed, job};
use crate::admin::{ANSWER, COUNTED};
use crate::log::{leaf, leaf_end};
use crate::statement::{self, within};

/// What a replay would publish.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Preview {
    /// Messages.
    pub messages: i64,
    /// Messages by topic.
    pub topics: BTreeMap<String, i64>,
    /// The first and the last of them; `None`: there are none.
    pub ends: Option<(Place, Place)>,
    /// What was found under the replay's name.
    pub found: Found,
}

/// A replay of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Found {
    /// There is none: it would begin.
    #[default]
    Nothing,
    /// It would go on from there.
    Running(Replayed),
    /// It is finished, and the name is taken.
    Finished(Replayed),
    /// It was cancelled, and the name is taken.
    Cancelled,
}

/// A message of the log and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// Where it stands.
    pub position: i64,
    /// Which it is.
    pub id: MessageId,
    /// When it was enqueued; of the first: the earliest of all, of the last: the latest.
    pub enqueued_at: DateTime<Utc>,
}

/// What the replay `name` would publish: of one that has begun, what is left; else what fits `filter` now. Reads the part
/// of the log that the filter leaves, a leaf at a time.
///
/// # Errors
/// A replay that has begun with another filter, or the database.
pub async fn preview(pool: &PgPool, name: &str, filter: Option<&Filter>) -> Result<Preview, ReplayError> {
    let recorded = job::load(pool, name).await?;
    let mut preview = Preview::default();
    let (filter, mut after, to, seen, seen_from) = match &recorded {
        Some(recorded) => {
            if filter.is_some_and(|filter| *filter != recorded.filter) {
                return Err(ReplayError::OtherFilter);
            }
            preview.found = match recorded.state.as_str() {
                "finished" => Found::Finished(recorded.replayed),
                "cancelled" => Found::Cancelled,
                _ => Found::Running(recorded.replayed),
            };
            if !matches!(preview.found, Found::Running(_)) {
                return Ok(preview);
            }
            (
                &recorded.filter,
                recorded.replayed.after,
                recorded.to_position,
                Some(&*recorded.seen),
                recorded.seen_from,
            )
        }
        None => {
            let filter = filter.ok_or(ReplayError::NotBegun)?;
            let (after, to) = job::bounds(pool, filter).await?;
            let last = sqlx::query(include_str!("../log/sql/last_position.sql"));
            let last: i64 = within(ANSWER, statement::read_row(pool, last)).await?.try_get(0)?;
            (filter, after, to.unwrap_or(last).min(last), None, 0)
        }
    };
    while after < to {
        let end = leaf_end(after + 1).min(to);
        let sql = include_str!("sql/count.sql").replace("/*leaf*/", &leaf(end).to_string());
        let query = sqlx::query(AssertSqlSafe(sql)).bind(seen).bind(seen_from).bind(after).bind(end);
        for row in within(COUNTED, statement::read(pool, filter.bind(query))).await? {
            preview.add(&row)?;
        }
        after = end;
    }
    Ok(preview)
}

impl Preview {
    fn add(&mut self, row: &PgRow) -> Result<(), sqlx::Error> {
        let messages: i64 = row.try_get("messages")?;
        self.messages += messages;
        *self.topics.entry(row.try_get("topic")?).or_default() += messages;
        let first = place(row, "first", "first_id", "first_at")?;
        let last = place(row, "last", "last_id", "last_at")?;
        self.ends = Some(match self.ends {
            None => (first, last),
            Some((begin, end)) => (earlier(begin, first), later(end, last)),
        });
        Ok(())
    }
}

fn place(row: &PgRow, position: &str, id: &str, at: &str) -> Result<Place, sqlx::Error> {
    let id: Uuid = row.try_get(id)?;
    let id = MessageId::try_from(id).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Place { position: row.try_get(position)?, id, enqueued_at: row.try_get(at)? })
}

fn earlier(one: Place, other: Place) -> Place {
    let enqueued_at = one.enqueued_at.min(other.enqueued_at);
    Place { enqueued_at, ..if one.position <= other.position { one } else { other } }
}

fn later(one: Place, other: Place) -> Place {
    let enqueued_at = one.enqueued_at.max(other.enqueued_at);
    Place { enqueued_at, ..if one.position >= other.position { one } else { other } }
}
