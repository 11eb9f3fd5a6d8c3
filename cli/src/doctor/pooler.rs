//! Whether something in front of the server answers two statements of one connection from two server connections, as a
//! pooler in transaction mode does.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};

use super::{HURTS, Line};
use crate::database;
use crate::exit::Failure;
use crate::secret::SecretUrl;

/// How often it is tried.
const TRIES: usize = 5;

/// Two connections: while one is in a transaction, the other must be answered by another server connection. If either is
/// answered by another one afterwards, and asked for nothing, somebody changes it.
pub(super) async fn probe(url: &SecretUrl) -> Result<Option<Line>, Failure> {
    let mut one = database::connect(url, "doctor").await?;
    let mut other = database::connect(url, "doctor").await?;
    let changes = changes(&mut one, &mut other).await;
    let _ = one.close().await;
    let _ = other.close().await;
    let changes = changes.map_err(|error| database::failed(&format!("database {url}"), &error))?;
    Ok(changes.then(|| Line {
        name: "pooler",
        severity: HURTS,
        what: "a pooler in transaction mode answers one connection from several server connections: a relay starts \
               over each time, and prepared statements fail unless it carries them along"
            .to_owned(),
        remedy: "give relays a direct connection; for services, max_prepared_statements in PgBouncer 1.21 or newer"
            .to_owned(),
    }))
}

async fn changes(one: &mut PgConnection, other: &mut PgConnection) -> Result<bool, sqlx::Error> {
    for _ in 0..TRIES {
        let mut busy = one.begin_with(database::BEGIN_READING).await?;
        let before = (backend(&mut busy).await?, backend(other).await?);
        busy.commit().await?;
        // In this order: whether a pooler hands out what it got back last or first, one of the two gets the other's.
        if (backend(one).await?, backend(other).await?) != before {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The server process that answers. Not prepared: the name of a statement would stay with somebody's server connection.
async fn backend(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row: PgRow = sqlx::raw_sql(include_str!("sql/backend.sql")).fetch_one(connection).await?;
    row.try_get(0)
}
