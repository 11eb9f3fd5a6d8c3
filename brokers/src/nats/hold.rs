//! What has arrived and may not be handed out yet, so that no message passes an earlier one of its key. No I/O.
//!
//! JetStream delivers again what was not answered, later than what comes after it. So a message waits here while an
//! earlier one of its key is to come again; and everything waits while it is *in doubt* whether all messages that are
//! under way are in our hands: somebody else may have held an earlier one, or it was lost on its way here. The doubt is
//! over when the server counts as many unanswered messages as are here.
//!
//! That count means something only while the server remembers what it delivered to us. It does as long as our *pin* is
//! valid: a server that was restarted has forgotten the pin, whatever else it forgot, and gives a new one. So does one
//! that pinned somebody else in between. With the pin, what waits here is void; it is sent back, and so comes again soon
//! if the server remembers it, and as new if not.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

type Key = Option<Arc<str>>;

pub(super) struct Hold<T> {
    /// Under which everything here was delivered.
    pin: Option<String>,
    in_doubt: bool,
    /// The server's count of deliveries at the last that arrived.
    count: u64,
    /// Arrived and not handed out.
    arrived: BTreeMap<Place, (Key, T)>,
    /// Handed out and not acknowledged.
    out: BTreeMap<Place, Out>,
    /// The latest that were acknowledged, whether or not the server took that, or still knew it after a restart: a copy
    /// is acknowledged again.
    acknowledged: BTreeSet<Place>,
    untold: Vec<(Tell, T)>,
}

/// How many of them are remembered: more than can be under way.
pub(super) const REMEMBERED: usize = 10_000;

/// Which message of the stream. The time tells from each other what has the same number: a stream that lost its end
/// gives its numbers again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) number: u64,
    pub(super) stored_at: SystemTime,
}

struct Out {
    key: Key,
    /// It was sent back or dropped, and will come again.
    comes_again: bool,
}

/// What the server is told about something that is not handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tell {
    /// It is acknowledged, once more.
    Acknowledged,
    /// It shall be delivered again.
    SentBack,
}

impl<T> Hold<T> {
    pub(super) fn new() -> Self {
        Hold {
            pin: None,
            in_doubt: true,
            count: 0,
            arrived: BTreeMap::new(),
            out: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            untold: Vec::new(),
        }
    }

    /// The next delivery comes under `pin`; it is the server's delivery number `count`.
    pub(super) fn follow(&mut self, pin: Option<&str>, count: u64) {
        if pin != self.pin() {
            self.void();
            self.pin = pin.map(ToOwned::to_owned);
        } else if count != self.count + 1 {
            // Lost on its way here. Our connection need not have been lost for that: servers have some between them.
            self.doubt();
        }
        self.count = count;
    }

    /// Something was delivered, for the first time or again.
    pub(super) fn arrive(&mut self, place: Place, key: Key, item: T) {
        if self.acknowledged.contains(&place) {
            return self.untold.push((Tell::Acknowledged, item));
        }
        self.out.remove(&place);
        self.arrived.insert(place, (key, item));
    }

    /// Up to `max` that may be handed out now, in the order of the stream.
    pub(super) fn take(&mut self, max: usize) -> Vec<(Place, T)> {
        let places: Vec<Place> = self.free().take(max).collect();
        let hand_out = |place| {
            let (key, item) = self.arrived.remove(&place)?;
            self.out.insert(place, Out { key, comes_again: false });
            Some((place, item))
        };
        places.into_iter().filter_map(hand_out).collect()
    }

    /// Whether [`take`](Self::take) would give anything.
    pub(super) fn has_some(&self) -> bool {
        self.free().next().is_some()
    }

    fn free(&self) -> impl Iterator<Item = Place> {
        let awaited = self.awaited();
        let free = move |place: &Place, key: &Key| {
            key.as_ref().and_then(|key| awaited.get(key)).is_none_or(|earlier| place < earlier)
        };
        let arrived = (!self.in_doubt).then_some(&self.arrived).into_iter().flatten();
        arrived.filter(move |(place, (key, _))| free(place, key)).map(|(place, _)| *place)
    }

    /// For each key, the first message of it that is to come again.
    fn awaited(&self) -> HashMap<Arc<str>, Place> {
        let mut awaited = HashMap::new();
        for (place, out) in self.out.iter().filter(|(_, out)| out.comes_again) {
            if let Some(key) = &out.key {
                awaited.entry(key.clone()).or_insert(*place);
            }
        }
        awaited
    }

    /// How many are here and not answered.
    pub(super) fn unanswered(&self) -> usize {
        self.arrived.len() + self.out.len()
    }

    /// How many wait here.
    pub(super) fn waiting(&self) -> usize {
        self.arrived.len()
    }

    /// The sequences of what arrived, what is handed out, and what was acknowledged.
    pub(super) fn sequences(&self) -> HashSet<u64> {
        let here = self.arrived.keys().chain(self.out.keys()).chain(&self.acknowledged);
        here.map(|place| place.number).collect()
    }

    /// It is being acknowledged. Whether or not that reaches the server, its effect is there, and a copy need not be
    /// handed out. Answers whether the server may be told: not if another message has its number now, which the server
    /// would believe to be meant.
    pub(super) fn done(&mut self, place: Place) -> bool {
        self.out.remove(&place);
        self.arrived.remove(&place);
        self.acknowledged.insert(place);
        if self.acknowledged.len() > REMEMBERED {
            self.acknowledged.pop_first();
        }
        let first = Place { stored_at: SystemTime::UNIX_EPOCH, ..place };
        let arrived = self.arrived.range(first..).next().map(|(found, _)| found.number);
        let out = self.out.range(first..).next().map(|(found, _)| found.number);
        arrived != Some(place.number) && out != Some(place.number)
    }

    /// It was not acknowledged: the later messages of its key wait until it has come again.
    pub(super) fn comes_again(&mut self, place: Place) {
        if let Some(out) = self.out.get_mut(&place) {
            out.comes_again = true;
        }
    }

    /// Messages may have been lost on the way here.
    pub(super) fn doubt(&mut self) {
        self.in_doubt = true;
    }

    /// The pin is not valid any more: what waits here may be done long since, or the server does not know that it is
    /// here, and then takes no answer to it.
    pub(super) fn void(&mut self) {
        let arrived = std::mem::take(&mut self.arrived);
        self.untold.extend(arrived.into_values().map(|(_, item)| (Tell::SentBack, item)));
        self.out.clear();
        self.pin = None;
        self.in_doubt = true;
    }

    /// There may be another consumer of the same name. It delivers everything, and so it shall.
    pub(super) fn forget(&mut self) {
        self.void();
        self.acknowledged.clear();
    }

    /// By which the server knows us, if it does.
    pub(super) fn pin(&self) -> Option<&str> {
        self.pin.as_deref()
    }

    /// What the server is to be told next, once.
    pub(super) fn tell(&mut self) -> Option<(Tell, T)> {
        self.untold.pop()
    }

    /// Whether something waits here for the doubt to end.
    pub(super) fn waits_in_doubt(&self) -> bool {
        self.in_doubt && !self.arrived.is_empty()
    }

    /// The server has pinned `pin` and counts `unanswered` messages under way. Nothing may have arrived since it was
    /// asked.
    pub(super) fn settle(&mut self, pin: Option<&str>, unanswered: usize) {
        if pin != self.pin() {
            self.void();
        } else if unanswered <= self.unanswered() {
            // What we hold is a part of what it counts: the same number means the same messages.
            self.in_doubt = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Of the hold below, and of the server until it is restarted.
    const PIN: Option<&str> = Some("pin");

    fn place(number: u64) -> Place {
        Place { number, stored_at: SystemTime::UNIX_EPOCH }
    }

    /// The next delivery.
    fn arrive(hold: &mut Hold<u64>, number: u64, key: &str) {
        hold.follow(PIN, hold.count + 1);
        hold.arrive(place(number), Some(key.into()), number);
    }

    fn hold(numbers: &[(u64, &str)]) -> Hold<u64> {
        let mut hold = Hold::new();
        for (number, key) in numbers {
            arrive(&mut hold, *number, key);
        }
        hold.settle(PIN, numbers.len());
        hold
    }

    fn numbers(hold: &mut Hold<u64>, max: usize) -> Vec<u64> {
        hold.take(max).into_iter().map(|(_, number)| number).collect()
    }

    fn told(hold: &mut Hold<u64>) -> Vec<(Tell, u64)> {
        let mut told: Vec<(Tell, u64)> = std::iter::from_fn(|| hold.tell()).collect();
        told.sort_by_key(|(_, number)| *number);
        told
    }

    #[test]
    fn what_is_to_come_again_holds_back_its_key_and_no_other() {
        let mut hold = hold(&[(1, "a"), (2, "a"), (3, "b"), (4, "a")]);
        assert_eq!(numbers(&mut hold, 1), [1]);
        hold.comes_again(place(1));
        assert_eq!(numbers(&mut hold, 9), [3]);
        assert!(!hold.has_some());
        arrive(&mut hold, 1, "a");
        assert!(hold.has_some());
        assert_eq!(numbers(&mut hold, 9), [1, 2, 4]);
    }

    #[test]
    fn an_earlier_message_is_not_held_back_by_a_later_one() {
        let mut hold = hold(&[(1, "a"), (2, "a"), (3, "a")]);
        assert_eq!(numbers(&mut hold, 2), [1, 2]);
        hold.comes_again(place(2));
        hold.comes_again(place(1));
        arrive(&mut hold, 1, "a");
        assert_eq!(numbers(&mut hold, 9), [1], "3 waits for 2");
        arrive(&mut hold, 2, "a");
        assert_eq!(numbers(&mut hold, 9), [2, 3]);
    }

    #[test]
    fn nothing_is_handed_out_while_an_earlier_message_may_be_elsewhere() {
        let mut hold = Hold::new();
        arrive(&mut hold, 2, "a");
        hold.settle(PIN, 2);
        assert!(numbers(&mut hold, 9).is_empty(), "number 1 is in other hands");
        arrive(&mut hold, 1, "a");
        hold.settle(PIN, 2);
        assert_eq!(numbers(&mut hold, 9), [1, 2]);
    }

    #[test]
    fn nothing_is_handed_out_while_a_delivery_before_it_is_lost() {
        let mut hold = hold(&[(1, "a")]);
        assert_eq!(numbers(&mut hold, 9), [1]);
        hold.follow(PIN, hold.count + 2);
        hold.arrive(place(3), Some("a".into()), 3);
        hold.settle(PIN, 3);
        assert!(numbers(&mut hold, 9).is_empty(), "number 2 never arrived");
        arrive(&mut hold, 2, "a");
        hold.settle(PIN, 3);
        assert_eq!(numbers(&mut hold, 9), [2, 3]);
    }

    #[test]
    fn a_copy_of_what_was_acknowledged_is_acknowledged_whenever_it_comes() {
        let mut hold = hold(&[(1, "a")]);
        assert_eq!(numbers(&mut hold, 9), [1]);
        assert!(hold.done(place(1)));
        for _ in 0..2 {
            arrive(&mut hold, 1, "a");
            assert!(numbers(&mut hold, 9).is_empty());
            assert_eq!(told(&mut hold), [(Tell::Acknowledged, 1)]);
        }
        hold.void();
        hold.follow(Some("other"), 1);
        hold.arrive(place(1), Some("a".into()), 1);
        assert_eq!(told(&mut hold), [(Tell::Acknowledged, 1)], "the server lost the acknowledgement");
    }

    #[test]
    fn another_consumer_delivers_again_what_was_acknowledged_to_the_last() {
        let mut hold = hold(&[(1, "a"), (2, "a")]);
        assert_eq!(numbers(&mut hold, 1), [1]);
        hold.done(place(1));
        hold.forget();
        assert_eq!(told(&mut hold), [(Tell::SentBack, 2)]);
        arrive(&mut hold, 1, "a");
        hold.settle(PIN, 1);
        assert_eq!(numbers(&mut hold, 9), [1]);
    }

    #[test]
    fn another_message_under_the_number_of_an_acknowledged_one_is_handed_out() {
        let mut hold = hold(&[(1, "a")]);
        assert_eq!(numbers(&mut hold, 9), [1]);
        hold.done(place(1));
        let later = Place { stored_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(1), number: 1 };
        hold.follow(PIN, hold.count + 1);
        hold.arrive(later, Some("a".into()), 1);
        assert!(told(&mut hold).is_empty());
        assert_eq!(hold.take(9), [(later, 1)]);
    }

    #[test]
    fn the_answer_to_a_message_is_not_taken_for_another_that_got_its_number() {
        let mut hold = hold(&[(1, "a"), (2, "a")]);
        assert_eq!(numbers(&mut hold, 9), [1, 2]);
        hold.void();
        let later = Place { stored_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(1), number: 1 };
        hold.follow(Some("other"), 1);
        hold.arrive(later, Some("a".into()), 1);
        assert!(!hold.done(place(1)), "it waits here");
        hold.settle(Some("other"), 1);
        assert_eq!(hold.take(9), [(later, 1)]);
        assert!(!hold.done(place(1)), "it is handed out");
        assert!(hold.done(later) && hold.done(place(2)));
    }

    #[test]
    fn what_is_done_is_not_counted_and_not_handed_out_again() {
        let mut hold = hold(&[(1, "a")]);
        assert_eq!(numbers(&mut hold, 9), [1]);
        arrive(&mut hold, 1, "a");
        hold.done(place(1));
        assert!(numbers(&mut hold, 9).is_empty());
        hold.doubt();
        arrive(&mut hold, 3, "a");
        hold.settle(PIN, 2);
        assert!(numbers(&mut hold, 9).is_empty(), "one of two is not here");
    }

    #[test]
    fn what_a_restarted_server_counts_is_not_compared_with_what_it_forgot() {
        let mut hold = hold(&[(1, "a"), (2, "a"), (3, "a")]);
        assert_eq!(numbers(&mut hold, 1), [1]);
        hold.doubt();
        // It remembers one delivery, of number 1 or of one that was lost on its way here.
        hold.settle(None, 1);
        assert!(numbers(&mut hold, 9).is_empty());
        assert_eq!(told(&mut hold), [(Tell::SentBack, 2), (Tell::SentBack, 3)]);
        assert_eq!(hold.pin(), None);
        for (number, count) in [(2, 2), (3, 3)] {
            hold.follow(Some("other"), count);
            hold.arrive(place(number), Some("a".into()), number);
        }
        hold.settle(Some("other"), 3);
        assert!(
            numbers(&mut hold, 9).is_empty(),
            "number 1 was handed out under the old pin: it counts no more"
        );
        hold.settle(Some("other"), 2);
        assert_eq!(numbers(&mut hold, 9), [2, 3]);
    }

    #[test]
    fn what_arrives_under_another_pin_sends_back_what_waits() {
        let mut hold = hold(&[(1, "a"), (2, "b")]);
        assert_eq!(numbers(&mut hold, 1), [1]);
        hold.follow(Some("other"), hold.count + 1);
        hold.arrive(place(3), Some("b".into()), 3);
        assert_eq!(told(&mut hold), [(Tell::SentBack, 2)]);
        assert_eq!((hold.pin(), hold.waiting()), (Some("other"), 1));
        assert!(numbers(&mut hold, 9).is_empty(), "number 2 is to come first");
    }

    #[test]
    fn a_doubt_ends_without_loss_when_everything_is_still_here() {
        let mut hold = hold(&[(1, "a"), (2, "a")]);
        assert_eq!(numbers(&mut hold, 1), [1]);
        hold.doubt();
        assert!(hold.waits_in_doubt() && numbers(&mut hold, 9).is_empty());
        hold.settle(PIN, 2);
        assert!(told(&mut hold).is_empty());
        assert_eq!(numbers(&mut hold, 9), [2]);
    }
}
