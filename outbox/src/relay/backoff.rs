//! How long to wait before the next attempt. No I/O.

use std::time::Duration;

use message::limits::LONGEST;

/// Waits that double from `first` to `ceiling`, each shortened by chance by up to a half, so that many who failed
/// together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure.
    pub first: Duration,
    /// The longest wait.
    pub ceiling: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row (1 or more); `chance` from 0 to 1 shortens it.
    pub fn after(&self, failures: u32, chance: f64) -> Duration {
        let doubled = self.first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(31)));
        doubled.min(self.ceiling).min(LONGEST).mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0)
    }
}

/// A number from 0 to 1 that nobody can tell beforehand.
pub(crate) fn chance() -> f64 {
    // The random bits of a UUIDv4: one source of chance less to depend on.
    let (_, low) = uuid::Uuid::new_v4().as_u64_pair();
    (low & u64::from(u32::MAX)) as f64 / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_ceiling_and_chance_takes_at_most_a_half() {
        let backoff = Backoff { first: Duration::from_millis(100), ceiling: Duration::from_secs(5) };
        let waits: Vec<u128> = (1..=8).map(|failures| backoff.after(failures, 0.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.after(1, 1.0), Duration::from_millis(50));
        assert_eq!(backoff.after(u32::MAX, 0.0), Duration::from_secs(5));
        let endless = Backoff { first: Duration::MAX, ceiling: Duration::MAX };
        assert_eq!(endless.after(3, 0.0), LONGEST);
        assert!((0..100).all(|_| (0.0..=1.0).contains(&chance())));
    }
}
