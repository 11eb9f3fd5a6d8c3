//! What a process publishes to, registered so that two processes of one relay with different brokers or routes are
//! noticed: each publishes the shards that it owns, so either broker would get a part of the log.

use sqlx::Row;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::store::Store;
use crate::statement;

/// Longest text that is registered, in bytes.
const LONGEST: usize = 500;

/// What a process publishes to, for a person and for comparison. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    text: String,
    fingerprint: Uuid,
    is_group: bool,
}

/// Another living process of the relay that publishes elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Elsewhere {
    /// How it calls itself.
    pub process: String,
    /// What it publishes to.
    pub destination: String,
}

impl Destination {
    /// A relay's: the kind and address of its broker, and its routes.
    pub fn of_relay(text: &str) -> Self {
        Destination::new(text, false)
    }

    /// A consumer group's: the topics that it asks for.
    pub fn of_group(text: &str) -> Self {
        Destination::new(text, true)
    }

    fn new(text: &str, is_group: bool) -> Self {
        let mut end = text.len().min(LONGEST);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let dots = if end < text.len() { "…" } else { "" };
        Destination {
            text: format!("{}{dots}", &text[..end]),
            fingerprint: Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()),
            is_group,
        }
    }

    /// For a person.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Store {
    /// Registers what this process publishes to. Returns the other living processes of the relay that publish elsewhere.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn publishes_to(
        &self,
        connection: &mut PgConnection,
        destination: &Destination,
    ) -> Result<Vec<Elsewhere>, sqlx::Error> {
        let query = sqlx::query(include_str!("sql/describe.sql"))
            .bind(self.relay())
            .bind(self.process())
            .bind(&destination.text)
            .bind(destination.fingerprint)
            .bind(destination.is_group);
        let rows = statement::rows(connection, query).await?;
        let elsewhere = |row: &sqlx::postgres::PgRow| {
            Ok(Elsewhere { process: row.try_get("label")?, destination: row.try_get("destination")? })
        };
        rows.iter().map(elsewhere).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_differ_beyond_what_is_shown_are_different_destinations() {
        let (one, other) = ("é".repeat(400), format!("{}x", "é".repeat(400)));
        let (one, other) = (Destination::of_relay(&one), Destination::of_relay(&other));
        assert_eq!(one.as_str(), other.as_str());
        assert_ne!(one, other);
        assert!(one.as_str().ends_with('…') && one.as_str().len() <= LONGEST + 3);
    }
}
