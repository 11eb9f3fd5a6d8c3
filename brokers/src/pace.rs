//! When a failure that goes on is logged: at once, then more and more seldom. No I/O.

use std::time::{Duration, Instant};

/// The second line comes after this; the wait doubles from line to line.
const FIRST: Duration = Duration::from_secs(5);
/// The longest wait between two lines.
const CEILING: Duration = Duration::from_secs(600);

/// The lines about one failure.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last: Option<(Instant, Duration)>,
}

impl Pace {
    /// Returns whether a line is due for a failure at `now`.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let wait = match self.last {
            None => FIRST,
            Some((at, wait)) if now.duration_since(at) >= wait => (wait * 2).min(CEILING),
            Some(_) => return false,
        };
        self.last = Some((now, wait));
        true
    }

    /// The failure is over: the next one is logged at once.
    pub(crate) fn reset(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_goes_on_is_logged_at_once_and_then_more_and_more_seldom() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let day = (0..86_400).map(|second| start + Duration::from_secs(second));
        let lines: Vec<u64> =
            day.filter(|now| pace.is_due(*now)).map(|now| now.duration_since(start).as_secs()).collect();
        assert_eq!(lines[..5], [0, 5, 15, 35, 75]);
        assert!(lines.len() < 160, "{}", lines.len());
        pace.reset();
        assert!(pace.is_due(start + Duration::from_secs(86_400)));
    }
}
