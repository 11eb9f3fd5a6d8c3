//! PostgreSQL's `pg_snapshot`, and the arithmetic of the ring.
//!
//! It goes to the server and back as text. For types that the driver does not know it would ask the server in between,
//! which replaces the unnamed statement, and those are what the page queries must be.

use std::fmt;
use std::str::FromStr;

use sqlx::Row;
use sqlx::postgres::PgRow;

/// Which transactions had finished at a moment: all below `xmin`, none from `xmax` on, and between them all but those
/// that were running (`xip`, ascending). It is what a reader has already seen.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    xip: Vec<u64>,
}

impl Snapshot {
    /// The snapshot before everything: it sees nothing.
    pub fn nothing() -> Self {
        Snapshot { xmin: 1, xmax: 1, xip: Vec::new() }
    }

    /// The snapshot after everything: it sees whatever there is.
    pub fn everything() -> Self {
        // Half of what the server counts to: nobody has to think about signs.
        Snapshot { xmin: i64::MAX as u64, xmax: i64::MAX as u64, xip: Vec::new() }
    }

    /// The first transaction id that had not been given to a finished transaction.
    pub fn xmax(&self) -> u64 {
        self.xmax
    }

    /// The transactions that were running, ascending.
    pub fn running(&self) -> &[u64] {
        &self.xip
    }

    /// Whether the transaction had finished.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.xip.binary_search(&xid).is_err())
    }

    /// The transactions that were running here and have finished in `later`.
    pub fn finished_since(&self, later: &Snapshot) -> Vec<u64> {
        self.xip.iter().copied().filter(|xid| later.sees(*xid)).collect()
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.xip.iter().enumerate() {
            write!(f, "{}{xid}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The text is not a `pg_snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a pg_snapshot")]
pub struct NotSnapshot;

impl FromStr for Snapshot {
    type Err = NotSnapshot;

    fn from_str(text: &str) -> Result<Self, NotSnapshot> {
        let mut parts = text.split(':');
        let mut number = || parts.next().and_then(|part| part.parse().ok()).ok_or(NotSnapshot);
        let (xmin, xmax) = (number()?, number()?);
        let running = parts.next().filter(|_| parts.next().is_none()).ok_or(NotSnapshot)?;
        let xip = running.split(',').filter(|part| !part.is_empty());
        let xip: Vec<u64> = xip.map(str::parse).collect::<Result<_, _>>().map_err(|_| NotSnapshot)?;
        let ordered = xip.windows(2).all(|pair| pair[0] < pair[1])
            && xip.iter().all(|xid| (xmin..xmax).contains(xid))
            && xmin <= xmax;
        if ordered { Ok(Snapshot { xmin, xmax, xip }) } else { Err(NotSnapshot) }
    }
}

/// The snapshot in a column of text.
///
/// # Errors
/// It is not one.
pub(super) fn column(row: &PgRow, name: &str) -> Result<Option<Snapshot>, sqlx::Error> {
    let text: Option<&str> = row.try_get(name)?;
    text.map(|text| text.parse().map_err(|error: NotSnapshot| sqlx::Error::Decode(error.into()))).transpose()
}

/// Positions per leaf of the ring, as a power of two, and its leaves. The schema's partition key says the same.
const LEAF_BITS: u32 = 20;
pub(crate) const LEAVES: i64 = 16;

/// The leaf that holds `position`. A page reads one leaf, by its name: the planner and the lock table never see the
/// others, and no estimate of how many rows a condition on the leaf would keep can spoil the plan.
pub(crate) fn leaf(position: i64) -> i64 {
    (position >> LEAF_BITS) & (LEAVES - 1)
}

/// The last position of the leaf that holds `position`, in this lap of the ring.
pub(crate) fn leaf_end(position: i64) -> i64 {
    (((position >> LEAF_BITS) + 1) << LEAF_BITS) - 1
}

/// How many leaf boundaries lie between two positions.
pub(super) fn leaves_between(from: i64, to: i64) -> i64 {
    (to >> LEAF_BITS) - (from >> LEAF_BITS)
}

/// The leaves that hold positions `from..=to`, as an SQL list of literals, with the comma and blanks of the template.
pub(super) fn leaves(from: i64, to: i64) -> String {
    let count = (leaves_between(from, to) + 1).clamp(1, LEAVES);
    let mut list: Vec<i64> = (0..count).map(|offset| ((from >> LEAF_BITS) + offset) & (LEAVES - 1)).collect();
    list.sort_unstable();
    list.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn a_snapshot_sees_what_had_finished_and_nothing_else() {
        let seen = snapshot("10:20:12,15");
        let visible: Vec<u64> = (8..22).filter(|xid| seen.sees(*xid)).collect();
        assert_eq!(visible, [8, 9, 10, 11, 13, 14, 16, 17, 18, 19]);
        assert_eq!(seen.finished_since(&snapshot("15:30:15,22")), [12]);
        assert!((0..1000).all(|xid| xid == 0 || !Snapshot::nothing().sees(xid)));
    }

    #[test]
    fn text_that_is_no_snapshot_is_refused() {
        for text in ["", "1", "1:2", "2:1:", "1:2:3", "1:9:5,4", "1:2::", "a:b:c"] {
            assert_eq!(text.parse::<Snapshot>(), Err(NotSnapshot), "{text}");
        }
    }

    #[test]
    fn leaves_follow_one_another_around_the_ring() {
        let size = 1 << LEAF_BITS;
        assert_eq!((leaf(1), leaf_end(1), leaf(size), leaf(16 * size)), (0, size - 1, 1, 0));
        assert_eq!((leaves(15 * size, 16 * size), leaves(5, 9)), ("0, 15".to_owned(), "0".to_owned()));
        assert_eq!(leaves(0, 100 * size).split(", ").count(), 16);
    }

    proptest! {
        #[test]
        fn text_and_back_is_the_same(xmin in 1_u64..1000, gaps in proptest::collection::vec(1_u64..9, 0..8)) {
            let xip: Vec<u64> = gaps.iter().scan(xmin, |xid, gap| { *xid += gap; Some(*xid) }).collect();
            let xmax = xip.last().map_or(xmin, |last| last + 1);
            let seen = Snapshot { xmin, xmax, xip };
            prop_assert_eq!(snapshot(&seen.to_string()), seen);
        }
    }
}
