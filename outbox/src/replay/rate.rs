//! At most so many a second. No I/O: the clock is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// Lets messages through at a rate, evenly: what was not used for more than a moment is not made up for.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: f64,
    /// How many may go at once.
    most: f64,
    allowed: f64,
    at: Instant,
}

/// What may go at once is what goes in this time.
const MOMENT: Duration = Duration::from_millis(100);

impl Rate {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second.max(1));
        let most = (per_second * MOMENT.as_secs_f64()).max(1.0);
        Rate { per_second, most, allowed: 1.0, at: now }
    }

    /// How many of `wanted` may go now; none: how long until the next.
    pub(super) fn take(&mut self, wanted: usize, now: Instant) -> Result<usize, Duration> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.allowed, self.at) = ((self.allowed + passed * self.per_second).min(self.most), now);
        if self.allowed < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.allowed) / self.per_second));
        }
        let taken = wanted.min(self.allowed as usize);
        self.allowed -= taken as f64;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn let_through(per_second: u32, seconds: u64, pause: Duration) -> usize {
        let begun = Instant::now();
        let (mut rate, mut now, mut count) = (Rate::new(per_second, begun), begun + pause, 0);
        let end = now + Duration::from_secs(seconds);
        while now < end {
            match rate.take(500, now) {
                Ok(taken) => count += taken,
                Err(wait) => now += wait,
            }
        }
        count
    }

    #[test]
    fn no_more_go_than_the_rate_allows_and_hardly_fewer() {
        for per_second in [1, 7, 100, 25_000] {
            let count = let_through(per_second, 10, Duration::ZERO);
            let fair = per_second as usize * 10;
            assert!((fair..=fair + per_second as usize / 10 + 1).contains(&count), "{per_second}: {count}");
        }
    }

    #[test]
    fn an_hour_of_silence_is_not_made_up_for() {
        assert!(let_through(100, 1, Duration::from_secs(3600)) <= 111);
    }
}
