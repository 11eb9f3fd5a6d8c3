//! Moments in columns. The driver's own way panics at what its calendar does not hold, infinity among it.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::postgres::PgRow;
use sqlx::{Row, ValueRef};

/// The moment in a column that holds one; of what no calendar holds, the calendar's first or last.
pub(crate) fn moment(row: &PgRow, name: &str) -> Result<DateTime<Utc>, sqlx::Error> {
    moment_if_any(row, name)?.ok_or_else(|| sqlx::Error::Decode(format!("no moment in column {name}").into()))
}

/// The same; `None`: the column is null.
pub(crate) fn moment_if_any(row: &PgRow, name: &str) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    Ok(number(row, name)?.map(of_microseconds))
}

/// The moment in a column; an error if no calendar holds it.
pub(crate) fn checked_moment(row: &PgRow, name: &str) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    let Some(microseconds) = number(row, name)? else { return Ok(None) };
    let moment = in_calendar(microseconds);
    moment.map(Some).ok_or_else(|| sqlx::Error::Decode("a time that no calendar holds".into()))
}

/// The day in a column; of what no calendar holds, the calendar's first or last. `None`: the column is null.
pub(crate) fn day_if_any(row: &PgRow, name: &str) -> Result<Option<NaiveDate>, sqlx::Error> {
    let value = row.try_get_raw(name)?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes: [u8; 4] =
        value.as_bytes().map_err(sqlx::Error::Decode)?.try_into().map_err(|_| wrong(name))?;
    let days = i64::from(i32::from_be_bytes(bytes));
    Ok(Some(of_microseconds(days.saturating_mul(86_400_000_000)).date_naive()))
}

/// Microseconds since 2000, as the server counts; infinity is the last of them.
fn number(row: &PgRow, name: &str) -> Result<Option<i64>, sqlx::Error> {
    let value = row.try_get_raw(name)?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes: [u8; 8] =
        value.as_bytes().map_err(sqlx::Error::Decode)?.try_into().map_err(|_| wrong(name))?;
    Ok(Some(i64::from_be_bytes(bytes)))
}

fn in_calendar(microseconds: i64) -> Option<DateTime<Utc>> {
    const YEAR_2000: i64 = 946_684_800_000_000;
    microseconds.checked_add(YEAR_2000).and_then(DateTime::from_timestamp_micros)
}

fn of_microseconds(microseconds: i64) -> DateTime<Utc> {
    let edge = if microseconds < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
    in_calendar(microseconds).unwrap_or(edge)
}

fn wrong(name: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("column {name} holds no moment").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_calendar_holds_is_its_edge() {
        assert_eq!(of_microseconds(i64::MAX), DateTime::<Utc>::MAX_UTC);
        assert_eq!(of_microseconds(i64::MIN), DateTime::<Utc>::MIN_UTC);
        assert_eq!(of_microseconds(1).timestamp_micros(), 946_684_800_000_001);
    }
}
