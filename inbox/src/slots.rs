//! Which try begins next: first tries and retries share the consumer's concurrency, neither starves the other, and a
//! message in quarantine is tried while nothing else is. Pure: the clock is an argument.

use std::time::{Duration, Instant};

/// After a lone try, everything else has this many times as long before the next one: messages in quarantine take a fifth
/// of a consumer's time, however slow they are.
const OTHERS: u32 = 4;
/// How long a lone try waits for what is in hand, at first. A try that hangs would otherwise stop all other keys.
const LONE_WAIT: Duration = Duration::from_secs(5);

/// What is known of held keys that are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// None, at the last claim.
    No,
    /// It is time to claim.
    Perhaps,
    /// The last claim left some.
    Many,
}

/// The tries under way.
#[derive(Debug)]
pub(crate) struct Slots {
    concurrency: usize,
    first: usize,
    retries: usize,
    /// Slots that a claim under way may fill.
    claiming: usize,
    /// With a concurrency of one the two take turns.
    last_was_retry: bool,
    lone: Lone,
    /// How long the next lone try waits for what is in hand. It doubles each time that this was in vain, up to the longest that
    /// one try takes: then each try that was in hand has ended.
    lone_wait: Duration,
    longest_wait: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Lone {
    None {
        not_before: Option<Instant>,
    },
    /// One is due, and waits until nothing is under way.
    Awaited {
        since: Instant,
    },
    Trying {
        since: Instant,
    },
}

impl Slots {
    pub(crate) fn new(concurrency: usize) -> Self {
        let lone = Lone::None { not_before: None };
        Slots {
            concurrency,
            first: 0,
            retries: 0,
            claiming: 0,
            last_was_retry: false,
            lone,
            lone_wait: LONE_WAIT,
            longest_wait: LONE_WAIT,
        }
    }

    /// The longest that a lone try waits for what is in hand.
    pub(crate) fn with_longest_wait(mut self, longest: Duration) -> Self {
        self.longest_wait = longest.max(LONE_WAIT);
        self
    }

    /// Whether a first try may begin.
    pub(crate) fn first_may_begin(&self, due: Due) -> bool {
        let reserved = match due {
            _ if self.concurrency == 1 && self.last_was_retry => 0,
            Due::No => 0,
            Due::Perhaps => 1,
            Due::Many => self.half().max(1),
        };
        !self.is_exclusive() && self.first + reserved.max(self.retries + self.claiming) < self.concurrency
    }

    /// How many held keys may be claimed now: as many as begin now.
    pub(crate) fn retries_may_begin(&self, first_tries_wait: bool) -> usize {
        if self.is_exclusive() || self.claiming > 0 {
            return 0;
        }
        let share = match first_tries_wait {
            false => self.concurrency,
            true if self.concurrency == 1 => usize::from(!self.last_was_retry),
            true => self.half(),
        };
        let free = self.concurrency.saturating_sub(self.first + self.retries);
        free.min(share.saturating_sub(self.retries))
    }

    /// How many retries are to end after the message they are at.
    pub(crate) fn retries_to_yield(&self, first_tries_wait: bool) -> usize {
        match self.lone {
            Lone::Awaited { .. } => self.retries,
            _ if first_tries_wait => self.retries.saturating_sub(self.half()),
            _ => 0,
        }
    }

    /// How many first tries are under way.
    pub(crate) fn first_tries(&self) -> usize {
        self.first
    }

    fn half(&self) -> usize {
        self.concurrency / 2
    }

    pub(crate) fn begin_first(&mut self) {
        self.first += 1;
        self.last_was_retry = false;
    }

    pub(crate) fn end_first(&mut self) {
        self.first = self.first.saturating_sub(1);
    }

    pub(crate) fn begin_claim(&mut self, limit: usize) {
        self.claiming = limit;
    }

    pub(crate) fn end_claim(&mut self) {
        self.claiming = 0;
    }

    pub(crate) fn begin_retry(&mut self) {
        self.retries += 1;
        self.last_was_retry = true;
    }

    pub(crate) fn end_retry(&mut self) {
        self.retries = self.retries.saturating_sub(1);
    }

    /// A held key is due whose message is in quarantine. Answers when its turn is, if that is not now.
    pub(crate) fn await_lone(&mut self, now: Instant) -> Option<Instant> {
        let Lone::None { not_before } = self.lone else { return None };
        let later = not_before.filter(|not_before| now < *not_before);
        if later.is_none() {
            self.lone = Lone::Awaited { since: now };
        }
        later
    }

    /// Until when a lone try waits for what is in hand.
    pub(crate) fn lone_waits_until(&self) -> Option<Instant> {
        match self.lone {
            // A time that cannot be told never comes.
            Lone::Awaited { since } if !self.lone_may_begin() => since.checked_add(self.lone_wait),
            _ => None,
        }
    }

    /// Whether a lone try has waited long enough for what is in hand: the others go on, and have their time before it waits
    /// again.
    pub(crate) fn stops_waiting(&mut self, now: Instant) -> bool {
        if self.lone_waits_until().is_none_or(|until| now < until) {
            return false;
        }
        self.end_lone(now, Duration::ZERO);
        self.lone_wait = self.lone_wait.saturating_mul(2).min(self.longest_wait);
        true
    }

    /// Whether everything else waits for a lone try.
    pub(crate) fn is_exclusive(&self) -> bool {
        !matches!(self.lone, Lone::None { .. })
    }

    /// Whether a lone try may begin: nothing else is under way.
    pub(crate) fn lone_may_begin(&self) -> bool {
        let idle = self.first + self.retries + self.claiming == 0;
        idle && matches!(self.lone, Lone::Awaited { .. })
    }

    pub(crate) fn begin_lone(&mut self) {
        if let Lone::Awaited { since } = self.lone {
            self.lone = Lone::Trying { since };
            self.lone_wait = LONE_WAIT;
        }
    }

    /// The others may go on, and have their time before the next lone try: `least`, or longer.
    pub(crate) fn end_lone(&mut self, now: Instant, least: Duration) {
        if let Lone::Awaited { since } | Lone::Trying { since } = self.lone {
            let others = now.saturating_duration_since(since).saturating_mul(OTHERS).max(least);
            // A time that cannot be told is farther away than any try is long.
            self.lone = Lone::None { not_before: now.checked_add(others) };
        }
    }

    /// The consumer stops: what waits behind a lone try that has not begun goes on.
    pub(crate) fn give_up_lone(&mut self) {
        if matches!(self.lone, Lone::Awaited { .. }) {
            self.lone = Lone::None { not_before: None };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has both sides begin as much as they may, in `rounds` rounds in which the longest-running try ends; answers how
    /// many first tries and retries began, and the most that were under way at once.
    fn compete(concurrency: usize, rounds: usize) -> (usize, usize, usize) {
        let mut slots = Slots::new(concurrency);
        let (mut firsts, mut retries, mut most) = (0, 0, 0);
        let mut under_way = std::collections::VecDeque::new();
        for _ in 0..rounds {
            while slots.first_may_begin(Due::Many) {
                slots.begin_first();
                firsts += 1;
                under_way.push_back(false);
            }
            for _ in 0..slots.retries_may_begin(true) {
                slots.begin_retry();
                retries += 1;
                under_way.push_back(true);
            }
            most = most.max(under_way.len());
            if under_way.pop_front().unwrap() { slots.end_retry() } else { slots.end_first() }
        }
        (firsts, retries, most)
    }

    #[test]
    fn first_tries_and_retries_share_and_neither_starves() {
        for concurrency in 1..=9 {
            let (firsts, retries, most) = compete(concurrency, 1_000);
            assert_eq!(most, concurrency);
            assert!(retries <= firsts + 1, "{concurrency}: {retries} retries beside {firsts}");
            assert!(retries * 2 >= firsts - concurrency, "{concurrency}: {retries} retries beside {firsts}");
        }
    }

    #[test]
    fn retries_have_every_slot_while_no_first_try_waits_and_give_half_back() {
        let mut slots = Slots::new(8);
        assert_eq!(slots.retries_may_begin(false), 8);
        slots.begin_claim(8);
        assert_eq!((slots.retries_may_begin(false), slots.first_may_begin(Due::No)), (0, false));
        slots.end_claim();
        (0..8).for_each(|_| slots.begin_retry());
        assert_eq!((slots.retries_to_yield(false), slots.retries_to_yield(true)), (0, 4));
        (0..4).for_each(|_| slots.end_retry());
        assert_eq!((slots.retries_to_yield(true), slots.retries_may_begin(true)), (0, 0));
        assert!(slots.first_may_begin(Due::Many));
    }

    #[test]
    fn first_tries_have_every_slot_while_nothing_is_due() {
        let mut slots = Slots::new(8);
        (0..7).for_each(|_| slots.begin_first());
        assert!(slots.first_may_begin(Due::No));
        assert!(!slots.first_may_begin(Due::Perhaps));
        assert_eq!(slots.retries_may_begin(true), 1);
    }

    #[test]
    fn a_lone_try_begins_when_nothing_is_under_way_and_nothing_begins_beside_it() {
        let mut slots = Slots::new(8);
        let start = Instant::now();
        slots.begin_first();
        slots.begin_retry();
        assert_eq!(slots.await_lone(start), None);
        assert_eq!((slots.first_may_begin(Due::No), slots.retries_may_begin(false)), (false, 0));
        assert_eq!((slots.lone_may_begin(), slots.retries_to_yield(false)), (false, 1));
        slots.end_first();
        assert!(!slots.lone_may_begin());
        slots.end_retry();
        assert!(slots.lone_may_begin());
        slots.begin_lone();
        assert_eq!((slots.first_may_begin(Due::No), slots.retries_may_begin(false)), (false, 0));
        assert!(!slots.lone_may_begin());
        slots.end_lone(start + Duration::from_secs(1), Duration::ZERO);
        assert!(slots.first_may_begin(Due::No));
        assert_eq!(slots.await_lone(start + Duration::from_secs(4)), Some(start + Duration::from_secs(5)));
        assert!(slots.first_may_begin(Due::No));
        assert_eq!(slots.await_lone(start + Duration::from_secs(5)), None);
        assert!(!slots.first_may_begin(Due::No));
        slots.give_up_lone();
        assert!(slots.first_may_begin(Due::No));
    }

    #[test]
    fn a_lone_try_that_found_nothing_is_not_made_again_before_its_wait() {
        let mut slots = Slots::new(8);
        let start = Instant::now();
        let wait = Duration::from_millis(100);
        slots.await_lone(start);
        slots.begin_lone();
        slots.end_lone(start, wait);
        assert_eq!(slots.await_lone(start), Some(start + wait));
        assert_eq!(slots.await_lone(start + wait), None);
    }

    #[test]
    fn a_lone_try_waits_for_what_hangs_a_bounded_time_and_the_others_have_theirs() {
        let mut slots = Slots::new(2).with_longest_wait(Duration::from_secs(40));
        let mut now = Instant::now();
        slots.begin_first();
        for seconds in [5, 10, 20, 40, 40] {
            let wait = Duration::from_secs(seconds);
            assert_eq!(slots.await_lone(now), None);
            assert_eq!((slots.lone_waits_until(), slots.first_may_begin(Due::No)), (Some(now + wait), false));
            assert!(!slots.stops_waiting(now + wait - Duration::from_millis(1)));
            assert!(slots.stops_waiting(now + wait) && slots.first_may_begin(Due::No));
            now += wait * (1 + OTHERS);
            assert!(slots.await_lone(now - Duration::from_millis(1)).is_some());
        }
        slots.await_lone(now);
        slots.end_first();
        assert!(slots.lone_may_begin() && !slots.stops_waiting(now + Duration::from_secs(99)));
        slots.begin_lone();
        slots.end_lone(now, Duration::ZERO);
        slots.begin_first();
        slots.await_lone(now + Duration::from_secs(1));
        assert_eq!(slots.lone_waits_until(), Some(now + Duration::from_secs(1) + LONE_WAIT));
    }
}
