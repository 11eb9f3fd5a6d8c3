//! Whether a relay has something to do.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// When a relay began to read, and when it was last seen at work.
#[derive(Debug, Default)]
pub(crate) struct Busy(Mutex<Option<(Instant, Instant)>>);

impl Busy {
    fn lock(&self) -> MutexGuard<'_, Option<(Instant, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is at work now.
    pub(super) fn is_at_work(&self) {
        let now = Instant::now();
        self.lock().get_or_insert((now, now)).1 = now;
    }

    /// Since when it reads, and how long it has had nothing to do. `None`: it has not begun.
    pub(crate) fn seen(&self) -> Option<(Duration, Duration)> {
        self.lock().map(|(begun, last)| (begun.elapsed(), last.elapsed()))
    }
}
