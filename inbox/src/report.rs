//! An error as text for the operator: with its causes, bounded, and without the values that PostgreSQL puts into some.

use std::borrow::Cow;
use std::error::Error;

use sqlx::postgres::PgDatabaseError;

/// As long as the column that keeps it.
const LONGEST: usize = 4_096;

/// `error` and its causes in one line.
pub(crate) fn report(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let (part, below) = match error.downcast_ref::<sqlx::Error>() {
            Some(sqlx::Error::Database(error)) => (of_database(&**error), None),
            _ => {
                let text = error.to_string();
                match message::without_settings(&text) {
                    // Its causes would tell the setting's value.
                    Cow::Owned(shown) => (shown, None),
                    Cow::Borrowed(_) => (text, error.source()),
                }
            }
        };
        // Some errors repeat their source.
        if !text.ends_with(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = below;
    }
    bounded(&text)
}

/// Cut to the column, without what PostgreSQL cannot keep in text.
pub(crate) fn bounded(text: &str) -> String {
    let mut text = text.replace('\0', "\u{fffd}");
    text.truncate(text.floor_char_boundary(LONGEST));
    text
}

/// The message of class 22 (data exception) quotes the value; DETAIL, which quotes rows, is never printed.
fn of_database(error: &dyn sqlx::error::DatabaseError) -> String {
    let code = error.code().unwrap_or_default();
    let message = if code.starts_with("22") { "data exception" } else { error.message() };
    format!("database error {code}: {message}")
}

/// What the server called it, if one of the causes of `error` is its answer.
pub(crate) fn sqlstate(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let answer = match error.downcast_ref::<sqlx::Error>() {
            Some(error) => error.as_database_error().and_then(|error| error.code()),
            None => error.downcast_ref::<PgDatabaseError>().map(|error| error.code().into()),
        };
        if let Some(code) = answer {
            return Some(code.into_owned());
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("stock cannot be read")]
    struct Stock(#[source] sqlx::Error);

    #[test]
    fn an_error_is_reported_with_its_causes() {
        let error = Stock(sqlx::Error::RowNotFound);
        assert!(report(&error).starts_with("stock cannot be read: no rows returned"), "{}", report(&error));
        assert_eq!(sqlstate(&error), None);
    }

    #[test]
    fn a_report_fits_its_column() {
        assert_eq!(bounded("a\0b"), "a\u{fffd}b");
        assert_eq!(bounded(&"é".repeat(4_000)).len(), 4_096);
        assert_eq!(bounded(&format!("a{}", "é".repeat(4_000))).len(), 4_095);
    }
}
