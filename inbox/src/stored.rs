//! A message as the inbox holds it: its way into `inbox.held_message` and back.

use chrono::{DateTime, Utc};
use message::wire::structured;
use message::{Headers, Malformed, Message, MessageId};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::moment::{checked_moment, moment};
use crate::statement::PgQuery;
use crate::unstorable::plain;

/// A message that a consumer holds back.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HeldMessage {
    /// Its place among those that arrived.
    pub arrival: i64,
    /// When it arrived.
    pub received_at: DateTime<Utc>,
    /// What arrived; `Err`: what could not be understood.
    pub received: Result<Message, Unreadable>,
    /// Whether a person lets it be admitted past the horizon.
    pub late: bool,
}

/// Something that arrived and is no message, as it came; or a message that this database could not store, as JSON
/// ([`structured`](message::wire::structured)).
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unreadable {
    /// Where it came from.
    pub destination: String,
    /// The body.
    pub payload: Vec<u8>,
}

impl std::fmt::Debug for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unreadable")
            .field("destination", &self.destination)
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

/// What is to be held.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Body<'m> {
    Message(&'m Message),
    Malformed(&'m Malformed),
    /// What the inbox cannot store as it is: its id and its source, by which copies are told, and the rest as bytes.
    PlainMessage(&'m Message),
    /// The same, of which the inbox cannot store the source either.
    WithoutSource(&'m Message),
    PlainMalformed(&'m Malformed),
}

impl<'m> Body<'m> {
    /// In a form that almost any database stores.
    pub(crate) fn plain(self) -> Self {
        match self {
            Body::Message(message) => Body::PlainMessage(message),
            Body::Malformed(malformed) => Body::PlainMalformed(malformed),
            plain => plain,
        }
    }

    /// In a form that any database stores. A message of the same id from another source is taken for a copy of it.
    pub(crate) fn without_source(self) -> Self {
        match self.plain() {
            Body::PlainMessage(message) => Body::WithoutSource(message),
            plain => plain,
        }
    }

    /// By what it is told from another message with its id, however it is stored.
    pub(crate) fn source(self) -> Option<&'m str> {
        match self {
            Body::Message(message) | Body::PlainMessage(message) | Body::WithoutSource(message) => {
                message.source.as_deref()
            }
            Body::Malformed(_) | Body::PlainMalformed(_) => None,
        }
    }

    /// For the log; empty: it could not be understood.
    pub(crate) fn id(self) -> String {
        match self {
            Body::Message(message) | Body::PlainMessage(message) | Body::WithoutSource(message) => {
                message.id.to_string()
            }
            Body::Malformed(_) | Body::PlainMalformed(_) => String::new(),
        }
    }

    /// Binds id, correlation, causation, occurred at, source, topic, kind, key, headers, payload.
    pub(crate) fn bind(self, query: PgQuery<'static>) -> PgQuery<'static> {
        match self {
            Body::Message(message) => query
                .bind(*message.id.as_uuid())
                .bind(*message.correlation.as_uuid())
                .bind(message.causation.map(Uuid::from))
                .bind(message.occurred_at)
                .bind(message.source.as_deref().map(str::to_owned))
                .bind(message.topic.to_string())
                .bind(message.kind.to_string())
                .bind(message.key.as_deref().map(str::to_owned))
                .bind(message.headers.to_json())
                .bind(message.payload.to_vec()),
            Body::Malformed(malformed) => {
                let destination = malformed.destination.replace('\0', "\u{fffd}");
                bytes(query, None, None, destination, malformed.payload.to_vec())
            }
            Body::PlainMessage(message) | Body::WithoutSource(message) => {
                let whole = structured::encode(message).into_bytes();
                let is_stored = matches!(self, Body::PlainMessage(_));
                let source = message.source.as_deref().filter(|_| is_stored);
                bytes(query, Some(*message.id.as_uuid()), source, plain(&message.topic), whole)
            }
            Body::PlainMalformed(malformed) => {
                bytes(query, None, None, plain(&malformed.destination), malformed.payload.to_vec())
            }
        }
    }
}

/// Binds what is stored as bytes, with where they came from.
fn bytes(
    query: PgQuery<'static>,
    id: Option<Uuid>,
    source: Option<&str>,
    destination: String,
    payload: Vec<u8>,
) -> PgQuery<'static> {
    query
        .bind(id)
        .bind(None::<Uuid>)
        .bind(None::<Uuid>)
        .bind(None::<DateTime<Utc>>)
        .bind(source.map(str::to_owned))
        .bind(destination)
        .bind(None::<String>)
        .bind(None::<String>)
        .bind(None::<String>)
        .bind(payload)
}

impl HeldMessage {
    /// From the columns `arrival`, `received_at`, `late` and those of the message.
    pub(crate) fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(HeldMessage {
            arrival: row.try_get("arrival")?,
            received_at: moment(row, "received_at")?,
            received: received(row).or_else(|_| unreadable(row))?,
            late: row.try_get("late")?,
        })
    }
}

/// A row that is no message, as one that was none when it arrived: an error would keep all others from being tried.
fn unreadable(row: &PgRow) -> Result<Result<Message, Unreadable>, sqlx::Error> {
    let destination = row.try_get::<Option<String>, _>("topic")?.unwrap_or_default();
    let payload = row.try_get::<Option<Vec<u8>>, _>("payload")?.unwrap_or_default();
    Ok(Err(Unreadable { destination, payload }))
}

fn received(row: &PgRow) -> Result<Result<Message, Unreadable>, sqlx::Error> {
    let payload: Vec<u8> = row.try_get("payload")?;
    let topic: Option<String> = row.try_get("topic")?;
    let id = row.try_get::<Option<Uuid>, _>("message_id")?.map(identity).transpose()?;
    let kind: Option<String> = row.try_get("kind")?;
    let (Some(id), Some(kind)) = (id, kind) else {
        return Ok(Err(Unreadable { destination: topic.unwrap_or_default(), payload }));
    };
    let mut message = Message::new(topic.unwrap_or_default(), kind, payload).with_id(id);
    message.source = row.try_get::<Option<String>, _>("source")?.map(Into::into);
    message.key = row.try_get::<Option<String>, _>("key")?.map(Into::into);
    if let Some(correlation) = row.try_get("correlation")? {
        message.correlation = identity(correlation)?;
    }
    message.causation = row.try_get::<Option<Uuid>, _>("causation")?.map(identity).transpose()?;
    if let Some(occurred_at) = checked_moment(row, "occurred_at")? {
        message.occurred_at = occurred_at;
    }
    if let Some(headers) = row.try_get::<Option<String>, _>("headers")? {
        let decoded = Headers::from_json(headers.as_bytes());
        message.headers = decoded.map_err(|error| sqlx::Error::Decode(error.into()))?;
    }
    Ok(Ok(message))
}

fn identity(id: Uuid) -> Result<MessageId, sqlx::Error> {
    MessageId::try_from(id).map_err(|error| sqlx::Error::Decode(error.into()))
}
