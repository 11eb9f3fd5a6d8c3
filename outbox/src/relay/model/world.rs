//! The state of everything: the database, the processes, what is on its way to the broker and what it has kept.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use message::Pipelining;

use super::actions::Bounds;
use super::database::{Database, Process, Stage};
use super::laws::Law;
use super::session::{Sent, Session};

/// A process of the relay.
#[derive(Clone, Debug, Hash)]
#[expect(clippy::large_enum_variant, reason = "it stands behind an `Arc`")]
pub(super) enum Life {
    /// Not started yet, or gone: stopped, or killed.
    Down,
    /// It has joined, and has no shards.
    Joined,
    Working(Session),
}

/// How often things may still happen.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Left {
    pub(super) proofs: u8,
    pub(super) rollbacks: u8,
    pub(super) crashes: u8,
    pub(super) expiries: u8,
    pub(super) unanswered: u8,
    pub(super) rejections: u8,
    pub(super) skips: u8,
    pub(super) outages: u8,
    pub(super) set_aside: u8,
    pub(super) stops: u8,
    pub(super) late_stops: u8,
    pub(super) server_crashes: u8,
}

/// Everything.
#[derive(Clone, Debug, Hash)]
#[expect(clippy::derived_hash_with_manual_eq, reason = "equal is what has the same digest")]
pub(super) struct World {
    pub(super) database: Database,
    pub(super) processes: Vec<Arc<Life>>,
    /// Sent by who does not wait for the answer any more, and not arrived yet: in order, where the broker keeps it.
    pub(super) late: Vec<VecDeque<i64>>,
    /// How often each message stands at the broker.
    pub(super) copies: Vec<u8>,
    pub(super) left: Left,
    /// So many processes have ever been started.
    pub(super) started: usize,
    /// Crashes, lost leases and missing answers so far.
    pub(super) faults: u8,
    pub(super) zombie_published: bool,
    pub(super) rejected: bool,
    pub(super) broken: Option<Law>,
    base: i64,
}

impl PartialEq for World {
    fn eq(&self, other: &World) -> bool {
        let digest = |world: &World| {
            let mut hasher = std::hash::DefaultHasher::new();
            world.hash(&mut hasher);
            hasher.finish()
        };
        digest(self) == digest(other)
    }
}

impl World {
    pub(super) fn new(bounds: &Bounds) -> World {
        let mut database = Database::new(&bounds.scripts, bounds.shards, bounds.processes, bounds.base);
        database.parks = bounds.skips > 0;
        for transaction in 0..bounds.committed {
            database.begin(transaction);
            while database.may_draw(transaction) {
                database.draw(transaction);
            }
            database.end(transaction, Stage::Committed);
        }
        let messages = bounds.scripts.iter().map(|script| script.len()).sum();
        let down = Arc::new(Life::Down);
        World {
            database,
            processes: vec![down; bounds.processes],
            late: Vec::new(),
            copies: vec![0; messages],
            left: Left {
                proofs: bounds.proofs,
                rollbacks: bounds.rollbacks,
                crashes: bounds.crashes,
                expiries: bounds.expiries,
                unanswered: bounds.unanswered,
                rejections: bounds.rejections,
                skips: bounds.skips,
                outages: bounds.outages,
                set_aside: bounds.set_aside,
                stops: bounds.stops,
                late_stops: bounds.late_stops,
                server_crashes: bounds.server_crashes,
            },
            started: 0,
            faults: 0,
            zombie_published: false,
            rejected: false,
            broken: None,
            base: bounds.base,
        }
    }

    pub(super) fn broken(&self, law: Law) -> bool {
        self.broken == Some(law)
    }

    pub(super) fn copies_of(&self, position: i64) -> u8 {
        self.copies[usize::try_from(position - self.base - 1).unwrap_or_default()]
    }

    /// Published, or skipped by a person.
    pub(super) fn is_done(&self, position: i64) -> bool {
        self.copies_of(position) > 0 || self.database.skipped.contains(&position)
    }

    /// Done, or held.
    pub(super) fn is_safe(&self, position: i64) -> bool {
        self.is_done(position) || self.database.held_messages.contains_key(&position)
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.processes.iter().filter_map(|life| match &**life {
            Life::Working(session) => Some(session),
            _ => None,
        })
    }

    pub(super) fn session(&mut self, process: Process) -> Option<&mut Session> {
        match Arc::make_mut(&mut self.processes[process]) {
            Life::Working(session) => Some(session),
            _ => None,
        }
    }

    /// The session, apart from the rest of the world.
    pub(super) fn with<T>(
        &mut self,
        process: Process,
        act: impl FnOnce(&mut Session, &mut Database) -> T,
    ) -> Option<T> {
        let mut life = std::mem::replace(&mut self.processes[process], Arc::new(Life::Down));
        let result = match Arc::make_mut(&mut life) {
            Life::Working(session) => Some(act(session, &mut self.database)),
            _ => None,
        };
        self.processes[process] = life;
        result
    }

    pub(super) fn breaks(&mut self, law: Law) {
        self.broken.get_or_insert(law);
    }

    /// The broker takes a message for good.
    pub(super) fn keep(&mut self, position: i64) {
        let rows = self.database.rows();
        let Some(row) = rows.iter().find(|row| row.position == position) else {
            return self.breaks(Law::NoPhantom);
        };
        let before = rows.iter().filter(|other| other.key == row.key && other.position < position);
        let overtakes = before.map(|other| self.is_done(other.position)).any(|done| !done);
        if self.copies_of(position) == 0 && overtakes {
            self.breaks(Law::Order);
        }
        self.copies[usize::try_from(position - self.base - 1).unwrap_or_default()] += 1;
    }

    /// A process lets go of what it was about: what is on its wire arrives late, or never.
    pub(super) fn drop_session(&mut self, process: Process, life: Life, pipelining: Pipelining) {
        let dropped = std::mem::replace(&mut self.processes[process], Arc::new(life));
        let Life::Working(session) = &*dropped else { return };
        self.let_arrive_late(session.on_wire.iter().filter(|sent| !sent.kept), pipelining);
    }

    pub(super) fn let_arrive_late<'s>(
        &mut self,
        sent: impl Iterator<Item = &'s Sent>,
        pipelining: Pipelining,
    ) {
        let mut sequences: Vec<(i16, VecDeque<i64>)> = Vec::new();
        for sent in sent {
            let together = pipelining == Pipelining::PerBatch && sent.hold.is_none();
            match sequences.iter_mut().find(|(key, _)| together && *key == sent.key()) {
                Some((_, sequence)) => sequence.push_back(sent.position()),
                None => sequences.push((sent.key(), [sent.position()].into())),
            }
        }
        self.late.extend(sequences.into_iter().map(|(_, sequence)| sequence));
        self.late.sort_unstable();
    }

    /// When a process has read everything that its last look saw, what it has not in hand must be safe: of what it has passed,
    /// and, when it has just looked, of all.
    pub(super) fn judge_what_was_read(&mut self, process: Process, just_looked: bool) {
        let Life::Working(session) = &*self.processes[process] else { return };
        if !session.has_nothing_in_hand() || session.ending.is_some() || session.may_page() {
            return;
        }
        let shards = self.database.cursors.len();
        let epochs = &session.epochs;
        let overlooked = self.database.rows().iter().any(|row| {
            let shard = row.key.unsigned_abs() as usize % shards;
            let epoch = epochs.get(&i16::try_from(shard).unwrap_or_default());
            let passed = just_looked || session.has_passed(i16::try_from(shard).unwrap_or_default(), row.tx);
            epoch == Some(&self.database.cursors[shard].epoch) && passed && !self.is_safe(row.position)
        });
        if overlooked {
            self.breaks(Law::NoLoss);
        }
    }
}
