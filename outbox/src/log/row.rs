//! A row of the log as a message.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use message::{Headers, Message, MessageId};
use sqlx::Row;
use sqlx::postgres::{PgRow, PgValueRef};
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

/// Decodes a row of the page queries. By column number and from the wire's bytes: this runs once a message.
pub(crate) fn decode(row: &PgRow, names: &mut Names) -> Result<LogMessage, sqlx::Error> {
    let value = |index: usize| row.try_get_raw(index);
    let mut message = Message::from_parts(
        message_id(uuid(value(2)?)?)?,
        moment(value(5)?)?,
        names.share(0, text(value(8)?)?),
        names.share(1, text(value(9)?)?),
        Bytes::copy_from_slice(bytes(value(12)?)?),
    );
    message.source = Some(names.share(2, text(value(7)?)?));
    message.correlation = message_id(uuid(value(3)?)?)?;
    message.causation = optional(value(4)?, uuid)?.map(message_id).transpose()?;
    message.key = optional(value(10)?, text)?.map(Arc::from);
    // The binary form of jsonb is a version byte and the text.
    if let Some(json) = optional(value(11)?, bytes)? {
        message.headers = Headers::from_json(json.get(1..).unwrap_or_default())
            .map_err(|error| sqlx::Error::Decode(error.into()))?;
    }
    Ok(LogMessage {
        position: number(value(0)?)?,
        slot: i16::from_be_bytes(array(value(1)?)?),
        enqueued_at: moment(value(6)?)?,
        message: Arc::new(message),
    })
}

fn optional<'r, T>(
    value: PgValueRef<'r>,
    read: impl FnOnce(PgValueRef<'r>) -> Result<T, sqlx::Error>,
) -> Result<Option<T>, sqlx::Error> {
    if sqlx::ValueRef::is_null(&value) { Ok(None) } else { read(value).map(Some) }
}

fn bytes(value: PgValueRef<'_>) -> Result<&[u8], sqlx::Error> {
    value.as_bytes().map_err(sqlx::Error::Decode)
}

fn text(value: PgValueRef<'_>) -> Result<&str, sqlx::Error> {
    value.as_str().map_err(sqlx::Error::Decode)
}

fn array<const N: usize>(value: PgValueRef<'_>) -> Result<[u8; N], sqlx::Error> {
    bytes(value)?.try_into().map_err(|error: std::array::TryFromSliceError| sqlx::Error::Decode(error.into()))
}

fn number(value: PgValueRef<'_>) -> Result<i64, sqlx::Error> {
    Ok(i64::from_be_bytes(array(value)?))
}

fn uuid(value: PgValueRef<'_>) -> Result<Uuid, sqlx::Error> {
    Ok(Uuid::from_bytes(array(value)?))
}

fn message_id(id: Uuid) -> Result<MessageId, sqlx::Error> {
    MessageId::try_from(id).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// Microseconds since 2000, as PostgreSQL counts.
fn moment(value: PgValueRef<'_>) -> Result<DateTime<Utc>, sqlx::Error> {
    const YEAR_2000: i64 = 946_684_800_000_000;
    let micros = number(value)?.checked_add(YEAR_2000);
    micros
        .and_then(DateTime::from_timestamp_micros)
        .ok_or_else(|| sqlx::Error::Decode("a time that no calendar holds".into()))
}
