//! A row of the log as a message.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use message::{Headers, Message, MessageId};
use sqlx::postgres::PgRow;
use sqlx::{Row, ValueRef};
use uuid::Uuid;

/// A message with its place in the log.
#[derive(Debug, Clone)]
pub struct LogMessage {
    /// Its place; for order only.
    pub position: i64,
    /// 0 to 1023, from the key or, without one, from the id. Its shard is this modulo the relay's shards.
    pub slot: i16,
    /// When it was written, by the database's clock.
    pub enqueued_at: DateTime<Utc>,
    /// The message.
    pub message: Arc<Message>,
    /// Why its row is no message; then `message` is what can be read of it. It must not be published.
    pub fault: Option<Arc<str>>,
}

/// The texts that nearly all messages share, each kept once.
#[derive(Debug, Default)]
pub(crate) struct Names {
    last: [Option<Arc<str>>; 3],
    known: HashSet<Arc<str>>,
}

/// More different names than this are not kept: somebody makes them up.
const NAMES: usize = 1024;

impl Names {
    fn share(&mut self, place: usize, text: &str) -> Arc<str> {
        if let Some(last) = self.last[place].as_ref().filter(|last| &***last == text) {
            return Arc::clone(last);
        }
        let name = self.known.get(text).cloned().unwrap_or_else(|| {
            let name: Arc<str> = text.into();
            if self.known.len() < NAMES {
                self.known.insert(Arc::clone(&name));
            }
            name
        });
        self.last[place] = Some(Arc::clone(&name));
        name
    }
}

/// What COPY sends in binary: a signature, then rows, then an end.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    begun: bool,
}

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const COLUMNS: i16 = 13;

impl Copied {
    /// The next row in what has been sent, of the page queries' columns; `None`: no more in it.
    pub(crate) fn next(
        &mut self,
        sent: &mut &[u8],
        names: &mut Names,
    ) -> Result<Option<LogMessage>, sqlx::Error> {
        if !self.begun {
            if take(sent, SIGNATURE.len())? != SIGNATURE {
                return Err(unreadable());
            }
            let (_flags, more) = (int(sent)?, int(sent)?);
            take(sent, usize::try_from(more).map_err(|_| unreadable())?)?;
            self.begun = true;
        }
        if sent.is_empty() {
            return Ok(None);
        }
        match i16::from_be_bytes(array(take(sent, 2)?)?) {
            -1 => Ok(None),
            COLUMNS => decode(|| field(sent), names).map(Some),
            _ => Err(unreadable()),
        }
    }
}

/// A row of the page queries, as a statement answers it.
pub(crate) fn decode_row(row: &PgRow, names: &mut Names) -> Result<LogMessage, sqlx::Error> {
    let mut index = 0;
    let next = || {
        let value = row.try_get_raw(index)?;
        index += 1;
        if value.is_null() { Ok(None) } else { value.as_bytes().map(Some).map_err(sqlx::Error::Decode) }
    };
    decode(next, names)
}

/// A row's columns, by their place in the page queries; `None`: null.
type Columns<'s> = [Option<&'s [u8]>; COLUMNS as usize];

/// Decodes a row, column by column, from the wire's bytes: this runs once a message. `None`: null. A row that is no message
/// is an error only if its place cannot be read; otherwise it comes with its fault.
fn decode<'s>(
    mut next: impl FnMut() -> Result<Option<&'s [u8]>, sqlx::Error>,
    names: &mut Names,
) -> Result<LogMessage, sqlx::Error> {
    // All of them first: in a COPY the next row begins behind the last.
    let mut columns: Columns<'_> = [None; COLUMNS as usize];
    for column in &mut columns {
        *column = next()?;
    }
    let position = i64::from_be_bytes(array(columns[0].ok_or_else(unreadable)?)?);
    let slot = i16::from_be_bytes(array(columns[1].ok_or_else(unreadable)?)?);
    let (message, enqueued_at, fault) = match message(&columns, names) {
        Ok((message, enqueued_at)) => (message, enqueued_at, None),
        Err(fault) => {
            let (message, enqueued_at) = what_can_be_read(&columns);
            (message, enqueued_at, Some(fault.into()))
        }
    };
    Ok(LogMessage { position, slot, enqueued_at, message: Arc::new(message), fault })
}

fn message(columns: &Columns<'_>, names: &mut Names) -> Result<(Message, DateTime<Utc>), String> {
    let id = required(columns, 2, message_id)?;
    let correlation = required(columns, 3, message_id)?;
    let causation = optional(columns, 4, message_id)?;
    let occurred_at = required(columns, 5, moment)?;
    let enqueued_at = required(columns, 6, moment)?;
    let source = required(columns, 7, text)?;
    let topic = required(columns, 8, text)?;
    let kind = required(columns, 9, text)?;
    let key = optional(columns, 10, text)?;
    let headers = optional(columns, 11, headers)?;
    let payload = required(columns, 12, |bytes| Ok(Bytes::copy_from_slice(bytes)))?;
    let source = names.share(2, source);
    let (topic, kind) = (names.share(0, topic), names.share(1, kind));
    let mut message = Message::from_parts(id, occurred_at, topic, kind, payload);
    message.source = Some(source);
    message.correlation = correlation;
    message.causation = causation;
    message.key = key.map(Arc::from);
    message.headers = headers.unwrap_or_default();
    Ok((message, enqueued_at))
}

/// What a person may see of a row that is no message, with something in place of what cannot be read.
fn what_can_be_read(columns: &Columns<'_>) -> (Message, DateTime<Utc>) {
    let or_none = |index| optional(columns, index, text).unwrap_or_default();
    let at = |index| required(columns, index, moment).unwrap_or(DateTime::UNIX_EPOCH);
    let id = required(columns, 2, message_id).unwrap_or_else(|_| MessageId::new());
    let (topic, kind) = (or_none(8).unwrap_or_default(), or_none(9).unwrap_or_default());
    let payload = Bytes::copy_from_slice(columns[12].unwrap_or_default());
    let mut message = Message::from_parts(id, at(5), topic, kind, payload);
    message.source = or_none(7).map(Arc::from);
    message.key = or_none(10).map(Arc::from);
    (message, at(6))
}

/// The names of the columns, for what is said of them.
const NAMED: [&str; COLUMNS as usize] = [
    "position",
    "slot",
    "id",
    "correlation",
    "causation",
    "occurred_at",
    "enqueued_at",
    "source",
    "topic",
    "kind",
    "key",
    "headers",
    "payload",
];

fn required<'s, T>(
    columns: &Columns<'s>,
    index: usize,
    parse: impl FnOnce(&'s [u8]) -> Result<T, sqlx::Error>,
) -> Result<T, String> {
    optional(columns, index, parse)?.ok_or_else(|| format!("{}: null", NAMED[index]))
}

fn optional<'s, T>(
    columns: &Columns<'s>,
    index: usize,
    parse: impl FnOnce(&'s [u8]) -> Result<T, sqlx::Error>,
) -> Result<Option<T>, String> {
    columns[index].map(parse).transpose().map_err(|error| match error {
        sqlx::Error::Decode(cause) => format!("{}: {cause}", NAMED[index]),
        other => format!("{}: {other}", NAMED[index]),
    })
}

fn unreadable() -> sqlx::Error {
    sqlx::Error::Decode("not what COPY sends of a page".into())
}

fn take<'s>(sent: &mut &'s [u8], length: usize) -> Result<&'s [u8], sqlx::Error> {
    let (taken, rest) = sent.split_at_checked(length).ok_or_else(unreadable)?;
    *sent = rest;
    Ok(taken)
}

fn int(sent: &mut &[u8]) -> Result<i32, sqlx::Error> {
    Ok(i32::from_be_bytes(array(take(sent, 4)?)?))
}

fn field<'s>(sent: &mut &'s [u8]) -> Result<Option<&'s [u8]>, sqlx::Error> {
    match int(sent)? {
        -1 => Ok(None),
        length => take(sent, usize::try_from(length).map_err(|_| unreadable())?).map(Some),
    }
}

fn text(bytes: &[u8]) -> Result<&str, sqlx::Error> {
    std::str::from_utf8(bytes).map_err(|error| sqlx::Error::Decode(error.into()))
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], sqlx::Error> {
    bytes.try_into().map_err(|error: std::array::TryFromSliceError| sqlx::Error::Decode(error.into()))
}

fn message_id(bytes: &[u8]) -> Result<MessageId, sqlx::Error> {
    let id = Uuid::from_bytes(array(bytes)?);
    MessageId::try_from(id).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// The binary form of jsonb is a version byte and the text.
fn headers(bytes: &[u8]) -> Result<Headers, sqlx::Error> {
    Headers::from_json(bytes.get(1..).unwrap_or_default()).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// Microseconds since 2000, as PostgreSQL counts; infinity is the last of them. Within the limits of the log: what it does not
/// take by its constraints, it may hold from before it had them.
fn moment(bytes: &[u8]) -> Result<DateTime<Utc>, sqlx::Error> {
    const YEAR_2000: i64 = 946_684_800_000_000;
    const YEAR_10000: i64 = 253_402_300_800_000_000;
    let micros = i64::from_be_bytes(array(bytes)?).checked_add(YEAR_2000);
    micros
        .filter(|micros| (0..YEAR_10000).contains(micros))
        .and_then(DateTime::from_timestamp_micros)
        .ok_or_else(|| sqlx::Error::Decode("not between the years 1970 and 9999".into()))
}

/// The moment in a column of a statement that was prepared. The driver's own way panics at what its calendar does not hold.
pub(crate) fn moment_in(row: &PgRow, name: &str) -> Result<DateTime<Utc>, sqlx::Error> {
    moment(row.try_get_raw(name)?.as_bytes().map_err(sqlx::Error::Decode)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> [Option<Vec<u8>>; COLUMNS as usize] {
        let (id, now) = (Uuid::now_v7().as_bytes().to_vec(), 1_i64.to_be_bytes().to_vec());
        let text = |text: &str| Some(text.as_bytes().to_vec());
        [
            Some(7_i64.to_be_bytes().to_vec()),
            Some(3_i16.to_be_bytes().to_vec()),
            Some(id.clone()),
            Some(id),
            None,
            Some(now.clone()),
            Some(now),
            text("/s"),
            text("t"),
            text("k"),
            text("a"),
            text("\u{1}{\"h\": \"v\"}"),
            text("payload"),
        ]
    }

    fn decoded(columns: &[Option<Vec<u8>>]) -> Result<LogMessage, sqlx::Error> {
        let mut next = columns.iter();
        decode(|| Ok(next.next().and_then(|column| column.as_deref())), &mut Names::default())
    }

    #[test]
    fn a_row_that_is_no_message_has_its_place_its_fault_and_what_can_be_read_of_it() {
        let message = decoded(&columns()).unwrap();
        assert!(message.fault.is_none() && message.message.headers.get("h") == Some("v"));
        let far = (i64::MAX / 2).to_be_bytes().to_vec();
        for (index, value, fault) in [
            (2, Some(vec![0; 16]), "id: "),
            (2, None, "id: null"),
            (5, Some(i64::MIN.to_be_bytes().to_vec()), "occurred_at: not between the years"),
            (5, Some(far.clone()), "occurred_at: not between the years"),
            (6, Some(i64::MAX.to_be_bytes().to_vec()), "enqueued_at: not between the years"),
            (8, Some(vec![0xff]), "topic: "),
            (11, Some(b"\x01[1]".to_vec()), "headers: "),
            (11, Some(b"\x01{\"a\": 1}".to_vec()), "headers: "),
            (12, None, "payload: null"),
        ] {
            let mut columns = columns();
            columns[index] = value;
            let message = decoded(&columns).unwrap();
            let said = message.fault.expect("a fault");
            assert!(said.starts_with(fault), "{said}");
            assert_eq!((message.position, message.slot, message.message.key.as_deref()), (7, 3, Some("a")));
        }
        for (index, name) in NAMED.iter().enumerate().take(2) {
            let mut columns = columns();
            columns[index] = None;
            assert!(decoded(&columns).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_cut_short_or_no_copy_is_an_error_and_no_panic() {
        let mut whole = SIGNATURE.to_vec();
        whole.extend([0; 8]);
        whole.extend(COLUMNS.to_be_bytes());
        let names = &mut Names::default();
        for end in 0..whole.len() - 2 {
            assert!(Copied::default().next(&mut &whole[..end], names).is_err(), "{end}");
        }
        assert!(Copied::default().next(&mut &whole[..whole.len() - 2], names).unwrap().is_none());
        assert!(Copied::default().next(&mut &whole[..], names).is_err());
        let ended = [SIGNATURE, &[0; 8], &(-1_i16).to_be_bytes()].concat();
        assert!(Copied::default().next(&mut &ended[..], names).unwrap().is_none());
    }
}
