//! Order per key, concurrency across keys: which messages may be on the wire now. No I/O.
//!
//! A key is a *lane*. What a lane may have on the wire at once is the publisher's [`Pipelining`]; what fails goes back to
//! the front of its lane; a lane that is held lets nothing through until it is released; a lane whose next message goes to a
//! destination that is closed waits there. A message without a key has a lane to itself.

mod aside;

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
    Held { items: Vec<Item>, cause: Cause },
}

/// Why a lane is held.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) enum Cause {
    /// The broker will not take its first message.
    Rejected(String),
    /// It takes more than its share of the look-ahead.
    Backlog,
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
    /// Is held when nothing of it is on the wire any more.
    to_hold: Option<Cause>,
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
    /// The destinations that are closed, and what waits at each.
    closed: HashMap<Arc<str>, VecDeque<Resting>, RandomState>,
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
            (self.on_wire, &self.failed, &self.waiting, &self.to_hold).hash(state);
            (self.held, self.queued, self.resting).hash(state);
        }
    }

    impl Hash for Lanes {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.lanes.iter().collect::<BTreeMap<_, _>>().hash(state);
            (&self.queue, &self.copies).hash(state);
            self.closed.iter().collect::<BTreeMap<_, _>>().hash(state);
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
        room && self.failed.is_empty() && self.to_hold.is_none() && !self.resting
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
            && self.to_hold.is_none()
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
            closed: HashMap::default(),
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
        let closed = self.closed.get_mut(&item.outgoing.destination);
        let Some(key) = &item.log.message.key else {
            match closed {
                Some(waiting) => waiting.push_back(Resting::Alone(Box::new(item))),
                None => batch.push(item),
            }
            return;
        };
        let lane = match self.lanes.get_mut(key) {
            Some(lane) => lane,
            None => self.lanes.entry(Arc::clone(key)).or_default(),
        };
        if let Some(position) = lane.held {
            self.copies.push((position, item));
        } else if lane.waiting.is_empty() && lane.is_open(self.pipelining, self.batches) {
            if let Some(waiting) = closed {
                // What is on the wire otherwise queues the lane when it comes back.
                if lane.on_wire == 0 {
                    lane.resting = true;
                    waiting.push_back(Resting::Lane(Arc::clone(key)));
                }
                lane.waiting.push_back(item);
                return;
            }
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
            if let Some(waiting) = self.closed.get_mut(&item.outgoing.destination) {
                if lane.on_wire == 0 {
                    lane.resting = true;
                    waiting.push_back(Resting::Lane(key));
                }
                lane.waiting.push_front(item);
                return;
            }
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
            Some(key) => self.back(&key, Some(item), Some(Cause::Rejected(error))),
            None => {
                self.let_go([&item]);
                After::Held { items: vec![item], cause: Cause::Rejected(error) }
            }
        }
    }

    fn back(&mut self, key: &Arc<str>, failed: Option<Item>, rejected: Option<Cause>) -> After {
        let Some(lane) = self.lanes.get_mut(key) else { return After::Nothing };
        lane.on_wire = lane.on_wire.saturating_sub(1);
        lane.failed.extend(failed);
        if !matches!(lane.to_hold, Some(Cause::Rejected(_))) {
            lane.to_hold = rejected.or(lane.to_hold.take());
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
        if let Some(cause) = lane.to_hold.take()
            && !lane.waiting.is_empty()
        {
            return After::Held { items: self.hold_lane(key), cause };
        }
        if came_back {
            lane.resting = true;
            return After::Rest(Resting::Lane(Arc::clone(key)));
        }
        self.enqueue(key);
        After::Nothing
    }

    /// Holds a lane of which nothing is on the wire: its messages.
    fn hold_lane(&mut self, key: &Arc<str>) -> Vec<Item> {
        let Some(lane) = self.lanes.get_mut(key) else { return Vec::new() };
        let items: Vec<Item> = lane.waiting.drain(..).collect();
        lane.held = items.first().map(|item| item.log.position);
        lane.resting = false;
        self.let_go(&items);
        items
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

    /// The messages to be copied to held keys, each with the position that names its hold, of the holds wanted.
    pub(crate) fn take_copies(&mut self, wanted: impl Fn(i64) -> bool) -> Vec<(i64, Item)> {
        let (taken, left): (Vec<_>, _) =
            std::mem::take(&mut self.copies).into_iter().partition(|(held, _)| wanted(*held));
        self.copies = left;
        self.let_go(taken.iter().map(|(_, item)| item));
        taken
    }

    /// Takes out what waits to be copied to the hold at this position and is settled.
    pub(crate) fn take_settled(&mut self, position: i64, is_settled: impl Fn(i64) -> bool) -> Vec<Item> {
        let is_taken = |copy: &(i64, Item)| copy.0 == position && is_settled(copy.1.log.position);
        let (taken, left): (Vec<_>, _) = std::mem::take(&mut self.copies).into_iter().partition(is_taken);
        self.copies = left;
        let taken: Vec<Item> = taken.into_iter().map(|(_, item)| item).collect();
        self.let_go(&taken);
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

    /// The holds to which messages wait to be copied.
    pub(crate) fn copied_to(&self) -> impl Iterator<Item = i64> {
        self.copies.iter().map(|(held, _)| *held)
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
mod tests;
