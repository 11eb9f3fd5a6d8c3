//! One process's session: the real machines (`Readings`, `Progress`, `Lanes`, `Share`), driven as `session.rs`, its rooms and
//! `holds.rs` drive them, with the database a value and the broker a list.

mod publish;
mod read;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use message::{Outgoing, Pipelining};
use tokio::time::Instant;

use super::database::{Cursor, Database, Process, Row, message};
use super::plant::Plant;
use crate::log::{CursorRecord, LogMessage, Move, Progress, Readings, Share};
use crate::relay::lanes::{Item, Lanes, Resting};
use crate::relay::settled::Settled;

/// Most messages a batch.
const BATCH: usize = 4;

/// A message on the wire.
#[derive(Clone, Debug, Hash)]
pub(super) struct Sent {
    pub(super) item: Item,
    /// The broker keeps it, and its confirmation is on the way.
    pub(super) kept: bool,
    /// It is tried by itself, for the hold at this position.
    pub(super) hold: Option<i64>,
}

impl Sent {
    pub(super) fn position(&self) -> i64 {
        self.item.log.position
    }

    pub(super) fn key(&self) -> i16 {
        self.item.log.slot
    }
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ended {
    Stopped,
    Shared,
}

/// What a look has found to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saw {
    Nothing,
    WhatWasRecorded,
    SomethingNew,
}

/// What a session holds in memory.
#[derive(Clone, Debug, Hash)]
pub(super) struct Session {
    pub(super) epochs: BTreeMap<i16, i64>,
    /// The cursors acquired, until the first look.
    begun_at: Vec<CursorRecord>,
    readings: Readings,
    progress: BTreeMap<i16, Progress>,
    pub(super) lanes: Lanes,
    resting: Vec<Resting>,
    pub(super) on_wire: Vec<Sent>,
    new_holds: Vec<(i64, i16)>,
    pub(super) copies: Vec<Copy>,
    /// Something was passed since all shards were recorded.
    moved: bool,
    /// Keys held, by the position that names the hold; those about to be released; those whose messages are being tried.
    pub(super) held: BTreeMap<i64, i16>,
    pub(super) releasing: BTreeSet<i64>,
    /// What is settled, as far as it knows: what it has settled itself, it knows when the key goes.
    pub(super) settled: Settled,
    /// A bound read and not proven yet, whether the transaction of our own has ended since, and the bound proven last.
    bound: Option<i64>,
    spent: bool,
    proven: i64,
    /// What the last look saw, as far as a planted bug goes by it.
    looked: i64,
    pub(super) ending: Option<Ended>,
    /// Passed and not recorded yet, each with its key.
    pub(super) passed: BTreeMap<i64, i16>,
}

/// A message to be copied to the hold at a position.
pub(super) type Copy = (i64, Held);

/// `LogMessage` without what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Held {
    position: i64,
    key: i16,
}

impl Session {
    /// A process has acquired these shards, and loaded what is held of them.
    pub(super) fn new(database: &Database, shards: &[usize], pipelining: Pipelining) -> Self {
        let cursors: Vec<&Cursor> = shards.iter().map(|shard| &database.cursors[*shard]).collect();
        let epochs: BTreeMap<_, _> =
            cursors.iter().map(|cursor| (cursor.record.shard, cursor.epoch)).collect();
        let of_all = i16::try_from(database.cursors.len()).unwrap_or(1);
        let mut held = database.held_keys.clone();
        held.retain(|_, key| epochs.contains_key(&(*key % of_all)));
        let mut settled = Settled::new(of_all);
        let of_these = |slot: i16| epochs.contains_key(&(slot % of_all));
        settled.extend(
            database.settled.values().map(|(_, message)| *message).filter(|message| of_these(message.slot)),
        );
        let mut lanes = Lanes::new(pipelining);
        held.iter().for_each(|(position, key)| lanes.hold(name(*key), *position));
        let progress = cursors.iter().map(|cursor| (cursor.record.shard, Progress::resume(&cursor.record)));
        Session {
            progress: progress.collect(),
            begun_at: cursors.iter().map(|cursor| cursor.record.clone()).collect(),
            epochs,
            readings: Readings::default(),
            lanes,
            resting: Vec::new(),
            on_wire: Vec::new(),
            new_holds: Vec::new(),
            copies: Vec::new(),
            moved: false,
            held,
            releasing: BTreeSet::new(),
            settled,
            bound: None,
            spent: false,
            proven: 0,
            looked: -1,
            ending: None,
            passed: BTreeMap::new(),
        }
    }

    /// It has not looked at the log yet.
    pub(super) fn is_opening(&self) -> bool {
        !self.begun_at.is_empty()
    }

    /// `renew.sql`, and what follows from it. Whether the session goes on as it was.
    pub(super) fn renew(&mut self, database: &Database, process: Process) -> bool {
        let share = share(database, process);
        let lost = self.epochs.iter().filter(|(shard, epoch)| !share.owns(**shard, **epoch));
        let lost: Vec<i16> = lost.map(|(shard, _)| *shard).collect();
        let owned = self.epochs.len() - lost.len();
        let stays = lost.is_empty() && share.next(owned) == Move::Stay;
        self.lose(&lost);
        if !stays && self.ending.is_none() {
            self.end(Ended::Shared);
        }
        stays
    }

    fn lose(&mut self, shards: &[i16]) {
        if shards.is_empty() {
            return;
        }
        for shard in shards {
            self.epochs.remove(shard);
            self.progress.remove(shard);
        }
        if self.ending.is_none() {
            self.end(Ended::Shared);
        }
    }

    /// Nothing more is read, and nothing more is sent.
    pub(super) fn end(&mut self, ended: Ended) {
        self.readings.clear();
        self.begun_at.clear();
        (self.bound, self.spent) = (None, false);
        self.ending = Some(ended);
    }

    /// What is on the wire is answered.
    pub(super) fn may_leave(&self) -> bool {
        self.ending.is_some() && self.on_wire.is_empty()
    }

    /// Records and hands over. Whether the process stays in the relay.
    pub(super) fn leave(&mut self, database: &mut Database, process: Process, plant: Option<Plant>) -> bool {
        if plant != Some(Plant::LeaveWithoutRecord) {
            self.record(database, true, plant);
            for (shard, progress) in &self.progress {
                if self.owns(database, *shard) && plant != Some(Plant::StopsAtOnce) {
                    progress
                        .delivered_ahead()
                        .for_each(|position| database.settle_delivered(position, plant));
                }
            }
        }
        let owned: Vec<i16> = self.epochs.keys().copied().collect();
        let kept = share(database, process).fair().min(owned.len());
        let leaves = self.ending == Some(Ended::Stopped);
        database.release(process, &owned[kept..], leaves);
        !leaves
    }

    pub(super) fn owns(&self, database: &Database, shard: i16) -> bool {
        let cursor = &database.cursors[usize::try_from(shard).unwrap_or_default()];
        self.epochs.get(&shard) == Some(&cursor.epoch)
    }

    /// Whether it has left behind what a transaction has written for a shard of its own.
    pub(super) fn has_passed(&self, shard: i16, xid: u64) -> bool {
        self.readings.has_passed(shard, xid)
    }

    /// It has nothing in hand: what it has read is confirmed or recorded as held.
    pub(super) fn has_nothing_in_hand(&self) -> bool {
        self.lanes.len() == 0
            && self.copies.is_empty()
            && self.on_wire.is_empty()
            && self.releasing.is_empty()
    }

    /// It has something in hand, and nothing that would ever move it.
    pub(super) fn is_stuck(&self) -> bool {
        let probed = self.lanes.closed().any(|(_, waits)| waits);
        let moves = self.lanes.is_ready() || !self.resting.is_empty() || !self.on_wire.is_empty() || probed;
        self.ending.is_none() && self.lanes.len() > 0 && !moves && self.held.is_empty()
    }
}

/// How a process stands (`renew.sql`).
pub(super) fn share(database: &Database, process: Process) -> Share {
    let living = |other: &usize| *other == process || database.is_alive(*other);
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let others = 0..database.leases.len();
    let owned = database.cursors.iter().filter(|cursor| cursor.owner == Some(process));
    let free = |cursor: &&Cursor| cursor.owner != Some(process) && database.is_free(cursor);
    Share {
        running: true,
        changes: 0,
        processes: count(others.clone().filter(living).count()),
        rank: count(others.filter(living).filter(|other| *other < process).count()),
        shards: count(database.cursors.len()),
        free: count(database.cursors.iter().filter(free).count()),
        overdue: 0,
        owned: owned.map(|cursor| (cursor.record.shard, cursor.epoch)).collect(),
        expires_in: None,
        renewed: Instant::now(),
    }
}

pub(super) fn name(key: i16) -> Arc<str> {
    message(&Row { position: 0, key, tx: 0 }).message.key.clone().expect("a key")
}

fn held(log: &LogMessage) -> Held {
    Held { position: log.position, key: log.slot }
}

pub(super) fn item(log: LogMessage, window: u64) -> Item {
    let outgoing =
        Outgoing { destination: Arc::clone(&log.message.topic), message: Arc::clone(&log.message) };
    Item { log, window, outgoing, unanswered: 0 }
}
