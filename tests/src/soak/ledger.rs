//! The judge: what committed against what came out. No I/O.

use std::collections::HashMap;

use serde::Serialize;
use uuid::Uuid;

/// What a message says in the terms of the business: the `version`-th event of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) key: i32,
    pub(super) version: i64,
}

/// What the business tables say has committed, by message.
pub(super) type Truth = HashMap<Uuid, Fact>;

/// A promise that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Violation {
    /// A message committed and was never delivered.
    Lost,
    /// A message was first delivered after a later one of its key.
    Inversion,
    /// A message was delivered that never committed.
    Phantom,
    /// A message arrived changed.
    Altered,
    /// A message committed and was delivered only when a transaction elsewhere had ended.
    Stalled,
    /// The effect of a message did not happen, or happened more than once.
    Effect,
    /// A shard was nobody's for longer than it takes to notice that its process is dead, and to take it.
    Unowned,
    /// A message was published again for no reason that may make copies, or one reason made too many.
    Duplicates,
}

/// What was on the wire, in its order.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    firsts: Vec<(Uuid, Fact)>,
    copies: HashMap<Uuid, u64>,
}

impl Ledger {
    /// A copy of a message was read from the wire. Whether it is the first.
    pub(super) fn delivered(&mut self, id: Uuid, fact: Fact) -> bool {
        let copies = self.copies.entry(id).or_default();
        *copies += 1;
        if *copies == 1 {
            self.firsts.push((id, fact));
        }
        *copies == 1
    }

    /// Whether a message was read from the wire.
    pub(super) fn has(&self, id: Uuid) -> bool {
        self.copies.contains_key(&id)
    }

    /// Different messages read from the wire.
    pub(super) fn distinct(&self) -> u64 {
        self.firsts.len() as u64
    }

    /// Copies after the first, of any message.
    pub(super) fn duplicates(&self) -> u64 {
        self.copies.values().sum::<u64>() - self.distinct()
    }

    /// Committed and not on the wire.
    pub(super) fn lost(&self, truth: &Truth) -> u64 {
        truth.keys().filter(|id| !self.copies.contains_key(id)).count() as u64
    }

    /// On the wire and not committed.
    pub(super) fn phantoms(&self, truth: &Truth) -> u64 {
        self.firsts.iter().filter(|(id, _)| !truth.contains_key(id)).count() as u64
    }

    /// Saying something else on the wire than what committed.
    pub(super) fn altered(&self, truth: &Truth) -> u64 {
        self.firsts
            .iter()
            .filter(|(id, fact)| truth.get(id).is_some_and(|true_fact| true_fact != fact))
            .count() as u64
    }

    /// First deliveries that came after one of a later version of their key.
    pub(super) fn inversions(&self, truth: &Truth) -> u64 {
        let mut newest: HashMap<i32, i64> = HashMap::new();
        let mut inversions = 0;
        for Fact { key, version } in self.firsts.iter().filter_map(|(id, _)| truth.get(id)) {
            let newest = newest.entry(*key).or_insert(0);
            if version < newest {
                inversions += 1;
            }
            *newest = *version.max(newest);
        }
        inversions
    }

    /// On the wire with an effect that did not happen exactly once, and effects of what was never on the wire.
    pub(super) fn wrong_effects(&self, effects: &HashMap<Uuid, i64>) -> u64 {
        let wrong = self.copies.keys().filter(|id| effects.get(id) != Some(&1)).count();
        let strange = effects.keys().filter(|id| !self.copies.contains_key(id)).count();
        (wrong + strange) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    /// Three messages of key 1 and one of key 2, numbered by version and 10.
    fn truth() -> Truth {
        let of = |number: u128, key, version| (id(number), Fact { key, version });
        [of(1, 1, 1), of(2, 1, 2), of(3, 1, 3), of(10, 2, 1)].into()
    }

    fn delivered(ids: &[u128]) -> Ledger {
        let mut ledger = Ledger::default();
        for number in ids {
            let fact = truth().get(&id(*number)).copied().unwrap_or(Fact { key: 9, version: 9 });
            ledger.delivered(id(*number), fact);
        }
        ledger
    }

    #[test]
    fn a_clean_wire_is_clean() {
        let (ledger, truth) = (delivered(&[10, 1, 2, 3]), truth());
        let counts =
            [ledger.lost(&truth), ledger.phantoms(&truth), ledger.altered(&truth), ledger.inversions(&truth)];
        assert_eq!((counts, ledger.duplicates()), ([0; 4], 0));
    }

    #[test]
    fn a_message_that_never_came_is_lost() {
        assert_eq!(delivered(&[1, 2, 2, 10]).lost(&truth()), 1);
    }

    #[test]
    fn only_first_deliveries_of_one_key_count_as_inverted() {
        assert_eq!(delivered(&[1, 2, 1, 2, 10, 3]).inversions(&truth()), 0);
        assert_eq!(delivered(&[1, 3, 2, 10]).inversions(&truth()), 1);
        assert_eq!(delivered(&[3, 1, 2]).inversions(&truth()), 2);
    }

    #[test]
    fn a_message_that_rolled_back_is_a_phantom_and_another_text_is_altered() {
        assert_eq!(delivered(&[1, 99]).phantoms(&truth()), 1);
        let mut ledger = Ledger::default();
        ledger.delivered(id(1), Fact { key: 1, version: 2 });
        assert_eq!(ledger.altered(&truth()), 1);
    }

    #[test]
    fn copies_are_counted_beyond_the_first() {
        assert_eq!(delivered(&[1, 1, 2, 1]).duplicates(), 2);
    }

    #[test]
    fn an_effect_happens_once_for_what_was_delivered_and_never_for_what_was_not() {
        let ledger = delivered(&[1, 2, 2, 3, 10]);
        let good: HashMap<Uuid, i64> = [1, 2, 3, 10].map(|number| (id(number), 1)).into();
        assert_eq!(ledger.wrong_effects(&good), 0);
        let mut bad = good.clone();
        bad.insert(id(2), 2);
        bad.insert(id(99), 1);
        bad.remove(&id(3));
        assert_eq!(ledger.wrong_effects(&bad), 3);
    }
}
