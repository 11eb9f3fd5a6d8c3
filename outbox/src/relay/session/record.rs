//! Between the lanes and the database: what is held back, and what is recorded.

use std::collections::BTreeSet;
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
use crate::log::{LogMessage, NewHold, Progress, Record};

impl<P: Publisher + 'static> Session<'_, P> {
    pub(super) fn hold(&mut self, items: Vec<Item>, error: &str) {
        let Some(first) = items.first() else { return };
        let (position, key) = (first.log.position, first.log.message.key.clone());
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
            relay = self.relay.name, id = %first.log.message.id, position, error, behind = items.len() - 1,
            "a message is rejected, or not answered: its key is held back"
        );
        self.new_holds.push(NewHold {
            position,
            slot: first.log.slot,
            key: key.clone(),
            retry_in: (!parked).then_some(retry),
            attempts: i32::try_from(attempts).unwrap_or(1),
            error: shorten(error),
        });
        self.held.insert(position, key);
        for item in items {
            self.pass(&item);
            self.copies.push((position, item.log));
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
        });
        if let Some(key) = &key {
            self.lanes.hold(Arc::clone(key), position);
        }
        self.held.insert(position, key);
        self.copies.push((position, log));
        self.moved = true;
        self.on_suspicion = true;
    }

    pub(super) fn copies_from_lanes(&mut self) {
        let releasing = &self.releasing;
        for (position, item) in self.lanes.take_copies(|position| !releasing.contains(&position)) {
            self.pass(&item);
            self.copies.push((position, item.log));
        }
    }

    pub(super) fn take_notice(&mut self, notice: Notice) {
        match notice {
            Notice::MayRelease(position, answer) => {
                let on_the_way = self.copies.iter().any(|(held, _)| *held == position)
                    || self.lanes.has_copies(position)
                    || self.writing.is_some();
                if !on_the_way {
                    self.releasing.insert(position);
                }
                let _ = answer.send(!on_the_way);
            }
            Notice::Settled(message) => self.settled.extend([message]),
            Notice::Released(position, gone) => {
                self.releasing.remove(&position);
                if let Some(settled) = gone {
                    self.settled.extend(settled);
                    self.pass_settled(position);
                    tracing::info!(relay = self.relay.name, position, "the key is free again");
                    if let Some(Some(key)) = self.held.remove(&position) {
                        self.lanes.release(&key);
                        if self.ending.is_some() {
                            self.let_go_beyond_the_end();
                        }
                    }
                    self.held_count.send_replace(self.held.len());
                }
            }
            Notice::Published => {
                metrics::counter!("outbox_published_total", "relay" => self.relay.name.clone()).increment(1)
            }
        }
    }

    /// What was read of a key while it was about to go is published from now on, but for what is settled.
    fn pass_settled(&mut self, position: i64) {
        for item in self.lanes.take_settled(position, |position| self.settled.contains(position)) {
            self.pass(&item);
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
        // A shard in which something is held or settled takes part though its cursor has not moved: holds and copies are written
        // under its epoch, or not at all.
        let held = self.new_holds.iter().map(|hold| hold.slot);
        let held = held.chain(self.copies.iter().map(|(_, copy)| copy.slot));
        let held = held.map(|slot| slot % self.shards).chain(forgotten.iter().map(|(shard, _)| *shard));
        let held: BTreeSet<i16> = held.collect();
        let cursors = self.progress.iter_mut().filter_map(|(shard, progress)| {
            progress.record().or_else(|| (all || held.contains(shard)).then(|| progress.cursor()))
        });
        let record = Record {
            cursors: cursors.collect(),
            holds: std::mem::take(&mut self.new_holds),
            copies: std::mem::take(&mut self.copies),
            forgotten,
        };
        if record.is_empty() {
            return;
        }
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
