//! A replay as it stands in the database: begun once, worked at by one process at a time, under an epoch.

use std::time::Duration;

use chrono::{DateTime, Utc};
use message::MessageId;
use sqlx::postgres::{PgPool, PgRow};
use sqlx::{PgTransaction, Row};
use tokio::time::Instant;
use uuid::Uuid;

use super::filter::some;
use super::{Filter, ReplayError, Replayed};
use crate::admin::{ANSWER, AdminError, decide};
use crate::log::position_at;
use crate::statement::{self, within};

/// What was recorded of a replay.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) filter: Filter,
    pub(super) destination: Option<String>,
    pub(super) state: String,
    pub(super) replayed: Replayed,
    pub(super) to_position: i64,
    pub(super) seen: String,
    pub(super) seen_from: i64,
}

/// A replay that this process works at.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) epoch: i64,
    /// The part that is left: above this position, up to that one, as far as this snapshot sees, and all of eras before
    /// this position.
    pub(super) after: i64,
    pub(super) to_position: i64,
    pub(super) seen: String,
    pub(super) seen_from: i64,
    pub(super) published: i64,
    pub(super) skipped: i64,
}

/// What is to be recorded.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// All is done up to this position.
    pub(super) after: i64,
    /// Published since the last record.
    pub(super) published: i64,
    /// Given up since the last record: position, id, reason.
    pub(super) skipped: Vec<(i64, MessageId, String)>,
}

/// What a record says of the process that writes it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Then<'a> {
    /// It goes on, and lives for so long.
    Goes(Duration),
    /// It lets go, perhaps for a reason.
    Stops(Option<&'a str>),
    /// Nothing is left to do.
    Finishes,
}

/// The part of the log in which a filter can fit anything: above, and up to (`None`: its end), whatever commits meanwhile.
/// A clock is within a second of its place, as `position_at.sql` says.
pub(super) async fn bounds(pool: &PgPool, filter: &Filter) -> Result<(i64, Option<i64>), sqlx::Error> {
    within(ANSWER, look_up(pool, filter)).await
}

async fn look_up(pool: &PgPool, filter: &Filter) -> Result<(i64, Option<i64>), sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let mut after = filter.from_position.unwrap_or(1).max(1) - 1;
    let mut to = filter.to_position;
    if let Some(since) = filter.since {
        after = after.max(position_at(&mut connection, since).await?.floor - 1);
    }
    if let Some(until) = filter.until {
        let place = position_at(&mut connection, until + chrono::TimeDelta::seconds(1)).await?;
        to = place.position.into_iter().chain(to).min();
    }
    Ok((after, to))
}

/// What was recorded of a replay; `None`: it has not begun.
pub(super) async fn load(pool: &PgPool, name: &str) -> Result<Option<Recorded>, sqlx::Error> {
    let load = sqlx::query(include_str!("sql/load.sql")).bind(name);
    let row = within(ANSWER, statement::optional(pool, load)).await?;
    row.as_ref().map(recorded).transpose()
}

/// Begins a replay, unless somebody has.
pub(super) async fn begin(
    pool: &PgPool,
    name: &str,
    filter: &Filter,
    destination: Option<&str>,
    who: &str,
    reason: Option<&str>,
) -> Result<(), ReplayError> {
    let (after, to) = bounds(pool, filter).await?;
    let query = sqlx::query(include_str!("sql/create.sql"))
        .bind(name)
        .bind(destination)
        .bind(after)
        .bind(to)
        .bind(filter.since)
        .bind(filter.until)
        .bind(some(&filter.topics))
        .bind(some(&filter.kinds))
        .bind(some(&filter.keys))
        .bind(some(&filter.ids))
        .bind(some(&filter.correlations))
        .bind(filter.from_position)
        .bind(filter.to_position)
        .bind(who)
        .bind(reason);
    decide(pool, query).await?;
    Ok(())
}

/// Takes a replay over. One whose process has died is waited for as long as that could still be alive, and no longer: a
/// process that lives renews its lease meanwhile.
pub(super) async fn claim(pool: &PgPool, name: &str, lease: Duration) -> Result<Job, ReplayError> {
    let mut expected: Option<(DateTime<Utc>, Instant)> = None;
    loop {
        let query = sqlx::query(include_str!("sql/claim.sql")).bind(name).bind(lease.as_secs_f64());
        if let Some(row) = decide(pool, query).await?.first() {
            if row.try_get("restored")? {
                return Err(ReplayError::Restored);
            }
            return Ok(Job {
                epoch: row.try_get("epoch")?,
                after: row.try_get("after")?,
                to_position: row.try_get("to_position")?,
                seen: row.try_get("seen")?,
                seen_from: row.try_get("seen_from")?,
                published: row.try_get("published")?,
                skipped: row.try_get("skipped")?,
            });
        }
        let expires = sqlx::query(include_str!("sql/expires.sql")).bind(name);
        let row = within(ANSWER, statement::optional(pool, expires)).await?;
        // Somebody else has finished or cancelled it meanwhile.
        let Some(row) = row else { return Err(ReplayError::Busy) };
        let expires_at: Option<DateTime<Utc>> = row.try_get("expires_at")?;
        let seconds: Option<f64> = row.try_get("seconds")?;
        let (Some(expires_at), Some(seconds)) = (expires_at, seconds) else { continue };
        let (first, _) = *expected.get_or_insert((expires_at, Instant::now()));
        if first != expires_at {
            return Err(ReplayError::Busy);
        }
        tracing::info!(
            replay = name,
            seconds,
            "waits for the process that worked at it last: it may be alive"
        );
        tokio::time::sleep(Duration::from_secs_f64(seconds.clamp(0.0, 3600.0)) + MARGIN).await;
    }
}

/// How long the database may take to answer a record.
const RECORDED: Duration = Duration::from_secs(60);
/// How long after a lease's end a replay is looked for: the clocks of two statements differ a little.
const MARGIN: Duration = Duration::from_millis(20);

impl Job {
    /// Renews the lease. `false`: it is another's.
    pub(super) async fn renew(
        pool: &PgPool,
        name: &str,
        epoch: i64,
        lease: Duration,
    ) -> Result<bool, sqlx::Error> {
        let query = sqlx::query(include_str!("sql/renew.sql")).bind(name).bind(epoch);
        let query = query.bind(lease.as_secs_f64());
        Ok(within(lease, statement::optional(pool, query)).await?.is_some())
    }

    /// Records how far it is. `false`: it is another's, and nothing was recorded.
    pub(super) async fn record(
        &mut self,
        pool: &PgPool,
        name: &str,
        who: &str,
        progress: &Progress,
        then: Then<'_>,
    ) -> Result<bool, sqlx::Error> {
        let (lease, state, error) = match then {
            Then::Goes(lease) => (Some(lease.as_secs_f64()), "running", None),
            Then::Stops(error) => (None, "running", error),
            Then::Finishes => (None, "finished", None),
        };
        let skipped = &progress.skipped;
        let query = sqlx::query(include_str!("sql/record.sql"))
            .bind(name)
            .bind(self.epoch)
            .bind(progress.after)
            .bind(progress.published)
            .bind(lease)
            .bind(state)
            .bind(error)
            .bind(skipped.iter().map(|entry| entry.0).collect::<Vec<_>>())
            .bind(skipped.iter().map(|entry| *entry.1.as_uuid()).collect::<Vec<_>>())
            .bind(skipped.iter().map(|entry| entry.2.as_str()).collect::<Vec<_>>())
            .bind(who);
        let row = within(RECORDED, statement::optional(pool, query)).await?;
        let Some(row) = row else { return Ok(false) };
        self.after = progress.after;
        self.published = row.try_get("published")?;
        self.skipped = row.try_get("skipped")?;
        Ok(true)
    }
}

/// A replay, for whoever looks after them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReplayStatus {
    /// Its name.
    pub name: String,
    /// `running`, `finished` or `cancelled`. A running one is not finished, whether a process works at it or not.
    pub state: String,
    /// Whether a process works at it.
    pub working: bool,
    /// Everything up to this position is done.
    pub after: i64,
    /// Up to here it goes.
    pub to_position: i64,
    /// Messages published, each counted once.
    pub published: i64,
    /// Messages given up.
    pub skipped: i64,
    /// Why it stopped last.
    pub last_error: Option<String>,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When its progress was recorded last.
    pub recorded_at: DateTime<Utc>,
}

/// The replays of a database, the latest first. One that is running keeps the log from being emptied above `after`.
///
/// # Errors
/// The database does not answer within a minute.
pub async fn list(pool: &PgPool) -> Result<Vec<ReplayStatus>, sqlx::Error> {
    let list = async {
        let mut tx = pool.begin_with(statement::BEGIN_READING).await?;
        let replays = list_within(&mut tx).await?;
        tx.commit().await?;
        Ok(replays)
    };
    within(ANSWER, list).await
}

/// The same, in a transaction.
pub(crate) async fn list_within(tx: &mut PgTransaction<'_>) -> Result<Vec<ReplayStatus>, sqlx::Error> {
    let rows = sqlx::query(include_str!("sql/list.sql")).persistent(false).fetch_all(&mut **tx).await?;
    let status = |row: &PgRow| {
        Ok(ReplayStatus {
            name: row.try_get("name")?,
            state: row.try_get("state")?,
            working: row.try_get("working")?,
            after: row.try_get("after")?,
            to_position: row.try_get("to_position")?,
            published: row.try_get("published")?,
            skipped: row.try_get("skipped")?,
            last_error: row.try_get("last_error")?,
            created_at: row.try_get("created_at")?,
            recorded_at: row.try_get("recorded_at")?,
        })
    };
    rows.iter().map(status).collect()
}

/// A replay was not cancelled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CancelError {
    /// No replay of that name has begun here.
    #[error("no such replay")]
    Unknown,
    /// There is nothing left to cancel.
    #[error("the replay is finished")]
    Finished,
    /// It could not be asked, or changed.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

impl From<sqlx::Error> for CancelError {
    fn from(error: sqlx::Error) -> Self {
        CancelError::Admin(error.into())
    }
}

/// Ends a replay that is not finished, for good: a process that works at it stops, and the log keeps nothing for it. What is
/// left of it is not published ([`preview`](super::preview()) counts that). `who` decides it, and says why. `false`: it is
/// cancelled already.
///
/// # Errors
/// See [`CancelError`].
pub async fn cancel(pool: &PgPool, name: &str, who: &str, reason: &str) -> Result<bool, CancelError> {
    let query = sqlx::query(include_str!("sql/cancel.sql")).bind(name).bind(who).bind(reason);
    let rows = decide(pool, query).await?;
    let was: Option<String> = rows.first().map(|row| row.try_get(0)).transpose()?;
    match was.as_deref() {
        None => Err(CancelError::Unknown),
        Some("finished") => Err(CancelError::Finished),
        Some(was) => Ok(was == "running"),
    }
}

fn recorded(row: &PgRow) -> Result<Recorded, sqlx::Error> {
    fn list<'r, T: sqlx::Type<sqlx::Postgres> + sqlx::Decode<'r, sqlx::Postgres>>(
        row: &'r PgRow,
        name: &str,
    ) -> Result<Vec<T>, sqlx::Error>
    where
        Vec<T>: sqlx::Type<sqlx::Postgres> + sqlx::Decode<'r, sqlx::Postgres>,
    {
        Ok(row.try_get::<Option<Vec<T>>, _>(name)?.unwrap_or_default())
    }
    Ok(Recorded {
        filter: Filter {
            from_position: row.try_get("asked_from")?,
            to_position: row.try_get("asked_to")?,
            since: row.try_get("since")?,
            until: row.try_get("until")?,
            topics: list::<String>(row, "topics")?,
            kinds: list::<String>(row, "kinds")?,
            keys: list::<String>(row, "keys")?,
            ids: list::<Uuid>(row, "ids")?,
            correlations: list::<Uuid>(row, "correlations")?,
        },
        destination: row.try_get("destination")?,
        replayed: Replayed {
            published: row.try_get("published")?,
            skipped: row.try_get("skipped")?,
            after: row.try_get("after")?,
            finished: row.try_get::<&str, _>("state")? == "finished",
            already: false,
        },
        state: row.try_get("state")?,
        to_position: row.try_get("to_position")?,
        seen: row.try_get("seen")?,
        seen_from: row.try_get("seen_from")?,
    })
}
