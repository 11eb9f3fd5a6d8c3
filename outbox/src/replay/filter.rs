//! Which messages a replay publishes. No I/O but the parameters of its statements.

use chrono::{DateTime, Utc};
use message::MessageId;
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use uuid::Uuid;

use crate::Pattern;
use crate::log::within_calendar;

/// Which messages: those that fit all that is said here; of a list, any entry. Nothing said fits every message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub(super) from_position: Option<i64>,
    pub(super) to_position: Option<i64>,
    pub(super) since: Option<DateTime<Utc>>,
    pub(super) until: Option<DateTime<Utc>>,
    pub(super) topics: Vec<String>,
    pub(super) kinds: Vec<String>,
    pub(super) keys: Vec<String>,
    pub(super) ids: Vec<Uuid>,
    pub(super) correlations: Vec<Uuid>,
}

impl Filter {
    /// At or after this position.
    pub fn with_from_position(mut self, position: i64) -> Self {
        self.from_position = Some(position);
        self
    }

    /// At or before this position.
    pub fn with_to_position(mut self, position: i64) -> Self {
        self.to_position = Some(position);
        self
    }

    /// Enqueued at or after this moment.
    pub fn with_since(mut self, moment: DateTime<Utc>) -> Self {
        self.since = Some(micros(moment));
        self
    }

    /// Enqueued before this moment.
    pub fn with_until(mut self, moment: DateTime<Utc>) -> Self {
        self.until = Some(micros(moment));
        self
    }

    /// Of topics that fit, or fit another such pattern.
    pub fn with_topic(mut self, pattern: Pattern) -> Self {
        add(&mut self.topics, pattern.to_string());
        self
    }

    /// Of this kind, or another one given.
    pub fn with_kind(mut self, kind: impl Into<String>) -> Self {
        add(&mut self.kinds, kind.into());
        self
    }

    /// Of this key, or another one given.
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        add(&mut self.keys, key.into());
        self
    }

    /// This one, or another one given.
    pub fn with_id(mut self, id: MessageId) -> Self {
        add(&mut self.ids, id.into());
        self
    }

    /// Of the workflow that this message began, or another one given.
    pub fn with_correlation(mut self, id: MessageId) -> Self {
        add(&mut self.correlations, id.into());
        self
    }

    /// Whether it fits every message.
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// Binds what is asked of a row, seven parameters, each null if nothing is.
    pub(super) fn bind<'q>(
        &'q self,
        query: Query<'q, Postgres, PgArguments>,
    ) -> Query<'q, Postgres, PgArguments> {
        let topics: Option<Vec<String>> =
            some(&self.topics).map(|list| list.iter().map(|p| regex(p)).collect());
        query
            .bind(self.since)
            .bind(self.until)
            .bind(topics)
            .bind(some(&self.kinds))
            .bind(some(&self.keys))
            .bind(some(&self.ids))
            .bind(some(&self.correlations))
    }
}

/// The list, unless it is empty.
pub(super) fn some<T>(list: &[T]) -> Option<&[T]> {
    (!list.is_empty()).then_some(list)
}

/// What the database keeps of a moment.
fn micros(moment: DateTime<Utc>) -> DateTime<Utc> {
    let moment = within_calendar(moment);
    DateTime::from_timestamp_micros(moment.timestamp_micros()).unwrap_or(moment)
}

/// In order and each once, so that the same entries are the same filter.
fn add<T: Ord>(list: &mut Vec<T>, entry: T) {
    if let Err(place) = list.binary_search(&entry) {
        list.insert(place, entry);
    }
}

/// A pattern of topics as PostgreSQL reads one. Its words hold no character that means something there.
fn regex(pattern: &str) -> String {
    let words = pattern.split('.').map(|word| match word {
        "*" => "[^.]+",
        ">" => ".+",
        word => word,
    });
    format!("^{}$", words.collect::<Vec<_>>().join("[.]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_entries_in_another_order_are_the_same_filter() {
        let filter = |keys: &[&str]| keys.iter().fold(Filter::default(), |filter, key| filter.with_key(*key));
        assert_eq!(filter(&["b", "a", "b"]), filter(&["a", "b"]));
        assert!(Filter::default().is_empty() && !filter(&["a"]).is_empty());
    }

    #[test]
    fn a_pattern_becomes_an_expression_that_is_bound_at_both_ends() {
        assert_eq!(regex("orders.*.eu"), "^orders[.][^.]+[.]eu$");
        assert_eq!(regex("orders.>"), "^orders[.].+$");
        assert_eq!(regex(">"), "^.+$");
    }
}
