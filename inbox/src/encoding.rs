//! Refuses a database whose encoding is not UTF8: it could not store the text of every message.

use sqlx::{PgConnection, Row};

use crate::ConsumerError;
use crate::statement;

/// Whether the inbox can be used in this database.
pub(crate) async fn check_encoding(connection: &mut PgConnection) -> Result<(), ConsumerError> {
    let encoding = encoding(connection).await?;
    if encoding == "UTF8" { Ok(()) } else { Err(ConsumerError::Encoding(encoding)) }
}

/// The encoding of the database, by the server's name. A consumer refuses every one but `UTF8`.
///
/// # Errors
/// The database's.
pub async fn encoding(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let rows = statement::read(connection, sqlx::query(include_str!("sql/encoding.sql"))).await?;
    rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get("encoding")
}
