//! A publisher that confirms everything at once and keeps nothing: what a relay costs without a broker.

use async_trait::async_trait;
use message::{Outcomes, Outgoing, Pipelining, Publisher};

/// Confirms everything, keeps nothing.
///
/// ```
/// use brokers::memory::Discard;
/// use message::{Pipelining, Publisher};
/// assert_eq!(Discard.pipelining(), Pipelining::Unlimited);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

#[async_trait]
impl Publisher for Discard {
    /// It never fails, so nothing can pass a failure.
    fn pipelining(&self) -> Pipelining {
        Pipelining::Unlimited
    }

    async fn publish(&self, _: &[Outgoing], outcomes: Outcomes) {
        outcomes.confirm_all();
    }

    fn describe(&self) -> Option<String> {
        Some("memory, where nothing is kept".to_owned())
    }
}
