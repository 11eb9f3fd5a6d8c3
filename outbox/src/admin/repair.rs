//! After a restore: whether the log can be read here, and the repair if not.
//!
//! Transaction ids mean something only within one life of a cluster. A repair ends the era of the log that was restored and
//! opens one for the cluster it is in now ([`Eras`](crate::log::Eras)). No message is changed, and no cursor is moved: each
//! relay reads what it had not delivered of the old era, then the new one.

use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection, Row};

use super::{ANSWER, COUNTED, LOCK, RelayStatus, status};
use crate::statement::{self, is_locked, within};

/// What a look at the log has found. Identifiers are as the server tells them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Survey {
    /// The era that has not ended.
    pub era: i32,
    /// The cluster in which it was opened.
    pub system_identifier: i64,
    /// The cluster that the log is in now.
    pub present_identifier: i64,
    /// The transaction ids that the log and its cursors rest on are given out again.
    pub ids_behind: bool,
    /// Positions that the log holds are drawn again.
    pub positions_behind: bool,
    /// The last position drawn from the sequence.
    pub last_drawn: i64,
    /// The highest position in the log.
    pub last_written: i64,
    /// Where a new era would begin.
    pub first_position: i64,
    /// Messages that services have written since the restore: they belong to the new era.
    pub written_since: i64,
    /// Processes of relays that are alive, or were when the dump was made: of each, the relay and how it calls itself.
    pub processes: Vec<String>,
    /// How many seconds the last of them may be alive without being heard of.
    pub alive_for: i64,
    /// How far each relay is, as of the present era.
    pub relays: Vec<RelayStatus>,
}

impl Survey {
    /// Whether the log was written in another cluster.
    pub fn is_elsewhere(&self) -> bool {
        self.system_identifier != self.present_identifier
    }

    /// Whether relays refuse to read the log until it is repaired.
    pub fn needs_repair(&self) -> bool {
        self.is_elsewhere() || self.ids_behind || self.positions_behind
    }
}

/// Why the log was not looked at, or not repaired. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The schema is missing or does not fit.
    #[error(transparent)]
    Schema(#[from] migrations::SchemaError),
    /// A replica is not repaired: its primary is.
    #[error("the server is a read replica: repair the primary")]
    Replica,
    /// Relays read the log with what they know of it.
    #[error(
        "relay processes alive, or alive when the dump was made: {}; stop them, or wait {alive_for} s",
        processes.join(", ")
    )]
    Alive {
        /// Of each, the relay and how it calls itself.
        processes: Vec<String>,
        /// Seconds until the last of them counts as dead if it is not heard of.
        alive_for: i64,
    },
    /// The log can be read as it is.
    #[error("nothing to repair: the log was written in this cluster")]
    Sound,
    /// A transaction has the log open; a prepared one, perhaps.
    #[error("a transaction that has written to the log is still open after {LOCK}")]
    Busy(#[source] sqlx::Error),
    /// The database's.
    #[error("the database did not answer")]
    Database(#[from] sqlx::Error),
}

/// Looks whether the log needs a repair, and what that would do. Changes nothing.
///
/// # Errors
/// See [`RepairError`].
pub async fn survey(pool: &PgPool) -> Result<Survey, RepairError> {
    let mut survey = within(ANSWER, async { look(&mut *pool.acquire().await?).await }).await?;
    survey.relays = status(pool).await?;
    Ok(survey)
}

/// Ends the present era of the log and opens one of this cluster, in one transaction that keeps writers and relays out.
/// Before producers are started: what they write before it is delivered, but not always once and in order. `who` decides it,
/// and perhaps says why. Returns what was found.
///
/// # Errors
/// See [`RepairError`].
pub async fn repair(pool: &PgPool, who: &str, reason: Option<&str>) -> Result<Survey, RepairError> {
    let found = survey(pool).await?;
    let survey = within(COUNTED, open_era(pool, who, reason)).await?;
    Ok(Survey { relays: found.relays, ..survey })
}

async fn open_era(pool: &PgPool, who: &str, reason: Option<&str>) -> Result<Survey, RepairError> {
    let mut connection = pool.acquire().await?;
    let mut tx = connection.begin_with(statement::BEGIN_LONG).await?;
    sqlx::raw_sql(include_str!("sql/no_jit.sql")).execute(&mut *tx).await?;
    statement::run(&mut *tx, sqlx::query(include_str!("sql/lock_timeout.sql")).bind(LOCK)).await?;
    sqlx::raw_sql(include_str!("sql/lock_log.sql")).execute(&mut *tx).await.map_err(locked_out)?;
    // Once more, now that nobody changes anything.
    let survey = look(&mut tx).await?;
    if !survey.needs_repair() {
        return Err(RepairError::Sound);
    }
    if !survey.processes.is_empty() {
        let Survey { processes, alive_for, .. } = survey;
        return Err(RepairError::Alive { processes, alive_for });
    }
    if survey.last_drawn < survey.first_position - 1 {
        let above = survey.first_position - 1;
        statement::run(&mut *tx, sqlx::query(include_str!("sql/draw_above.sql")).bind(above)).await?;
    }
    let open = sqlx::query(include_str!("sql/open_era.sql")).bind(survey.first_position);
    statement::run(&mut *tx, open).await?;
    sqlx::raw_sql(include_str!("sql/disown.sql")).execute(&mut *tx).await?;
    let written = sqlx::query(include_str!("sql/write_repair.sql")).bind(who).bind(survey.first_position);
    statement::run(&mut *tx, written.bind(reason)).await?;
    tx.commit().await?;
    Ok(survey)
}

async fn look(connection: &mut PgConnection) -> Result<Survey, RepairError> {
    migrations::Schema::Outbox.check(connection).await?;
    let preflight = sqlx::query(include_str!("../log/sql/preflight.sql"));
    let facts = statement::read_row(&mut *connection, preflight).await?;
    if facts.try_get("replica")? {
        return Err(RepairError::Replica);
    }
    let row = statement::read_row(connection, sqlx::query(include_str!("sql/survey.sql"))).await?;
    Ok(Survey {
        era: row.try_get("era")?,
        system_identifier: row.try_get("system_identifier")?,
        present_identifier: row.try_get("present_identifier")?,
        ids_behind: facts.try_get("ids_behind")?,
        positions_behind: facts.try_get("positions_behind")?,
        last_drawn: row.try_get("sequence")?,
        last_written: row.try_get("log")?,
        first_position: row.try_get("first_position")?,
        written_since: row.try_get("written_since")?,
        processes: row.try_get("processes")?,
        alive_for: row.try_get::<Option<i64>, _>("alive_for")?.unwrap_or_default(),
        relays: Vec::new(),
    })
}

fn locked_out(error: sqlx::Error) -> RepairError {
    if is_locked(&error) { RepairError::Busy(error) } else { error.into() }
}
