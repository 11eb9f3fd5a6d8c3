//! Tries that came to nothing and are nobody's fault: repeated in their place for a while, since most succeed soon; then
//! the key makes room for others.
//!
//! Two transactions that met once rarely meet again. But a handler that meets the same one each time, or a statement that
//! the database never carries out, would keep its place for ever, and as many such keys as there are places would stop the
//! consumer.

use std::time::{Duration, Instant};

use tracing::warn;

use crate::attempt::Setback;
use crate::backoff::chance;
use crate::consumer::Core;
use crate::measure;

/// Tries in place when transactions met; with their waits, about two seconds.
const MEETINGS: u32 = 10;
/// Tries in place when the database did not do its part; with their waits, about a minute.
const OUTAGES: u32 = 20;

/// Tries in place that lost their connection while the handler was under way, though each had one that answered before:
/// the message is suspected of ending them.
const LOSSES: u32 = 5;

/// The tries of one message in one place.
#[derive(Debug)]
pub(crate) struct Patience {
    tries: u32,
    losses: u32,
    begun: Instant,
    longest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience::within(Duration::MAX)
    }
}

impl Patience {
    /// For no longer than `longest`, however few tries that allows.
    pub(crate) fn within(longest: Duration) -> Self {
        Patience { tries: 0, losses: 0, begun: Instant::now(), longest }
    }

    /// Whether the place is wanted back, after one more setback.
    pub(crate) fn is_over(&self, setback: &Setback) -> bool {
        let most = match setback {
            Setback::Contention(_) => MEETINGS,
            Setback::Database(_) | Setback::Lost(_) => OUTAGES,
            Setback::Failed(_) | Setback::Unstorable(_) => 1,
        };
        self.tries + 1 >= most || self.begun.elapsed() >= self.longest
    }

    /// Whether a message is to be tried alone, after one more setback: each of its tries has lost its connection, up to the
    /// last that it has in this place.
    pub(crate) fn is_suspicious(&mut self, setback: &Setback) -> bool {
        let Setback::Lost(_) = setback else { return false };
        self.losses += 1;
        self.losses >= LOSSES || self.is_over(setback)
    }

    /// Waits; `false`: the consumer stops and there is no end of it.
    pub(crate) async fn wait(&mut self, core: &Core, setback: &Setback) -> bool {
        self.tries = self.tries.saturating_add(1);
        let stopping = core.stop.is_cancelled();
        let delay = match setback {
            Setback::Contention(_) if stopping && self.tries >= MEETINGS => return false,
            Setback::Contention(_) => core.contention.delay(self.tries, chance()),
            Setback::Database(_) | Setback::Lost(_) if stopping => return false,
            Setback::Database(error) | Setback::Lost(error) => {
                // Each message in hand meets the same outage.
                if self.tries == 1
                    && let Some(unwritten) = core.database_lines.is_due(Instant::now())
                {
                    let options = core.pool.connect_options();
                    warn!(
                        consumer = %core.name,
                        host = options.get_host(),
                        port = options.get_port(),
                        error,
                        unwritten,
                        "a message cannot be tried now; trying again"
                    );
                }
                core.outage.delay(self.tries, chance())
            }
            Setback::Failed(_) | Setback::Unstorable(_) => return false,
        };
        tokio::select! {
            () = tokio::time::sleep(delay) => true,
            () = core.stop.cancelled(), if !matches!(setback, Setback::Contention(_)) => false,
        }
    }
}

/// Counts a try that came to nothing, and is not counted against its message.
pub(crate) fn count(core: &Core, setback: &Setback) {
    match setback {
        Setback::Contention(_) => measure::count(&core.name, measure::CONTENTION),
        Setback::Database(_) | Setback::Lost(_) => measure::count(&core.name, measure::DATABASE),
        Setback::Failed(_) | Setback::Unstorable(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_suspected_when_each_try_in_its_place_has_lost_its_connection() {
        let lost = Setback::Lost(String::new());
        let mut patience = Patience::default();
        assert!((1..LOSSES).all(|_| !patience.is_suspicious(&lost)));
        assert!(!patience.is_suspicious(&Setback::Database(String::new())) && patience.is_suspicious(&lost));
        assert!(Patience::within(Duration::ZERO).is_suspicious(&lost));
    }

    #[test]
    fn a_place_is_given_back_after_so_many_tries_or_so_much_time() {
        let met = Setback::Contention(String::new());
        let mut patience = Patience::default();
        let tries = (1..).find(|_| {
            let over = patience.is_over(&met);
            patience.tries += 1;
            over
        });
        assert_eq!(tries, Some(MEETINGS));
        assert!(!Patience::default().is_over(&Setback::Database(String::new())));
        assert!(Patience::within(Duration::ZERO).is_over(&met));
    }
}
