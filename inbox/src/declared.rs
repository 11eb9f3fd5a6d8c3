//! Which messages this process has declared before it tries them: while one batch is tried, the next is declared. Pure.

use std::collections::HashSet;

use uuid::Uuid;

/// Never declared ahead of what is in hand by more than this, so that a death has few suspects.
const AHEAD: usize = 32;

/// What the row of this process says.
#[derive(Debug)]
pub(crate) struct Declared {
    ahead: usize,
    /// In the row for certain.
    messages: HashSet<Uuid>,
    /// In the row when the declaration under way succeeds.
    next: Option<HashSet<Uuid>>,
}

impl Declared {
    /// For a consumer that tries so many messages at once.
    pub(crate) fn new(concurrency: usize) -> Self {
        let ahead = concurrency.saturating_mul(2).min(concurrency.saturating_add(AHEAD));
        Declared { ahead, messages: HashSet::new(), next: None }
    }

    /// How many messages to declare beyond those in hand.
    pub(crate) fn ahead(&self) -> usize {
        self.ahead
    }

    /// Whether a message may be tried.
    pub(crate) fn contains(&self, message: &Uuid) -> bool {
        self.messages.contains(message)
    }

    /// What to declare now, if it is time: half of what comes next is not declared, or something in hand, since it began before
    /// the death.
    pub(crate) fn begin(&mut self, in_hand: &[Uuid], upcoming: &[Uuid]) -> Option<Vec<Uuid>> {
        let declared = upcoming.iter().filter(|message| self.contains(message)).count();
        // Enough is declared only if what comes next is: it may be what came last, and nothing passes it.
        let is_next_declared = upcoming.first().is_none_or(|message| self.contains(message));
        let is_enough = is_next_declared && declared > self.ahead / 2;
        let is_in_hand_declared = in_hand.iter().all(|message| self.contains(message));
        if self.next.is_some() || is_in_hand_declared && (declared == upcoming.len() || is_enough) {
            return None;
        }
        let next: HashSet<Uuid> = in_hand.iter().chain(upcoming).copied().collect();
        // Whether the row is the old one or the new one is not known until the answer comes.
        self.messages.retain(|message| next.contains(message));
        self.next = Some(next.clone());
        Some(next.into_iter().collect())
    }

    /// No death is recent any more: what is declared and in hand stays in the row until it ends. What to declare now, if more is
    /// in the row.
    pub(crate) fn narrow(&mut self, in_hand: &[Uuid]) -> Option<Vec<Uuid>> {
        if self.next.is_some() {
            return None;
        }
        let (before, in_hand) = (self.messages.len(), in_hand.iter().collect::<HashSet<_>>());
        self.messages.retain(|message| in_hand.contains(message));
        // An empty row is the next heartbeat's.
        if self.messages.is_empty() || self.messages.len() == before {
            return None;
        }
        self.next = Some(self.messages.clone());
        Some(self.messages.iter().copied().collect())
    }

    /// Whether nothing is declared, nor about to be.
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.next.is_none()
    }

    /// The declaration was written, or may not have been.
    pub(crate) fn end(&mut self, written: bool) {
        if let Some(next) = self.next.take().filter(|_| written) {
            self.messages = next;
        }
    }

    /// The row is emptied, or may be, also of what the declaration under way writes.
    pub(crate) fn clear(&mut self) {
        self.messages.clear();
        if let Some(next) = &mut self.next {
            next.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: std::ops::Range<u128>) -> Vec<Uuid> {
        numbers.map(Uuid::from_u128).collect()
    }

    #[test]
    fn a_message_is_declared_before_it_is_tried_and_the_next_ones_meanwhile() {
        let mut declared = Declared::new(2);
        assert_eq!(declared.ahead(), 4);
        let mut first = declared.begin(&[], &ids(0..4)).unwrap();
        first.sort();
        assert_eq!(first, ids(0..4));
        assert!(!declared.contains(&first[0]));
        assert_eq!(declared.begin(&[], &ids(0..4)), None);
        declared.end(true);
        assert!(ids(0..4).iter().all(|message| declared.contains(message)));
        // One is in hand: three of the next four are declared.
        assert_eq!(declared.begin(&ids(0..1), &ids(1..5)), None);
        assert!(declared.begin(&ids(0..2), &ids(2..6)).is_some());
        assert!(declared.contains(&ids(2..3)[0]) && !declared.contains(&ids(4..5)[0]));
        declared.end(true);
        assert!(declared.contains(&ids(5..6)[0]));
    }

    #[test]
    fn what_may_not_be_in_the_row_is_not_tried() {
        let mut declared = Declared::new(2);
        declared.begin(&[], &ids(0..4)).unwrap();
        declared.end(false);
        assert!(!declared.contains(&ids(0..1)[0]));
        declared.begin(&[], &ids(0..4)).unwrap();
        declared.end(true);
        // While another declaration is under way, and after it has failed, only what both rows name.
        declared.begin(&[], &ids(3..7)).unwrap();
        assert!(declared.contains(&ids(3..4)[0]) && !declared.contains(&ids(2..3)[0]));
        declared.end(false);
        assert!(declared.contains(&ids(3..4)[0]) && !declared.contains(&ids(2..3)[0]));
    }

    #[test]
    fn what_comes_next_is_declared_however_much_behind_it_is() {
        // Above a concurrency of 32 less is declared ahead than may be tried at once.
        for concurrency in [1, 8, 32, 33, 64, 1_000] {
            let mut declared = Declared::new(concurrency);
            let ahead = declared.ahead() as u128;
            declared.begin(&[], &ids(1..ahead)).unwrap();
            declared.end(true);
            assert!(declared.begin(&[], &ids(0..ahead)).is_some(), "{concurrency}");
        }
    }

    #[test]
    fn the_last_messages_are_declared_too() {
        let mut declared = Declared::new(8);
        assert_eq!(declared.begin(&[], &[]), None);
        assert!(declared.begin(&[], &ids(0..1)).is_some());
        declared.end(true);
        assert_eq!(declared.begin(&ids(0..1), &[]), None);
        assert_eq!(Declared::new(1_000).ahead(), 1_032);
    }

    #[test]
    fn what_is_in_hand_is_declared_though_nothing_comes_next() {
        let mut declared = Declared::new(8);
        assert_eq!(declared.begin(&ids(0..1), &[]), Some(ids(0..1)));
        declared.end(true);
        assert_eq!(declared.begin(&ids(0..1), &[]), None);
        // The next ones are, and yet what is in hand began before the death.
        declared.begin(&[], &ids(0..16)).unwrap();
        declared.end(true);
        assert!(declared.begin(&ids(20..21), &ids(0..16)).is_some());
    }

    #[test]
    fn what_is_declared_and_in_hand_stays_declared_when_no_death_is_recent_any_more() {
        let mut declared = Declared::new(8);
        declared.begin(&ids(0..2), &ids(2..6)).unwrap();
        declared.end(true);
        let mut kept = declared.narrow(&[ids(0..2), ids(9..10)].concat()).unwrap();
        kept.sort();
        assert_eq!(kept, ids(0..2));
        declared.end(true);
        assert_eq!(declared.narrow(&ids(0..2)), None);
        assert_eq!(declared.narrow(&ids(1..2)), Some(ids(1..2)));
        declared.end(true);
        assert_eq!((declared.narrow(&[]), declared.is_empty()), (None, true));
    }
}
