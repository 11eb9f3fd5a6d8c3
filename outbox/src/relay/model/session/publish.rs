//! Between the lanes and the broker: what is sent, and what its outcomes mean.

use std::sync::Arc;

use super::super::database::Database;
use super::super::plant::Plant;
use super::{BATCH, Sent, Session, held, name};
use crate::relay::lanes::{After, Item, Resting};

impl Session {
    pub(in super::super) fn may_send(&self) -> bool {
        self.ending.is_none() && self.lanes.is_ready()
    }

    /// Puts on the wire what may be there now.
    pub(in super::super) fn send(&mut self, of_all: i16, plant: Option<Plant>) {
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
    pub(in super::super) fn confirm(
        &mut self,
        database: &mut Database,
        position: i64,
        of_all: i16,
        plant: Option<Plant>,
    ) {
        let Some(sent) = self.take(position) else { return };
        if sent.hold.is_some() {
            // Under the epoch.
            if self.owns(database, sent.key() % of_all) {
                database.settle(position, plant);
            }
            return;
        }
        self.deliver(&sent.item.log, sent.item.window, of_all);
        let after = self.lanes.confirm(&sent.item);
        self.then(after, of_all, None);
    }

    /// No answer comes, to this message and to those behind it that the broker keeps in order with it.
    pub(in super::super) fn fail(&mut self, position: i64, of_all: i16, plant: Option<Plant>) {
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
    pub(in super::super) fn reject(&mut self, position: i64, of_all: i16, plant: Option<Plant>) {
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
            After::Rest(resting) => self.resting.extend(self.lanes.file(resting)),
            After::Held { items, .. } => self.hold(items, of_all, plant),
        }
    }

    fn hold(&mut self, items: Vec<Item>, of_all: i16, plant: Option<Plant>) {
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

    /// The message's destination takes nothing now.
    pub(in super::super) fn refuse(&mut self, position: i64, of_all: i16, plant: Option<Plant>) {
        let Some(sent) = self.take(position) else { return };
        self.lanes.close(&sent.item.outgoing.destination);
        if sent.hold.is_none() {
            let after = if plant == Some(Plant::DestinationOvertaken) {
                self.resting.push(Resting::Alone(Box::new(sent.item.clone())));
                self.lanes.open(&sent.item.outgoing.destination);
                self.lanes.confirm(&sent.item)
            } else {
                self.lanes.fail(sent.item)
            };
            self.then(after, of_all, plant);
        }
    }

    /// The destination that is closed, and whether something waits there.
    pub(in super::super) fn closed(&self) -> Option<(Arc<str>, bool)> {
        self.lanes.closed().next().map(|(destination, waits)| (Arc::clone(destination), waits))
    }

    /// A probe: one message is sent all the same.
    pub(in super::super) fn probe(&mut self) {
        let Some((destination, _)) = self.closed() else { return };
        if let Some(item) = self.lanes.probe(&destination) {
            self.on_wire.push(Sent { item, kept: false, hold: None });
        }
    }

    /// The destination is back.
    pub(in super::super) fn open(&mut self) {
        if let Some((destination, _)) = self.closed() {
            self.lanes.open(&destination);
        }
    }

    /// What waits at the destination is held.
    pub(in super::super) fn hold_closed(&mut self, of_all: i16, plant: Option<Plant>) {
        let Some((destination, _)) = self.closed() else { return };
        for mut items in self.lanes.hold_closed(&destination) {
            if plant == Some(Plant::DestinationForgotten) {
                items.drain(1..).for_each(|item| self.pass(&item.log, item.window, of_all));
            }
            self.hold(items, of_all, plant);
        }
    }

    /// A key of which anything waits is set aside.
    pub(in super::super) fn set_aside(&mut self, of_all: i16, plant: Option<Plant>) {
        let items = self.lanes.set_aside(0, usize::MAX);
        self.hold(items, of_all, plant);
    }

    pub(in super::super) fn may_wake(&self) -> bool {
        !self.resting.is_empty()
    }

    /// A rest is over.
    pub(in super::super) fn wake(&mut self, plant: Option<Plant>) {
        match self.resting.remove(0) {
            Resting::Alone(item)
                if matches!(plant, Some(Plant::RetryOvertaken | Plant::DestinationOvertaken)) =>
            {
                self.lanes.push(*item);
            }
            resting => self.lanes.wake(resting),
        }
    }
}
