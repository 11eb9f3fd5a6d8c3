//! One process's session: the real machines (`Readings`, `Progress`, `Lanes`, `Share`), driven as `session.rs`, its rooms and
//! `holds.rs` drive them, with the database a value and the broker a list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use message::{Outgoing, Pipelining};
use tokio::time::Instant;

use super::database::{Cursor, Database, Process, Recorded, Row, message};
use super::plant::Plant;
use crate::log::{CursorRecord, Eras, LogMessage, Move, Page, Progress, Readings, Share};
use crate::relay::lanes::{After, Item, Lanes, Resting};

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
    /// A bound read and not proven yet, whether the transaction of our own has ended since, and the bound proven last.
    bound: Option<i64>,
    spent: bool,
    proven: i64,
    /// What the last look saw, as far as a planted bug goes by it.
    looked: i64,
    pub(super) ending: Option<Ended>,
    /// The last message of each shard that was sent before, as (window, position): only what lies before it is still sent.
    ends_at: BTreeMap<i16, (u64, i64)>,
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
            bound: None,
            spent: false,
            proven: 0,
            looked: -1,
            ending: None,
            ends_at: BTreeMap::new(),
            passed: BTreeMap::new(),
        }
    }

    /// It has not looked at the log yet.
    pub(super) fn is_opening(&self) -> bool {
        !self.begun_at.is_empty()
    }

    pub(super) fn may_prove(&self) -> bool {
        self.may_read() && self.bound.is_none() && !self.readings.is_open()
    }

    pub(super) fn may_spend(&self) -> bool {
        self.may_read() && self.bound.is_some() && !self.spent
    }

    /// A look follows a proof, or goes by the last one.
    /// When nobody writes any more (`still`), nothing can come between the proof and the look.
    pub(super) fn may_look(&self, plant: Option<Plant>, still: bool) -> bool {
        let proven = match self.bound {
            Some(_) => self.spent || plant == Some(Plant::BoundAtSnapshot),
            None => still || !self.is_opening(),
        };
        self.may_read() && proven && !self.readings.is_open()
    }

    pub(super) fn may_page(&self) -> bool {
        self.may_read() && self.readings.is_open()
    }

    fn may_read(&self) -> bool {
        self.ending.is_none() && !self.epochs.is_empty()
    }

    /// `last_position.sql`.
    pub(super) fn read_bound(&mut self, database: &Database) {
        self.bound = Some(database.last_position);
    }

    /// `spend.sql`.
    pub(super) fn spend(&mut self, database: &mut Database) {
        database.spend();
        self.spent = true;
    }

    /// A look: the first one serves the windows that were recorded, if any are open.
    pub(super) fn look(&mut self, database: &mut Database, plant: Option<Plant>) -> Saw {
        if self.is_opening() && self.bound.is_none() {
            self.read_bound(database);
            self.spend(database);
        }
        let mut look = database.look();
        if let Some(bound) = self.bound.take() {
            (self.proven, self.spent) = (bound, false);
        }
        if plant == Some(Plant::PositionCursor) {
            let visible = database.rows().iter().map(|row| row.position).max();
            look.last_position = visible.unwrap_or(0);
            self.proven = look.last_position;
        }
        for record in std::mem::take(&mut self.begun_at) {
            self.readings.add(&record, &look, &Eras::default());
        }
        if self.readings.is_open() {
            return Saw::WhatWasRecorded;
        }
        let idle = plant == Some(Plant::IdleBySequence) && self.looked == look.last_position;
        self.looked = if plant == Some(Plant::IdleBySequence) { look.last_position } else { -1 };
        if !idle && self.readings.look(&look, self.proven, &Eras::default()) {
            Saw::SomethingNew
        } else {
            Saw::Nothing
        }
    }

    /// Reads a page and takes it in, as `Reader::page` and `Session::take_page` do.
    pub(super) fn page(&mut self, database: &Database, limit: usize, plant: Option<Plant>) {
        let of_all = i16::try_from(database.cursors.len()).unwrap_or(1);
        let Some(reading) = self.readings.next() else { return };
        if let Some((stragglers, _, _)) = reading.far_stragglers() {
            let first = database.first_of(stragglers);
            reading.first_is(first);
        }
        let (mut messages, mut full) = (Vec::new(), false);
        if let (Some(mut range), Some(window)) = (reading.page(), reading.window()) {
            if plant == Some(Plant::PositionCursor) {
                range.stragglers.clear();
            }
            let mut rows = database.select(window, &range, &reading.shards, plant);
            full = rows.len() >= limit;
            rows.truncate(limit);
            messages = rows;
        }
        let by_transaction: BTreeMap<i64, u64> = messages.iter().map(|row| (row.position, row.tx)).collect();
        if let Some(page) = self.readings.take(messages.iter().map(message).collect(), full, of_all) {
            self.take_page(page, of_all, |position| match plant {
                Some(Plant::OrderByTransaction) => (by_transaction.get(&position).copied(), position),
                _ => (None, position),
            });
        }
    }

    fn take_page(&mut self, page: Page, of_all: i16, order: impl Fn(i64) -> (Option<u64>, i64)) {
        for shard in page.shards.iter() {
            if let Some(progress) = self.progress.get_mut(shard) {
                progress.read(&page.window, page.read_to, page.last);
            }
        }
        let mut items = Vec::new();
        for log in page.messages {
            let Some(progress) = self.progress.get_mut(&(log.slot % of_all)) else { continue };
            progress.begin(log.position);
            items.push(item(log, page.window.id));
        }
        items.sort_by_key(|item| order(item.log.position));
        items.into_iter().for_each(|item| self.lanes.push(item));
        for shard in page.shards.iter() {
            if let Some(progress) = self.progress.get_mut(shard) {
                progress.settle();
            }
        }
    }

    pub(super) fn may_send(&self) -> bool {
        self.lanes.is_ready()
    }

    /// Puts on the wire what may be there now.
    pub(super) fn send(&mut self, of_all: i16, plant: Option<Plant>) {
        let items = self.lanes.batch(BATCH);
        self.copies_from_lanes(of_all, plant);
        for item in items {
            if plant == Some(Plant::PassedWhenSent) {
                self.pass(&item.log, item.window, of_all);
            }
            self.on_wire.push(Sent { item, kept: false, hold: None });
        }
    }

    fn take(&mut self, position: i64) -> Option<Sent> {
        let index = self.on_wire.iter().position(|sent| sent.position() == position)?;
        Some(self.on_wire.remove(index))
    }

    /// The broker's confirmation arrives.
    pub(super) fn confirm(&mut self, database: &mut Database, position: i64, of_all: i16) {
        let Some(sent) = self.take(position) else { return };
        if sent.hold.is_some() {
            // `delivered.sql`, under the epoch.
            if self.owns(database, sent.key() % of_all) {
                database.held_messages.remove(&position);
            }
            return;
        }
        self.pass(&sent.item.log, sent.item.window, of_all);
        let after = self.lanes.confirm(&sent.item);
        self.then(after, of_all, None);
    }

    /// No answer comes, to this message and to those behind it that the broker keeps in order with it.
    pub(super) fn fail(&mut self, position: i64, of_all: i16, plant: Option<Plant>) {
        let Some(sent) = self.take(position) else { return };
        if sent.hold.is_some() {
            return;
        }
        let mut item = sent.item;
        item.unanswered += 1;
        if plant == Some(Plant::RetryOvertaken) {
            // The key goes on without it.
            let after = self.lanes.confirm(&item);
            self.then(after, of_all, plant);
            self.resting.push(Resting::Alone(Box::new(item)));
            return;
        }
        let after = self.lanes.fail(item);
        self.then(after, of_all, plant);
    }

    /// The broker will not take the message.
    pub(super) fn reject(&mut self, position: i64, of_all: i16, plant: Option<Plant>) {
        let Some(sent) = self.take(position) else { return };
        if sent.hold.is_none() {
            let after = self.lanes.reject(sent.item, String::new());
            self.then(after, of_all, plant);
        }
    }

    fn then(&mut self, after: After, of_all: i16, plant: Option<Plant>) {
        match after {
            After::Nothing => {}
            After::Rest(_) if plant == Some(Plant::RestForgotten) => {}
            After::Rest(resting) => self.resting.push(resting),
            After::Held { items, .. } => {
                let Some((hold, key)) = items.first().map(|item| (item.log.position, item.log.slot)) else {
                    return;
                };
                self.new_holds.push((hold, key));
                self.held.insert(hold, key);
                for (behind, item) in items.into_iter().enumerate() {
                    self.pass(&item.log, item.window, of_all);
                    if behind == 0 || plant != Some(Plant::HoldWithoutSuccessors) {
                        self.copies.push((hold, held(&item.log)));
                    }
                }
                if plant == Some(Plant::HoldOvertaken) {
                    self.lanes.release(&name(key));
                }
            }
        }
    }

    pub(super) fn copies_from_lanes(&mut self, of_all: i16, plant: Option<Plant>) {
        let releasing = &self.releasing;
        let taken = self.lanes.take_copies(|hold| !releasing.contains(&hold));
        for (hold, item) in taken {
            self.pass(&item.log, item.window, of_all);
            if plant != Some(Plant::HoldWithoutSuccessors) {
                self.copies.push((hold, held(&item.log)));
            }
        }
    }

    fn pass(&mut self, log: &LogMessage, window: u64, of_all: i16) {
        self.moved = true;
        if let Some(progress) = self.progress.get_mut(&(log.slot % of_all)) {
            progress.finish(window, log.position);
            self.passed.insert(log.position, log.slot);
        }
    }

    /// Messages of a shard that it has passed, by its own count, and that its crash would repeat.
    pub(super) fn unrecorded(&self, shard: i16) -> usize {
        self.progress.get(&shard).map_or(0, Progress::unrecorded)
    }

    pub(super) fn may_wake(&self) -> bool {
        !self.resting.is_empty()
    }

    /// A rest is over.
    pub(super) fn wake(&mut self, plant: Option<Plant>) {
        match self.resting.remove(0) {
            Resting::Alone(item) if plant == Some(Plant::RetryOvertaken) => self.lanes.push(*item),
            resting => self.lanes.wake(resting),
        }
    }

    /// Writes what there is to record; with `all`, also of shards whose cursor has not moved, as now and then and when the
    /// session ends. `None`: there was nothing to write.
    pub(super) fn record(
        &mut self,
        database: &mut Database,
        all: bool,
        plant: Option<Plant>,
    ) -> Option<Recorded> {
        let of_all = i16::try_from(database.cursors.len()).unwrap_or(1);
        self.copies_from_lanes(of_all, plant);
        let all = self.moved && all;
        self.moved &= !all;
        let (holds, copies) = (std::mem::take(&mut self.new_holds), std::mem::take(&mut self.copies));
        let mut lost = Vec::new();
        let mut written = None;
        let shards: Vec<i16> = self.progress.keys().copied().collect();
        for shard in shards {
            let of_shard = |key: i16| key % of_all == shard;
            let holds: Vec<_> = holds.iter().filter(|(_, key)| of_shard(*key)).copied().collect();
            let copies: Vec<_> = copies.iter().filter(|(_, held)| of_shard(held.key)).copied().collect();
            let Some(progress) = self.progress.get_mut(&shard) else { continue };
            let takes_part = all || !holds.is_empty() || !copies.is_empty();
            let record = progress.record().or_else(|| takes_part.then(|| progress.cursor()));
            let (Some(record), Some(epoch)) = (record, self.epochs.get(&shard)) else { continue };
            let fenced = plant != Some(Plant::RecordWithoutEpoch);
            let copies: Vec<_> = copies.iter().map(|(hold, held)| (*hold, held.position)).collect();
            match database.record(record, *epoch, &holds, &copies, fenced) {
                Recorded::Refused => return Some(Recorded::Refused),
                Recorded::LeaseLost => lost.push(shard),
                Recorded::Written => {
                    let cursor = &database.cursors[usize::try_from(shard).unwrap_or_default()].record;
                    let rows = database.rows();
                    let covered = rows.iter().filter(|row| Database::covers(cursor, row));
                    covered.filter(|row| of_shard(row.key)).for_each(|row| {
                        self.passed.remove(&row.position);
                    });
                }
            }
            written = Some(Recorded::Written);
        }
        self.lose(&lost, of_all, plant);
        written
    }

    /// `renew.sql`, and what follows from it. Whether the session goes on as it was.
    pub(super) fn renew(&mut self, database: &Database, process: Process, plant: Option<Plant>) -> bool {
        let of_all = i16::try_from(database.cursors.len()).unwrap_or(1);
        let share = share(database, process);
        let lost = self.epochs.iter().filter(|(shard, epoch)| !share.owns(**shard, **epoch));
        let lost: Vec<i16> = lost.map(|(shard, _)| *shard).collect();
        let owned = self.epochs.len() - lost.len();
        let stays = lost.is_empty() && share.next(owned) == Move::Stay;
        self.lose(&lost, of_all, plant);
        if !stays && self.ending.is_none() {
            self.end(Ended::Shared, of_all, plant);
        }
        stays
    }

    fn lose(&mut self, shards: &[i16], of_all: i16, plant: Option<Plant>) {
        if shards.is_empty() {
            return;
        }
        for shard in shards {
            self.epochs.remove(shard);
            self.progress.remove(shard);
        }
        match self.ending {
            None => self.end(Ended::Shared, of_all, plant),
            Some(_) => {
                self.ends_at.retain(|shard, _| !shards.contains(shard));
                self.let_go_beyond_the_end(of_all);
            }
        }
    }

    /// Nothing more is read, and nothing more is sent but what lies before something that was sent.
    pub(super) fn end(&mut self, ended: Ended, of_all: i16, plant: Option<Plant>) {
        self.readings.clear();
        self.begun_at.clear();
        (self.bound, self.spent) = (None, false);
        self.ending = Some(ended);
        let stranded = |(shard, progress): (&i16, &Progress)| Some((*shard, progress.stranded()?));
        self.ends_at = self.progress.iter().filter_map(stranded).collect();
        for Sent { item, .. } in self.on_wire.iter().filter(|sent| sent.hold.is_none()) {
            let (shard, place) = (item.log.slot % of_all, (item.window, item.log.position));
            if self.progress.contains_key(&shard) {
                let last = self.ends_at.entry(shard).or_insert(place);
                *last = place.max(*last);
            }
        }
        if plant == Some(Plant::StopsAtOnce) {
            self.ends_at.clear();
        }
        self.let_go_beyond_the_end(of_all);
    }

    /// Also when a key is let go: what was to be copied is to be sent then.
    pub(super) fn let_go_beyond_the_end(&mut self, of_all: i16) {
        let ends_at = &self.ends_at;
        let wanted = |item: &Item| {
            let last = ends_at.get(&(item.log.slot % of_all));
            last.is_some_and(|last| (item.window, item.log.position) < *last)
        };
        self.lanes.retain(wanted);
        self.resting.retain(|resting| match resting {
            Resting::Alone(item) => wanted(item),
            Resting::Lane(_) => true,
        });
    }

    fn is_stranded(&self) -> bool {
        self.progress.values().any(|progress| progress.stranded().is_some())
    }

    /// What is on the wire is answered, and nothing that was confirmed lies behind what was not sent.
    pub(super) fn may_leave(&self, plant: Option<Plant>) -> bool {
        let stranded = self.is_stranded() && plant != Some(Plant::StopsAtOnce);
        self.ending.is_some() && self.on_wire.is_empty() && !stranded
    }

    /// Records and hands over. Whether the process stays in the relay.
    pub(super) fn leave(&mut self, database: &mut Database, process: Process, plant: Option<Plant>) -> bool {
        if plant != Some(Plant::LeaveWithoutRecord) {
            self.record(database, true, plant);
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
        let moves = self.lanes.is_ready() || !self.resting.is_empty() || !self.on_wire.is_empty();
        match self.ending {
            None => self.lanes.len() > 0 && !moves && self.held.is_empty(),
            Some(_) => self.is_stranded() && !moves && self.releasing.is_empty(),
        }
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
