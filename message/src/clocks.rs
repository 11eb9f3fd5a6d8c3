//! Whether the clocks of a database and of this process can be believed. No I/O.

use chrono::{DateTime, TimeDelta, Utc};

/// Clocks that differ by more are not believed.
const CLOCKS: TimeDelta = TimeDelta::hours(1);

/// How far the clock of a database is ahead of this process's, if they differ by more than an hour. The database said
/// `database` between the process's times `asked` and `answered`, so a slow answer is no difference.
///
/// What cannot be taken back rests on a clock in few places: rows that are removed for their age, and scheduled messages that are
/// published for their time. Neither is done while the clocks differ, since one of them is wrong.
pub fn clock_difference(
    database: DateTime<Utc>,
    asked: DateTime<Utc>,
    answered: DateTime<Utc>,
) -> Option<TimeDelta> {
    let difference = if database < asked {
        database - asked
    } else if database > answered {
        database - answered
    } else {
        TimeDelta::zero()
    };
    Some(difference).filter(|difference| difference.abs() > CLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn clocks_differ_by_what_lies_outside_the_question() {
        let difference = clock_difference;
        assert_eq!(difference(at(5), at(0), at(10)), None);
        // A slow answer is no difference.
        assert_eq!(difference(at(1), at(0), at(90_000)), None);
        assert_eq!(difference(at(3_600), at(0), at(0)), None);
        assert_eq!(difference(at(3_601), at(0), at(0)), Some(TimeDelta::seconds(3_601)));
        assert_eq!(difference(at(-3_600), at(0), at(0)), None);
        assert_eq!(difference(at(-3_601), at(0), at(0)), Some(TimeDelta::seconds(-3_601)));
    }
}
