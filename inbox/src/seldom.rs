//! A line in the log that many tasks would write at once: one of them writes it, and later ones come seldom.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(60);

/// When the last line was written, and how many were not since.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<Option<(Instant, u64)>>);

impl Seldom {
    /// Whether the line is to be written; then how many were not since the last one.
    pub(crate) fn is_due(&self, now: Instant) -> Option<u64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *last {
            Some((at, unwritten)) if now.saturating_duration_since(*at) < PAUSE => {
                *unwritten = unwritten.saturating_add(1);
                None
            }
            last => Some(last.replace((now, 0)).map_or(0, |(_, unwritten)| unwritten)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_written_at_once_and_later_ones_seldom_with_the_number_of_those_that_were_not() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.is_due(now), Some(0));
        assert!((1..60).all(|second| seldom.is_due(now + Duration::from_secs(second)).is_none()));
        assert_eq!(seldom.is_due(now + PAUSE), Some(59));
        assert_eq!(seldom.is_due(now + PAUSE), None);
    }
}
