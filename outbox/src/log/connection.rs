//! The one server connection through which a reader sees the log.

use futures_util::TryStreamExt;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool, Postgres};
use sqlx::{AssertSqlSafe, Row};

use super::row::{LogMessage, Names, decode};
use super::snapshot::{NotSnapshot, column, leaf, leaves};
use super::window::{Look, PageRange, Window};

const LOOK: &str = include_str!("sql/look.sql");
const LAST_POSITION: &str = include_str!("sql/last_position.sql");
const SPEND: &str = include_str!("sql/spend.sql");
const PAGE: &str = include_str!("sql/page.sql");
const PAGE_WITH_STRAGGLERS: &str = include_str!("sql/page_with_stragglers.sql");
const FIRST_OF: &str = include_str!("sql/first_of.sql");
const FLUSHED: &str = include_str!("sql/flushed.sql");
const FLUSH: &str = include_str!("sql/flush.sql");
const BACKEND: &str = include_str!("sql/backend.sql");

/// Why the log cannot be read on. All that is held in memory is void then: read the recorded cursors again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The database's.
    #[error("the database did not answer")]
    Database(#[from] sqlx::Error),
    /// Another server process answers than before. Windows mean nothing to it: after a crash, transaction ids that were
    /// never logged are used again.
    #[error("the server connection was replaced")]
    ConnectionReplaced,
    /// Our own: the task that reads and records ended by itself.
    #[error("the log's reader ended by itself")]
    ReaderEnded,
}

/// Reads the log through one server connection, on which the windows held in memory mean something.
#[derive(Debug)]
pub struct LogConnection {
    connection: PoolConnection<Postgres>,
    backend: Option<Box<str>>,
    flushed: i64,
    names: Names,
}

impl LogConnection {
    /// Takes a connection of the pool for as long as it lives.
    ///
    /// # Errors
    /// The pool has none to give.
    pub async fn open(pool: &PgPool) -> Result<Self, LogError> {
        Ok(LogConnection {
            connection: pool.acquire().await?,
            backend: None,
            flushed: 0,
            names: Names::default(),
        })
    }

    /// Looks whether there may be something new for a relay: one statement, no write.
    ///
    /// # Errors
    /// See [`LogError`].
    pub async fn look(&mut self, relay: &str) -> Result<Look, LogError> {
        let row = sqlx::query(LOOK).bind(relay).fetch_one(&mut *self.connection).await?;
        self.is_same(row.try_get("backend")?)?;
        self.flushed = row.try_get("flushed")?;
        Ok(Look {
            snapshot: column(&row, "snapshot")?.ok_or_else(|| sqlx::Error::Decode(NotSnapshot.into()))?,
            last_position: row.try_get("last_position")?,
            inserted: row.try_get("inserted")?,
            changes: row.try_get("changes")?,
        })
    }

    /// Who answered the first look: only there the windows mean something.
    pub fn backend(&self) -> Option<&str> {
        self.backend.as_deref()
    }

    /// Asks whether the one who answered the first look still does.
    ///
    /// # Errors
    /// See [`LogError`].
    pub async fn check(&mut self) -> Result<(), LogError> {
        let backend = sqlx::query_scalar(BACKEND).fetch_one(&mut *self.connection).await?;
        self.is_same(backend)
    }

    fn is_same(&mut self, backend: String) -> Result<(), LogError> {
        let same = **self.backend.get_or_insert_with(|| backend.as_str().into()) == *backend;
        if same { Ok(()) } else { Err(LogError::ConnectionReplaced) }
    }

    /// Proves a lower bound for every snapshot taken from now on. Spends a transaction id, so it is not for idle polls.
    ///
    /// # Errors
    /// See [`LogError`].
    pub async fn prove_bound(&mut self) -> Result<i64, LogError> {
        // In this order, and each in a transaction of its own; spend.sql says why.
        let bound = sqlx::query_scalar(LAST_POSITION).fetch_one(&mut *self.connection).await?;
        sqlx::query(SPEND).execute(&mut *self.connection).await?;
        Ok(bound)
    }

    /// Reads up to `limit` messages of a page for some of the `shards` shards; fewer, if their payloads reach `bytes`.
    /// Whether there may be more is true then, or when there are `limit`.
    ///
    /// # Errors
    /// See [`LogError`].
    pub async fn page(
        &mut self,
        window: &Window,
        range: &PageRange,
        limit: usize,
        bytes: usize,
        shards: i16,
        wanted: &[i16],
    ) -> Result<(Vec<LogMessage>, bool), LogError> {
        let template = if range.stragglers.is_empty() { PAGE } else { PAGE_WITH_STRAGGLERS };
        let sql = template.replace("/*leaf*/", &leaf(range.to).to_string());
        let mut query = sqlx::query(AssertSqlSafe(sql))
            .bind(window.seen.snapshot.xmax().to_string())
            .bind(window.until.snapshot.to_string())
            .bind(range.new_after)
            .bind(range.to)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .bind(shards)
            .bind(wanted);
        if !range.stragglers.is_empty() {
            let stragglers: Vec<String> = range.stragglers.iter().map(u64::to_string).collect();
            query = query.bind(stragglers).bind(range.after);
        }
        // Unnamed, so planned each time: a plan kept from when a leaf was empty would scan and sort it whole for ever.
        let mut rows = query.persistent(false).fetch(&mut *self.connection);
        let mut messages = Vec::with_capacity(limit);
        let mut read = 0;
        while let Some(row) = rows.try_next().await? {
            let message = decode(&row, &mut self.names)?;
            read += message.message.payload.len();
            messages.push(message);
            if read >= bytes {
                // The driver throws away what else the server sends of this page.
                break;
            }
        }
        let more = messages.len() >= limit || read >= bytes;
        Ok((messages, more))
    }

    /// The first position that any of these transactions wrote between two positions.
    ///
    /// # Errors
    /// See [`LogError`].
    pub async fn first_of(&mut self, xids: &[u64], from: i64, to: i64) -> Result<Option<i64>, LogError> {
        let sql = FIRST_OF.replace("/*leaves*/", &leaves(from, to));
        let xids: Vec<String> = xids.iter().map(u64::to_string).collect();
        let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(xids).persistent(false);
        Ok(query.fetch_one(&mut *self.connection).await?)
    }

    /// Returns when everything up to `inserted` is flushed: a commit with `synchronous_commit = off` is visible before
    /// that, and a crash would erase what was already published.
    ///
    /// # Errors
    /// See [`LogError`].
    pub async fn make_durable(&mut self, inserted: i64) -> Result<(), LogError> {
        if self.flushed < inserted {
            // Writers that wait for their own commits have mostly flushed it meanwhile.
            self.flushed = sqlx::query_scalar(FLUSHED).fetch_one(&mut *self.connection).await?;
        }
        if self.flushed < inserted {
            sqlx::query(FLUSH).execute(&mut *self.connection).await?;
            self.flushed = inserted;
        }
        Ok(())
    }

    /// The connection, for statements that must run where the windows mean something.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}
