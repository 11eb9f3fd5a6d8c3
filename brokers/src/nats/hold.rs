//! What has arrived and may not be handed out yet, so that no message passes an earlier one of its key. No I/O.
//!
//! JetStream delivers again what was not answered, later than what comes after it. So a message waits here while an
//! earlier one of its key is to come again; and everything waits while it is *in doubt* whether all messages that are
//! under way are in our hands: somebody else may have held an earlier one, or a lost connection swallowed it. The doubt
//! is over when the server counts as many unanswered messages as are here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

type Key = Option<Arc<str>>;

pub(super) struct Hold<T> {
    in_doubt: bool,
    /// Arrived, by the number that the stream gave; not handed out.
    arrived: BTreeMap<u64, (Key, T)>,
    /// Handed out and not acknowledged.
    out: BTreeMap<u64, Out>,
    /// The latest that the server took an acknowledgement of: a copy that was on its way here then is dropped.
    acknowledged: BTreeSet<u64>,
}

/// How many of them are remembered: more than can be on the way here.
const REMEMBERED: usize = 10_000;

struct Out {
    key: Key,
    /// It was sent back or dropped, and will come again.
    comes_again: bool,
}

impl<T> Hold<T> {
    pub(super) fn new() -> Self {
        Hold { in_doubt: true, arrived: BTreeMap::new(), out: BTreeMap::new(), acknowledged: BTreeSet::new() }
    }

    /// Something was delivered, for the first time or again.
    pub(super) fn arrive(&mut self, number: u64, key: Key, item: T) {
        // Once: a server that lost the acknowledgement after all delivers again, and then it is handed out.
        if self.acknowledged.remove(&number) {
            return;
        }
        self.out.remove(&number);
        self.arrived.insert(number, (key, item));
    }

    /// Up to `max` that may be handed out now, in the order of the stream.
    pub(super) fn take(&mut self, max: usize) -> Vec<(u64, T)> {
        if self.in_doubt {
            return Vec::new();
        }
        let awaited = self.awaited();
        let free = |number: &u64, key: &Key| {
            key.as_ref().and_then(|key| awaited.get(key)).is_none_or(|earlier| number < earlier)
        };
        let numbers: Vec<u64> = self
            .arrived
            .iter()
            .filter(|(number, (key, _))| free(number, key))
            .map(|(number, _)| *number)
            .take(max)
            .collect();
        let hand_out = |number| {
            let (key, item) = self.arrived.remove(&number)?;
            self.out.insert(number, Out { key, comes_again: false });
            Some((number, item))
        };
        numbers.into_iter().filter_map(hand_out).collect()
    }

    /// For each key, the first message of it that is to come again.
    fn awaited(&self) -> HashMap<Arc<str>, u64> {
        let mut awaited = HashMap::new();
        for (number, out) in self.out.iter().filter(|(_, out)| out.comes_again) {
            if let Some(key) = &out.key {
                awaited.entry(key.clone()).or_insert(*number);
            }
        }
        awaited
    }

    /// It is being acknowledged. Whether or not that reaches the server, its effect is there, and a copy need not be
    /// handed out.
    pub(super) fn done(&mut self, number: u64) {
        self.out.remove(&number);
        self.arrived.remove(&number);
    }

    /// The server took the acknowledgement.
    pub(super) fn acknowledged(&mut self, number: u64) {
        self.acknowledged.insert(number);
        if self.acknowledged.len() > REMEMBERED {
            self.acknowledged.pop_first();
        }
    }

    /// It was not acknowledged: the later messages of its key wait until it has come again.
    pub(super) fn comes_again(&mut self, number: u64) {
        if let Some(out) = self.out.get_mut(&number) {
            out.comes_again = true;
        }
    }

    /// Messages may have been lost on the way here.
    pub(super) fn doubt(&mut self) {
        self.in_doubt = true;
    }

    /// Somebody else had the messages in between: what is here may be done long since.
    pub(super) fn forget(&mut self) {
        *self = Hold::new();
    }

    /// Whether something waits here for the doubt to end.
    pub(super) fn waits_in_doubt(&self) -> bool {
        self.in_doubt && !self.arrived.is_empty()
    }

    /// The server counts `unanswered` messages under way. Nothing may have arrived since it was asked.
    pub(super) fn settle(&mut self, unanswered: usize) {
        // What we hold is a part of what it counts: the same number means the same messages.
        if unanswered <= self.arrived.len() + self.out.len() {
            self.in_doubt = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(numbers: &[(u64, &str)]) -> Hold<()> {
        let mut hold = Hold::new();
        for (number, key) in numbers {
            hold.arrive(*number, Some((*key).into()), ());
        }
        hold.settle(numbers.len());
        hold
    }

    fn numbers(hold: &mut Hold<()>, max: usize) -> Vec<u64> {
        hold.take(max).into_iter().map(|(number, ())| number).collect()
    }

    #[test]
    fn what_is_to_come_again_holds_back_its_key_and_no_other() {
        let mut hold = hold(&[(1, "a"), (2, "a"), (3, "b"), (4, "a")]);
        assert_eq!(numbers(&mut hold, 1), [1]);
        hold.comes_again(1);
        assert_eq!(numbers(&mut hold, 9), [3]);
        hold.arrive(1, Some("a".into()), ());
        assert_eq!(numbers(&mut hold, 9), [1, 2, 4]);
    }

    #[test]
    fn an_earlier_message_is_not_held_back_by_a_later_one() {
        let mut hold = hold(&[(1, "a"), (2, "a"), (3, "a")]);
        assert_eq!(numbers(&mut hold, 2), [1, 2]);
        hold.comes_again(2);
        hold.comes_again(1);
        hold.arrive(1, Some("a".into()), ());
        assert_eq!(numbers(&mut hold, 9), [1], "3 waits for 2");
        hold.arrive(2, Some("a".into()), ());
        assert_eq!(numbers(&mut hold, 9), [2, 3]);
    }

    #[test]
    fn nothing_is_handed_out_while_an_earlier_message_may_be_elsewhere() {
        let mut hold = Hold::new();
        hold.arrive(2, Some("a".into()), ());
        hold.settle(2);
        assert!(numbers(&mut hold, 9).is_empty(), "number 1 is in other hands");
        hold.arrive(1, Some("a".into()), ());
        hold.settle(2);
        assert_eq!(numbers(&mut hold, 9), [1, 2]);
    }

    #[test]
    fn a_copy_of_what_was_acknowledged_is_dropped_once() {
        let mut hold = hold(&[(1, "a")]);
        assert_eq!(numbers(&mut hold, 9), [1]);
        hold.done(1);
        hold.acknowledged(1);
        hold.arrive(1, Some("a".into()), ());
        assert!(numbers(&mut hold, 9).is_empty());
        hold.arrive(1, Some("a".into()), ());
        assert_eq!(numbers(&mut hold, 9), [1], "the server did not keep the acknowledgement");
    }

    #[test]
    fn what_is_done_is_not_counted_and_not_handed_out_again() {
        let mut hold = hold(&[(1, "a")]);
        assert_eq!(numbers(&mut hold, 9), [1]);
        hold.arrive(1, Some("a".into()), ());
        hold.done(1);
        assert!(numbers(&mut hold, 9).is_empty());
        hold.doubt();
        hold.arrive(3, Some("a".into()), ());
        hold.settle(2);
        assert!(numbers(&mut hold, 9).is_empty(), "one of two is not here");
    }
}
