//! What waits to be handed out, key by key: the first of a key goes first, and one that is to come again holds back
//! those behind it. No I/O.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

/// Messages of one key, or one message without.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    Key(Arc<str>),
    Alone(i64),
}

/// A message that waits: its position, and from when on it may go.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    position: i64,
    from: Option<Instant>,
}

/// Lanes of waiting messages, each in the order of arrival.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<Lane, BTreeMap<u64, Waiting>>,
    /// The first of each lane, if it may go.
    ready: BTreeMap<u64, Lane>,
    /// The first of each lane, if it may go later.
    sleeping: BTreeMap<(Instant, u64), Lane>,
}

impl Lanes {
    /// A message waits, `order`th to have arrived, and may not go before `from`.
    pub(super) fn push(&mut self, lane: &Lane, order: u64, position: i64, from: Option<Instant>) {
        self.unlist(lane);
        self.lanes.entry(lane.clone()).or_default().insert(order, Waiting { position, from });
        self.list(lane);
    }

    /// A message does not wait any more.
    pub(super) fn remove(&mut self, lane: &Lane, order: u64) {
        self.unlist(lane);
        if let Some(waiting) = self.lanes.get_mut(lane) {
            waiting.remove(&order);
        }
        self.list(lane);
    }

    /// Takes the message that has waited longest of those that may go.
    pub(super) fn pop(&mut self, now: Instant) -> Option<i64> {
        while let Some(entry) = self.sleeping.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, order), lane) = entry.remove_entry();
            self.ready.insert(order, lane);
        }
        let (order, lane) = self.ready.pop_first()?;
        let waiting = self.lanes.get_mut(&lane)?.remove(&order)?;
        self.list(&lane);
        Some(waiting.position)
    }

    /// When the next message may go that may not go yet.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        self.sleeping.first_key_value().map(|((from, _), _)| *from)
    }

    fn unlist(&mut self, lane: &Lane) {
        let Some((order, first)) = self.lanes.get(lane).and_then(BTreeMap::first_key_value) else { return };
        self.ready.remove(order);
        if let Some(from) = first.from {
            self.sleeping.remove(&(from, *order));
        }
    }

    fn list(&mut self, lane: &Lane) {
        match self.lanes.get(lane).map(BTreeMap::first_key_value) {
            Some(Some((order, Waiting { from: Some(from), .. }))) => {
                self.sleeping.insert((*from, *order), lane.clone());
            }
            Some(Some((order, Waiting { from: None, .. }))) => {
                self.ready.insert(*order, lane.clone());
            }
            Some(None) => {
                self.lanes.remove(lane);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(key: &str) -> Lane {
        Lane::Key(key.into())
    }

    fn all(lanes: &mut Lanes, now: Instant) -> Vec<i64> {
        std::iter::from_fn(|| lanes.pop(now)).collect()
    }

    #[test]
    fn what_is_to_come_again_holds_back_its_key_and_no_other() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut lanes = Lanes::default();
        lanes.push(&key("a"), 2, 12, None);
        lanes.push(&key("b"), 3, 13, None);
        lanes.push(&Lane::Alone(14), 4, 14, None);
        lanes.push(&key("a"), 1, 11, Some(later));
        assert_eq!(all(&mut lanes, now), [13, 14]);
        assert_eq!(lanes.wakes_at(), Some(later));
        assert_eq!(all(&mut lanes, later), [11, 12]);
        assert!(lanes.lanes.is_empty() && lanes.wakes_at().is_none());
    }

    #[test]
    fn what_is_removed_does_not_hold_back_those_behind_it() {
        let now = Instant::now();
        let mut lanes = Lanes::default();
        lanes.push(&key("a"), 1, 11, Some(now + Duration::from_secs(1)));
        lanes.push(&key("a"), 2, 12, None);
        lanes.remove(&key("a"), 1);
        assert_eq!(all(&mut lanes, now), [12]);
        lanes.push(&key("a"), 3, 13, None);
        lanes.push(&key("a"), 4, 14, None);
        assert_eq!(lanes.pop(now), Some(13));
        lanes.push(&key("a"), 3, 13, None);
        assert_eq!(all(&mut lanes, now), [13, 14]);
    }
}
