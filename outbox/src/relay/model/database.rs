//! PostgreSQL, as far as the relay's statements can tell: transactions and what they have written, snapshots, the sequence,
//! cursor rows with their epochs, held keys. Each function is one statement, and atomic as it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::plant::Plant;
use crate::log::{CursorRecord, LogMessage, Look, PageRange, Seen, Snapshot, Window};
use crate::relay::settled::SettledMessage;

/// Names a process and its lease.
pub(super) type Process = usize;

/// Where a transaction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// It has written nothing.
    Unborn,
    /// It is running.
    Running,
    Committed,
    RolledBack,
}

/// A writer's transaction.
#[derive(Clone, Debug, Hash)]
pub(super) struct Transaction {
    /// The key of each message, in the order in which it writes them.
    pub(super) keys: &'static [i16],
    pub(super) stage: Stage,
    pub(super) xid: Option<u64>,
    /// The positions it has drawn.
    pub(super) drawn: Vec<i64>,
}

impl Transaction {
    pub(super) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Committed | Stage::RolledBack)
    }

    /// The key's lock is taken just before a position is drawn, and kept.
    fn locks(&self, key: i16) -> bool {
        self.stage == Stage::Running && self.keys[..self.drawn.len()].contains(&key)
    }
}

/// A row of `outbox.cursor`.
#[derive(Clone, Debug, Hash)]
pub(super) struct Cursor {
    pub(super) record: CursorRecord,
    pub(super) epoch: i64,
    pub(super) owner: Option<Process>,
}

/// A message of the log that has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) position: i64,
    pub(super) key: i16,
    pub(super) tx: u64,
}

/// What came of recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    Written,
    /// Another epoch.
    LeaseLost,
    /// A copy names a hold that is gone: an error, after which everything in memory is void.
    Refused,
}

/// The database.
#[derive(Clone, Debug, Hash)]
pub(super) struct Database {
    pub(super) transactions: Vec<Transaction>,
    next_xid: u64,
    /// The newest transaction id that has finished, and the newest that a crash of the server would not forget.
    finished: u64,
    logged: u64,
    pub(super) last_position: i64,
    pub(super) cursors: Vec<Cursor>,
    /// `outbox.process`: whether its lease holds; `None` without a row.
    pub(super) leases: Vec<Option<bool>>,
    /// `outbox.held_key`, by the position that names the hold; and `outbox.held_message`, with the hold of each.
    pub(super) held_keys: BTreeMap<i64, i16>,
    pub(super) held_messages: BTreeMap<i64, i64>,
    /// Holds wait for a person instead of being tried; those that do.
    pub(super) parks: bool,
    pub(super) parked: BTreeSet<i64>,
    /// `outbox.settled_message`, with the hold of each.
    pub(super) settled: BTreeMap<i64, (i64, SettledMessage)>,
    /// For the laws: all that was ever settled, and what of it by a person.
    pub(super) done: BTreeSet<i64>,
    pub(super) skipped: BTreeSet<i64>,
}

impl Database {
    /// With cursors that have seen all there was: nothing, up to the position `base`.
    pub(super) fn new(scripts: &[&'static [i16]], shards: i16, processes: usize, base: i64) -> Self {
        let transaction =
            |keys: &&'static [i16]| Transaction { keys, stage: Stage::Unborn, xid: None, drawn: Vec::new() };
        let mut database = Database {
            transactions: scripts.iter().map(transaction).collect(),
            next_xid: 11,
            finished: 10,
            logged: 10,
            last_position: base,
            cursors: Vec::new(),
            leases: vec![None; processes],
            held_keys: BTreeMap::new(),
            held_messages: BTreeMap::new(),
            parks: false,
            parked: BTreeSet::new(),
            settled: BTreeMap::new(),
            done: BTreeSet::new(),
            skipped: BTreeSet::new(),
        };
        let seen = Seen { era: 1, snapshot: database.snapshot(), bound: base };
        database.cursors = (0..shards)
            .map(|shard| CursorRecord { shard, seen: seen.clone(), until: None, after: 0 })
            .map(|record| Cursor { record, epoch: 0, owner: None })
            .collect();
        database
    }

    fn draw_xid(&mut self) -> u64 {
        self.next_xid += 1;
        self.next_xid - 1
    }

    /// Gives a transaction its id.
    pub(super) fn begin(&mut self, index: usize) {
        let xid = self.draw_xid();
        let transaction = &mut self.transactions[index];
        (transaction.xid, transaction.stage) = (Some(xid), Stage::Running);
    }

    /// Whether the next position can be drawn: no other writer of the key is at work.
    pub(super) fn may_draw(&self, index: usize) -> bool {
        let transaction = &self.transactions[index];
        let key = transaction.keys.get(transaction.drawn.len());
        key.is_some_and(|key| {
            let mut others = self.transactions.iter().enumerate().filter(|(other, _)| *other != index);
            !transaction.is_over() && others.all(|(_, other)| !other.locks(*key))
        })
    }

    /// Draws the next position, under the key's lock.
    pub(super) fn draw(&mut self, index: usize) {
        self.last_position += 1;
        let transaction = &mut self.transactions[index];
        transaction.stage = Stage::Running;
        transaction.drawn.push(self.last_position);
    }

    pub(super) fn end(&mut self, index: usize, stage: Stage) {
        let transaction = &mut self.transactions[index];
        transaction.stage = stage;
        let xid = transaction.xid.unwrap_or_default();
        self.finished = self.finished.max(xid);
        if stage == Stage::Committed {
            self.logged = self.logged.max(xid);
        }
    }

    /// `spend.sql`: a transaction that takes an id and ends.
    pub(super) fn spend(&mut self) {
        self.finished = self.draw_xid();
    }

    /// `pg_current_snapshot()`: its `xmax` follows the newest transaction that has finished, not the newest that runs.
    fn snapshot(&self) -> Snapshot {
        let xmax = self.finished + 1;
        let running = self.transactions.iter().filter(|transaction| transaction.stage == Stage::Running);
        let mut xip: Vec<u64> =
            running.filter_map(|transaction| transaction.xid).filter(|xid| *xid < xmax).collect();
        xip.sort_unstable();
        let xmin = xip.first().copied().unwrap_or(xmax);
        let list: Vec<String> = xip.iter().map(u64::to_string).collect();
        format!("{xmin}:{xmax}:{}", list.join(",")).parse().expect("a snapshot")
    }

    /// `look.sql`.
    pub(super) fn look(&self) -> Look {
        Look { snapshot: self.snapshot(), last_position: self.last_position, inserted: 0, changes: 0 }
    }

    /// What has committed, in order of position.
    pub(super) fn rows(&self) -> Vec<Row> {
        self.written(Stage::Committed)
    }

    fn written(&self, stage: Stage) -> Vec<Row> {
        let transactions = self.transactions.iter().filter(|transaction| transaction.stage == stage);
        let mut rows: Vec<Row> = transactions
            .flat_map(|transaction| {
                let tx = transaction.xid.unwrap_or_default();
                let places = transaction.drawn.iter().zip(transaction.keys);
                places.map(move |(position, key)| Row { position: *position, key: *key, tx })
            })
            .collect();
        rows.sort_unstable_by_key(|row| row.position);
        rows
    }

    /// `page.sql` and `page_with_stragglers.sql`, without their limit.
    pub(super) fn select(
        &self,
        window: &Window,
        range: &PageRange,
        shards: &[i16],
        plant: Option<Plant>,
    ) -> Vec<Row> {
        let of_all = i16::try_from(self.cursors.len()).unwrap_or(1);
        let dirty = plant == Some(Plant::ReadsRunning);
        let mut rows = if dirty { self.written(Stage::Running) } else { self.rows() };
        rows.retain(|row| {
            let visible = (dirty || window.until.snapshot.sees(row.tx)) && row.position <= range.to;
            let new = row.tx >= window.seen.snapshot.xmax() && row.position > range.new_after;
            let late = range.stragglers.contains(&row.tx) && row.position > range.after;
            visible && (new || late) && shards.contains(&(row.key % of_all))
        });
        rows
    }

    /// `first_of.sql`.
    pub(super) fn first_of(&self, xids: &[u64]) -> Option<i64> {
        self.rows().iter().filter(|row| xids.contains(&row.tx)).map(|row| row.position).min()
    }

    pub(super) fn is_alive(&self, process: Process) -> bool {
        self.leases[process] == Some(true)
    }

    /// Whether nobody alive owns the shard.
    pub(super) fn is_free(&self, cursor: &Cursor) -> bool {
        cursor.owner.is_none_or(|owner| !self.is_alive(owner))
    }

    /// `acquire.sql` and `bury.sql`: answers the shards that the process owns from now on.
    pub(super) fn acquire(&mut self, process: Process, most: usize) -> Vec<usize> {
        let mine = |cursor: &Cursor| cursor.owner == Some(process);
        let mut room = most.saturating_sub(self.cursors.iter().filter(|cursor| mine(cursor)).count());
        let mut acquired = Vec::new();
        for shard in 0..self.cursors.len() {
            let cursor = &self.cursors[shard];
            let takes = !mine(cursor) && self.is_free(cursor) && room > 0;
            room -= usize::from(takes);
            if takes || mine(cursor) {
                let cursor = &mut self.cursors[shard];
                (cursor.owner, cursor.epoch) = (Some(process), cursor.epoch + 1);
                acquired.push(shard);
            }
        }
        for (other, lease) in self.leases.iter_mut().enumerate() {
            let owns = self.cursors.iter().any(|cursor| cursor.owner == Some(other));
            if *lease == Some(false) && !owns {
                *lease = None;
            }
        }
        acquired
    }

    /// `release.sql` and `leave.sql`.
    pub(super) fn release(&mut self, process: Process, shards: &[i16], leaves: bool) {
        for cursor in self.cursors.iter_mut().filter(|cursor| cursor.owner == Some(process)) {
            if leaves || shards.contains(&cursor.record.shard) {
                cursor.owner = None;
            }
        }
        if leaves {
            self.leases[process] = None;
        }
    }

    /// The statements that record one shard, in one transaction under its epoch.
    pub(super) fn record(
        &mut self,
        record: CursorRecord,
        epoch: i64,
        holds: &[(i64, i16)],
        copies: &[(i64, i64)],
        forgotten: &[i64],
        plant: Option<Plant>,
    ) -> Recorded {
        let fenced = plant != Some(Plant::RecordWithoutEpoch);
        let cursor = &mut self.cursors[usize::try_from(record.shard).unwrap_or_default()];
        if fenced && cursor.epoch != epoch {
            return Recorded::LeaseLost;
        }
        let known =
            |hold: &i64| self.held_keys.contains_key(hold) || holds.iter().any(|(new, _)| new == hold);
        if !copies.iter().all(|(hold, _)| known(hold)) {
            return Recorded::Refused;
        }
        cursor.record = record;
        self.held_keys.extend(holds.iter().copied());
        if self.parks {
            self.parked.extend(holds.iter().map(|(hold, _)| *hold));
        }
        let (settled, all) = (&self.settled, plant == Some(Plant::SettledCopied));
        let copies = copies.iter().filter(|(_, position)| all || !settled.contains_key(position));
        self.held_messages.extend(copies.map(|(hold, position)| (*position, *hold)));
        forgotten.iter().for_each(|position| {
            self.settled.remove(position);
        });
        Recorded::Written
    }

    /// `settle.sql`: a held message is done with.
    pub(super) fn settle(&mut self, position: i64, plant: Option<Plant>) {
        let Some(hold) = self.held_messages.remove(&position) else { return };
        self.done.insert(position);
        self.settle_row(position, hold, plant);
    }

    /// `settle_delivered.sql`: a message is published, and its cursor will not pass it.
    pub(super) fn settle_delivered(&mut self, position: i64, plant: Option<Plant>) {
        self.done.insert(position);
        self.settle_row(position, position, plant);
    }

    fn settle_row(&mut self, position: i64, hold: i64, plant: Option<Plant>) {
        let Some(row) = self.rows().into_iter().find(|row| row.position == position) else { return };
        let cursor = &self.cursors[usize::from(row.key.unsigned_abs()) % self.cursors.len()];
        if !Database::covers(&cursor.record, &row) && plant != Some(Plant::SettledForgotten) {
            let settled = SettledMessage { position, slot: row.key, tx: row.tx };
            self.settled.insert(position, (hold, settled));
        }
    }

    /// `skip.sql`: a person gives up the first message of a parked key, and has the next one tried.
    pub(super) fn skip(&mut self, hold: i64, plant: Option<Plant>) -> bool {
        let Some(position) = self.first_held(hold).filter(|_| self.parked.remove(&hold)) else {
            return false;
        };
        self.skipped.insert(position);
        self.settle(position, plant);
        true
    }

    /// `settle.sql`: the messages of the hold that are settled.
    pub(super) fn release_key(&mut self, hold: i64, plant: Option<Plant>) -> Vec<SettledMessage> {
        self.held_keys.remove(&hold);
        let settled = self.settled.values().filter(|(of, _)| *of == hold).map(|(_, message)| *message);
        let settled = settled.collect();
        if plant == Some(Plant::SettledWithHold) {
            self.settled.retain(|_, (of, _)| *of != hold);
        }
        settled
    }

    /// A record has an id that the server's log holds: counted where that matters.
    pub(super) fn log_record(&mut self) {
        self.finished = self.draw_xid();
        self.logged = self.finished;
    }

    /// The first message of a hold.
    pub(super) fn first_held(&self, hold: i64) -> Option<i64> {
        self.held_messages.iter().find(|(_, of)| **of == hold).map(|(position, _)| *position)
    }

    /// The server crashes and comes back: whoever was writing has written nothing, and transaction ids that its log does
    /// not know are given out again.
    pub(super) fn crash(&mut self) {
        for transaction in
            self.transactions.iter_mut().filter(|transaction| transaction.stage == Stage::Running)
        {
            transaction.stage = Stage::RolledBack;
        }
        self.finished = self.logged;
        self.next_xid = self.logged + 1;
    }

    /// Whether a cursor says that the message is delivered.
    pub(super) fn covers(record: &CursorRecord, row: &Row) -> bool {
        let within = |until: &Seen| until.snapshot.sees(row.tx) && row.position <= record.after;
        record.seen.snapshot.sees(row.tx) || record.until.as_ref().is_some_and(within)
    }
}

/// A message of the log as the relay holds it. What it says is nobody's business here: one message of each key serves.
pub(super) fn message(row: &Row) -> LogMessage {
    use std::sync::OnceLock;
    static MESSAGES: OnceLock<[Arc<message::Message>; 2]> = OnceLock::new();
    let messages = MESSAGES
        .get_or_init(|| ["a", "b"].map(|key| Arc::new(message::Message::new("t", "k", "").with_key(key))));
    LogMessage {
        position: row.position,
        slot: row.key,
        enqueued_at: chrono::DateTime::UNIX_EPOCH,
        message: Arc::clone(&messages[usize::try_from(row.key).unwrap_or_default()]),
        fault: None,
    }
}
