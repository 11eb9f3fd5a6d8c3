//! What a session does about destinations that are down, and about keys that take too much of the look-ahead.

use message::Publisher;
use tokio::time::Instant;

use super::super::lanes::{Cause, Item};
use super::Session;
use super::record::Why;

impl<P: Publisher + 'static> Session<'_, P> {
    /// Lets go on what waits at destinations that are back, and keeps others from those that held keys found down.
    pub(super) fn follow_destinations(&mut self) {
        let lanes = &mut self.lanes;
        self.availability.with(|state| {
            let back: Vec<_> = lanes
                .closed()
                .map(|(destination, _)| destination)
                .filter(|destination| !state.is_down(destination))
                .cloned()
                .collect();
            back.iter().for_each(|destination| lanes.open(destination));
            state.down().for_each(|destination| lanes.close(destination));
        });
    }

    /// Holds in the database what waits at destinations that are down, before it fills the look-ahead.
    pub(super) fn hold_for_destinations(&mut self) {
        let full = !self.has_room(2);
        let now = Instant::now();
        let lanes = &self.lanes;
        let holding: Vec<_> = self.availability.with(|state| {
            let waiting = lanes.closed().filter(|(_, waits)| *waits).map(|(destination, _)| destination);
            let holding = waiting.filter(|destination| state.is_holding(destination, full, now));
            holding
                .map(|destination| {
                    (destination.clone(), state.reason(destination).unwrap_or_default().to_owned())
                })
                .collect()
        });
        for (destination, reason) in holding {
            let held = self.lanes.hold_closed(&destination);
            let (relay, keys) = (&self.relay.name, held.len());
            tracing::debug!(relay, %destination, keys, "keys held until their destination is available");
            for items in held {
                self.hold(items, Why::Destination(&destination, &reason));
            }
        }
    }

    /// Sets aside the key that takes more than half of the look-ahead while that is full: others could not be read.
    pub(super) fn set_aside(&mut self) {
        let now = Instant::now();
        let paused = self.availability.with(|state| state.paused_until(now).is_some());
        if self.ending.is_some() || paused || self.has_room(1) {
            return;
        }
        let items = self.lanes.set_aside(self.settings.max_unrecorded / 2, self.settings.max_bytes / 2);
        self.hold(items, Why::Backlog);
    }

    /// Holds a lane for what became of its messages.
    pub(super) fn hold_for(&mut self, items: Vec<Item>, cause: &Cause) {
        match cause {
            Cause::Rejected(error) => self.hold(items, Why::Failed(error)),
            Cause::Backlog => self.hold(items, Why::Backlog),
        }
    }
}
