//! What becomes of a key when the last attempt at its message has failed, by topic. No I/O.

use super::Pattern;

/// What becomes of a key when the last attempt at its message has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Policy {
    /// The key waits for a person, and its order is kept.
    #[default]
    Park,
    /// The message is given up, which is written down in the audit, and the key goes on: its order is lost there. A message
    /// whose attempts ended with the relay's process parks its key all the same.
    Skip,
}

/// The policies of topics. The first pattern that fits counts; a topic that none fits is parked.
///
/// ```
/// use outbox::{Policies, Policy};
/// let policies = Policies::default().with("metrics.>".parse()?, Policy::Skip);
/// assert_eq!(policies.of("metrics.cpu"), Policy::Skip);
/// assert_eq!(policies.of("orders"), Policy::Park);
/// # Ok::<(), outbox::InvalidRoute>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Policies {
    policies: Vec<(Pattern, Policy)>,
}

impl Policies {
    /// With one more policy.
    pub fn with(mut self, pattern: Pattern, policy: Policy) -> Self {
        self.policies.push((pattern, policy));
        self
    }

    /// The policy of a topic.
    pub fn of(&self, topic: &str) -> Policy {
        let fitting = self.policies.iter().find(|(pattern, _)| pattern.fits(topic));
        fitting.map_or(Policy::default(), |(_, policy)| *policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_that_fits_counts_and_none_parks() {
        let pattern = |text: &str| text.parse::<Pattern>().unwrap();
        let policies =
            Policies::default().with(pattern("a.b"), Policy::Park).with(pattern("a.>"), Policy::Skip);
        assert_eq!(
            ["a.b", "a.c", "b"].map(|topic| policies.of(topic)),
            [Policy::Park, Policy::Skip, Policy::Park]
        );
    }
}
