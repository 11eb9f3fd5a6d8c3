//! What one transaction of the workload does, rolled before it begins. No I/O.
//!
//! The weather changes with the number of messages committed, so that every way in which a reader of a log goes wrong has
//! its turn. It is the same for the shipped relay and for the planted ones.

use std::time::Duration;

use super::dice::Dice;

/// Keys of the workload.
pub(super) const KEYS: u64 = 50;
/// The keys whose writers lock the aggregate's row; those of the others lock the key.
const ROW_KEYS: u64 = 34;
/// How many messages one weather lasts.
const WEATHER_MESSAGES: u64 = 400;

/// What most transactions have in common for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weather {
    /// Everything at random.
    Mixed,
    /// All transactions are open for the same time after they have drawn their positions: the newest ones are always
    /// running, so the newest finished one says nothing about them.
    Steady,
    /// Transaction ids are taken long before locks: the order of ids is not the order of anything.
    Early,
}

impl Weather {
    /// The weather when so many messages have committed.
    pub(super) fn at(committed: u64) -> Self {
        match committed / WEATHER_MESSAGES % 3 {
            0 => Weather::Mixed,
            1 => Weather::Steady,
            _ => Weather::Early,
        }
    }
}

/// How the writers of a key follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// Each updates the aggregate's row before it enqueues.
    Row,
    /// The same, and enqueues in the statement that updates.
    RowBeside,
    /// Each locks the key, and enqueues as its first write.
    Key,
}

/// Whether a savepoint stands around a write, and what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Savepoint {
    None,
    Released,
    /// What was enqueued in it must never be seen; the transaction then writes again.
    RolledBack,
}

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    /// Ascending, so that two transactions cannot deadlock.
    pub(super) keys: Vec<i32>,
    pub(super) lock: Lock,
    /// Events of each key.
    pub(super) events: i64,
    /// Takes its transaction id first, and sleeps.
    pub(super) early: Option<Duration>,
    /// Sleeps between the lock and the enqueue.
    pub(super) think: Duration,
    pub(super) savepoint: Savepoint,
    /// Sleeps between the last write and the end.
    pub(super) linger: Duration,
    /// Then stays open until something written after it is delivered.
    pub(super) straggles: bool,
    pub(super) rolled_back: bool,
}

impl Shape {
    /// Rolls a transaction.
    pub(super) fn roll(dice: &mut Dice, weather: Weather) -> Self {
        let by_row = dice.below(3) < 2;
        let (first, count) = if by_row { (0, ROW_KEYS) } else { (ROW_KEYS, KEYS - ROW_KEYS) };
        let wanted = if dice.happens(100) { 2 + dice.below(2) } else { 1 };
        let mut keys: Vec<i32> = (0..wanted).map(|_| (first + dice.below(count)) as i32).collect();
        keys.sort_unstable();
        keys.dedup();
        let events = if dice.happens(150) { 2 + dice.below(3) as i64 } else { 1 };
        let savepoint = match dice.below(100) {
            0..5 => Savepoint::Released,
            5..10 => Savepoint::RolledBack,
            _ => Savepoint::None,
        };
        let beside = keys.len() == 1 && savepoint == Savepoint::None && dice.happens(300);
        let lock = match (by_row, beside) {
            (false, _) => Lock::Key,
            (true, true) => Lock::RowBeside,
            (true, false) => Lock::Row,
        };
        let often = if weather == Weather::Early { 700 } else { 300 };
        let early = by_row && weather != Weather::Steady && dice.happens(often);
        let early = early.then(|| dice.up_to_ms(6));
        let straggles = dice.happens(8);
        let linger = match weather {
            _ if straggles => Duration::from_millis(60) + dice.up_to_ms(200),
            Weather::Steady => Duration::from_millis(4),
            Weather::Mixed if dice.happens(700) => dice.up_to_ms(6),
            Weather::Mixed | Weather::Early => Duration::ZERO,
        };
        let think =
            if weather == Weather::Mixed && dice.happens(300) { dice.up_to_ms(3) } else { Duration::ZERO };
        Shape {
            keys,
            lock,
            events,
            early,
            think,
            savepoint,
            linger,
            straggles,
            rolled_back: dice.happens(20),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_is_what_the_soak_says_of_it() {
        let mut dice = Dice::new(3, 1);
        let shapes: Vec<Shape> = (0..30_000).map(|n| Shape::roll(&mut dice, Weather::at(n))).collect();
        let share = |claim: &dyn Fn(&Shape) -> bool| {
            shapes.iter().filter(|shape| claim(shape)).count() as f64 / shapes.len() as f64
        };
        assert!((0.65..0.69).contains(&share(&|shape| shape.lock != Lock::Key)));
        assert!((0.017..0.023).contains(&share(&|shape| shape.rolled_back)));
        assert!((0.04..0.06).contains(&share(&|shape| shape.savepoint == Savepoint::RolledBack)));
        assert!((0.1..0.3).contains(&share(&|shape| shape.early.is_some())));
        assert!(shapes.iter().all(|shape| shape.keys.is_sorted_by(|a, b| a < b)));
        // A key is locked in one way by everybody.
        assert!(
            shapes.iter().all(|s| s.keys.iter().all(|key| (*key < ROW_KEYS as i32) == (s.lock != Lock::Key)))
        );
    }
}
