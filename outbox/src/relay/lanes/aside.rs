//! What is not sent in its turn: what waits at a destination that is closed, what is set aside, and what is let go.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Cause, Item, Lane, Lanes, Resting};

impl Lanes {
    /// Nothing is sent to a destination until it is [opened](Self::open), but what [probes](Self::probe) it.
    pub(crate) fn close(&mut self, destination: &Arc<str>) {
        if !self.closed.contains_key(destination) {
            self.closed.insert(Arc::clone(destination), VecDeque::new());
        }
    }

    /// What waits at a destination goes on.
    pub(crate) fn open(&mut self, destination: &str) {
        for resting in self.closed.remove(destination).into_iter().flatten() {
            self.wake(resting);
        }
    }

    /// The destinations that are closed, and whether something waits there.
    pub(crate) fn closed(&self) -> impl Iterator<Item = (&Arc<str>, bool)> {
        self.closed.iter().map(|(destination, waiting)| (destination, !waiting.is_empty()))
    }

    /// Files a lane that rests with the destination of its next message, if that is closed; else it is given back.
    pub(crate) fn file(&mut self, resting: Resting) -> Option<Resting> {
        let next = match &resting {
            Resting::Alone(item) => Some(&**item),
            Resting::Lane(key) => self.lanes.get(key).and_then(|lane| lane.waiting.front()),
        };
        match next.and_then(|item| self.closed.get_mut(&item.outgoing.destination)) {
            Some(waiting) => waiting.push_back(resting),
            None => return Some(resting),
        }
        None
    }

    /// The message that has waited longest at a closed destination, to be sent in a batch of one.
    pub(crate) fn probe(&mut self, destination: &str) -> Option<Item> {
        loop {
            let key = match self.closed.get_mut(destination)?.pop_front()? {
                Resting::Alone(item) => return Some(*item),
                Resting::Lane(key) => key,
            };
            self.batches += 1;
            let batch = self.batches;
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            lane.resting = false;
            if let Some(item) = lane.waiting.pop_front() {
                lane.send(batch);
                return Some(item);
            }
            self.enqueue(&key);
        }
    }

    /// Holds all lanes that wait at a closed destination; the messages of each.
    pub(crate) fn hold_closed(&mut self, destination: &str) -> Vec<Vec<Item>> {
        let waiting = self.closed.get_mut(destination).map(std::mem::take).unwrap_or_default();
        let mut held = Vec::with_capacity(waiting.len());
        for resting in waiting {
            match resting {
                Resting::Alone(item) => {
                    self.let_go([&*item]);
                    held.push(vec![*item]);
                }
                Resting::Lane(key) => held.push(self.hold_lane(&key)),
            }
        }
        held.retain(|items| !items.is_empty());
        held
    }

    /// Holds the lane of which more than so many messages, or bytes of payload, wait behind what is on the wire, if there is
    /// one that does not rest: its messages, now, or with the outcome of what is on the wire.
    pub(crate) fn set_aside(&mut self, most: usize, most_bytes: usize) -> Vec<Item> {
        let is_hot = |lane: &Lane| {
            let bytes = || lane.waiting.iter().map(|item| item.log.message.payload.len()).sum::<usize>();
            let waits = !lane.resting && lane.held.is_none() && lane.to_hold.is_none();
            waits && (lane.waiting.len() > most || bytes() > most_bytes)
        };
        let Some(key) = self.lanes.iter().find(|(_, lane)| is_hot(lane)).map(|(key, _)| Arc::clone(key))
        else {
            return Vec::new();
        };
        match self.lanes.get_mut(&key) {
            Some(lane) if lane.on_wire > 0 => {
                lane.to_hold = Some(Cause::Backlog);
                Vec::new()
            }
            _ => self.hold_lane(&key),
        }
    }
}
