//! A broker that does not answer is asked again with growing waits.

use std::time::Duration;

use message::SubscribeError;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::backoff::{Backoff, chance};
use crate::consumer::Core;

/// After the first failure; doubled with each further one.
const RECEIVE_BACKOFF: Duration = Duration::from_millis(100);

/// A broker that does not answer.
pub(crate) struct Outage {
    errors: u32,
    pub(crate) until: Instant,
}

impl Default for Outage {
    fn default() -> Self {
        Outage { errors: 0, until: Instant::now() }
    }
}

impl Outage {
    pub(crate) fn is_over(&self) -> bool {
        self.until <= Instant::now()
    }

    pub(crate) fn go_on(&mut self, core: &Core, error: &SubscribeError) {
        if self.errors == 0 {
            warn!(consumer = %core.name, %error, "the broker does not answer; trying again");
        }
        self.errors = self.errors.saturating_add(1);
        let backoff = Backoff::default().with_first(RECEIVE_BACKOFF).with_ceiling(Duration::from_secs(5));
        self.until = Instant::now() + backoff.delay(self.errors, chance());
    }

    pub(crate) fn end(&mut self, core: &Core) {
        if self.errors > 0 {
            info!(consumer = %core.name, "the broker answers again");
        }
        self.errors = 0;
    }
}
