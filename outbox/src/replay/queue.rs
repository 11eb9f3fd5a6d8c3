//! The messages that were read, between the log and the broker: what may be sent now, in order per key, and how far all is
//! done. No I/O.
//!
//! What waits for a destination that is down keeps its key waiting, and no other.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use message::{Outgoing, Pipelining, PublishError};
use tokio::time::Instant;

use crate::relay::{Availability, Outage};

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

/// The messages that are not done, and those behind them.
#[derive(Debug)]
pub(super) struct Queue {
    pipelining: Pipelining,
    items: VecDeque<Item>,
    bytes: usize,
}

/// What the outcomes of a batch mean.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Why the broker takes nothing now, or does not say.
    pub(super) unavailable: Option<String>,
    /// The destinations that take nothing from now on, each with the reason.
    pub(super) down: Vec<(Arc<str>, String)>,
    /// Those that do again.
    pub(super) back: Vec<Arc<str>>,
    /// The messages that it will not take, in order.
    pub(super) rejected: Vec<(usize, PublishError)>,
    /// The first message that was sent often, and never answered. That is not its fault, so it is not given up.
    pub(super) unanswered: Option<(usize, PublishError)>,
}

impl Item {
    pub(super) fn new(position: i64, outgoing: Outgoing) -> Self {
        Item { position, outgoing, fault: None, unanswered: 0, done: None }
    }

    /// Whether it waits for its destination. What is no message is not sent.
    fn waits(&self, availability: &Availability) -> bool {
        self.fault.is_none() && availability.is_down(&self.outgoing.destination)
    }

    fn bytes(&self) -> usize {
        self.outgoing.message.payload.len()
    }
}

impl Queue {
    pub(super) fn new(pipelining: Pipelining) -> Self {
        Queue { pipelining, items: VecDeque::new(), bytes: 0 }
    }

    /// What comes next in the log.
    pub(super) fn extend(&mut self, items: Vec<Item>) {
        self.bytes += items.iter().map(Item::bytes).sum::<usize>();
        self.items.extend(items);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn undone(&self) -> impl Iterator<Item = (usize, &Item)> {
        self.items.iter().enumerate().filter(|(_, item)| item.done.is_none())
    }

    /// The next batch, of at most `most`: the places of its messages. A batch is on the wire alone, so that what a broker
    /// keeps in order within one may all go. To a destination that is down one goes, when it is to be probed.
    pub(super) fn next(&self, most: usize, availability: &Availability, now: Instant) -> Vec<usize> {
        let mut probes: HashSet<Arc<str>> =
            availability.due_probes(&self.closed(availability), now).into_iter().collect();
        let mut keys: HashSet<&Arc<str>> = HashSet::new();
        let mut places = Vec::new();
        for (place, item) in self.undone() {
            let Outgoing { destination, message } = &item.outgoing;
            if places.len() >= most {
                break;
            }
            if message.key.as_ref().is_some_and(|key| keys.contains(key)) {
                continue;
            }
            let is_down = item.waits(availability);
            if !is_down || probes.remove(destination) {
                places.push(place);
            }
            if is_down || self.pipelining == Pipelining::OnePerKey {
                keys.extend(&message.key);
            }
        }
        places
    }

    /// The destinations that are down of messages for which nothing else is waited.
    fn closed(&self, availability: &Availability) -> HashSet<Arc<str>> {
        let mut keys: HashSet<&Arc<str>> = HashSet::new();
        let first = self.undone().filter(|(_, item)| match &item.outgoing.message.key {
            Some(key) => keys.insert(key),
            None => true,
        });
        let down = first.filter(|(_, item)| item.waits(availability));
        down.map(|(_, item)| Arc::clone(&item.outgoing.destination)).collect()
    }

    /// When the next destination is to be probed.
    pub(super) fn next_probe_at(&self, availability: &Availability, now: Instant) -> Option<Instant> {
        availability.next_probe_at(&self.closed(availability), now)
    }

    /// A batch is about to be sent: what of it probes a destination is known by its position.
    pub(super) fn probe(
        &self,
        batch: &[usize],
        availability: &mut Availability,
        now: Instant,
        timeout: Duration,
    ) {
        for item in batch.iter().map(|place| self.at(*place)).filter(|item| item.fault.is_none()) {
            availability.probe(&item.outgoing.destination, item.position, now, timeout);
        }
    }

    pub(super) fn at(&self, place: usize) -> &Item {
        &self.items[place]
    }

    /// Takes the outcomes of a batch.
    pub(super) fn settle(
        &mut self,
        batch: &[usize],
        results: Vec<Result<(), PublishError>>,
        availability: &mut Availability,
        now: Instant,
        chance: f64,
    ) -> Settled {
        let mut settled = Settled::default();
        for (place, result) in batch.iter().zip(results) {
            let item = &mut self.items[*place];
            let (destination, position) = (&item.outgoing.destination, item.position);
            match &result {
                _ if item.fault.is_some() => {}
                // A destination that rejects a message takes others.
                Ok(()) | Err(PublishError::Rejected(_)) => {
                    if availability.answered(destination, position, now) {
                        settled.back.push(Arc::clone(destination));
                    }
                }
                Err(PublishError::DestinationUnavailable(reason)) => {
                    let outage = availability.failed(destination, position, reason, now, chance);
                    if let Outage::New(_) = outage {
                        settled.down.push((Arc::clone(destination), reason.clone()));
                    }
                }
                Err(_) => availability.unanswered(destination, position, now, chance),
            }
            match result {
                Ok(()) => item.done = Some(Done::Published),
                Err(error @ PublishError::Rejected(_)) => settled.rejected.push((*place, error)),
                Err(PublishError::Unavailable(reason)) => {
                    settled.unavailable.get_or_insert(reason);
                }
                // The destination is waited for; and what was not sent goes with the one before it, which says why.
                Err(PublishError::DestinationUnavailable(_) | PublishError::NotSent(_)) => {}
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
            let Some(item) = self.items.pop_front() else { break };
            self.bytes = self.bytes.saturating_sub(item.bytes());
            passed.push((item, done));
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use message::Message;

    use super::*;
    use crate::Backoff;

    const PAUSE: Duration = Duration::from_secs(1);
    const TIMEOUT: Duration = Duration::from_secs(30);

    /// A queue, and what it is told of destinations, at a time.
    struct Desk {
        queue: Queue,
        availability: Availability,
        now: Instant,
    }

    impl Desk {
        /// Messages by key and destination.
        fn with(pipelining: Pipelining, messages: &[(&str, &str)]) -> Self {
            let item = |(index, (key, destination)): (usize, &(&str, &str))| {
                let mut message = Message::new("t", "k", "");
                message.key = (!key.is_empty()).then(|| (*key).into());
                let destination = (*destination).into();
                Item::new(index as i64 + 1, Outgoing { destination, message: Arc::new(message) })
            };
            let mut queue = Queue::new(pipelining);
            queue.extend(messages.iter().enumerate().map(item).collect());
            let availability = Availability::new(Backoff { first: PAUSE, ceiling: PAUSE });
            Desk { queue, availability, now: Instant::now() }
        }

        fn new(pipelining: Pipelining, keys: &[&str]) -> Self {
            Desk::with(pipelining, &keys.iter().map(|key| (*key, "t")).collect::<Vec<_>>())
        }

        fn next(&self, most: usize) -> Vec<usize> {
            self.queue.next(most, &self.availability, self.now)
        }

        fn settle(&mut self, batch: &[usize], results: Vec<Result<(), PublishError>>) -> Settled {
            self.queue.probe(batch, &mut self.availability, self.now, TIMEOUT);
            self.queue.settle(batch, results, &mut self.availability, self.now, 0.0)
        }

        fn passed(&mut self) -> Vec<i64> {
            self.queue.passed().iter().map(|(item, _)| item.position).collect()
        }
    }

    fn unavailable() -> Result<(), PublishError> {
        Err(PublishError::Unavailable("down".to_owned()))
    }

    fn closed() -> Result<(), PublishError> {
        Err(PublishError::DestinationUnavailable("closed".to_owned()))
    }

    #[test]
    fn a_key_has_one_message_on_the_wire_unless_the_broker_keeps_order() {
        let keys = ["a", "", "a", "b", "", "b"];
        assert_eq!(Desk::new(Pipelining::OnePerKey, &keys).next(10), [0, 1, 3, 4]);
        assert_eq!(Desk::new(Pipelining::PerBatch, &keys).next(10), [0, 1, 2, 3, 4, 5]);
        assert_eq!(Desk::new(Pipelining::OnePerKey, &keys).next(2), [0, 1]);
    }

    #[test]
    fn what_follows_a_failure_of_its_key_waits_for_it() {
        let mut desk = Desk::new(Pipelining::OnePerKey, &["a", "b", "a"]);
        let batch = desk.next(10);
        let settled = desk.settle(&batch, vec![unavailable(), Ok(())]);
        assert_eq!(settled.unavailable.as_deref(), Some("down"));
        assert_eq!(desk.next(10), [0]);
        assert!(desk.passed().is_empty());
        desk.settle(&[0], vec![Ok(())]);
        assert_eq!(desk.passed(), [1, 2]);
        assert_eq!((desk.next(10), desk.queue.is_empty()), (vec![0], false));
    }

    #[test]
    fn a_destination_that_is_down_keeps_its_keys_and_no_others_and_is_probed_by_one_message() {
        for pipelining in [Pipelining::OnePerKey, Pipelining::PerBatch] {
            let messages =
                [("a", "away"), ("b", "here"), ("a", "here"), ("", "away"), ("c", "away"), ("b", "here")];
            let mut desk = Desk::with(pipelining, &messages);
            let settled = desk.settle(&[0, 1], vec![closed(), Ok(())]);
            assert_eq!((settled.unavailable, settled.down.len()), (None, 1));
            assert_eq!(desk.next(10), [5], "what is behind it in its key waits, too");
            desk.settle(&[5], vec![Ok(())]);
            assert_eq!(desk.next(10), [0; 0]);
            let probe = desk.queue.next_probe_at(&desk.availability, desk.now);
            assert_eq!(probe, Some(desk.now + PAUSE));
            desk.now += PAUSE;
            assert_eq!(desk.next(10), [0]);
            assert_eq!(desk.settle(&[0], vec![closed()]).down, [], "that is nothing new");
            assert_eq!(desk.next(10), [0; 0]);
            desk.now += PAUSE;
            assert_eq!(desk.settle(&[0], vec![Ok(())]).back.len(), 1);
            assert_eq!(desk.next(10), [2, 3, 4]);
            desk.settle(&[2, 3, 4], vec![Ok(()), Ok(()), Ok(())]);
            assert_eq!(desk.passed(), [1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn a_message_that_is_never_answered_is_not_rejected_and_stops_the_replay_in_the_end() {
        let mut desk = Desk::new(Pipelining::PerBatch, &["a"]);
        let unknown = || vec![Err(PublishError::Unknown("no answer".to_owned()))];
        for _ in 1..UNANSWERED {
            assert!(desk.settle(&[0], unknown()).unanswered.is_none());
        }
        let settled = desk.settle(&[0], unknown());
        assert!(settled.rejected.is_empty() && matches!(settled.unanswered, Some((0, _))));
    }

    #[test]
    fn what_is_given_up_is_passed_with_its_reason() {
        let mut desk = Desk::new(Pipelining::PerBatch, &["a", "a"]);
        let rejected = Err(PublishError::Rejected("too long".to_owned()));
        let settled = desk.settle(&[0, 1], vec![rejected, unavailable()]);
        assert!(matches!(settled.rejected[..], [(0, _)]));
        desk.queue.skip(0, "too long".to_owned());
        let passed = desk.queue.passed();
        assert_eq!((passed.len(), &passed[0].1), (1, &Done::Skipped("too long".to_owned())));
        assert_eq!(desk.next(10), [0]);
    }
}
