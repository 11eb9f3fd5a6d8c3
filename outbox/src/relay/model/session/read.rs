//! Between the log and the lanes: bounds, looks and pages.

use std::collections::BTreeMap;

use super::super::database::{Database, message};
use super::super::plant::Plant;
use super::{Saw, Session, item};
use crate::log::{Eras, Page};

impl Session {
    pub(in super::super) fn may_prove(&self) -> bool {
        self.may_read() && self.bound.is_none() && !self.readings.is_open()
    }

    pub(in super::super) fn may_spend(&self) -> bool {
        self.may_read() && self.bound.is_some() && !self.spent
    }

    /// A look follows a proof, or goes by the last one.
    /// When nobody writes any more (`still`), nothing can come between the proof and the look.
    pub(in super::super) fn may_look(&self, plant: Option<Plant>, still: bool) -> bool {
        let proven = match self.bound {
            Some(_) => self.spent || plant == Some(Plant::BoundAtSnapshot),
            None => still || !self.is_opening(),
        };
        self.may_read() && proven && !self.readings.is_open()
    }

    pub(in super::super) fn may_page(&self) -> bool {
        self.may_read() && self.readings.is_open()
    }

    fn may_read(&self) -> bool {
        self.ending.is_none() && !self.epochs.is_empty()
    }

    /// `last_position.sql`.
    pub(in super::super) fn read_bound(&mut self, database: &Database) {
        self.bound = Some(database.last_position);
    }

    /// `spend.sql`.
    pub(in super::super) fn spend(&mut self, database: &mut Database) {
        database.spend();
        self.spent = true;
    }

    /// A look: the first one serves the windows that were recorded, if any are open.
    pub(in super::super) fn look(&mut self, database: &mut Database, plant: Option<Plant>) -> Saw {
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
    pub(in super::super) fn page(&mut self, database: &Database, limit: usize, plant: Option<Plant>) {
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
        let (mut items, mut settled) = (Vec::new(), Vec::new());
        for log in page.messages {
            let Some(progress) = self.progress.get_mut(&(log.slot % of_all)) else { continue };
            progress.begin(log.position);
            if self.settled.contains(log.position) {
                settled.push(log);
            } else {
                items.push(item(log, page.window.id));
            }
        }
        settled.iter().for_each(|log| self.pass(log, page.window.id, of_all));
        items.sort_by_key(|item| order(item.log.position));
        items.into_iter().for_each(|item| self.lanes.push(item));
        for shard in page.shards.iter() {
            if let Some(progress) = self.progress.get_mut(shard) {
                progress.settle();
            }
        }
    }
}
