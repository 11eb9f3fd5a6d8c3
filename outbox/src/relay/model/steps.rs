//! What each step does.

use std::sync::Arc;

use message::Pipelining;

use super::actions::{Action, Bounds};
use super::database::{Database, Process, Recorded, Stage};
use super::laws::Law;
use super::plant::Plant;
use super::session::{Ended, Saw, Sent, Session, share};
use super::world::{Life, World};

impl Bounds {
    /// Whether anything changes.
    pub(super) fn happen(&self, world: &mut World, action: Action) -> bool {
        let (of_all, plant) = (self.shards, self.plant);
        match action {
            Action::Begin(index) => world.database.begin(index),
            Action::Draw(index) => world.database.draw(index),
            Action::Commit(index) => world.database.end(index, Stage::Committed),
            Action::RollBack(index) => {
                world.left.rollbacks -= 1;
                world.database.end(index, Stage::RolledBack);
            }
            Action::Start(process) => {
                world.started = world.started.max(process + 1);
                world.database.leases[process] = Some(true);
                world.processes[process] = Arc::new(Life::Joined);
            }
            Action::Acquire(process) => {
                let fair = share(&world.database, process).fair();
                let shards = world.database.acquire(process, fair);
                let session = Session::new(&world.database, &shards, self.pipelining);
                world.processes[process] = Arc::new(Life::Working(session));
            }
            Action::ReadBound(process) => {
                let session = world.session(process);
                let again = session.as_ref().is_some_and(|session| !session.is_opening());
                world.with(process, |session, database| session.read_bound(database));
                world.left.proofs -= u8::from(again);
            }
            Action::Spend(process) => {
                world.with(process, |session, database| session.spend(database));
            }
            Action::Look(process) => {
                let saw = world.with(process, |session, database| session.look(database, plant));
                if saw != Some(Saw::Nothing) {
                    self.page(world, process);
                }
                world.judge_what_was_read(process, saw != Some(Saw::WhatWasRecorded));
            }
            Action::Page(process) => {
                self.page(world, process);
                world.judge_what_was_read(process, false);
            }
            Action::Keep(process, position) => self.keep(world, process, position),
            Action::KeepLate(index) => {
                let Some(position) = world.late[index].pop_front() else { return false };
                world.late.retain(|sequence| !sequence.is_empty());
                world.late.sort_unstable();
                world.keep(position);
            }
            Action::Confirm(process, position) => {
                world.with(process, |session, database| session.confirm(database, position, of_all, plant));
            }
            Action::NoAnswer(process, position) => self.no_answer(world, process, position),
            Action::Reject(process, position) => {
                world.left.rejections -= 1;
                world.rejected = true;
                self.fail_behind(world, process, position);
                world.with(process, |session, _| session.reject(position, of_all, plant));
            }
            Action::Refuse(process, position) => {
                world.left.outages -= 1;
                world.rejected = true;
                self.fail_behind(world, process, position);
                world.with(process, |session, _| session.refuse(position, of_all, plant));
            }
            Action::Probe(process) => {
                world.with(process, |session, _| session.probe());
            }
            Action::Open(process) => {
                world.with(process, |session, _| session.open());
            }
            Action::HoldClosed(process) => {
                world.with(process, |session, _| session.hold_closed(of_all, plant));
            }
            Action::SetAside(process) => {
                world.left.set_aside -= 1;
                world.rejected = true;
                world.with(process, |session, _| session.set_aside(of_all, plant));
            }
            Action::Wake(process) => {
                world.with(process, |session, _| session.wake(plant));
            }
            Action::TryHold(process, hold) => {
                let done = world.with(process, |session, database| session.try_hold(database, hold, plant));
                return done == Some(true);
            }
            Action::Skip(hold) => {
                world.left.skips -= 1;
                return world.database.skip(hold, plant);
            }
            Action::Record(process, all) => return self.record(world, process, all),
            Action::Renew(process) => return self.renew(world, process),
            Action::Leave(process) | Action::LeaveLate(process) => {
                if matches!(action, Action::LeaveLate(_)) {
                    world.left.late_stops -= 1;
                    world.faults += 1;
                }
                let before = self.recorded(world);
                let stays = world.with(process, |session, database| session.leave(database, process, plant));
                let life = if stays == Some(true) { Life::Joined } else { Life::Down };
                world.drop_session(process, life, self.pipelining);
                self.judge_record(world, &before);
            }
            Action::Stop(process) => {
                world.left.stops -= 1;
                world.with(process, |session, _| session.end(Ended::Stopped));
            }
            Action::Crash(process) => {
                world.left.crashes -= 1;
                world.faults += 1;
                world.drop_session(process, Life::Down, self.pipelining);
            }
            Action::Expire(process) => {
                if !matches!(&*world.processes[process], Life::Down) {
                    world.left.expiries -= 1;
                    world.faults += 1;
                }
                world.database.leases[process] = Some(false);
            }
            Action::CrashServer => {
                world.left.server_crashes -= 1;
                world.faults += 1;
                world.database.crash();
                for process in 0..self.processes {
                    let is_working = matches!(&*world.processes[process], Life::Working(_));
                    if is_working && plant != Some(Plant::MemoryOverCrash) {
                        world.drop_session(process, Life::Joined, self.pipelining);
                    }
                }
            }
        }
        true
    }

    fn keep(&self, world: &mut World, process: Process, position: i64) {
        let Some(session) = world.session(process) else { return };
        let Some(sent) = session.on_wire.iter_mut().find(|sent| sent.position() == position) else { return };
        sent.kept = true;
        let shard = sent.key() % self.shards;
        let epoch = session.epochs.get(&shard).copied();
        let current = world.database.cursors[usize::try_from(shard).unwrap_or_default()].epoch;
        world.zombie_published |= epoch != Some(current);
        if epoch == Some(current) && world.database.done.contains(&position) {
            world.breaks(Law::SettledIsDone);
        }
        world.keep(position);
    }

    /// What a window holds is decided when it is opened, so its first page may as well be read at once.
    fn page(&self, world: &mut World, process: Process) {
        world.with(process, |session, database| session.page(database, self.page, self.plant));
        self.send(world, process);
    }

    /// Puts on the wire what may be there; a prompt broker has taken and confirmed it before anything else happens.
    pub(super) fn send(&self, world: &mut World, process: Process) {
        if let Some(session) = world.session(process).filter(|session| session.ending.is_some()) {
            session.copies_from_lanes(self.shards, self.plant);
        }
        while world.session(process).is_some_and(|session| session.may_send()) {
            world.with(process, |session, _| session.send(self.shards, self.plant));
            if !self.prompt {
                continue;
            }
            let sent: Vec<i64> = world
                .session(process)
                .map(|session| session.on_wire.iter().map(Sent::position).collect())
                .unwrap_or_default();
            for position in sent {
                self.keep(world, process, position);
                world.with(process, |session, database| {
                    session.confirm(database, position, self.shards, self.plant);
                });
            }
        }
    }

    /// No answer comes in time. What the broker has not, it may still get.
    fn no_answer(&self, world: &mut World, process: Process, position: i64) {
        world.left.unanswered -= 1;
        world.faults += 1;
        self.fail_behind(world, process, position);
        let sent = world.session(process).and_then(|session| {
            session.on_wire.iter().find(|sent| sent.position() == position && !sent.kept).cloned()
        });
        world.let_arrive_late(sent.iter(), self.pipelining);
        world.with(process, |session, _| session.fail(position, self.shards, self.plant));
    }

    /// Within a batch, what fails takes along what is behind it of its key.
    fn fail_behind(&self, world: &mut World, process: Process, position: i64) {
        if self.pipelining != Pipelining::PerBatch {
            return;
        }
        let behind: Vec<i64> = world.session(process).map_or_else(Vec::new, |session| {
            let key = session.on_wire.iter().find(|sent| sent.position() == position).map(Sent::key);
            let of_key = session.on_wire.iter().filter(|sent| Some(sent.key()) == key);
            of_key.map(Sent::position).filter(|other| *other > position).collect()
        });
        for position in behind.into_iter().rev() {
            world.with(process, |session, _| session.fail(position, self.shards, self.plant));
        }
    }

    /// Of each shard, the messages that its recorded cursor has passed.
    fn recorded(&self, world: &World) -> Vec<i64> {
        let rows = world.database.rows();
        let passed = rows.iter().filter(|row| {
            let shard = usize::from(row.key.unsigned_abs()) % world.database.cursors.len();
            Database::covers(&world.database.cursors[shard].record, row)
        });
        passed.map(|row| row.position).collect()
    }

    fn judge_record(&self, world: &mut World, before: &[i64]) {
        let after = self.recorded(world);
        if before.iter().any(|position| !after.contains(position)) {
            world.breaks(Law::RecordedIsDone);
        }
    }

    fn record(&self, world: &mut World, process: Process, all: bool) -> bool {
        let before = self.recorded(world);
        let written = world.with(process, |session, database| session.record(database, all, self.plant));
        match written.flatten() {
            None => return false,
            Some(Recorded::Refused) => world.drop_session(process, Life::Joined, self.pipelining),
            Some(_) => {}
        }
        if self.server_crashes > 0 {
            world.database.log_record();
        }
        self.judge_record(world, &before);
        true
    }

    /// A heartbeat. A process that was buried meanwhile throws everything away and joins anew.
    fn renew(&self, world: &mut World, process: Process) -> bool {
        if world.database.leases[process].is_none() {
            world.drop_session(process, Life::Joined, self.pipelining);
            return true;
        }
        let revived = world.database.leases[process].replace(true) == Some(false);
        let stays = world.with(process, |session, database| session.renew(database, process));
        revived || stays == Some(false)
    }
}
