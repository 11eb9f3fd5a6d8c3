//! What one group has received and not yet acknowledged: who may have which message next. No I/O, no clock of its own.
//!
//! A key belongs to one subscriber while any message of it is in that subscriber's hands, and a message that waits (to
//! be tried again, or for a subscriber that does not answer) holds back the later ones of its key.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::broker::Entry;

/// Names one delivery: the message's position, and which of its deliveries it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) position: usize,
    round: u32,
}

#[derive(Default)]
pub(super) struct Group {
    /// Everything below is acknowledged or in `waiting`.
    next: usize,
    waiting: BTreeMap<usize, Waiting>,
}

struct Waiting {
    key: Option<Arc<str>>,
    round: u32,
    state: State,
}

enum State {
    Ready,
    Delivered { to: u64, until: Instant },
    Delayed { until: Instant },
}

impl Group {
    /// Up to `max` messages for the subscriber `to`, to be answered within `wait`; of the log only what `wanted` says.
    pub(super) fn take(
        &mut self,
        log: &[Entry],
        wanted: impl Fn(&Entry) -> bool,
        to: u64,
        max: usize,
        now: Instant,
        wait: Duration,
    ) -> Vec<Ticket> {
        let mut taken = Vec::new();
        let mut blocked = self.keys_of_others(to, now);
        let mut hand_out = |position: usize, waiting: &mut Waiting| {
            waiting.round += 1;
            waiting.state = State::Delivered { to, until: now + wait };
            taken.push(Ticket { position, round: waiting.round });
            taken.len() == max
        };
        let is_blocked = |blocked: &HashSet<Arc<str>>, key: &Option<Arc<str>>| {
            key.as_ref().is_some_and(|key| blocked.contains(key))
        };
        for (&position, waiting) in &mut self.waiting {
            if is_blocked(&blocked, &waiting.key) {
                continue;
            }
            match waiting.state {
                State::Delivered { until, .. } if until > now => {}
                State::Delayed { until } if until > now => blocked.extend(waiting.key.clone()),
                _ => {
                    if hand_out(position, waiting) {
                        return taken;
                    }
                }
            }
        }
        while let Some(entry) = log.get(self.next) {
            let position = self.next;
            self.next += 1;
            if !wanted(entry) {
                continue;
            }
            let mut waiting = Waiting { key: entry.key(), round: 0, state: State::Ready };
            let full = !is_blocked(&blocked, &waiting.key) && hand_out(position, &mut waiting);
            self.waiting.insert(position, waiting);
            if full {
                break;
            }
        }
        taken
    }

    fn keys_of_others(&self, to: u64, now: Instant) -> HashSet<Arc<str>> {
        self.waiting
            .values()
            .filter(|waiting| {
                matches!(waiting.state, State::Delivered { to: other, until } if other != to && until > now)
            })
            .filter_map(|waiting| waiting.key.clone())
            .collect()
    }

    /// When something that waits will be ready by itself.
    pub(super) fn next_change(&self, now: Instant) -> Option<Instant> {
        let times = self.waiting.values().filter_map(|waiting| match waiting.state {
            State::Delivered { until, .. } | State::Delayed { until } => Some(until),
            State::Ready => None,
        });
        times.filter(|until| *until > now).min()
    }

    /// The message is done with, whichever of its deliveries says so; `again`: one more copy of it comes all the same.
    pub(super) fn acknowledge(&mut self, ticket: Ticket, again: bool) {
        if again {
            self.change(ticket, State::Ready);
        } else {
            self.waiting.remove(&ticket.position);
        }
    }

    pub(super) fn retry(&mut self, ticket: Ticket, until: Instant) {
        self.change(ticket, State::Delayed { until });
    }

    pub(super) fn extend(&mut self, ticket: Ticket, to: u64, until: Instant) {
        self.change(ticket, State::Delivered { to, until });
    }

    /// Nobody will answer any more: it comes again when the wait is over, and until then nothing passes it.
    pub(super) fn leave_unanswered(&mut self, ticket: Ticket) {
        if let Some(Waiting { state: State::Delivered { until, .. }, .. }) =
            self.waiting.get(&ticket.position)
        {
            let until = *until;
            self.change(ticket, State::Delayed { until });
        }
    }

    /// An answer to a delivery that has been given up in the meantime changes nothing.
    fn change(&mut self, ticket: Ticket, state: State) {
        if let Some(waiting) = self.waiting.get_mut(&ticket.position)
            && waiting.round == ticket.round
        {
            waiting.state = state;
        }
    }

    /// No answer is waited for any longer.
    pub(super) fn give_up_waiting(&mut self) {
        for waiting in self.waiting.values_mut() {
            waiting.state = State::Ready;
        }
    }

    /// How many messages of the log are not acknowledged.
    pub(super) fn unacknowledged(&self, log: &[Entry], wanted: impl Fn(&Entry) -> bool) -> usize {
        self.waiting.len() + log.iter().skip(self.next).filter(|entry| wanted(entry)).count()
    }
}
