//! Eras: for which part of the log a snapshot means something, and what is read at the edge of one. No I/O.
//!
//! Transaction ids mean something only within one life of a cluster. In a dump that is restored elsewhere they are plain
//! numbers: old messages look as if from the future, new ones as if seen already. So the log is divided by position into
//! eras, one for each life; a cursor stands in one of them, and no window crosses an edge.
//!
//! Of an era that has ended all is committed: a dump holds nothing else, and whoever ends an era keeps writers out. What a
//! cursor has not seen of it is one last window, from its snapshot, taken as numbers, to one that sees everything. Then it
//! stands at the beginning of the next era and has seen nothing.

use super::snapshot::Snapshot;
use super::window::{Look, Seen};

/// The eras of a log, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eras(Box<[Era]>);

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Era {
    /// Its number.
    pub era: i32,
    /// No message of it lies below.
    pub first_position: i64,
}

impl Default for Eras {
    /// Of a log that was never restored.
    fn default() -> Self {
        Eras::new(vec![Era { era: 1, first_position: 1 }])
    }
}

impl Eras {
    /// Eras in order, each of which ends where the next one begins.
    pub fn new(eras: Vec<Era>) -> Self {
        Eras(eras.into())
    }

    /// The one that has not ended.
    pub fn present(&self) -> i32 {
        self.0.last().map_or(1, |era| era.era)
    }

    /// Where whoever has seen nothing of the log stands.
    pub fn beginning(&self) -> Seen {
        let first = self.0.first().copied().unwrap_or(Era { era: 1, first_position: 1 });
        Seen { era: first.era, snapshot: Snapshot::nothing(), bound: first.first_position - 1 }
    }

    /// The era that a position lies in, or will.
    pub fn of(&self, position: i64) -> i32 {
        let begun = self.0.iter().rev().find(|era| era.first_position <= position.max(1));
        begun.map_or_else(|| self.beginning().era, |era| era.era)
    }

    /// Nothing of an era lies at or below this position. Below it the same transaction ids are other transactions.
    pub fn edge(&self, era: i32) -> i64 {
        self.0.iter().find(|known| known.era == era).map_or(0, |known| known.first_position - 1)
    }

    /// The last position of an era, if it has ended.
    pub fn end(&self, era: i32) -> Option<i64> {
        self.0.iter().find(|known| known.era > era).map(|next| next.first_position - 1)
    }

    /// Up to where the next window goes for whoever stands at `seen`; `None`: there can be nothing new. `proven` is
    /// a bound for every snapshot taken since it was proven, the look's included.
    ///
    /// Nothing new means: no position was drawn above the bound of what is seen, and no transaction that was running then
    /// has finished. That the sequence has not moved since the last look would not do: its last position may belong to
    /// a transaction that was, and is, open.
    pub fn next(&self, seen: &Seen, look: &Look, proven: i64) -> Option<Seen> {
        if let Some(end) = self.end(seen.era) {
            return Some(Seen { era: seen.era, snapshot: Snapshot::everything(), bound: end });
        }
        let late = !seen.snapshot.finished_since(&look.snapshot).is_empty();
        let next = Seen { era: seen.era, snapshot: look.snapshot.clone(), bound: proven };
        (late || look.last_position > seen.bound).then_some(next)
    }
}

impl Seen {
    /// Whether this is the end of an era.
    pub fn is_end(&self) -> bool {
        self.snapshot == Snapshot::everything()
    }

    /// Where a reader stands who has read up to here: at the end of an era, that is the beginning of the next.
    pub fn passed(&self) -> Seen {
        if self.is_end() {
            Seen { era: self.era + 1, snapshot: Snapshot::nothing(), bound: self.bound }
        } else {
            self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::window::{PageRange, Reading};
    use super::*;

    /// Era 1 up to position 100, an era 2 in which nothing was written, era 3.
    fn eras() -> Eras {
        Eras::new(vec![
            Era { era: 1, first_position: 1 },
            Era { era: 2, first_position: 101 },
            Era { era: 3, first_position: 101 },
        ])
    }

    fn seen(era: i32, snapshot: &str, bound: i64) -> Seen {
        Seen { era, snapshot: snapshot.parse().unwrap(), bound }
    }

    fn look(snapshot: &str, last_position: i64) -> Look {
        Look { snapshot: snapshot.parse().unwrap(), last_position, inserted: 0, changes: 0 }
    }

    /// Reads the open window to its end; its pages.
    fn read(reading: &mut Reading) -> Vec<PageRange> {
        let mut pages = Vec::new();
        while let Some(page) = reading.page() {
            reading.read(page.to);
            pages.push(page);
        }
        reading.close();
        pages
    }

    #[test]
    fn an_ended_era_is_read_to_its_end_whatever_the_clusters_ids_are_now() {
        let (seen, now) = (seen(1, "5000:5000:", 40), look("9:9:", 120));
        let until = eras().next(&seen, &now, 120).unwrap();
        assert!(until.is_end());
        assert!(until.snapshot.sees(5000) && until.snapshot.sees(u64::MAX / 2 - 1));
        let mut reading = Reading::new(vec![0], seen);
        assert!(reading.advance(1, &now, 120, &eras()));
        let pages = read(&mut reading);
        assert_eq!((pages.len(), pages[0].after, pages[0].to), (1, 40, 100));
    }

    #[test]
    fn whoever_was_running_is_committed_and_looked_for_within_the_era_only() {
        let mut reading = Reading::new(vec![0], seen(1, "5:7:5", 40));
        // 5 runs in the cluster of now, too: another transaction.
        assert!(reading.advance(1, &look("5:9:5", 120), 120, &eras()));
        let pages = read(&mut reading);
        assert_eq!((pages[0].after, pages[0].to, pages[0].new_after), (0, 100, 40));
        assert_eq!(pages[0].stragglers, [5]);

        let mut reading = Reading::new(vec![0], seen(3, "5:7:5", 110));
        assert!(reading.advance(1, &look("9:9:", 120), 120, &eras()));
        let page = reading.page().unwrap();
        assert_eq!(
            (page.after, page.stragglers),
            (100, vec![5]),
            "below 100 the id 5 is another transaction"
        );
    }

    #[test]
    fn after_the_end_of_an_era_the_next_one_begins_with_nothing_seen() {
        let mut reading = Reading::new(vec![0], seen(1, "5000:5000:", 40));
        let now = look("700:700:", 120);
        for era in [1, 2] {
            assert!(reading.advance(1, &now, 115, &eras()), "era {era}");
            let window = reading.window().unwrap();
            assert_eq!((window.seen.era, window.until.is_end()), (era, true));
            let pages = read(&mut reading);
            assert_eq!(pages.is_empty(), era == 2);
        }
        assert!(reading.advance(2, &now, 115, &eras()));
        let window = reading.window().unwrap();
        assert_eq!(
            (window.seen.clone(), window.until.clone()),
            (seen(3, "1:1:", 100), seen(3, "700:700:", 115))
        );
        assert_eq!(
            read(&mut reading).iter().map(|page| (page.after, page.to)).collect::<Vec<_>>(),
            [(100, 120)]
        );
        assert!(!reading.advance(3, &look("700:700:", 115), 115, &eras()));
    }

    #[test]
    fn a_recorded_window_of_an_ended_era_comes_first_and_stops_at_its_end() {
        let mut reading = Reading::new(vec![0], seen(1, "5:7:5", 40));
        reading.resume(1, seen(1, "9:9:", 60), 50, &look("700:700:", 120), &eras());
        assert_eq!(reading.page().map(|page| (page.after, page.to)), Some((50, 100)));
        read(&mut reading);
        assert!(reading.advance(2, &look("700:700:", 120), 120, &eras()));
        let window = reading.window().unwrap();
        assert_eq!((window.seen.clone(), window.until.is_end()), (seen(1, "9:9:", 60), true));
    }

    #[test]
    fn a_last_window_that_was_recorded_half_delivered_is_opened_again() {
        let end = eras().next(&seen(1, "9:9:", 60), &look("5:5:", 120), 120).unwrap();
        let mut reading = Reading::new(vec![0], seen(1, "9:9:", 60));
        reading.resume(1, end, 80, &look("5:5:", 120), &eras());
        assert_eq!(reading.page().map(|page| (page.after, page.to)), Some((80, 100)));
        read(&mut reading);
        assert!(reading.advance(2, &look("5:5:", 120), 120, &eras()));
        assert_eq!(reading.window().unwrap().seen.era, 2);
    }

    #[test]
    fn shards_of_different_eras_are_never_read_as_one() {
        let (old, new) = (seen(1, "5:5:", 100), seen(3, "5:5:", 100));
        let mut reading = Reading::new(vec![0], old.clone());
        assert!(!reading.is_beside(&Reading::new(vec![1], new.clone())));
        assert!(reading.is_beside(&Reading::new(vec![1], old.clone())));
        reading.resume(1, seen(1, "9:9:", 100), 0, &look("9:9:", 120), &eras());
        assert!(!reading.is_within(&new, &seen(3, "9:9:", 100)));
        assert!(reading.is_within(&old, &seen(1, "9:9:", 100)));
    }

    #[test]
    fn a_new_relay_begins_with_the_first_era() {
        assert_eq!((eras().beginning(), eras().present()), (seen(1, "1:1:", 0), 3));
        assert_eq!(eras().end(3), None);
    }
}
