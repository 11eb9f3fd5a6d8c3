//! Order per key, concurrency across keys: which messages may be on the wire now. No I/O.
//!
//! A key is a *lane*. What a lane may have on the wire at once is the publisher's [`Pipelining`]; what fails goes back to
//! the front of its lane; a lane that is held lets nothing through until it is released. A message without a key has a
//! lane to itself.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;
use message::{Outgoing, Pipelining};

use crate::log::LogMessage;

/// A message under way: what is sent, and where it stands in the log.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) log: LogMessage,
    pub(crate) window: u64,
    pub(crate) outgoing: Outgoing,
    /// How often it was sent and no answer came.
    pub(crate) unanswered: u32,
}

/// What came of a message's outcome for its lane.
#[derive(Debug)]
pub(crate) enum After {
    /// Nothing to do.
    Nothing,
    /// The lane rests; [`Lanes::wake`] it later.
    Rest(Resting),
    /// The lane is held from now on; its messages left it, the failed one first.
    Held { items: Vec<Item>, error: String },
}

/// A lane, or a message without a key, that rests before it is tried again.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
pub(crate) enum Resting {
    Lane(Arc<str>),
    Alone(Box<Item>),
}

/// A publisher may need a batch's payloads in memory once more, in its own form.
const BATCH_BYTES: usize = 8 << 20;

#[derive(Clone, Debug, Default)]
struct Lane {
    on_wire: usize,
    /// The batch it is on the wire with.
    batch: u64,
    /// Came back, in the order in which the answers came.
    failed: Vec<Item>,
    waiting: VecDeque<Item>,
    rejected: Option<String>,
    /// Held since this position: what arrives is copied there.
    held: Option<i64>,
    /// Stands in the queue.
    queued: bool,
    resting: bool,
}

#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
enum Queued {
    Message(Item),
    Lane(Arc<str>),
}

/// All messages between the log and the broker.
#[derive(Clone, Debug)]
pub(crate) struct Lanes {
    pipelining: Pipelining,
    lanes: HashMap<Arc<str>, Lane, RandomState>,
    queue: VecDeque<Queued>,
    copies: Vec<(i64, Item)>,
    batches: u64,
    len: usize,
    bytes: usize,
}

/// For the model: an item is its place in the log, and a batch's number is told apart from the next one's only.
#[cfg(test)]
mod hashed {
    use std::collections::BTreeMap;
    use std::hash::{Hash, Hasher};

    use super::{Item, Lane, Lanes};

    impl Hash for Item {
        fn hash<H: Hasher>(&self, state: &mut H) {
            (self.log.position, self.unanswered).hash(state);
        }
    }

    impl Hash for Lane {
        fn hash<H: Hasher>(&self, state: &mut H) {
            (self.on_wire, &self.failed, &self.waiting, &self.rejected).hash(state);
            (self.held, self.queued, self.resting).hash(state);
        }
    }

    impl Hash for Lanes {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.lanes.iter().collect::<BTreeMap<_, _>>().hash(state);
            (&self.queue, &self.copies).hash(state);
        }
    }
}

impl Lane {
    fn is_open(&self, pipelining: Pipelining, batch: u64) -> bool {
        let room = match pipelining {
            Pipelining::OnePerKey => self.on_wire == 0,
            Pipelining::PerBatch => self.on_wire == 0 || self.batch == batch,
            Pipelining::Unlimited => true,
        };
        room && self.failed.is_empty() && self.rejected.is_none() && !self.resting
    }

    fn is_empty(&self) -> bool {
        self.on_wire == 0
            && self.failed.is_empty()
            && self.waiting.is_empty()
            && self.held.is_none()
            && !self.queued
    }

    fn is_done_with_one(&self) -> bool {
        self.on_wire == 1
            && self.failed.is_empty()
            && self.waiting.is_empty()
            && self.rejected.is_none()
            && self.held.is_none()
            && !self.queued
            && !self.resting
    }

    fn send(&mut self, batch: u64) {
        self.on_wire += 1;
        self.batch = batch;
    }
}

impl Lanes {
    pub(crate) fn new(pipelining: Pipelining) -> Self {
        Lanes {
            pipelining,
            lanes: HashMap::default(),
            queue: VecDeque::new(),
            copies: Vec::new(),
            batches: 0,
            len: 0,
            bytes: 0,
        }
    }

    /// Messages taken in that are neither confirmed nor given out to be held.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The payloads of these, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn let_go<'i>(&mut self, items: impl IntoIterator<Item = &'i Item>) {
        for item in items {
            self.len -= 1;
            self.bytes -= item.log.message.payload.len();
        }
    }

    /// Whether a batch might have something in it.
    pub(crate) fn is_ready(&self) -> bool {
        !self.queue.is_empty()
    }

    /// A key is held, from before this process owned it.
    pub(crate) fn hold(&mut self, key: Arc<str>, position: i64) {
        self.lanes.entry(key).or_default().held = Some(position);
    }

    /// Whether a key is held.
    pub(crate) fn is_held(&self, key: &Arc<str>) -> bool {
        self.lanes.get(key).is_some_and(|lane| lane.held.is_some())
    }

    /// Takes a message in.
    pub(crate) fn push(&mut self, item: Item) {
        self.len += 1;
        self.bytes += item.log.message.payload.len();
        self.queue.push_back(Queued::Message(item));
    }

    /// The next batch, of at most `max` messages, and no more once their payloads have [`BATCH_BYTES`]: what may be on the
    /// wire now, in order per key.
    pub(crate) fn batch(&mut self, max: usize) -> Vec<Item> {
        self.batches += 1;
        let mut batch = Vec::with_capacity(max.min(self.queue.len()));
        let (mut counted, mut bytes) = (0, 0);
        while batch.len() < max && bytes < BATCH_BYTES {
            match self.queue.pop_front() {
                Some(Queued::Message(item)) => self.offer(item, &mut batch),
                Some(Queued::Lane(key)) => self.drain(key, max, &mut batch),
                None => break,
            }
            bytes += batch[counted..].iter().map(|item| item.log.message.payload.len()).sum::<usize>();
            counted = batch.len();
        }
        batch
    }

    fn offer(&mut self, item: Item, batch: &mut Vec<Item>) {
        let Some(key) = &item.log.message.key else {
            batch.push(item);
            return;
        };
        let lane = match self.lanes.get_mut(key) {
            Some(lane) => lane,
            None => self.lanes.entry(Arc::clone(key)).or_default(),
        };
        if let Some(position) = lane.held {
            self.copies.push((position, item));
        } else if lane.waiting.is_empty() && lane.is_open(self.pipelining, self.batches) {
            lane.send(self.batches);
            batch.push(item);
        } else {
            lane.waiting.push_back(item);
        }
    }

    fn drain(&mut self, key: Arc<str>, max: usize, batch: &mut Vec<Item>) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.queued = false;
        while batch.len() < max && lane.is_open(self.pipelining, self.batches) {
            let Some(item) = lane.waiting.pop_front() else { return };
            lane.send(self.batches);
            batch.push(item);
        }
        // The batch was full; what is on the wire otherwise queues the lane when it comes back.
        if batch.len() == max && lane.on_wire == 0 && !lane.waiting.is_empty() {
            lane.queued = true;
            self.queue.push_front(Queued::Lane(key));
        }
    }

    /// The broker keeps the message.
    pub(crate) fn confirm(&mut self, item: &Item) -> After {
        self.let_go([item]);
        let Some(key) = &item.log.message.key else { return After::Nothing };
        // The common case: the only message of its key is done, and the lane with it.
        if let Entry::Occupied(lane) = self.lanes.entry(Arc::clone(key))
            && lane.get().is_done_with_one()
        {
            lane.remove();
            return After::Nothing;
        }
        self.back(key, None, None)
    }

    /// The message was not kept, or nobody knows; it will be tried again after a rest.
    pub(crate) fn fail(&mut self, item: Item) -> After {
        match item.log.message.key.clone() {
            Some(key) => self.back(&key, Some(item), None),
            None => After::Rest(Resting::Alone(Box::new(item))),
        }
    }

    /// The broker will not take the message: its lane is held as soon as nothing of it is on the wire any more.
    pub(crate) fn reject(&mut self, item: Item, error: String) -> After {
        match item.log.message.key.clone() {
            Some(key) => self.back(&key, Some(item), Some(error)),
            None => {
                self.let_go([&item]);
                After::Held { items: vec![item], error }
            }
        }
    }

    fn back(&mut self, key: &Arc<str>, failed: Option<Item>, rejected: Option<String>) -> After {
        let Some(lane) = self.lanes.get_mut(key) else { return After::Nothing };
        lane.on_wire = lane.on_wire.saturating_sub(1);
        lane.failed.extend(failed);
        if lane.rejected.is_none() {
            lane.rejected = rejected;
        }
        if lane.on_wire > 0 {
            return After::Nothing;
        }
        let mut failed = std::mem::take(&mut lane.failed);
        failed.sort_by_key(|item| item.log.position);
        let came_back = !failed.is_empty();
        for item in failed.into_iter().rev() {
            lane.waiting.push_front(item);
        }
        if let Some(error) = lane.rejected.take() {
            let items: Vec<Item> = lane.waiting.drain(..).collect();
            lane.held = items.first().map(|item| item.log.position);
            self.let_go(&items);
            return After::Held { items, error };
        }
        if came_back {
            lane.resting = true;
            return After::Rest(Resting::Lane(Arc::clone(key)));
        }
        self.enqueue(key);
        After::Nothing
    }

    /// The rest is over.
    pub(crate) fn wake(&mut self, resting: Resting) {
        match resting {
            Resting::Alone(item) => self.queue.push_front(Queued::Message(*item)),
            Resting::Lane(key) => {
                if let Some(lane) = self.lanes.get_mut(&key) {
                    lane.resting = false;
                }
                self.enqueue(&key);
            }
        }
    }

    /// Lets go of all that is not wanted and neither on the wire nor to be copied. What comes after it in its lane must not be
    /// wanted either.
    pub(crate) fn retain(&mut self, wanted: impl Fn(&Item) -> bool) {
        let mut unwanted = Vec::new();
        for queued in std::mem::take(&mut self.queue) {
            match queued {
                Queued::Message(item) if !wanted(&item) => unwanted.push(item),
                queued => self.queue.push_back(queued),
            }
        }
        for lane in self.lanes.values_mut() {
            let beyond = lane.waiting.iter().position(|item| !wanted(item)).unwrap_or(lane.waiting.len());
            unwanted.extend(lane.waiting.drain(beyond..));
        }
        self.let_go(&unwanted);
    }

    /// The messages to be copied to held keys, each with the position that names its hold, of the holds wanted.
    pub(crate) fn take_copies(&mut self, wanted: impl Fn(i64) -> bool) -> Vec<(i64, Item)> {
        let (taken, left): (Vec<_>, _) =
            std::mem::take(&mut self.copies).into_iter().partition(|(held, _)| wanted(*held));
        self.copies = left;
        self.let_go(taken.iter().map(|(_, item)| item));
        taken
    }

    /// Nothing is held for the key any more: what has come meanwhile goes its way.
    pub(crate) fn release(&mut self, key: &Arc<str>) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.held = None;
        let (mine, others) = std::mem::take(&mut self.copies)
            .into_iter()
            .partition(|(_, item)| item.log.message.key.as_ref() == Some(key));
        self.copies = others;
        lane.waiting.extend(Vec::into_iter(mine).map(|(_, item): (i64, Item)| item));
        self.enqueue(key);
    }

    /// Whether messages wait to be copied to the hold at this position.
    pub(crate) fn has_copies(&self, position: i64) -> bool {
        self.copies.iter().any(|(held, _)| *held == position)
    }

    fn enqueue(&mut self, key: &Arc<str>) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if lane.is_empty() {
            self.lanes.remove(key);
        } else if !lane.waiting.is_empty() && !lane.queued && lane.held.is_none() {
            lane.queued = true;
            self.queue.push_back(Queued::Lane(Arc::clone(key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use message::Message;
    use proptest::prelude::*;

    use super::*;

    fn item(position: i64, key: Option<&str>) -> Item {
        let mut message = Message::new("t", "k", "four");
        message.key = key.map(Into::into);
        let message = Arc::new(message);
        let outgoing = Outgoing { destination: "t".into(), message: Arc::clone(&message) };
        Item {
            log: LogMessage { position, slot: 0, enqueued_at: Utc::now(), message },
            window: 1,
            outgoing,
            unanswered: 0,
        }
    }

    fn positions(batch: &[Item]) -> Vec<i64> {
        batch.iter().map(|item| item.log.position).collect()
    }

    fn lanes(pipelining: Pipelining, keys: &[(i64, Option<&str>)]) -> Lanes {
        let mut lanes = Lanes::new(pipelining);
        keys.iter().for_each(|(position, key)| lanes.push(item(*position, *key)));
        lanes
    }

    #[test]
    fn one_per_key_sends_the_next_of_a_key_only_when_the_last_is_confirmed() {
        let mut lanes =
            lanes(Pipelining::OnePerKey, &[(1, Some("a")), (2, Some("a")), (3, Some("b")), (4, None)]);
        let batch = lanes.batch(10);
        assert_eq!(positions(&batch), [1, 3, 4]);
        assert!(lanes.batch(10).is_empty());
        lanes.confirm(&batch[0]);
        assert_eq!(positions(&lanes.batch(10)), [2]);
    }

    #[test]
    fn a_key_shares_a_batch_but_not_the_wire_with_another_batch() {
        let mut lanes =
            lanes(Pipelining::PerBatch, &[(1, Some("a")), (2, Some("a")), (3, Some("a")), (4, Some("b"))]);
        let first = lanes.batch(2);
        assert_eq!(positions(&first), [1, 2]);
        assert_eq!(positions(&lanes.batch(10)), [4]);
        lanes.confirm(&first[0]);
        assert!(lanes.batch(10).is_empty());
        lanes.confirm(&first[1]);
        assert_eq!(positions(&lanes.batch(10)), [3]);
    }

    #[test]
    fn what_failed_goes_first_and_the_rest_of_the_key_waits() {
        let mut lanes = lanes(Pipelining::PerBatch, &[(1, Some("a")), (2, Some("a")), (3, Some("a"))]);
        let mut batch = lanes.batch(2).into_iter();
        let (one, two) = (batch.next().unwrap(), batch.next().unwrap());
        assert!(matches!(lanes.fail(two), After::Nothing));
        let After::Rest(resting) = lanes.fail(one) else { panic!("the lane must rest") };
        assert!(lanes.batch(10).is_empty());
        lanes.wake(resting);
        assert_eq!(positions(&lanes.batch(10)), [1, 2, 3]);
    }

    #[test]
    fn a_rejected_message_takes_its_whole_key_along_in_order_and_nothing_else() {
        let mut lanes =
            lanes(Pipelining::OnePerKey, &[(1, Some("a")), (2, Some("a")), (3, Some("b")), (4, Some("b"))]);
        let mut batch = lanes.batch(10).into_iter();
        let After::Held { items, error } = lanes.reject(batch.next().unwrap(), "no".into()) else {
            panic!("held")
        };
        assert_eq!((positions(&items), error.as_str()), (vec![1, 2], "no"));
        lanes.confirm(&batch.next().unwrap());
        lanes.push(item(5, Some("a")));
        assert_eq!(positions(&lanes.batch(10)), [4]);
        let copies = lanes.take_copies(|_| true);
        assert_eq!((copies[0].0, copies[0].1.log.position), (1, 5));
        assert_eq!(lanes.len(), 1);
    }

    #[test]
    fn what_is_let_go_is_never_sent_and_what_is_wanted_is() {
        let keys = [Some("a"), Some("a"), Some("a"), Some("b"), None, Some("a")];
        let keys: Vec<_> = (1..).zip(keys).collect();
        let mut lanes = lanes(Pipelining::OnePerKey, &keys);
        let batch = lanes.batch(2);
        assert_eq!(positions(&batch), [1, 4]);
        lanes.retain(|item| item.log.position < 3);
        assert_eq!(lanes.len(), 3);
        batch.iter().for_each(|item| drop(lanes.confirm(item)));
        let batch = lanes.batch(10);
        assert_eq!(positions(&batch), [2]);
        lanes.confirm(&batch[0]);
        assert!(lanes.batch(10).is_empty());
        assert_eq!((lanes.len(), lanes.bytes()), (0, 0));
    }

    #[test]
    fn a_released_key_takes_up_what_was_not_copied_yet() {
        let mut lanes = Lanes::new(Pipelining::OnePerKey);
        lanes.hold("a".into(), 1);
        lanes.push(item(5, Some("a")));
        lanes.push(item(6, Some("a")));
        assert!(lanes.batch(10).is_empty() && lanes.has_copies(1));
        lanes.release(&"a".into());
        let batch = lanes.batch(10);
        assert_eq!(positions(&batch), [5]);
        assert!(!lanes.has_copies(1));
    }

    proptest! {
        /// Whatever fails and however answers arrive: per key, a message is confirmed only after all before it, no more
        /// is on the wire than the publisher allows, and in the end everything was confirmed once.
        #[test]
        fn every_key_is_confirmed_in_order(
            keys in proptest::collection::vec(proptest::option::of(0_u8..4), 1..60),
            script in proptest::collection::vec((0_u8..4, 0_usize..8, 1_usize..6), 0..400),
            one_per_key in any::<bool>(),
        ) {
            let mode = if one_per_key { Pipelining::OnePerKey } else { Pipelining::PerBatch };
            let mut lanes = Lanes::new(mode);
            let names = ["a", "b", "c", "d"];
            for (position, key) in (1..).zip(&keys) {
                lanes.push(item(position, key.map(|key| names[usize::from(key)])));
            }
            let mut wire: Vec<(usize, Vec<Item>)> = Vec::new();
            let mut resting = Vec::new();
            let mut confirmed: HashMap<Option<Arc<str>>, Vec<i64>> = HashMap::new();
            // After the script, everything succeeds.
            let script = script.into_iter().chain(std::iter::repeat((0, 0, 8)));
            for (step, (action, which, max)) in script.enumerate() {
                let batch = lanes.batch(max);
                if !batch.is_empty() {
                    wire.push((step, batch));
                }
                for (index, (_, batch)) in wire.iter().enumerate() {
                    for (other, (_, later)) in wire.iter().enumerate() {
                        for item in batch.iter().filter(|item| item.log.message.key.is_some()) {
                            let key = &item.log.message.key;
                            let twice = later.iter().filter(|other| &other.log.message.key == key).count();
                            prop_assert!(twice == 0 || (index == other && (!one_per_key || twice == 1)));
                        }
                    }
                }
                if wire.is_empty() {
                    match resting.pop() {
                        Some(rest) => { lanes.wake(rest); continue }
                        None => break,
                    }
                }
                // Within a batch of several of a key, what succeeds comes before what fails, as PerBatch promises.
                let index = which % wire.len();
                let (_, batch) = wire.remove(index);
                let fails = if action == 0 { batch.len() } else { which % (batch.len() + 1) };
                for (place, item) in batch.into_iter().enumerate() {
                    let after = if place < fails {
                        confirmed.entry(item.log.message.key.clone()).or_default().push(item.log.position);
                        lanes.confirm(&item)
                    } else {
                        lanes.fail(item)
                    };
                    if let After::Rest(rest) = after {
                        resting.push(rest);
                    }
                }
            }
            prop_assert_eq!((lanes.len(), lanes.bytes()), (0, 0));
            for (key, positions) in &confirmed {
                let mut sorted = positions.clone();
                sorted.sort_unstable();
                if key.is_some() {
                    prop_assert_eq!(positions, &sorted);
                }
            }
            prop_assert_eq!(confirmed.values().map(Vec::len).sum::<usize>(), keys.len());
        }
    }
}
