//! The one grammar of moments: RFC 3339, with its zone.

use chrono::{DateTime, Utc};

/// What a moment must look like.
pub(crate) const GRAMMAR: &str = "a time with its zone: 2026-01-31T12:00:00Z";

/// Reads a moment; `None` if it is none.
pub(crate) fn parse(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text).ok().map(|moment| moment.with_timezone(&Utc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_a_zone() {
        assert_eq!(parse("2026-01-31T13:00:00+01:00"), parse("2026-01-31T12:00:00Z"));
        assert!(parse("2026-01-31T12:00:00.25Z").is_some());
        for text in ["", "now", "2026-01-31", "2026-01-31T12:00:00", "2026-13-31T12:00:00Z", "1769860800"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
