//! What can happen next in a world, and within which bounds.

use message::Pipelining;
use stateright::{Model, Property};

use super::database::{Process, Stage, Transaction};
use super::laws::{Law, sights};
use super::plant::Plant;
use super::session::{Sent, Session, share};
use super::world::{Life, World};
use crate::log::Move;

/// How large a world is: what it contains, and how often what may happen at any instant does.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    /// The transactions, each by the keys of its messages.
    pub(super) scripts: Vec<&'static [i16]>,
    /// So many of them have committed before anything else happens.
    pub(super) committed: usize,
    pub(super) shards: i16,
    pub(super) processes: usize,
    pub(super) pipelining: Pipelining,
    /// Messages a page.
    pub(super) page: usize,
    /// What the broker takes, it takes and confirms at once.
    pub(super) prompt: bool,
    /// Bounds proven after a session's first.
    pub(super) proofs: u8,
    pub(super) rollbacks: u8,
    pub(super) crashes: u8,
    /// Leases that end though their process lives.
    pub(super) expiries: u8,
    pub(super) unanswered: u8,
    pub(super) rejections: u8,
    /// Messages that a person gives up; then what is rejected is parked.
    pub(super) skips: u8,
    /// Messages refused because their destination takes nothing.
    pub(super) outages: u8,
    /// Keys set aside.
    pub(super) set_aside: u8,
    /// Polite stops.
    pub(super) stops: u8,
    /// Processes that leave although what is on the wire is not answered: that took too long.
    pub(super) late_stops: u8,
    pub(super) server_crashes: u8,
    /// The last position before.
    pub(super) base: i64,
    pub(super) plant: Option<Plant>,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    Begin(usize),
    Draw(usize),
    Commit(usize),
    RollBack(usize),
    Start(Process),
    Acquire(Process),
    ReadBound(Process),
    Spend(Process),
    Look(Process),
    Page(Process),
    Keep(Process, i64),
    KeepLate(usize),
    Confirm(Process, i64),
    NoAnswer(Process, i64),
    Reject(Process, i64),
    Refuse(Process, i64),
    Probe(Process),
    Open(Process),
    HoldClosed(Process),
    SetAside(Process),
    Wake(Process),
    TryHold(Process, i64),
    Skip(i64),
    Record(Process, bool),
    Renew(Process),
    Leave(Process),
    LeaveLate(Process),
    Stop(Process),
    Crash(Process),
    Expire(Process),
    CrashServer,
}

impl Action {
    /// The process in which it happens, if a session may have something to send after it.
    fn of_session(&self) -> Option<Process> {
        match self {
            Action::Confirm(process, _) | Action::NoAnswer(process, _) | Action::Reject(process, _) => {
                Some(*process)
            }
            Action::Wake(process) | Action::TryHold(process, _) => Some(*process),
            Action::Refuse(process, _) | Action::Probe(process) | Action::Open(process) => Some(*process),
            Action::HoldClosed(process) | Action::SetAside(process) => Some(*process),
            // It may have ended.
            Action::Stop(process) | Action::Record(process, _) | Action::Renew(process) => Some(*process),
            _ => None,
        }
    }
}

impl Model for Bounds {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_some() {
            return;
        }
        self.writers(world, actions);
        (0..self.processes).for_each(|process| self.process(world, process, actions));
        actions.extend((0..world.late.len()).map(Action::KeepLate));
        if world.left.skips > 0 {
            actions.extend(world.database.parked.iter().map(|hold| Action::Skip(*hold)));
        }
        if world.left.server_crashes > 0 {
            actions.push(Action::CrashServer);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        let changes = self.happen(&mut next, action.clone());
        // As the session does after each event.
        if let Some(process) = action.of_session().filter(|_| changes) {
            self.send(&mut next, process);
        }
        changes.then_some(next)
    }

    fn properties(&self) -> Vec<Property<Bounds>> {
        let mut properties: Vec<Property<Bounds>> = Law::ALL.map(Law::property).into();
        if self.plant.is_none() {
            properties.extend(sights(self));
        }
        properties
    }
}

impl Bounds {
    /// Whether keys may be held.
    fn holds(&self) -> bool {
        self.rejections + self.outages + self.set_aside > 0
    }

    /// What may be kept now: where the broker keeps a key's messages of a batch in order, only the first that it has not.
    fn may_keep(&self, session: &Session, sent: &Sent) -> bool {
        let mut before = session.on_wire.iter().take_while(|other| other.position() != sent.position());
        let blocks = |other: &Sent| other.key() == sent.key() && !other.kept && other.hold.is_none();
        !sent.kept && (self.pipelining != Pipelining::PerBatch || !before.any(blocks))
    }

    /// Whether the first of its key whose outcome is not known is this.
    fn is_first(&self, session: &Session, sent: &Sent) -> bool {
        let first = session.on_wire.iter().find(|other| other.key() == sent.key());
        self.pipelining != Pipelining::PerBatch
            || first.is_some_and(|first| first.position() == sent.position())
    }

    fn writers(&self, world: &World, actions: &mut Vec<Action>) {
        let position_first = self.plant == Some(Plant::PositionBeforeTransaction);
        for (index, transaction) in world.database.transactions.iter().enumerate() {
            if transaction.is_over() {
                continue;
            }
            // Of transactions that are the same, the first begins first.
            let mut same =
                world.database.transactions[..index].iter().filter(|other| other.keys == transaction.keys);
            let all_drawn = transaction.drawn.len() == transaction.keys.len();
            let begun = |stage| stage != Stage::Unborn;
            if transaction.xid.is_none()
                && (!position_first || all_drawn)
                && same.all(|other| begun(other.stage))
            {
                actions.push(Action::Begin(index));
            }
            if (transaction.xid.is_some() || position_first) && world.database.may_draw(index) {
                actions.push(Action::Draw(index));
            }
            if transaction.xid.is_some() && all_drawn {
                actions.push(Action::Commit(index));
            }
            if transaction.xid.is_some() && world.left.rollbacks > 0 && !transaction.drawn.is_empty() {
                actions.push(Action::RollBack(index));
            }
        }
    }

    fn process(&self, world: &World, process: Process, actions: &mut Vec<Action>) {
        let lease = world.database.leases[process];
        let is_up = !matches!(&*world.processes[process], Life::Down);
        if lease == Some(true) && (!is_up || world.left.expiries > 0) {
            actions.push(Action::Expire(process));
        }
        if is_up && world.left.crashes > 0 {
            actions.push(Action::Crash(process));
        }
        match &*world.processes[process] {
            Life::Down => {
                // Processes are the same, so they start in order. One that was killed begins anew when its lease has ended:
                // until then it counts as alive.
                if lease != Some(true) && process <= world.started {
                    actions.push(Action::Start(process));
                }
            }
            Life::Joined => {
                let share = share(&world.database, process);
                if lease.is_none() {
                    actions.push(Action::Start(process));
                } else if share.next(0) == Move::Take || !share.owned.is_empty() {
                    actions.push(Action::Acquire(process));
                }
            }
            Life::Working(session) => self.session(world, process, session, actions),
        }
    }

    fn session(&self, world: &World, process: Process, session: &Session, actions: &mut Vec<Action>) {
        let still = world.database.transactions.iter().all(Transaction::is_over);
        if session.may_prove() && (session.is_opening() || world.left.proofs > 0) && !still {
            actions.push(Action::ReadBound(process));
        }
        if session.may_spend() {
            actions.push(Action::Spend(process));
        }
        if session.may_look(self.plant, still) {
            actions.push(Action::Look(process));
        }
        if session.may_page() {
            actions.push(Action::Page(process));
        }
        if session.may_wake() {
            actions.push(Action::Wake(process));
        }
        for sent in &session.on_wire {
            let position = sent.position();
            if self.may_keep(session, sent) {
                actions.push(Action::Keep(process, position));
                if world.left.rejections > 0 {
                    actions.push(Action::Reject(process, position));
                }
                if world.left.outages > 0 {
                    actions.push(Action::Refuse(process, position));
                }
            }
            if self.is_first(session, sent) {
                if sent.kept {
                    actions.push(Action::Confirm(process, position));
                }
                if world.left.unanswered > 0 {
                    actions.push(Action::NoAnswer(process, position));
                }
            }
        }
        if let Some((_, waits)) = session.closed() {
            actions.push(Action::Open(process));
            if waits && session.ending.is_none() {
                actions.push(Action::HoldClosed(process));
                if session.on_wire.is_empty() {
                    actions.push(Action::Probe(process));
                }
            }
        }
        if world.left.set_aside > 0 && session.ending.is_none() {
            actions.push(Action::SetAside(process));
        }
        actions.extend(session.holds_at_rest().map(|hold| Action::TryHold(process, hold)));
        if self.processes > 1 || self.crashes + self.stops + self.server_crashes > 0 || self.holds() {
            actions.push(Action::Record(process, false));
            if self.shards > 1 {
                actions.push(Action::Record(process, true));
            }
        }
        actions.push(Action::Renew(process));
        if session.may_leave() {
            actions.push(Action::Leave(process));
        } else if session.ending.is_some() && world.left.late_stops > 0 {
            actions.push(Action::LeaveLate(process));
        }
        if session.ending.is_none() && world.left.stops > 0 {
            actions.push(Action::Stop(process));
        }
    }
}
