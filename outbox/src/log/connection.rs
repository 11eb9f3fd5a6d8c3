//! The one server connection through which a reader sees the log.

use futures_util::TryStreamExt;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool, PgRow, Postgres};
use sqlx::{Connection, Executor, Row};

use super::row::{Copied, LogMessage, Names};
use super::snapshot::{NotSnapshot, column, leaf, leaves};
use super::store::{Record, Store};
use super::window::{Look, PageRange, Window};
use crate::statement::{BEGIN_LONG, Begin, alone, array, fill, literal};

const IDENTITY: &str = include_str!("sql/identity.sql");

const LOOK: &str = include_str!("sql/look.sql");
const LAST_POSITION: &str = include_str!("sql/last_position.sql");
const SPEND: &str = include_str!("sql/spend.sql");
const PAGE: &str = include_str!("sql/page.sql");
const PAGE_WITH_STRAGGLERS: &str = include_str!("sql/page_with_stragglers.sql");
const FIRST_OF: &str = include_str!("sql/first_of.sql");
const FLUSHED: &str = include_str!("sql/flushed.sql");
const FLUSH: &str = include_str!("sql/flush.sql");

/// Why the log cannot be read on. All that is held in memory is void then: read the recorded cursors again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The database's.
    #[error("the database did not answer")]
    Database(#[from] sqlx::Error),
    /// The server may have crashed since, or be another one: no server process answers that was there before. Windows
    /// mean nothing then, since transaction ids that were never logged are used again.
    #[error("the server connection was replaced")]
    ConnectionReplaced,
    /// Our own: the task that reads and records ended by itself.
    #[error("the log's reader ended by itself")]
    ReaderEnded,
}

/// Reads the log through one connection, on which the windows held in memory mean something.
///
/// A pooler in transaction mode makes it several. Windows outlive the server process that took them, but not a crash of
/// the server, which ends all its processes: so one that was there before vouches for them, and one that was not is asked
/// again until another answers. Every statement here is one part and one round trip.
#[derive(Debug)]
pub struct LogConnection {
    connection: PoolConnection<Postgres>,
    server: Option<Box<Server>>,
    /// Other server processes than one have answered.
    pooled: bool,
    flushed: i64,
    /// A statement that does not say at which level it runs sees what was committed before it.
    read_committed: bool,
    names: Names,
}

/// The server as the windows know it.
#[derive(Debug)]
struct Server {
    backend: String,
    life: String,
    /// When it answered last, by its own clock.
    at: i64,
}

/// How often another server process is asked for before it is thought that the server has crashed.
const TRIES: usize = 8;

impl Server {
    /// Whether a process that identifies itself was there when the server answered last.
    fn knows(server: &mut Option<Box<Server>>, identity: &PgRow) -> Result<bool, sqlx::Error> {
        let (backend, life): (String, String) = (identity.try_get("backend")?, identity.try_get("life")?);
        let (began, at): (Option<i64>, i64) = (identity.try_get("began")?, identity.try_get("clock")?);
        let knows = server.as_ref().is_none_or(|known| {
            let was_there = known.backend == backend || began.is_some_and(|began| began < known.at);
            known.life == life && was_there
        });
        if knows {
            *server = Some(Box::new(Server { backend, life, at }));
        }
        Ok(knows)
    }
}

impl LogConnection {
    /// Takes a connection of the pool for as long as it lives.
    ///
    /// # Errors
    /// The pool has none to give.
    pub async fn open(pool: &PgPool) -> Result<Self, LogError> {
        let mut connection = pool.acquire().await?;
        // Left in the middle of a page, the driver could not use it again.
        connection.close_on_drop();
        Ok(LogConnection {
            connection,
            server: None,
            pooled: false,
            flushed: 0,
            read_committed: false,
            names: Names::default(),
        })
    }

    /// Looks whether there may be something new for a relay: one statement, no write.
    ///
    /// # Errors
    /// See [`LogError`].
    pub async fn look(&mut self, relay: &str) -> Result<Look, LogError> {
        let sql = fill(LOOK, &[literal(relay)]);
        let row = match &mut self.server {
            Some(server) if !self.pooled => {
                let row = self.connection.fetch_one(sqlx::raw_sql(alone(&sql))).await?;
                self.pooled = row.try_get::<&str, _>("backend")? != server.backend;
                if self.pooled {
                    tracing::info!(
                        relay,
                        "another server process answers than before: a pooler stands before it"
                    );
                } else {
                    server.at = row.try_get("clock")?;
                }
                (!self.pooled).then_some(row)
            }
            _ => None,
        };
        let row = match row {
            Some(row) => row,
            None => self.on_known(&sql).await?,
        };
        self.flushed = row.try_get("flushed")?;
        self.read_committed = row.try_get("read_committed")?;
        Ok(Look {
            snapshot: column(&row, "snapshot")?.ok_or_else(|| sqlx::Error::Decode(NotSnapshot.into()))?,
            last_position: row.try_get("last_position")?,
            inserted: row.try_get("inserted")?,
            changes: row.try_get("changes")?,
        })
    }

    /// The row of a statement, as a server process that was there before sees it.
    async fn on_known(&mut self, sql: &str) -> Result<PgRow, LogError> {
        for _ in 0..TRIES {
            // Sent as one, they are one transaction, which a pooler does not divide.
            let sql = alone(&format!("{IDENTITY};\n{sql}"));
            let rows = self.connection.fetch_all(sqlx::raw_sql(sql)).await?;
            let mut rows = rows.into_iter();
            let (identity, row) = rows.next().zip(rows.next()).ok_or(sqlx::Error::RowNotFound)?;
            if Server::knows(&mut self.server, &identity)? {
                return Ok(row);
            }
        }
        Err(LogError::ConnectionReplaced)
    }

    /// Proves a lower bound for every snapshot taken from now on. Spends a transaction id, so it is not for idle polls.
    ///
    /// # Errors
    /// See [`LogError`].
    pub async fn prove_bound(&mut self) -> Result<i64, LogError> {
        // In this order, and committed before any snapshot is taken; spend.sql says why.
        let row = self.on_known(&format!("{LAST_POSITION};\n{SPEND}")).await?;
        Ok(row.try_get(0)?)
    }

    /// Writes a record where its windows mean something. Answers the shards whose lease is lost.
    ///
    /// # Errors
    /// See [`LogError`]: whether the record was written is unknown.
    pub async fn record(&mut self, store: &mut Store, record: Record) -> Result<Vec<i16>, LogError> {
        for _ in 0..TRIES {
            let mut tx = self.connection.begin_bounded().await?;
            let identity = tx.fetch_one(sqlx::raw_sql(IDENTITY)).await?;
            if Server::knows(&mut self.server, &identity)? {
                let lost = store.record(&mut tx, record).await?;
                tx.commit().await?;
                return Ok(lost);
            }
            tx.rollback().await?;
        }
        Err(LogError::ConnectionReplaced)
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
        let bigint = |number: i64| format!("{number}::bigint");
        let sql = fill(
            &template.replace("/*leaf*/", &leaf(range.to).to_string()),
            &[
                literal(&window.seen.snapshot.xmax().to_string()),
                literal(&window.until.snapshot.to_string()),
                bigint(range.new_after),
                bigint(range.to),
                limit.to_string(),
                format!("{shards}::smallint"),
                format!("{}::smallint[]", array(wanted)),
                array(&range.stragglers),
                bigint(range.after),
            ],
        );
        // Not named, so planned each time: a plan kept from when a leaf was empty would scan and sort it whole for ever.
        let copy = format!("copy (\n{sql}\n) to stdout (format binary)");
        let (messages, read) = if self.read_committed {
            receive(&mut self.connection, &copy, limit, bytes, &mut self.names).await?
        } else {
            // The driver takes no other statement in front of this one in a message.
            let mut tx = self.connection.begin_with(BEGIN_LONG).await?;
            let received = receive(&mut tx, &copy, limit, bytes, &mut self.names).await?;
            tx.commit().await?;
            received
        };
        if self.pooled {
            // Another server process may have sent it, after a crash: then the window means nothing.
            self.on_known(LAST_POSITION).await?;
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
        let sql = fill(&sql, &[array(xids)]);
        Ok(self.connection.fetch_one(sqlx::raw_sql(alone(&sql))).await?.try_get(0)?)
    }

    /// Returns when everything up to `inserted` is flushed: a commit with `synchronous_commit = off` is visible before
    /// that, and a crash would erase what was already published.
    ///
    /// # Errors
    /// See [`LogError`].
    pub async fn make_durable(&mut self, inserted: i64) -> Result<(), LogError> {
        if self.flushed < inserted {
            // Writers that wait for their own commits have mostly flushed it meanwhile.
            self.flushed = self.connection.fetch_one(sqlx::raw_sql(alone(FLUSHED))).await?.try_get(0)?;
        }
        if self.flushed < inserted {
            self.connection.execute(sqlx::raw_sql(alone(FLUSH))).await?;
            self.flushed = inserted;
        }
        Ok(())
    }

    /// The connection, for statements that must run where the windows mean something.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// The messages that a COPY sends, until their payloads reach `bytes`, and how many bytes they are.
async fn receive(
    connection: &mut PgConnection,
    copy: &str,
    limit: usize,
    bytes: usize,
    names: &mut Names,
) -> Result<(Vec<LogMessage>, usize), LogError> {
    let mut sent = connection.copy_out_raw(copy).await?;
    let mut copied = Copied::default();
    let mut messages = Vec::with_capacity(limit);
    let mut read = 0;
    while let Some(bytes_sent) = sent.try_next().await? {
        let mut bytes_sent = &bytes_sent[..];
        // What else the server sends of this page is thrown away.
        while read < bytes
            && let Some(message) = copied.next(&mut bytes_sent, names)?
        {
            read += message.message.payload.len();
            messages.push(message);
        }
    }
    Ok((messages, read))
}
