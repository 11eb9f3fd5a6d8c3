//! When a failed message is tried again. Pure: chance is an argument.

use std::time::Duration;

use uuid::Uuid;

/// The wait after the first failure doubles with each further one, up to a ceiling. Half of each wait is left to chance,
/// so that what failed together does not come back together.
///
/// ```
/// use std::time::Duration;
/// use inbox::Backoff;
/// let backoff = Backoff::default().with_first(Duration::from_millis(100));
/// # let _ = backoff;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    ceiling: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { first: Duration::from_secs(1), ceiling: Duration::from_secs(300) }
    }
}

impl Backoff {
    /// The wait after the first failure. 1 second unless told otherwise.
    pub fn with_first(mut self, first: Duration) -> Self {
        self.first = first;
        self
    }

    /// The longest wait. 5 minutes unless told otherwise.
    pub fn with_ceiling(mut self, ceiling: Duration) -> Self {
        self.ceiling = ceiling;
        self
    }

    /// After `attempts` failures: between half of the doubled wait and all of it.
    pub(crate) fn delay(&self, attempts: u32, chance: u64) -> Duration {
        self.wait(self.first.saturating_mul(2_u32.saturating_pow(attempts.saturating_sub(1))), chance)
    }

    /// After tries that were not counted: as long again as it has been waited, so that this doubles too.
    pub(crate) fn as_long_again(&self, waited: Duration, chance: u64) -> Duration {
        self.wait(waited.max(self.first), chance)
    }

    /// The longest wait.
    pub(crate) fn longest(&self) -> Duration {
        self.ceiling
    }

    fn wait(&self, doubled: Duration, chance: u64) -> Duration {
        let half = doubled.min(self.ceiling) / 2;
        let most = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        // The bias of the remainder does not matter for a wait.
        half + Duration::from_nanos(chance.checked_rem(most.saturating_add(1)).unwrap_or(chance))
    }
}

/// Chance enough for a wait.
pub(crate) fn chance() -> u64 {
    Uuid::new_v4().as_u64_pair().1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_doubles_to_its_ceiling_and_never_overflows() {
        let backoff = Backoff::default();
        let range = |attempts| {
            (backoff.delay(attempts, 0), Duration::from_secs(1).max(backoff.delay(attempts, 0) * 2))
        };
        assert_eq!(range(1), (Duration::from_millis(500), Duration::from_secs(1)));
        assert_eq!(range(4), (Duration::from_secs(4), Duration::from_secs(8)));
        assert_eq!(range(30), (Duration::from_secs(150), Duration::from_secs(300)));
        assert_eq!(backoff.delay(u32::MAX, 0), Duration::from_secs(150));
        let endless = Backoff { first: Duration::MAX, ceiling: Duration::MAX };
        assert!(endless.delay(3, u64::MAX) > Duration::from_secs(1));
    }

    #[test]
    fn a_wait_that_is_not_counted_is_as_long_as_those_before_it() {
        let backoff = Backoff::default();
        let range = |waited| backoff.as_long_again(Duration::from_secs(waited), u64::MAX / 2);
        assert!(range(0) >= Duration::from_millis(500) && range(0) <= Duration::from_secs(1));
        assert!(range(40) >= Duration::from_secs(20) && range(40) <= Duration::from_secs(40));
        assert!(range(86_400) <= Duration::from_secs(300));
    }

    #[test]
    fn chance_moves_a_wait_within_its_upper_half() {
        for _ in 0..1_000 {
            let delay = Backoff::default().delay(2, chance());
            assert!(delay >= Duration::from_secs(1) && delay <= Duration::from_secs(2), "{delay:?}");
        }
    }
}
