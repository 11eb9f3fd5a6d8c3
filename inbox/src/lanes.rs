//! Which delivery comes next: keys side by side, one key in order. Pure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// What goes one after the other: a key's deliveries, or one delivery without a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    Key(Arc<str>),
    Alone(u64),
}

/// Deliveries in hand that nobody works at yet. A lane gives one at a time.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    /// A lane stands here from its first delivery until the last is done with; empty while that one is under way.
    waiting: HashMap<Lane, VecDeque<T>>,
    /// Lanes that wait and are not under way, in turn.
    ready: VecDeque<Lane>,
    count: usize,
    alone: u64,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Lanes { waiting: HashMap::new(), ready: VecDeque::new(), count: 0, alone: 0 }
    }
}

impl<T> Lanes<T> {
    /// Takes a delivery in, behind those of its key.
    pub(crate) fn push(&mut self, key: Option<Arc<str>>, delivery: T) {
        let lane = key.map_or_else(
            || {
                self.alone += 1;
                Lane::Alone(self.alone)
            },
            Lane::Key,
        );
        self.count += 1;
        if let Some(waiting) = self.waiting.get_mut(&lane) {
            waiting.push_back(delivery);
        } else {
            self.ready.push_back(lane.clone());
            self.waiting.insert(lane, VecDeque::from([delivery]));
        }
    }

    /// What [`next`](Self::next) will give.
    pub(crate) fn peek(&self) -> Option<&T> {
        self.waiting.get(self.ready.front()?)?.front()
    }

    /// Up to `count` deliveries that come next: of lanes whose turn it is, then of lanes under way.
    pub(crate) fn upcoming<'a>(
        &'a self,
        count: usize,
        under_way: impl Iterator<Item = &'a Lane>,
    ) -> impl Iterator<Item = &'a T> {
        let lanes = self.ready.iter().chain(under_way);
        lanes.filter_map(|lane| self.waiting.get(lane)?.front()).take(count)
    }

    /// The next delivery of the lane whose turn it is; its lane gives no other until [`done`](Self::done).
    pub(crate) fn next(&mut self) -> Option<(Lane, T)> {
        let lane = self.ready.pop_front()?;
        let delivery = self.waiting.get_mut(&lane)?.pop_front()?;
        self.count -= 1;
        Some((lane, delivery))
    }

    /// The delivery that the lane gave is done with: the lane queues up again.
    pub(crate) fn done(&mut self, lane: Lane) {
        match self.waiting.get(&lane) {
            Some(waiting) if !waiting.is_empty() => self.ready.push_back(lane),
            _ => {
                self.waiting.remove(&lane);
            }
        }
    }

    /// Gives up what waits behind the delivery that the lane gave.
    pub(crate) fn close(&mut self, lane: &Lane) -> VecDeque<T> {
        let given_up = self.waiting.remove(lane).unwrap_or_default();
        self.count -= given_up.len();
        given_up
    }

    /// Gives up everything.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        self.ready.clear();
        self.count = 0;
        let lanes = self.waiting.values_mut();
        lanes.flat_map(std::mem::take).collect()
    }

    /// How many deliveries wait.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The deliveries that wait.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(deliveries: &[(&str, u32)]) -> Lanes<u32> {
        let mut lanes = Lanes::default();
        for (key, delivery) in deliveries {
            lanes.push((!key.is_empty()).then(|| (*key).into()), *delivery);
        }
        lanes
    }

    #[test]
    fn a_key_gives_its_next_only_when_the_one_before_is_done() {
        let mut lanes = lanes(&[("a", 1), ("a", 2), ("b", 3)]);
        let (a, one) = lanes.next().unwrap();
        let (b, three) = lanes.next().unwrap();
        assert_eq!((one, three), (1, 3));
        assert!(lanes.next().is_none());
        lanes.push(Some("b".into()), 4);
        lanes.done(a);
        assert_eq!(lanes.next().unwrap().1, 2);
        assert!(lanes.next().is_none());
        lanes.done(b);
        assert_eq!(lanes.next().unwrap().1, 4);
        assert_eq!(lanes.len(), 0);
    }

    #[test]
    fn deliveries_without_a_key_do_not_wait_for_each_other() {
        let mut lanes = lanes(&[("", 1), ("", 2)]);
        assert_eq!(lanes.next().unwrap().1, 1);
        assert_eq!(lanes.next().unwrap().1, 2);
    }

    #[test]
    fn a_closed_lane_gives_up_what_waits_and_starts_anew() {
        let mut lanes = lanes(&[("a", 1), ("a", 2), ("a", 3), ("b", 4)]);
        let (a, _) = lanes.next().unwrap();
        assert_eq!(lanes.close(&a), [2, 3]);
        lanes.push(Some("a".into()), 5);
        assert_eq!(lanes.len(), 2);
        assert_eq!(lanes.next().unwrap().1, 4);
        assert_eq!(lanes.next().unwrap().1, 5);
    }

    #[test]
    fn what_comes_next_is_known_before_its_turn() {
        let mut lanes = lanes(&[("a", 1), ("a", 2), ("b", 3), ("c", 4), ("c", 5)]);
        let (a, _) = lanes.next().unwrap();
        assert_eq!(lanes.peek(), Some(&3));
        assert_eq!(lanes.upcoming(9, [a.clone()].iter()).copied().collect::<Vec<_>>(), [3, 4, 2]);
        assert_eq!(lanes.upcoming(2, [a].iter()).copied().collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn nothing_is_kept_of_a_lane_that_is_done() {
        let mut lanes = lanes(&[("a", 1), ("", 2)]);
        while let Some((lane, _)) = lanes.next() {
            lanes.done(lane);
        }
        assert!(lanes.waiting.is_empty());
    }
}
