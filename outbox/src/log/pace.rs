//! When to look again: at once while there is work, after a while that grows while there is none. No I/O.

use std::time::Duration;

/// The pauses between looks at the log.
#[derive(Debug)]
pub(super) struct Pace {
    busy: Duration,
    ceiling: Duration,
    pause: Duration,
    /// Looks left without a pause, and after them before the pause grows.
    at_once: u32,
    soon: u32,
}

/// After a bell: a commit is coming, so look soon, and so often before the pause grows. Most commits come within a few
/// milliseconds; a pause that grew from the first look on would be as long as what it waits for.
const SOON: Duration = Duration::from_micros(500);
const LOOKS_SOON: u32 = 4;
/// The first bell after a silence: so many looks one after the other, each a round trip, since the timer knows no less than a
/// millisecond. Not under load, where they would never end.
const LOOKS_AT_ONCE: u32 = 6;

impl Pace {
    /// `busy` between looks that find something, up to `ceiling` between those that do not.
    pub(super) fn new(busy: Duration, ceiling: Duration) -> Self {
        Pace { busy: busy.min(ceiling), ceiling, pause: busy.min(ceiling), at_once: 0, soon: 0 }
    }

    /// A look found something; `full`: more than fits in a page, so there is work waiting.
    pub(super) fn found(&mut self, full: bool) -> Duration {
        (self.pause, self.at_once, self.soon) = (self.busy, 0, 0);
        if full { Duration::ZERO } else { self.busy }
    }

    /// A look found nothing.
    pub(super) fn nothing(&mut self) -> Duration {
        if self.at_once > 0 {
            self.at_once -= 1;
            return Duration::ZERO;
        }
        let pause = self.pause;
        if self.soon > 0 {
            self.soon -= 1;
        } else {
            self.pause = (pause * 2).min(self.ceiling);
        }
        pause
    }

    /// The longest pause is another from now on.
    pub(super) fn rise_to(&mut self, ceiling: Duration) {
        self.ceiling = ceiling;
        self.pause = self.pause.min(ceiling);
    }

    /// A bell was heard.
    pub(super) fn heard(&mut self) -> Duration {
        let silent = self.pause > self.busy * 4;
        (self.pause, self.soon) = (SOON.min(self.ceiling), LOOKS_SOON);
        if silent {
            self.at_once = LOOKS_AT_ONCE;
        }
        if self.at_once > 0 { Duration::ZERO } else { self.pause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_ceiling_and_a_bell_or_work_ends_that() {
        let ms = Duration::from_millis;
        let mut pace = Pace::new(ms(5), ms(100));
        let pauses: Vec<_> = (0..6).map(|_| pace.nothing()).collect();
        assert_eq!(pauses, [ms(5), ms(10), ms(20), ms(40), ms(80), ms(100)]);
        assert_eq!((pace.found(true), pace.nothing()), (ms(0), ms(5)));
        assert_eq!(pace.heard(), SOON);
        let pauses: Vec<_> = (0..7).map(|_| pace.nothing()).collect();
        assert_eq!(pauses[..4], [SOON; 4]);
        assert_eq!(pauses[4..], [SOON, ms(1), ms(2)]);
    }

    #[test]
    fn the_first_bell_after_a_silence_is_answered_without_a_pause() {
        let ms = Duration::from_millis;
        let mut pace = Pace::new(ms(5), ms(100));
        for _ in 0..4 {
            pace.nothing();
        }
        assert_eq!(pace.heard(), Duration::ZERO);
        let pauses: Vec<_> = (0..7).map(|_| pace.nothing()).collect();
        assert_eq!((&pauses[..6], pauses[6]), (&[Duration::ZERO; 6][..], SOON));
        assert_eq!((pace.heard(), pace.found(false), pace.heard()), (SOON, ms(5), SOON));
    }

    #[test]
    fn another_ceiling_holds_at_once() {
        let ms = Duration::from_millis;
        let mut pace = Pace::new(ms(5), ms(1000));
        let pauses: Vec<_> = (0..9).map(|_| pace.nothing()).collect();
        assert_eq!(pauses[7..], [ms(640), ms(1000)]);
        pace.rise_to(ms(100));
        assert_eq!((pace.nothing(), pace.nothing()), (ms(100), ms(100)));
        pace.rise_to(ms(1000));
        assert_eq!((pace.nothing(), pace.nothing()), (ms(100), ms(200)));
    }
}
