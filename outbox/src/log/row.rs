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

/// Decodes a row, column by column, from the wire's bytes: this runs once a message. `None`: null.
fn decode<'s>(
    mut optional: impl FnMut() -> Result<Option<&'s [u8]>, sqlx::Error>,
    names: &mut Names,
) -> Result<LogMessage, sqlx::Error> {
    let mut column = || optional()?.ok_or_else(unreadable);
    let position = i64::from_be_bytes(array(column()?)?);
    let slot = i16::from_be_bytes(array(column()?)?);
    let id = message_id(column()?)?;
    let correlation = message_id(column()?)?;
    let causation = optional()?.map(message_id).transpose()?;
    let mut column = || optional()?.ok_or_else(unreadable);
    let occurred_at = moment(column()?)?;
    let enqueued_at = moment(column()?)?;
    let source = names.share(2, text(column()?)?);
    let topic = names.share(0, text(column()?)?);
    let kind = names.share(1, text(column()?)?);
    let key = optional()?.map(text).transpose()?.map(Arc::from);
    let headers = optional()?;
    let payload = Bytes::copy_from_slice(optional()?.ok_or_else(unreadable)?);
    let mut message = Message::from_parts(id, occurred_at, topic, kind, payload);
    message.source = Some(source);
    message.correlation = correlation;
    message.causation = causation;
    message.key = key;
    // The binary form of jsonb is a version byte and the text.
    if let Some(json) = headers {
        message.headers = Headers::from_json(json.get(1..).unwrap_or_default())
            .map_err(|error| sqlx::Error::Decode(error.into()))?;
    }
    Ok(LogMessage { position, slot, enqueued_at, message: Arc::new(message) })
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

/// Microseconds since 2000, as PostgreSQL counts.
fn moment(bytes: &[u8]) -> Result<DateTime<Utc>, sqlx::Error> {
    const YEAR_2000: i64 = 946_684_800_000_000;
    let micros = i64::from_be_bytes(array(bytes)?).checked_add(YEAR_2000);
    micros
        .and_then(DateTime::from_timestamp_micros)
        .ok_or_else(|| sqlx::Error::Decode("a time that no calendar holds".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
