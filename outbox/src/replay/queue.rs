//! The messages of a page between the log and the broker: what may be sent now, in order per key, and how far all is
//! done. No I/O.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use message::{Outgoing, Pipelining, PublishError};

/// A message that was sent so often without an answer stops the replay.
const UNANSWERED: u32 = 5;

/// A message under way.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) position: i64,
    pub(super) outgoing: Outgoing,
    /// Why its row is no message, which is never sent.
    pub(super) fault: Option<Arc<str>>,
    unanswered: u32,
    done: Option<Done>,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Done {
    Published,
    /// Given up, for what the broker said.
    Skipped(String),
}

/// The messages of a page that are not done, and those behind them.
#[derive(Debug)]
pub(super) struct Queue {
    pipelining: Pipelining,
    items: VecDeque<Item>,
}

/// What the outcomes of a batch mean.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Why the broker, or a destination, takes nothing now, or does not say.
    pub(super) unavailable: Option<String>,
    /// The messages that it will not take, in order.
    pub(super) rejected: Vec<(usize, PublishError)>,
    /// The first message that was sent often, and never answered. That is not its fault, so it is not given up.
    pub(super) unanswered: Option<(usize, PublishError)>,
}

impl Item {
    pub(super) fn new(position: i64, outgoing: Outgoing) -> Self {
        Item { position, outgoing, fault: None, unanswered: 0, done: None }
    }
}

impl Queue {
    pub(super) fn new(pipelining: Pipelining, items: impl IntoIterator<Item = Item>) -> Self {
        Queue { pipelining, items: items.into_iter().collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The next batch, of at most `most`: the places of its messages. A batch is on the wire alone, so that what a broker
    /// keeps in order within one may all go.
    pub(super) fn next(&self, most: usize) -> Vec<usize> {
        let mut keys: HashSet<&Arc<str>> = HashSet::new();
        let places = self.items.iter().enumerate().filter(|(_, item)| item.done.is_none());
        let free = places.filter(|(_, item)| match (&item.outgoing.message.key, self.pipelining) {
            (Some(key), Pipelining::OnePerKey) => keys.insert(key),
            _ => true,
        });
        free.map(|(place, _)| place).take(most).collect()
    }

    pub(super) fn at(&self, place: usize) -> &Item {
        &self.items[place]
    }

    /// Takes the outcomes of a batch.
    pub(super) fn settle(&mut self, batch: &[usize], results: Vec<Result<(), PublishError>>) -> Settled {
        let mut settled = Settled::default();
        for (place, result) in batch.iter().zip(results) {
            let item = &mut self.items[*place];
            match result {
                Ok(()) => item.done = Some(Done::Published),
                Err(error @ PublishError::Rejected(_)) => settled.rejected.push((*place, error)),
                Err(PublishError::Unavailable(reason) | PublishError::DestinationUnavailable(reason)) => {
                    settled.unavailable.get_or_insert(reason);
                }
                // It goes with the one before it, which says why.
                Err(PublishError::NotSent(_)) => {}
                Err(error) => {
                    item.unanswered += 1;
                    settled.unavailable.get_or_insert(error.to_string());
                    if item.unanswered >= UNANSWERED {
                        settled.unanswered.get_or_insert((*place, error));
                    }
                }
            }
        }
        settled
    }

    /// A message is given up.
    pub(super) fn skip(&mut self, place: usize, reason: String) {
        self.items[place].done = Some(Done::Skipped(reason));
    }

    /// Takes out what is done and has nothing undone before it, in order.
    pub(super) fn passed(&mut self) -> Vec<(Item, Done)> {
        let mut passed = Vec::new();
        while let Some(done) = self.items.front().and_then(|item| item.done.clone()) {
            passed.extend(self.items.pop_front().map(|item| (item, done)));
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use message::Message;

    use super::*;

    fn queue(pipelining: Pipelining, keys: &[&str]) -> Queue {
        let item = |(index, key): (usize, &&str)| {
            let mut message = Message::new("t", "k", "");
            message.key = (!key.is_empty()).then(|| (*key).into());
            Item::new(index as i64 + 1, Outgoing { destination: "t".into(), message: Arc::new(message) })
        };
        Queue::new(pipelining, keys.iter().enumerate().map(item))
    }

    fn unavailable() -> Result<(), PublishError> {
        Err(PublishError::Unavailable("down".to_owned()))
    }

    #[test]
    fn a_key_has_one_message_on_the_wire_unless_the_broker_keeps_order() {
        let keys = ["a", "", "a", "b", "", "b"];
        assert_eq!(queue(Pipelining::OnePerKey, &keys).next(10), [0, 1, 3, 4]);
        assert_eq!(queue(Pipelining::PerBatch, &keys).next(10), [0, 1, 2, 3, 4, 5]);
        assert_eq!(queue(Pipelining::OnePerKey, &keys).next(2), [0, 1]);
    }

    #[test]
    fn what_follows_a_failure_of_its_key_waits_for_it() {
        let mut queue = queue(Pipelining::OnePerKey, &["a", "b", "a"]);
        let batch = queue.next(10);
        let settled = queue.settle(&batch, vec![unavailable(), Ok(())]);
        assert_eq!(settled.unavailable.as_deref(), Some("down"));
        assert_eq!(queue.next(10), [0]);
        assert!(queue.passed().is_empty());
        queue.settle(&[0], vec![Ok(())]);
        assert_eq!(queue.passed().iter().map(|(item, _)| item.position).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((queue.next(10), queue.is_empty()), (vec![0], false));
    }

    #[test]
    fn a_message_that_is_never_answered_is_not_rejected_and_stops_the_replay_in_the_end() {
        let mut queue = queue(Pipelining::PerBatch, &["a"]);
        let unknown = || vec![Err(PublishError::Unknown("no answer".to_owned()))];
        for _ in 1..UNANSWERED {
            assert!(queue.settle(&[0], unknown()).unanswered.is_none());
        }
        let settled = queue.settle(&[0], unknown());
        assert!(settled.rejected.is_empty() && matches!(settled.unanswered, Some((0, _))));
    }

    #[test]
    fn what_is_given_up_is_passed_with_its_reason() {
        let mut queue = queue(Pipelining::PerBatch, &["a", "a"]);
        let rejected = Err(PublishError::Rejected("too long".to_owned()));
        let settled = queue.settle(&[0, 1], vec![rejected, unavailable()]);
        assert!(matches!(settled.rejected[..], [(0, _)]));
        queue.skip(0, "too long".to_owned());
        let passed = queue.passed();
        assert_eq!((passed.len(), &passed[0].1), (1, &Done::Skipped("too long".to_owned())));
        assert_eq!(queue.next(10), [0]);
    }
}
