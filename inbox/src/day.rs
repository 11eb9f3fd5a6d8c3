//! In which partition of `inbox.message` the row of a message lies: that of the day in which its id was made, in a ring
//! of 32. Pure.

use chrono::{DateTime, NaiveDate, Utc};
use uuid::Uuid;

/// Days in the ring.
pub(crate) const RING: usize = 32;
/// The partitions of undated ids.
pub(crate) const UNDATED: std::ops::Range<usize> = RING..RING + 4;
const MILLISECONDS: i64 = 86_400_000;

/// The partition of what was made then. `inbox.slot` says the same.
pub(crate) fn slot(made_at: DateTime<Utc>) -> usize {
    let day = made_at.timestamp_millis().div_euclid(MILLISECONDS);
    usize::try_from(day.rem_euclid(RING as i64)).unwrap_or_default()
}

/// The name of the partition of what was made then; of the whole table for what is undated.
pub(crate) fn table(made_at: Option<DateTime<Utc>>) -> String {
    made_at.map_or_else(|| "inbox.message".to_owned(), |made_at| format!("inbox.message_{}", slot(made_at)))
}

/// The end of a day.
pub(crate) fn end_of(day: NaiveDate) -> DateTime<Utc> {
    day.succ_opt().unwrap_or(day).and_time(chrono::NaiveTime::MIN).and_utc()
}

/// The lowest id that is made at that moment or later.
pub(crate) fn lowest_id(moment: DateTime<Utc>) -> Uuid {
    let milliseconds = u128::try_from(moment.timestamp_millis()).unwrap_or_default();
    Uuid::from_u128(milliseconds << 80)
}

/// A statement that names `{day}`, for each day of the ring and for what is undated: a partition's name is no parameter.
#[derive(Debug)]
pub(crate) struct ByDay(Vec<String>);

impl ByDay {
    pub(crate) fn new(template: &str) -> Self {
        let of_slot = |slot| template.replace("{day}", &format!("inbox.message_{slot}"));
        let dated = (0..RING).map(of_slot);
        ByDay(dated.chain([template.replace("{day}", &table(None))]).collect())
    }

    /// For what was made then.
    pub(crate) fn of(&self, made_at: Option<DateTime<Utc>>) -> &str {
        self.0.get(made_at.map_or(RING, slot)).map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use message::MessageId;

    use super::*;

    #[test]
    fn a_statement_names_the_day_of_its_message() {
        let statements = ByDay::new("from {day}");
        let at = |seconds| DateTime::from_timestamp(seconds, 0);
        assert_eq!(statements.of(at(0)), "from inbox.message_0");
        assert_eq!(statements.of(at(86_399)), "from inbox.message_0");
        assert_eq!(statements.of(at(86_400)), "from inbox.message_1");
        assert_eq!(statements.of(at(32 * 86_400 - 1)), "from inbox.message_31");
        assert_eq!(statements.of(at(32 * 86_400)), "from inbox.message_0");
        assert_eq!(statements.of(None), "from inbox.message");
    }

    #[test]
    fn the_lowest_id_lies_between_those_made_before_and_those_made_then() {
        let moment = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let before = MessageId::at(moment - chrono::TimeDelta::milliseconds(1));
        assert!(*before.as_uuid() < lowest_id(moment));
        assert!(lowest_id(moment) < *MessageId::at(moment).as_uuid());
    }

    #[test]
    fn a_day_ends_where_the_next_begins() {
        let day = NaiveDate::from_ymd_opt(2026, 2, 28).unwrap();
        assert_eq!(end_of(day).to_rfc3339(), "2026-03-01T00:00:00+00:00");
    }
}
