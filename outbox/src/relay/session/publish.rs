//! Between the lanes and the broker: what is sent, and what its outcomes mean.

use std::sync::Arc;
use std::time::Duration;

use message::{Outcome, Outcomes, Outgoing, PublishError, Publisher};
use tokio::time::Instant;

use super::super::backoff;
use super::super::hearing::{Heard, hear};
use super::super::lanes::{After, Item};
use super::{Batch, Session};
use crate::log::Page;

/// A message that was sent so often without an answer is held back, so that the cursor need not wait for it: one that is
/// never answered would stop its shard's cursor, and in the end the relay.
pub(super) const UNANSWERED: u32 = 5;

impl<P: Publisher + 'static> Session<'_, P> {
    pub(super) fn take_page(&mut self, page: Page) {
        for shard in page.shards.iter() {
            if let Some(progress) = self.progress.get_mut(shard) {
                progress.read(&page.window, page.read_to, page.last);
            }
        }
        let (mut held, mut settled) = (Vec::new(), Vec::new());
        for log in page.messages {
            let shard = log.slot % self.shards;
            let Some(progress) = self.progress.get_mut(&shard) else { continue };
            progress.begin(log.position);
            if self.settled.contains(log.position) {
                settled.push((shard, log.position));
                continue;
            }
            if log.message.key.is_none() && self.held.contains_key(&log.position) {
                // Held alone before this session began: its copy was written with the hold.
                held.push((shard, log.position));
                continue;
            }
            let held_already = log.message.key.as_ref().is_some_and(|key| self.lanes.is_held(key));
            if let Some(crashes) = self.suspects.get(&shard).copied().filter(|_| !held_already) {
                held.push((shard, log.position));
                self.hold_on_suspicion(log, crashes);
                continue;
            }
            let destination = self.router.route(&log.message.topic);
            let outgoing = Outgoing { destination, message: Arc::clone(&log.message) };
            self.lanes.push(Item { log, window: page.window.id, outgoing, unanswered: 0 });
        }
        self.read_to = page.read_to;
        self.suspects.retain(|shard, _| held.iter().all(|(on_trial, _)| on_trial != shard));
        for (shard, position) in held.into_iter().chain(settled) {
            if let Some(progress) = self.progress.get_mut(&shard) {
                progress.finish(page.window.id, position);
            }
        }
        for shard in page.shards.iter() {
            if let Some(progress) = self.progress.get_mut(shard) {
                progress.settle();
            }
        }
    }

    pub(super) fn send(&mut self) {
        let now = Instant::now();
        let paused = self.availability.with(|state| state.paused_until(now).is_some());
        if paused || !self.lease_holds() {
            return;
        }
        // What may be what kills the process stands in the database before anything else is risked.
        self.on_suspicion &= self.writing.is_some() || !self.new_holds.is_empty();
        if self.on_suspicion {
            return;
        }
        self.send_probes(now);
        while self.lanes.is_ready() && self.on_wire < self.settings.max_on_wire {
            let room = self.settings.max_on_wire - self.on_wire;
            let items = self.lanes.batch(self.settings.batch.min(room));
            self.copies_from_lanes();
            let items = self.without_unreadable(items);
            if !items.is_empty() {
                self.put_on_wire(items);
            }
        }
    }

    /// One message for each destination that is down and to be probed now.
    fn send_probes(&mut self, now: Instant) {
        let lanes = &mut self.lanes;
        let patience = self.settings.publish_timeout;
        let probes: Vec<Item> = self.availability.with(|state| {
            let waiting = lanes.closed().filter(|(_, waits)| *waits).map(|(destination, _)| destination);
            let due = state.due_probes(waiting, now);
            let probe = |destination: &Arc<str>| {
                let item = lanes.probe(destination)?;
                state.probe(destination, item.log.position, now, patience);
                Some(item)
            };
            due.iter().filter_map(probe).collect()
        });
        for item in probes {
            let destination = Arc::clone(&item.outgoing.destination);
            let items = self.without_unreadable(vec![item]);
            if items.is_empty() {
                self.availability.with(|state| state.probe_went_elsewhere(&destination, now));
            } else {
                self.put_on_wire(items);
            }
        }
    }

    fn put_on_wire(&mut self, items: Vec<Item>) {
        self.last_batch += 1;
        let batch: Vec<Outgoing> = items.iter().map(|item| item.outgoing.clone()).collect();
        let outcomes = Outcomes::new(self.last_batch, self.outcomes.0.clone());
        let (publisher, timeout) = (Arc::clone(&self.relay.publisher), self.settings.publish_timeout);
        self.publishing.spawn(async move {
            // Dropped in time, the publisher's outcomes count as unknown.
            let _ = tokio::time::timeout(timeout, publisher.publish(&batch, outcomes)).await;
        });
        self.on_wire += items.len();
        let items: Vec<_> = items.into_iter().map(Some).collect();
        self.batches.insert(self.last_batch, Batch { left: items.len(), items });
    }

    pub(super) fn take_outcome(&mut self, outcome: Outcome) {
        let Some(batch) = self.batches.get_mut(&outcome.batch) else { return };
        let places = match outcome.index {
            Some(index) => index..index + 1,
            None => 0..batch.items.len(),
        };
        let items: Vec<Item> =
            batch.items.get_mut(places).into_iter().flatten().filter_map(Option::take).collect();
        batch.left -= items.len();
        if batch.left == 0 {
            self.batches.remove(&outcome.batch);
        }
        self.on_wire -= items.len();
        for item in items {
            self.finish(item, &outcome.result);
        }
    }

    fn finish(&mut self, mut item: Item, result: &Result<(), PublishError>) {
        self.learn(&item, result);
        let after = match result {
            Ok(()) => {
                self.confirmed += 1;
                self.deliver(&item);
                self.lanes.confirm(&item)
            }
            Err(PublishError::Rejected(reason)) => self.lanes.reject(item, reason.clone()),
            // Whose fault it was is known elsewhere; nothing counts against the message.
            Err(
                PublishError::Unavailable(_)
                | PublishError::DestinationUnavailable(_)
                | PublishError::NotSent(_),
            ) => self.lanes.fail(item),
            Err(error) => {
                item.unanswered += 1;
                tracing::warn!(relay = self.relay.name, id = %item.log.message.id, %error, "published again");
                if item.unanswered < UNANSWERED {
                    self.lanes.fail(item)
                } else {
                    self.lanes.reject(item, error.to_string())
                }
            }
        };
        match after {
            After::Nothing => {}
            After::Rest(resting) => {
                if let Some(resting) = self.lanes.file(resting) {
                    let rest = self.settings.unavailable.after(1, backoff::chance());
                    let now = Instant::now();
                    let paused = self.availability.with(|state| state.paused_until(now));
                    self.resting.push((paused.unwrap_or(now).max(now + rest), resting));
                }
            }
            After::Held { items, cause } => self.hold_for(items, &cause),
        }
    }

    /// What an outcome says of the broker and the message's destination.
    fn learn(&mut self, item: &Item, result: &Result<(), PublishError>) {
        let (destination, position) = (&item.outgoing.destination, item.log.position);
        let name = &self.relay.name;
        let heard = hear(&self.availability, name, destination, position, result);
        match heard {
            Heard::Nothing => {}
            Heard::Down => self.lanes.close(destination),
            Heard::Back => self.lanes.open(destination),
        }
    }

    /// A message is confirmed.
    fn deliver(&mut self, item: &Item) {
        self.moved = true;
        if let Some(progress) = self.progress.get_mut(&(item.log.slot % self.shards)) {
            progress.deliver(item.window, item.log.position);
        }
    }

    /// A message need not be waited for any more: it is about to be recorded as held, or settled.
    pub(super) fn pass(&mut self, item: &Item) {
        self.moved = true;
        if let Some(progress) = self.progress.get_mut(&(item.log.slot % self.shards)) {
            progress.finish(item.window, item.log.position);
        }
    }

    pub(super) fn wake_at(&self) -> Instant {
        let soonest = self.resting.iter().map(|(until, _)| *until).min();
        let far = Instant::now() + Duration::from_secs(3600);
        let now = Instant::now();
        let lanes = &self.lanes;
        let allowed = self.availability.with(|state| {
            let waiting = lanes.closed().filter(|(_, waits)| *waits).map(|(destination, _)| destination);
            let probe = state.next_probe_at(waiting, now);
            // One that is due and not sent waits for something that is not known here.
            state.paused_until(now).or(probe.map(|at| at.max(now + Duration::from_millis(5))))
        });
        match (soonest, allowed) {
            (Some(rest), Some(allowed)) => rest.min(allowed),
            (rest, allowed) => rest.or(allowed).unwrap_or(far),
        }
    }

    pub(super) fn wake(&mut self) {
        if self.resting.is_empty() {
            return;
        }
        let now = Instant::now();
        let (over, still) =
            std::mem::take(&mut self.resting).into_iter().partition(|(until, _)| *until <= now);
        self.resting = still;
        for (_, resting) in Vec::into_iter(over) {
            self.lanes.wake(resting);
        }
    }
}
