//! Between the lanes and the database: what is held back, and what is recorded.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use message::Publisher;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::holds::{Notice, shorten};
use super::super::lanes::Item;
use super::super::{Policy, backoff};
use super::publish::UNANSWERED;
use super::{QUIET, Session};
use crate::log::{HoldReason, LogMessage, NewHold, Progress, Record};

/// Why a key is held.
#[derive(Debug, Clone, Copy)]
pub(super) enum Why<'a> {
    /// For an error.
    Failed(&'a str),
    /// Its destination takes nothing now, and why.
    Destination(&'a Arc<str>, &'a str),
    /// It takes too much of the look-ahead.
    Backlog,
}

/// A key that is held though no attempt at its first message counts, and is due at once.
fn untried_hold(first: &Item, reason: HoldReason, error: &str) -> NewHold {
    NewHold {
        position: first.log.position,
        slot: first.log.slot,
        key: first.log.message.key.clone(),
        retry_in: Some(Duration::ZERO),
        attempts: 0,
        error: shorten(error),
        reason,
        destination: None,
    }
}

impl<P: Publisher + 'static> Session<'_, P> {
    pub(super) fn hold(&mut self, items: Vec<Item>, why: Why<'_>) {
        let Some(first) = items.first() else { return };
        let fault =
            first.log.fault.as_ref().map(|fault| format!("the row cannot be read as a message: {fault}"));
        let why = fault.as_deref().map_or(why, Why::Failed);
        let hold = match why {
            Why::Failed(error) => self.failed_hold(first, error, items.len() - 1),
            Why::Destination(destination, reason) => {
                let error = format!("destination {destination} is unavailable: {reason}");
                let retry_in = Some(self.settings.unavailable.ceiling);
                NewHold {
                    destination: Some(Arc::clone(destination)),
                    retry_in,
                    ..untried_hold(first, HoldReason::Destination, &error)
                }
            }
            Why::Backlog => {
                tracing::info!(
                    relay = self.relay.name,
                    position = first.log.position,
                    messages = items.len(),
                    "a key takes more than half of what is read ahead: its messages are set aside"
                );
                let error = "its backlog takes more than half of what the relay reads ahead";
                untried_hold(first, HoldReason::Backlog, error)
            }
        };
        let position = hold.position;
        self.held.insert(position, hold.key.clone());
        self.new_holds.push(hold);
        for item in items {
            self.pass(&item);
            self.copy(position, item.log);
        }
    }

    fn copy(&mut self, held: i64, log: LogMessage) {
        self.copied_bytes += log.message.payload.len();
        self.copies.push((held, log));
    }

    /// The hold of a key whose first message was rejected, or not answered.
    fn failed_hold(&self, first: &Item, error: &str, behind: usize) -> NewHold {
        let position = first.log.position;
        let unreadable = first.log.fault.is_some();
        // Without an answer nobody is to blame, so no attempt counts.
        let attempts = if first.unanswered < UNANSWERED && !unreadable { 1 } else { 0 };
        let last = unreadable || attempts >= self.settings.max_attempts;
        let skipped =
            last && !unreadable && self.settings.policies.of(&first.log.message.topic) == Policy::Skip;
        // It is given up where held keys are tried, after one attempt more.
        let (parked, attempts) = if skipped { (false, 0) } else { (last, attempts) };
        let retry = self.settings.retry.after(1, backoff::chance());
        tracing::warn!(
            relay = self.relay.name, id = %first.log.message.id, position, error, behind,
            "a message is rejected, or not answered: its key is held back"
        );
        NewHold {
            retry_in: (!parked).then_some(retry),
            attempts: i32::try_from(attempts).unwrap_or(1),
            ..untried_hold(first, HoldReason::Failed, error)
        }
    }

    /// Holds a message of a shard whose owners die, to be tried by itself; the attempts at it ended with its process.
    pub(super) fn hold_on_suspicion(&mut self, log: LogMessage, crashes: i32) {
        let (position, key) = (log.position, log.message.key.clone());
        let allowed = i32::try_from(self.settings.max_attempts).unwrap_or(i32::MAX);
        self.new_holds.push(NewHold {
            position,
            slot: log.slot,
            key: key.clone(),
            retry_in: Some(Duration::ZERO),
            attempts: crashes.min((allowed - 1).max(0)),
            error: format!(
                "the relay's process ended {crashes} times while this, or one read with it, was published"
            ),
            reason: HoldReason::Suspected,
            destination: None,
        });
        if let Some(key) = &key {
            self.lanes.hold(Arc::clone(key), position);
        }
        self.held.insert(position, key);
        self.copy(position, log);
        self.moved = true;
        self.on_suspicion = true;
    }

    pub(super) fn copies_from_lanes(&mut self) {
        let releasing = &self.releasing;
        for (position, item) in self.lanes.take_copies(|position| !releasing.contains(&position)) {
            self.pass(&item);
            self.copy(position, item.log);
        }
    }

    pub(super) fn take_notice(&mut self, notice: Notice) {
        match notice {
            Notice::MayRelease(mut positions, answer) => {
                let mut on_the_way: HashSet<i64> = self.copies.iter().map(|(held, _)| *held).collect();
                on_the_way.extend(self.lanes.copied_to());
                on_the_way.extend(&self.writing_copies);
                positions.retain(|position| !on_the_way.contains(position));
                self.releasing.extend(&positions);
                let _ = answer.send(positions);
            }
            Notice::Settled(messages) => self.settled.extend(messages),
            Notice::Released { asked, gone } => {
                for position in asked {
                    self.releasing.remove(&position);
                }
                for (position, settled) in gone {
                    self.settled.extend(settled);
                    self.pass_settled(position);
                    tracing::debug!(relay = self.relay.name, position, "the key is free again");
                    if let Some(Some(key)) = self.held.remove(&position) {
                        self.lanes.release(&key);
                    }
                }
                self.held_count.send_replace(self.held.len());
            }
            Notice::Published(messages) => {
                metrics::counter!("outbox_published_total", "relay" => self.relay.name.clone())
                    .increment(messages);
            }
        }
    }

    /// What was read of a key while it was about to go is published from now on, but for what is settled.
    fn pass_settled(&mut self, position: i64) {
        for item in self.lanes.take_settled(position, |position| self.settled.contains(position)) {
            self.pass(&item);
        }
    }

    /// The record is written, or its shards are lost.
    pub(super) fn written(&mut self) {
        self.writing = None;
        self.writing_copies.clear();
        if !self.writing_waits.is_empty() {
            let waits = std::mem::take(&mut self.writing_waits);
            self.availability.with(|state| waits.into_iter().for_each(|name| state.keys_wait(name)));
        }
    }

    /// Messages finished that a crash would repeat.
    pub(super) fn unrecorded(&self) -> usize {
        self.progress.values().map(Progress::unrecorded).sum()
    }

    /// What the cursors have passed of what is settled, now and then, or with `all`: each time all of it is gone through.
    fn forget_settled(&mut self, all: bool) -> Vec<(i16, i64)> {
        if !all && self.settled_since.elapsed() < QUIET {
            return Vec::new();
        }
        self.settled_since = Instant::now();
        let progress = &self.progress;
        self.settled.take_passed(|shard| progress.get(&shard).map(Progress::cursor), &self.eras)
    }

    /// What is published and will not be passed by the cursor, because an earlier message was not answered before the session
    /// must end, by shard and position. An answer that comes later is not heard.
    fn delivered_ahead(&mut self) -> Vec<(i16, i64)> {
        // Once.
        if !std::mem::take(&mut self.leaving) {
            return Vec::new();
        }
        let of = |(shard, progress): (&i16, &Progress)| {
            progress.delivered_ahead().map(|position| (*shard, position)).collect::<Vec<_>>()
        };
        self.progress.iter().flat_map(of).collect()
    }

    /// Hands the reader what to record, unless it is still writing the last record; of all shards if that is due, or
    /// with `all`.
    pub(super) fn record(&mut self, all: bool) {
        if self.writing.is_some() {
            return;
        }
        self.copies_from_lanes();
        // Of a shard that was lost nothing is written: another process holds its keys now.
        let (shards, progress) = (self.shards, &self.progress);
        self.new_holds.retain(|hold| progress.contains_key(&(hold.slot % shards)));
        self.copies.retain(|(_, copy)| progress.contains_key(&(copy.slot % shards)));
        let all = self.moved && (all || self.quiet_since.elapsed() >= QUIET);
        if all {
            (self.moved, self.quiet_since) = (false, Instant::now());
        }
        let forgotten = self.forget_settled(all);
        let settled = self.delivered_ahead();
        // A shard in which something is held or settled takes part though its cursor has not moved: holds and copies are written
        // under its epoch, or not at all.
        let held = self.new_holds.iter().map(|hold| hold.slot);
        let held = held.chain(self.copies.iter().map(|(_, copy)| copy.slot));
        let done_with = forgotten.iter().chain(&settled).map(|(shard, _)| *shard);
        let held = held.map(|slot| slot % self.shards).chain(done_with);
        let held: BTreeSet<i16> = held.collect();
        let cursors = self.progress.iter_mut().filter_map(|(shard, progress)| {
            progress.record().or_else(|| (all || held.contains(shard)).then(|| progress.cursor()))
        });
        let record = Record {
            cursors: cursors.collect(),
            holds: std::mem::take(&mut self.new_holds),
            copies: std::mem::take(&mut self.copies),
            forgotten,
            settled,
        };
        self.copied_bytes = 0;
        if record.is_empty() {
            return;
        }
        self.writing_copies = record.copies.iter().map(|(held, _)| *held).collect();
        self.writing_waits = record.holds.iter().filter_map(|hold| hold.destination.clone()).collect();
        let confirmed = std::mem::take(&mut self.confirmed);
        metrics::counter!("outbox_published_total", "relay" => self.relay.name.clone()).increment(confirmed);
        let (answer, writing) = oneshot::channel();
        // Full only while the reader has a record to write, which `writing` rules out; gone if the reader is, which
        // its task tells.
        if let Some(records) = &self.records {
            let _ = records.try_send((record, answer));
        }
        self.writing = Some(writing);
        self.held_count.send_replace(self.held.len());
    }
}
