//! What was read and is not done: which messages wait, are in a consumer's hands, or are acknowledged and not recorded.
//! No I/O.
//!
//! It outlives the reader. When the log is read again from the recorded cursors, because the shards are shared anew or
//! the connection was lost, a message that is in somebody's hands or acknowledged is known by its position and not
//! handed out twice; so long as nobody else had its shard in between, which the epoch tells.

use std::collections::HashMap;
use std::sync::Arc;

use message::{Malformed, Message};
use outbox::Pattern;
use outbox::log::{CursorRecord, Page, Progress};
use tokio::time::Instant;

use super::lanes::{Lane, Lanes};
use super::unreadable;

/// What a consumer said of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    Acknowledged,
    /// Deliver again, not before that.
    Again(Instant),
}

/// A message that is handed out, and the number of its delivery.
#[derive(Debug)]
pub(super) struct HandedOut {
    pub(super) position: i64,
    pub(super) delivery: u64,
    pub(super) message: Received,
}

/// A message, or what is left of a row that is none.
pub(super) type Received = Result<Arc<Message>, Arc<Malformed>>;

#[derive(Debug, Default)]
pub(super) struct Desk {
    topics: Vec<Pattern>,
    /// Into how many shards the log is divided.
    divided: i16,
    shards: HashMap<i16, Shard>,
    messages: HashMap<i64, Known>,
    lanes: Lanes,
    arrivals: u64,
    deliveries: u64,
    /// Those of `messages` that are not acknowledged.
    unanswered: usize,
    /// What the record being written makes safe to forget.
    recording: Vec<(i16, Vec<i64>)>,
}

#[derive(Debug)]
struct Shard {
    epoch: i64,
    progress: Progress,
    /// It is being handed over: nothing of it is handed out any more.
    leaving: bool,
    in_hands: usize,
    acknowledged: Vec<i64>,
}

#[derive(Debug)]
struct Known {
    shard: i16,
    lane: Lane,
    /// The window it was read in, and its place among the arrivals; `None`: not read again yet.
    read: Option<(u64, u64)>,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting(Received),
    Again(Instant, Received),
    InHands(u64, Received),
    Acknowledged,
}

impl Desk {
    /// Hands out messages of these topics; of all, if none is named.
    pub(super) fn ask_for(&mut self, topics: Vec<Pattern>) {
        self.topics = topics;
    }

    /// These shards are read from where their cursors were recorded: number, epoch, progress.
    pub(super) fn open(&mut self, shards: Vec<(i16, i64, Progress)>, divided: i16) {
        self.close();
        self.divided = divided;
        let before = std::mem::take(&mut self.shards);
        for (number, epoch, progress) in shards {
            // One epoch on, it was we who took it again.
            if before.get(&number).is_none_or(|shard| shard.epoch + 1 != epoch) {
                self.messages.retain(|_, known| known.shard != number);
            }
            let (in_hands, acknowledged) = (0, Vec::new());
            self.shards.insert(number, Shard { epoch, progress, leaving: false, in_hands, acknowledged });
        }
        let shards = &mut self.shards;
        self.messages.retain(|position, known| {
            let Some(shard) = shards.get_mut(&known.shard) else { return false };
            match known.state {
                State::InHands(..) => shard.in_hands += 1,
                // It was not met in all that was read since the last time: the cursor was behind it.
                State::Acknowledged if known.read.is_none() => return false,
                State::Acknowledged => shard.acknowledged.push(*position),
                State::Waiting(_) | State::Again(..) => {}
            }
            known.read = None;
            true
        });
        self.count();
    }

    /// Hands nothing out until the log is read again.
    pub(super) fn close(&mut self) {
        self.lanes = Lanes::default();
        self.recording.clear();
        self.messages.retain(|_, known| !matches!(known.state, State::Waiting(_)));
        self.count();
    }

    /// Nothing is handed out or answered any more.
    pub(super) fn end(&mut self) {
        self.shards.clear();
        self.messages.clear();
        self.close();
    }

    /// A page was read.
    pub(super) fn take_page(&mut self, page: Page) {
        for shard in page.shards.iter() {
            if let Some(shard) = self.staying(*shard) {
                shard.progress.read(&page.window, page.read_to, page.last);
            }
        }
        // All are begun before one is finished, since a window that is read and has nothing under way closes.
        for log in &page.messages {
            if let Some(shard) = self.staying(log.slot % self.divided.max(1)) {
                shard.progress.begin(log.position);
            }
        }
        let window = page.window.id;
        for log in page.messages {
            let number = log.slot % self.divided.max(1);
            let wanted = self.wants(&log.message.topic);
            let Some(shard) = self.staying(number) else { continue };
            if !wanted {
                shard.progress.finish(window, log.position);
                continue;
            }
            self.arrivals += 1;
            let order = self.arrivals;
            let lane = log.message.key.clone().map_or(Lane::Alone(log.position), Lane::Key);
            let position = log.position;
            let known = self.messages.entry(position).or_insert_with(|| {
                self.unanswered += 1;
                Known { shard: number, lane, read: None, state: State::Waiting(unreadable::received(log)) }
            });
            known.read = Some((window, order));
            match known.state {
                State::Waiting(_) => self.lanes.push(&known.lane, order, position, None),
                State::Again(from, _) => self.lanes.push(&known.lane, order, position, Some(from)),
                State::InHands(..) => {}
                State::Acknowledged => {
                    if let Some(shard) = self.shards.get_mut(&number) {
                        shard.progress.finish(window, position);
                    }
                }
            }
        }
        for shard in page.shards.iter() {
            if let Some(shard) = self.staying(*shard) {
                shard.progress.settle();
            }
        }
    }

    /// Takes up to `max` messages that may be handed out now.
    pub(super) fn take(&mut self, max: usize, now: Instant) -> Vec<HandedOut> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some(position) = self.lanes.pop(now)
        {
            let Some(known) = self.messages.get_mut(&position) else { continue };
            let (State::Waiting(message) | State::Again(_, message)) = &known.state else { continue };
            let message = message.clone();
            self.deliveries += 1;
            known.state = State::InHands(self.deliveries, message.clone());
            if let Some(shard) = self.shards.get_mut(&known.shard) {
                shard.in_hands += 1;
            }
            taken.push(HandedOut { position, delivery: self.deliveries, message });
        }
        taken
    }

    /// When there may be something to take that there is not now.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        self.lanes.wakes_at()
    }

    /// A delivery is answered. `false`: it means nothing any more, since the message went to somebody else.
    pub(super) fn answer(&mut self, position: i64, delivery: u64, said: Said) -> bool {
        let Some(known) = self.messages.get_mut(&position) else { return false };
        let message = match &known.state {
            State::InHands(number, message) if *number == delivery => message.clone(),
            _ => return false,
        };
        let Some(shard) = self.shards.get_mut(&known.shard) else { return false };
        shard.in_hands -= 1;
        match said {
            Said::Acknowledged => {
                if let Some((window, _)) = known.read {
                    shard.progress.finish(window, position);
                }
                shard.acknowledged.push(position);
                known.state = State::Acknowledged;
                self.unanswered -= 1;
            }
            // Whoever has the shard next delivers it again.
            Said::Again(_) if shard.leaving => {
                self.messages.remove(&position);
                self.unanswered -= 1;
            }
            Said::Again(from) => {
                known.state = State::Again(from, message);
                if let Some((_, order)) = known.read {
                    self.lanes.push(&known.lane, order, position, Some(from));
                }
            }
        }
        true
    }

    /// Whether there is room for a page, with up to `max` messages unanswered.
    pub(super) fn has_room(&self, max: usize) -> bool {
        // An acknowledged one waits for those before it, and is small.
        self.unanswered < max && self.messages.len() < max.saturating_mul(10)
    }

    /// What to record of the cursors that have moved. Answer it with [`recorded`](Self::recorded).
    pub(super) fn record(&mut self) -> Vec<CursorRecord> {
        let mut records = Vec::new();
        self.recording.clear();
        for (number, shard) in &mut self.shards {
            let Some(record) = shard.progress.record() else { continue };
            records.push(record);
            let (messages, progress) = (&self.messages, &shard.progress);
            let passed = |position: &i64| {
                let read = messages.get(position).and_then(|known| known.read);
                read.is_some_and(|(window, _)| progress.has_passed(window, *position))
            };
            let (passed, behind) = std::mem::take(&mut shard.acknowledged).into_iter().partition(passed);
            shard.acknowledged = behind;
            self.recording.push((*number, passed));
        }
        records
    }

    /// The record is written, but for shards whose lease is `lost`.
    pub(super) fn recorded(&mut self, lost: &[i16]) {
        for (_, passed) in std::mem::take(&mut self.recording) {
            for position in passed {
                self.messages.remove(&position);
            }
        }
        self.forget(lost);
    }

    /// How many shards there are.
    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Begins to hand over so many shards, those with the fewest messages in consumers' hands.
    pub(super) fn leave(&mut self, count: usize) {
        let mut by_hands: Vec<(usize, i16)> =
            self.shards.iter().map(|(number, shard)| (shard.in_hands, *number)).collect();
        by_hands.sort_unstable();
        for (_, number) in by_hands.into_iter().take(count) {
            if let Some(shard) = self.shards.get_mut(&number) {
                shard.leaving = true;
            }
            let lanes = &mut self.lanes;
            self.messages.retain(|_, known| {
                let waits = matches!(known.state, State::Waiting(_) | State::Again(..));
                if known.shard != number || !waits {
                    return true;
                }
                if let Some((_, order)) = known.read {
                    lanes.remove(&known.lane, order);
                }
                false
            });
        }
        self.count();
    }

    /// The shards being handed over.
    pub(super) fn leaving(&self) -> Vec<i16> {
        self.shards.iter().filter(|(_, shard)| shard.leaving).map(|(number, _)| *number).collect()
    }

    /// Whether nothing of the shards being handed over is in a consumer's hands.
    pub(super) fn has_left(&self) -> bool {
        self.shards.values().all(|shard| !shard.leaving || shard.in_hands == 0)
    }

    /// These shards belong to somebody else.
    pub(super) fn forget(&mut self, shards: &[i16]) {
        if shards.is_empty() {
            return;
        }
        let lanes = &mut self.lanes;
        self.messages.retain(|_, known| {
            let gone = shards.contains(&known.shard);
            if let Some((_, order)) = known.read.filter(|_| gone) {
                lanes.remove(&known.lane, order);
            }
            !gone
        });
        self.shards.retain(|number, _| !shards.contains(number));
        self.count();
    }

    fn wants(&self, topic: &str) -> bool {
        self.topics.is_empty() || self.topics.iter().any(|pattern| pattern.fits(topic))
    }

    fn staying(&mut self, number: i16) -> Option<&mut Shard> {
        self.shards.get_mut(&number).filter(|shard| !shard.leaving)
    }

    fn count(&mut self) {
        let unanswered = |known: &&Known| !matches!(known.state, State::Acknowledged);
        self.unanswered = self.messages.values().filter(unanswered).count();
    }
}

#[cfg(test)]
mod tests;
