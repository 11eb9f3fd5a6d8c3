//! How far one shard is delivered: the part of its cursor that moves with the confirmations. No I/O.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use super::eras::Eras;
use super::window::{Seen, Window};

/// What a cursor row says of a shard: delivered is what is visible in `seen`, and what is visible in `until` at a
/// position up to `after`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CursorRecord {
    /// The shard.
    pub shard: i16,
    /// Delivered altogether.
    pub seen: Seen,
    /// Delivered in part.
    pub until: Option<Seen>,
    /// Up to this position of that part; 0 without one.
    pub after: i64,
}

impl CursorRecord {
    /// Whether the cursor has passed what the transaction `tx` wrote at a position of its shard.
    pub fn has_passed(&self, position: i64, tx: u64, eras: &Eras) -> bool {
        match eras.of(position).cmp(&self.seen.era) {
            Ordering::Less => true,
            Ordering::Equal => {
                let in_part = |until: &Seen| position <= self.after && until.snapshot.sees(tx);
                self.seen.snapshot.sees(tx) || self.until.as_ref().is_some_and(in_part)
            }
            Ordering::Greater => false,
        }
    }
}

/// Keeps, for one shard, which messages of which windows are under way. Messages may finish in any order; the cursor
/// follows the finished prefix.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
pub struct Progress {
    shard: i16,
    seen: Seen,
    /// A window after `seen` that was delivered in part before, up to a position, and is not read yet.
    resumed: Option<(Seen, i64)>,
    windows: VecDeque<Tracked>,
    /// Finished since the cursor was recorded, and passed by it or not.
    finished: usize,
    moved: bool,
}

#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
struct Tracked {
    window: Arc<Window>,
    /// Delivered before the window was opened again: other shards that are read with this one may stand behind it.
    delivered: i64,
    read_to: i64,
    all_read: bool,
    /// Positions in order, and how far each is. In the first window the first one is not finished; what is finished in later
    /// ones stays here until they are the first.
    under_way: VecDeque<(i64, Fate)>,
}

/// How far a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
enum Fate {
    UnderWay,
    /// Held, or done with before.
    Passed,
    Delivered,
}

impl Tracked {
    /// Finished up to here.
    fn after(&self) -> i64 {
        self.under_way.front().map_or(self.read_to, |entry| entry.0 - 1).max(self.delivered)
    }
}

impl Progress {
    /// A shard that has delivered what is visible in `seen`.
    pub fn new(shard: i16, seen: Seen) -> Self {
        Progress { shard, seen, resumed: None, windows: VecDeque::new(), finished: 0, moved: false }
    }

    /// A shard that stands where its cursor was recorded.
    pub fn resume(cursor: &CursorRecord) -> Self {
        let resumed = cursor.until.clone().map(|until| (until, cursor.after));
        Progress { resumed, ..Progress::new(cursor.shard, cursor.seen.clone()) }
    }

    /// A page was read for the shard: `window` has no unread messages up to `read_to`; with `last`, none at all. Before
    /// its messages are [begun](Self::begin).
    pub fn read(&mut self, window: &Arc<Window>, read_to: i64, last: bool) {
        if self.windows.back().is_none_or(|tracked| tracked.window.id != window.id) {
            let (window, under_way) = (Arc::clone(window), VecDeque::new());
            let resumed =
                self.resumed.take().filter(|(until, _)| *until == window.until && self.seen == window.seen);
            let delivered = resumed.map_or(0, |(_, after)| after);
            self.windows.push_back(Tracked { window, delivered, read_to, all_read: last, under_way });
        }
        if let Some(tracked) = self.windows.back_mut() {
            tracked.read_to = read_to;
            tracked.all_read = last;
        }
    }

    /// A message of the page read last is under way.
    pub fn begin(&mut self, position: i64) {
        if let Some(tracked) = self.windows.back_mut() {
            tracked.under_way.push_back((position, Fate::UnderWay));
        }
    }

    /// All messages of the page read last are begun: windows without any can close.
    pub fn settle(&mut self) {
        while let Some(front) = self.windows.front_mut() {
            while front.under_way.front().is_some_and(|entry| entry.1 != Fate::UnderWay) {
                front.under_way.pop_front();
                self.moved = true;
            }
            if !front.all_read || !front.under_way.is_empty() {
                return;
            }
            let seen = front.window.until.passed();
            // Recorded even if there was no message: else its leaves would be kept for this cursor until one comes.
            self.moved |= seen.era != self.seen.era;
            self.seen = seen;
            self.windows.pop_front();
        }
    }

    /// A message is delivered.
    pub fn deliver(&mut self, window: u64, position: i64) {
        self.finish_as(window, position, Fate::Delivered);
    }

    /// A message is held where its cursor need not wait for it, or done with before.
    pub fn finish(&mut self, window: u64, position: i64) {
        self.finish_as(window, position, Fate::Passed);
    }

    fn finish_as(&mut self, window: u64, position: i64, fate: Fate) {
        let Some(tracked) = self.windows.iter_mut().find(|tracked| tracked.window.id == window) else {
            return;
        };
        if let Ok(index) = tracked.under_way.binary_search_by_key(&position, |entry| entry.0) {
            tracked.under_way[index].1 = fate;
            self.finished += 1;
        }
        self.settle();
    }

    /// Whether the cursor has passed a message of a window that was read.
    pub fn has_passed(&self, window: u64, position: i64) -> bool {
        self.windows.front().is_none_or(|front| match window.cmp(&front.window.id) {
            Ordering::Less => true,
            Ordering::Equal => position <= front.after(),
            Ordering::Greater => false,
        })
    }

    /// Messages delivered that the cursor has not passed.
    pub fn delivered_ahead(&self) -> impl Iterator<Item = i64> {
        let entries = self.windows.iter().flat_map(|tracked| &tracked.under_way);
        entries.filter(|entry| entry.1 == Fate::Delivered).map(|entry| entry.0)
    }

    /// What to record, if the cursor has moved past a message since the last call.
    pub fn record(&mut self) -> Option<CursorRecord> {
        std::mem::take(&mut self.moved).then(|| {
            // What is finished behind a message under way stays unrecorded, and so does all that is finished of later
            // windows.
            let entries = self.windows.iter().flat_map(|tracked| &tracked.under_way);
            self.finished = entries.filter(|entry| entry.1 != Fate::UnderWay).count();
            self.cursor()
        })
    }

    /// Messages finished that a crash would repeat.
    pub fn unrecorded(&self) -> usize {
        self.finished
    }

    /// Where the cursor stands.
    pub fn cursor(&self) -> CursorRecord {
        let shard = self.shard;
        match self.windows.front() {
            None => {
                let (until, after) = self.resumed.clone().unzip();
                CursorRecord { shard, seen: self.seen.clone(), until, after: after.unwrap_or(0) }
            }
            Some(front) => CursorRecord {
                shard,
                seen: front.window.seen.clone(),
                until: Some(front.window.until.clone()),
                after: front.after(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::Snapshot;
    use super::*;

    fn seen(xmax: u64) -> Seen {
        Seen { era: 1, snapshot: format!("{xmax}:{xmax}:").parse().unwrap(), bound: 0 }
    }

    fn window(id: u64) -> Arc<Window> {
        Arc::new(Window { id, seen: seen(id * 10), until: seen(id * 10 + 10) })
    }

    #[test]
    fn what_is_finished_behind_a_message_under_way_is_unrecorded_in_later_windows_too() {
        let mut progress = Progress::new(3, seen(10));
        progress.read(&window(1), 9, true);
        [4, 6].into_iter().for_each(|position| progress.begin(position));
        progress.read(&window(2), 19, true);
        [11, 12].into_iter().for_each(|position| progress.begin(position));
        progress.finish(1, 6);
        progress.finish(2, 11);
        progress.finish(2, 12);
        assert_eq!((progress.record(), progress.cursor().after), (None, 3), "it has not moved");
        assert_eq!(progress.unrecorded(), 3);
        assert_eq!(progress.delivered_ahead().count(), 0, "they are held");
        progress.finish(1, 4);
        progress.record();
        assert_eq!(progress.unrecorded(), 0);
    }

    #[test]
    fn what_is_delivered_ahead_of_the_cursor_is_known_in_every_window() {
        let mut progress = Progress::new(3, seen(10));
        for (id, positions) in [(1, [4, 6]), (2, [11, 12])] {
            progress.read(&window(id), id as i64 * 10, true);
            positions.into_iter().for_each(|position| progress.begin(position));
            progress.settle();
        }
        let ahead = |progress: &Progress| progress.delivered_ahead().collect::<Vec<_>>();
        progress.deliver(2, 11);
        progress.finish(2, 12);
        progress.deliver(1, 6);
        assert_eq!(ahead(&progress), [6, 11]);
        progress.deliver(1, 4);
        assert_eq!(ahead(&progress), [0; 0]);
        assert_eq!(progress.cursor().seen, seen(30));
    }

    #[test]
    fn the_cursor_waits_for_the_first_message_under_way() {
        let mut progress = Progress::new(3, seen(10));
        progress.read(&window(1), 9, false);
        for position in [4, 6, 9] {
            progress.begin(position);
        }
        progress.finish(1, 6);
        progress.finish(1, 9);
        assert_eq!((progress.record(), progress.unrecorded()), (None, 2));
        assert_eq!(progress.cursor().after, 3);
        assert!(!progress.has_passed(1, 6));
        progress.finish(1, 4);
        assert!(progress.has_passed(1, 6));
        let record = progress.record().unwrap();
        assert_eq!(progress.unrecorded(), 0);
        assert_eq!((record.shard, record.after, record.until), (3, 9, Some(seen(20))));
        assert_eq!(progress.record(), None);
    }

    #[test]
    fn a_later_window_that_is_done_does_not_move_a_cursor_past_an_earlier_one() {
        let mut progress = Progress::new(0, seen(10));
        progress.read(&window(1), 5, true);
        progress.begin(5);
        progress.settle();
        progress.read(&window(2), 3, true);
        progress.begin(3);
        progress.settle();
        progress.finish(2, 3);
        assert_eq!((progress.cursor().seen, progress.cursor().after), (seen(10), 4));
        progress.finish(1, 5);
        assert_eq!(progress.cursor(), CursorRecord { shard: 0, seen: seen(30), until: None, after: 0 });
    }

    #[test]
    fn the_end_of_an_era_is_recorded_as_the_beginning_of_the_next_and_not_before_all_of_it_is_delivered() {
        let mut progress = Progress::new(0, seen(10));
        let end = Seen { era: 1, snapshot: Snapshot::everything(), bound: 100 };
        let last = Arc::new(Window { id: 1, seen: seen(10), until: end.clone() });
        progress.read(&last, 100, true);
        progress.begin(5);
        progress.settle();
        let mut record = progress.cursor();
        assert_eq!((record.seen, record.until, record.after), (seen(10), Some(end), 4));
        progress.finish(1, 5);
        record = progress.record().unwrap();
        assert_eq!(
            (record.seen, record.until),
            (Seen { era: 2, snapshot: Snapshot::nothing(), bound: 100 }, None)
        );

        let mut progress = Progress::new(0, seen(10));
        progress.read(&last, 100, true);
        progress.settle();
        assert_eq!(progress.record().unwrap().seen.era, 2, "also if nothing was left of it");
    }

    #[test]
    fn a_cursor_has_passed_what_both_parts_of_it_say_within_its_era() {
        use super::super::eras::Era;
        let eras = Eras::new(vec![Era { era: 1, first_position: 1 }, Era { era: 2, first_position: 100 }]);
        let mut cursor = CursorRecord { shard: 0, seen: seen(10), until: Some(seen(20)), after: 50 };
        let passed = |cursor: &CursorRecord, position, tx| cursor.has_passed(position, tx, &eras);
        // Visible in `seen`, wherever it lies; visible in `until`, up to `after` only; in neither.
        assert!(passed(&cursor, 60, 9) && passed(&cursor, 50, 19));
        assert!(!passed(&cursor, 51, 19) && !passed(&cursor, 40, 20));
        assert!(!passed(&cursor, 100, 9), "of an era that the cursor has not come to");
        cursor.seen.era = 2;
        assert!(passed(&cursor, 99, 5000) && !passed(&cursor, 100, 5000));
        cursor.until = None;
        assert!(!passed(&cursor, 100, 19));
    }

    #[test]
    fn a_window_without_messages_of_the_shard_is_seen_and_not_recorded() {
        let mut progress = Progress::new(0, seen(10));
        progress.read(&window(1), 5, true);
        progress.settle();
        assert_eq!(progress.record(), None);
        assert_eq!(progress.cursor().seen, seen(20));
    }

    #[test]
    fn a_window_opened_again_is_recorded_as_it_was_until_more_of_it_is_delivered() {
        let window = window(1);
        let recorded =
            CursorRecord { shard: 3, seen: window.seen.clone(), until: Some(window.until.clone()), after: 8 };
        let mut progress = Progress::resume(&recorded);
        assert_eq!(progress.cursor(), recorded);
        // Read together with a shard that stands at 2: nothing up to 8 is new to this one.
        progress.read(&window, 5, false);
        progress.settle();
        assert_eq!(progress.cursor(), recorded);
        progress.read(&window, 12, true);
        progress.begin(11);
        progress.settle();
        assert_eq!(progress.cursor().after, 10);
        progress.finish(1, 11);
        assert_eq!(progress.cursor(), CursorRecord { shard: 3, seen: seen(20), until: None, after: 0 });
    }
}
