//! Between the lanes and the database: what is held back, and what is recorded.

use super::super::database::{Database, Recorded};
use super::super::plant::Plant;
use super::{Session, held};
use crate::log::{Eras, LogMessage, Progress};

impl Session {
    pub(in super::super) fn copies_from_lanes(&mut self, of_all: i16, plant: Option<Plant>) {
        let releasing = &self.releasing;
        let taken = self.lanes.take_copies(|hold| !releasing.contains(&hold));
        for (hold, item) in taken {
            self.pass(&item.log, item.window, of_all);
            if plant != Some(Plant::HoldWithoutSuccessors) {
                self.copies.push((hold, held(&item.log)));
            }
        }
    }

    pub(in super::super) fn pass(&mut self, log: &LogMessage, window: u64, of_all: i16) {
        self.moved = true;
        if let Some(progress) = self.progress.get_mut(&(log.slot % of_all)) {
            progress.finish(window, log.position);
            self.passed.insert(log.position, log.slot);
        }
    }

    pub(in super::super) fn deliver(&mut self, log: &LogMessage, window: u64, of_all: i16) {
        self.moved = true;
        if let Some(progress) = self.progress.get_mut(&(log.slot % of_all)) {
            progress.deliver(window, log.position);
            self.passed.insert(log.position, log.slot);
        }
    }

    /// Messages of a shard that it has passed, by its own count, and that its crash would repeat.
    pub(in super::super) fn unrecorded(&self, shard: i16) -> usize {
        self.progress.get(&shard).map_or(0, Progress::unrecorded)
    }

    /// Writes what there is to record; with `all`, also of shards whose cursor has not moved, as now and then and when the
    /// session ends. `None`: there was nothing to write.
    pub(in super::super) fn record(
        &mut self,
        database: &mut Database,
        all: bool,
        plant: Option<Plant>,
    ) -> Option<Recorded> {
        let of_all = i16::try_from(database.cursors.len()).unwrap_or(1);
        self.copies_from_lanes(of_all, plant);
        let all = self.moved && all;
        self.moved &= !all;
        let progress = &self.progress;
        let cursor = |shard: i16| progress.get(&shard).map(Progress::cursor);
        let forgotten = self.settled.take_passed(cursor, &Eras::default());
        let (holds, copies) = (std::mem::take(&mut self.new_holds), std::mem::take(&mut self.copies));
        let mut lost = Vec::new();
        let mut written = None;
        let shards: Vec<i16> = self.progress.keys().copied().collect();
        for shard in shards {
            let of_shard = |key: i16| key % of_all == shard;
            let holds: Vec<_> = holds.iter().filter(|(_, key)| of_shard(*key)).copied().collect();
            let copies: Vec<_> = copies.iter().filter(|(_, held)| of_shard(held.key)).copied().collect();
            let forgotten = forgotten.iter().filter(|(of, _)| *of == shard);
            let forgotten: Vec<i64> = forgotten.map(|(_, position)| *position).collect();
            let Some(progress) = self.progress.get_mut(&shard) else { continue };
            let takes_part = all || !holds.is_empty() || !copies.is_empty() || !forgotten.is_empty();
            let record = progress.record().or_else(|| takes_part.then(|| progress.cursor()));
            let (Some(record), Some(epoch)) = (record, self.epochs.get(&shard)) else { continue };
            let copies: Vec<_> = copies.iter().map(|(hold, held)| (*hold, held.position)).collect();
            match database.record(record, *epoch, &holds, &copies, &forgotten, plant) {
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
        self.lose(&lost);
        written
    }
}
