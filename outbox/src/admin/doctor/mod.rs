//! What makes a set-up unsafe, or will hurt: looked for all at once, each with what to do about it.
//!
//! A relay names the first thing that it refuses, at its start. This finds what it refuses, what no relay can see, and what
//! is only a matter of time.

mod judge;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use message::clock_difference;
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};

use super::{COUNTED, RelayStatus};
use crate::log::{Refusal, faults};
use crate::replay::{self, ReplayStatus};
use crate::statement::{BEGIN_READING, within};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Messages can be lost, reordered, or seen by nobody; or a relay refuses to run.
    Unsafe,
    /// It goes on, and will hurt.
    Hurts,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What it is called, for scripts.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// What one look at the catalog and the settings tells.
#[derive(Debug, Clone)]
struct Facts {
    server_version: i32,
    fsync: bool,
    full_page_writes: bool,
    synchronous_commit: String,
    autovacuum: bool,
    lazy_roles: Vec<String>,
    /// The search path that is set for a role, or for every role, of this database, and the one that this role's sessions have.
    paths: Vec<(String, String)>,
    path: String,
    /// How far the database's clock is ahead of this process's, if they differ by more than an hour.
    clock_difference: Option<TimeDelta>,
    hidden: Vec<String>,
    unlogged: Vec<String>,
    leaves: i64,
    sequence_cache: i64,
    sequence_increment: i64,
    triggers_before: Vec<String>,
    triggers_after: Vec<String>,
    rules: Vec<String>,
    held_rules: Vec<String>,
    missing_roles: Vec<String>,
    without_rights: Vec<String>,
    sees_others: bool,
    last_position: i64,
}

/// Something that holds the cluster back.
#[derive(Debug, Clone)]
struct Old {
    kind: String,
    name: String,
    seconds: Option<f64>,
    detail: String,
}

/// Examines the outbox of a database, whose schema fits this build, the worst first. `old`: what lasts longer than this is
/// worth a word. `abandoned`: a relay or a replay that no process has run for this long may be one that is not needed any
/// more.
///
/// # Errors
/// The database does not answer, or the role may not look.
pub async fn examine(pool: &PgPool, old: Duration, abandoned: Duration) -> Result<Vec<Finding>, Refusal> {
    within(COUNTED, look(pool, old, abandoned)).await
}

async fn look(pool: &PgPool, old: Duration, abandoned: Duration) -> Result<Vec<Finding>, Refusal> {
    let old = old.min(message::limits::LONGEST);
    let mut looking = pool.begin_with(BEGIN_READING).await?;
    let row = sqlx::query(include_str!("../sql/doctor_facts.sql")).persistent(false);
    let asked = Utc::now();
    let facts = facts(&row.fetch_one(&mut *looking).await?, asked)?;
    let rows = sqlx::query(include_str!("../sql/doctor_old.sql")).bind(old.as_secs_f64()).persistent(false);
    let holders: Vec<Old> =
        rows.fetch_all(&mut *looking).await?.iter().map(holder).collect::<Result<_, _>>()?;
    let refusals = faults(&mut looking).await?;
    let relays: Vec<RelayStatus> = super::status_within(&mut looking).await?;
    let replays: Vec<ReplayStatus> = replay::list_within(&mut looking).await?;
    looking.commit().await?;

    let mut findings: Vec<Finding> = refusals.iter().filter_map(judge::refusal).collect();
    findings.extend(judge::facts(&facts));
    findings.extend(holders.iter().map(judge::holder));
    let now = Utc::now();
    findings.extend(judge::relays(&relays, facts.last_position, judge::Ages { old, abandoned, now }));
    findings.extend(replays.iter().filter_map(|replay| judge::replay(replay, abandoned, now)));
    // The worst first, each kind in the order in which it was looked for.
    findings.sort_by_key(|finding| finding.severity);
    Ok(findings)
}

/// It was asked at `asked`.
fn facts(row: &PgRow, asked: DateTime<Utc>) -> Result<Facts, sqlx::Error> {
    let roles: Vec<String> = row.try_get("path_roles")?;
    Ok(Facts {
        server_version: row.try_get("server_version")?,
        fsync: row.try_get("fsync")?,
        full_page_writes: row.try_get("full_page_writes")?,
        synchronous_commit: row.try_get("synchronous_commit")?,
        autovacuum: row.try_get("autovacuum")?,
        lazy_roles: row.try_get("lazy_roles")?,
        paths: roles.into_iter().zip(row.try_get::<Vec<String>, _>("paths")?).collect(),
        path: row.try_get::<Option<String>, _>("path")?.unwrap_or_default(),
        clock_difference: clock_difference(row.try_get("now")?, asked, Utc::now()),
        hidden: row.try_get("hidden")?,
        unlogged: row.try_get("unlogged")?,
        leaves: row.try_get("leaves")?,
        sequence_cache: row.try_get("sequence_cache")?,
        sequence_increment: row.try_get("sequence_increment")?,
        triggers_before: row.try_get("triggers_before")?,
        triggers_after: row.try_get("triggers_after")?,
        rules: row.try_get("rules")?,
        held_rules: row.try_get("held_rules")?,
        missing_roles: row.try_get("missing_roles")?,
        without_rights: row.try_get("without_rights")?,
        sees_others: row.try_get("sees_others")?,
        last_position: row.try_get("last_position")?,
    })
}

fn holder(row: &PgRow) -> Result<Old, sqlx::Error> {
    Ok(Old {
        kind: row.try_get("kind")?,
        name: row.try_get("name")?,
        seconds: row.try_get("seconds")?,
        detail: row.try_get("detail")?,
    })
}

/// How long ago, in words that nobody has to convert.
fn ago(since: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    since.map_or_else(|| "some time".to_owned(), |since| lasting((now - since).as_seconds_f64()))
}

fn lasting(seconds: f64) -> String {
    match seconds.max(0.0) {
        s if s < 120.0 => format!("{s:.0} seconds"),
        s if s < 7_200.0 => format!("{:.0} minutes", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} hours", s / 3_600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}
