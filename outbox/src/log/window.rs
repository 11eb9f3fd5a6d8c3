//! What is read next: the state machine of one reader of the log. No I/O.
//!
//! A reader remembers what it has seen as a snapshot. A *window* is what became visible between two snapshots, `seen` and
//! `until`, in order of position. It has two parts: messages of transactions that began after `seen`, which all lie above
//! a proven lower bound, and those of *stragglers*, which were running when `seen` was taken and have finished since.

use std::collections::BTreeMap;

use super::eras::Eras;
use super::snapshot::{Snapshot, leaf_end, leaves_between};

/// A snapshot, and a position that no transaction unseen by it and begun after it can have drawn, nor any below.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The era in which it was taken, and means something.
    pub era: i32,
    /// What is visible.
    pub snapshot: Snapshot,
    /// The lower bound of what is new.
    pub bound: i64,
}

/// What a poll saw.
#[derive(Clone, Debug)]
pub struct Look {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The last position drawn, read after the snapshot.
    pub last_position: i64,
    /// End of the WAL, read after the snapshot.
    pub inserted: i64,
    /// How often the sharing of the relay has changed.
    pub changes: i64,
}

/// The part of the log between two snapshots.
#[derive(Clone, Debug)]
pub struct Window {
    /// Numbers the windows of a process.
    pub id: u64,
    /// What was seen before.
    pub seen: Seen,
    /// What is seen after it.
    pub until: Seen,
}

/// For the model: what a window holds is in it, and its number is only a name.
#[cfg(test)]
impl std::hash::Hash for Window {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (&self.seen, &self.until).hash(state);
    }
}

/// One statement's worth of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// Above this position.
    pub after: i64,
    /// Up to this one.
    pub to: i64,
    /// New messages lie above this position.
    pub new_after: i64,
    /// Transactions whose messages lie below that, too.
    pub stragglers: Vec<u64>,
}

/// Where one set of shards, which move together, stands in the log.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
pub struct Reading {
    /// The shards, ascending.
    pub shards: Vec<i16>,
    seen: Seen,
    /// Running transactions, each with a position below all of its own; 0: unknown.
    floors: BTreeMap<u64, i64>,
    open: Option<Open>,
}

#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
struct Open {
    window: std::sync::Arc<Window>,
    high: i64,
    /// Nothing of the window lies at or below this.
    begins: i64,
    after: i64,
    stragglers: Vec<u64>,
    /// Where the stragglers begin is known.
    asked: bool,
    /// The WAL must be flushed up to here before anything of the window is published.
    inserted: i64,
    /// What of a window opened again was delivered before: up to which position, by shard.
    delivered: BTreeMap<i16, i64>,
}

impl Reading {
    /// Stands where a cursor was recorded. With a window open there, [`resume`](Self::resume) it first.
    pub fn new(shards: Vec<i16>, seen: Seen) -> Self {
        let floors = seen.snapshot.running().iter().map(|xid| (*xid, 0)).collect();
        Reading { shards, seen, floors, open: None }
    }

    /// Opens the recorded window again, delivered up to `after`.
    pub fn resume(&mut self, id: u64, until: Seen, after: i64, look: &Look, eras: &Eras) {
        self.begin(id, until, look, eras);
        for shard in self.shards.clone() {
            self.resume_beside(shard, after);
        }
    }

    /// Whether a window between these two is open.
    pub fn is_within(&self, seen: &Seen, until: &Seen) -> bool {
        self.open.as_ref().is_some_and(|open| open.window.seen == *seen && open.window.until == *until)
    }

    /// Reads the window opened again for one more shard, delivered up to `after`: one scan serves all shards that were
    /// recorded in one window, though each stands elsewhere in it.
    pub fn resume_beside(&mut self, shard: i16, after: i64) {
        if let Err(place) = self.shards.binary_search(&shard) {
            self.shards.insert(place, shard);
        }
        if let Some(open) = &mut self.open {
            open.delivered.insert(shard, after);
            open.after = open.begins.max(open.delivered.values().copied().min().unwrap_or_default());
        }
    }

    /// Whether a message of the window was delivered before the window was opened again.
    pub fn was_delivered(&self, shard: i16, position: i64) -> bool {
        let delivered = self.open.as_ref().and_then(|open| open.delivered.get(&shard));
        delivered.is_some_and(|after| position <= *after)
    }

    /// Opens the next window, if the look shows that there may be something in it ([`Eras::next`]).
    pub fn advance(&mut self, id: u64, look: &Look, proven: i64, eras: &Eras) -> bool {
        let next = eras.next(&self.seen, look, proven);
        next.map(|until| self.begin(id, until, look, eras)).is_some()
    }

    fn begin(&mut self, id: u64, until: Seen, look: &Look, eras: &Eras) {
        let stragglers = self.seen.snapshot.finished_since(&until.snapshot);
        let floor = |xid: &u64| self.floors.get(xid).copied().unwrap_or(0);
        let lowest = stragglers.iter().map(floor).min().unwrap_or(self.seen.bound);
        let window = std::sync::Arc::new(Window { id, seen: self.seen.clone(), until });
        let begins = lowest.min(self.seen.bound).max(eras.edge(self.seen.era));
        self.open = Some(Open {
            window,
            high: eras.end(self.seen.era).unwrap_or(look.last_position),
            begins,
            after: begins,
            stragglers,
            asked: false,
            inserted: look.inserted,
            delivered: BTreeMap::new(),
        });
    }

    /// For the model: whether what the transaction has written lies in a window that is read.
    #[cfg(test)]
    pub(crate) fn has_seen(&self, xid: u64) -> bool {
        self.seen.snapshot.sees(xid)
    }

    /// The open window.
    pub fn window(&self) -> Option<&std::sync::Arc<Window>> {
        self.open.as_ref().map(|open| &open.window)
    }

    /// How far the WAL must be flushed before anything of the open window is published.
    pub fn must_be_flushed(&self) -> i64 {
        self.open.as_ref().map_or(0, |open| open.inserted)
    }

    /// The open window is read up to here.
    pub fn read_to(&self) -> i64 {
        self.open.as_ref().map_or(0, |open| open.after)
    }

    /// Transactions whose first position is worth asking for before the first page, because what is known of it is
    /// leaves away; answer with [`first_is`](Self::first_is).
    pub fn far_stragglers(&self) -> Option<(&[u64], i64, i64)> {
        let open = self.open.as_ref()?;
        let far = !open.asked && !open.stragglers.is_empty() && leaves_between(open.after, open.high) > 1;
        far.then_some((open.stragglers.as_slice(), open.after, open.high))
    }

    /// The first position that the stragglers have written, if any.
    pub fn first_is(&mut self, position: Option<i64>) {
        let Some(open) = &mut self.open else { return };
        open.asked = true;
        match position {
            // Not past the bound: what is new lies above it, and may lie below what a straggler wrote first.
            Some(position) => open.after = open.after.max((position - 1).min(open.window.seen.bound)),
            None => {
                open.stragglers.clear();
                open.after = open.after.max(self.seen.bound);
            }
        }
    }

    /// The next page of the open window; `None`: it is read to its end.
    pub fn page(&self) -> Option<PageRange> {
        let open = self.open.as_ref()?;
        (open.after < open.high).then(|| PageRange {
            after: open.after,
            to: leaf_end(open.after + 1).min(open.high),
            new_after: open.after.max(open.window.seen.bound),
            stragglers: open.stragglers.clone(),
        })
    }

    /// The page was read: up to its last message if it was full, else up to its end. Whether the window is read to its end.
    pub fn read(&mut self, last: i64) -> bool {
        match &mut self.open {
            Some(open) => {
                open.after = last;
                open.after >= open.high
            }
            None => true,
        }
    }

    /// The window is read to its end: what it made visible is seen.
    pub fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let until = open.window.until.passed();
        let known = |xid: &u64| {
            // A transaction that began after `seen` has drawn nothing at or below its bound.
            let begun_after = *xid >= self.seen.snapshot.xmax();
            let floor =
                self.floors.get(xid).copied().unwrap_or(if begun_after { self.seen.bound } else { 0 });
            (*xid, floor)
        };
        let floors = until.snapshot.running().iter().map(known).collect();
        self.floors = floors;
        self.seen = until;
    }

    /// Whether both have seen the same and have no window open, so that they can be read as one.
    pub fn is_beside(&self, other: &Reading) -> bool {
        self.open.is_none() && other.open.is_none() && self.seen == other.seen
    }

    /// Reads the other's shards too.
    pub fn join(&mut self, other: Reading) {
        self.shards.extend(other.shards);
        self.shards.sort_unstable();
        for (xid, floor) in other.floors {
            // The same transaction: both floors hold, the higher one says more.
            self.floors.entry(xid).and_modify(|known| *known = floor.max(*known)).or_insert(floor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(snapshot: &str, last_position: i64) -> Look {
        Look { snapshot: snapshot.parse().unwrap(), last_position, inserted: 0, changes: 0 }
    }

    fn reading(snapshot: &str, bound: i64) -> Reading {
        Reading::new(vec![0], Seen { era: 1, snapshot: snapshot.parse().unwrap(), bound })
    }

    /// Opens the next window of a log that was never restored.
    fn advance(reading: &mut Reading, id: u64, look: &Look, proven: i64) -> bool {
        reading.advance(id, look, proven, &Eras::default())
    }

    #[test]
    fn a_position_held_by_an_open_transaction_is_not_idle() {
        // Position 2 is drawn and not visible: the sequence will not move again, and the next look must look.
        let mut reading = reading("5:5:", 1);
        assert!(!advance(&mut reading, 1, &look("5:5:", 1), 1));
        assert!(advance(&mut reading, 2, &look("5:5:", 2), 1));
        reading.read(2);
        reading.close();
        assert!(advance(&mut reading, 3, &look("6:6:", 2), 1));
    }

    #[test]
    fn a_straggler_is_read_from_below_the_bound() {
        let mut reading = reading("5:7:5", 100);
        assert!(!advance(&mut reading, 1, &look("5:9:5", 100), 100));
        assert!(advance(&mut reading, 1, &look("9:9:", 100), 100));
        let page = reading.page().unwrap();
        assert_eq!((page.after, page.to, page.new_after, page.stragglers), (0, 100, 100, vec![5]));
    }

    #[test]
    fn a_transaction_first_met_running_is_looked_for_above_the_bound_before_it() {
        let mut reading = reading("5:5:", 40);
        advance(&mut reading, 1, &look("6:9:6", 60), 50);
        assert!(reading.read(60));
        reading.close();
        // 6 began after the first snapshot: nothing of it lies at or below 40.
        advance(&mut reading, 2, &look("9:9:", 60), 60);
        assert_eq!(reading.page().unwrap().after, 40);
    }

    #[test]
    fn far_stragglers_are_asked_for_and_forgotten_if_they_wrote_nothing() {
        let mut reading = reading("5:7:5", 1 << 30);
        advance(&mut reading, 1, &look("9:9:", (1 << 30) + 5), 1 << 30);
        assert!(reading.far_stragglers().is_some());
        reading.first_is(None);
        assert_eq!(reading.page().unwrap().after, 1 << 30);
        assert!(reading.page().unwrap().stragglers.is_empty());
    }

    #[test]
    fn a_far_straggler_that_wrote_late_does_not_hide_what_others_wrote_before_it() {
        let bound = 3 << 20;
        let mut reading = reading("5:7:5", bound);
        advance(&mut reading, 1, &look("9:9:", bound + 6000), bound);
        assert!(reading.far_stragglers().is_some());
        reading.first_is(Some(bound + 5000));
        assert_eq!(reading.page().unwrap().new_after, bound);
        assert!(reading.far_stragglers().is_none());
    }
}
