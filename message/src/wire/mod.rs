//! The wire form: a message is a [CloudEvent](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md) 1.0.
//!
//! [`binary`] for brokers with headers, [`structured`] for a file, a pipe or a broker without them. `docs/wire.md` has
//! the whole table. Both decode what other producers wrote, too.

pub mod binary;
pub mod structured;

use std::borrow::Cow;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};

use crate::headers::{CONTENT_TYPE, TRACEPARENT, TRACESTATE};
use crate::{Headers, MalformedReason, Message, MessageId, limits};

/// The version of CloudEvents that we write, and the only one we read.
pub const SPECVERSION: &str = "1.0";

/// The attributes of a message but its content type, by CloudEvents name.
pub fn attributes(message: &Message) -> Vec<(&'static str, Cow<'_, str>)> {
    let mut list = vec![
        ("specversion", Cow::Borrowed(SPECVERSION)),
        ("id", message.id.to_string().into()),
        // The log always knows one; only a message that never was in a database has none.
        ("source", message.source.as_deref().unwrap_or("/").into()),
        ("type", (&*message.kind).into()),
        ("time", message.occurred_at.to_rfc3339_opts(SecondsFormat::AutoSi, true).into()),
        ("topic", (&*message.topic).into()),
        ("correlationid", message.correlation.to_string().into()),
    ];
    if let Some(key) = &message.key {
        list.push(("partitionkey", (&**key).into()));
    }
    if let Some(causation) = &message.causation {
        list.push(("causationid", causation.to_string().into()));
    }
    for name in [TRACEPARENT, TRACESTATE] {
        if let Some(value) = message.headers.get(name) {
            list.push((name, value.into()));
        }
    }
    list
}

/// What a decoder has gathered of an event before it is a message.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    specversion: Option<String>,
    id: Option<String>,
    source: Option<String>,
    kind: Option<String>,
    time: Option<String>,
    topic: Option<String>,
    key: Option<String>,
    correlation: Option<String>,
    causation: Option<String>,
    pub(crate) headers: Headers,
}

impl Attributes {
    /// Takes an attribute by its CloudEvents name.
    pub(crate) fn set(&mut self, name: &str, value: String) {
        let place = match name {
            "specversion" => &mut self.specversion,
            "id" => &mut self.id,
            "source" => &mut self.source,
            "type" => &mut self.kind,
            "time" => &mut self.time,
            "topic" => &mut self.topic,
            "partitionkey" => &mut self.key,
            "correlationid" => &mut self.correlation,
            "causationid" => &mut self.causation,
            "datacontenttype" => return self.header(CONTENT_TYPE, value),
            extension => return self.header(extension, value),
        };
        *place = Some(value);
    }

    /// Takes a header that is no attribute; one outside the rules is dropped.
    pub(crate) fn header(&mut self, name: &str, value: String) {
        let marks = name == limits::REPLAY && limits::operation(&value).is_ok();
        if marks || (limits::header_name(name).is_ok() && limits::header_value(&value).is_ok()) {
            self.headers.insert(name, value);
        }
    }

    /// The message, if it has an identity, a kind and a source, and keeps the limits.
    pub(crate) fn into_message(self, destination: &str, payload: Bytes) -> Result<Message, MalformedReason> {
        match self.specversion.as_deref() {
            Some(SPECVERSION) => {}
            Some(_) => return Err(MalformedReason::Invalid("specversion")),
            None if self.id.is_none() => return Err(MalformedReason::NoIdentity),
            None => return Err(MalformedReason::Missing("specversion")),
        }
        let source = self.source.filter(|source| !source.is_empty());
        let id = match (self.id.filter(|id| !id.is_empty()), &source) {
            (None, _) => return Err(MalformedReason::NoIdentity),
            (Some(id), source) => match (id.parse::<MessageId>(), source) {
                (Ok(id), _) => id,
                (Err(_), Some(source)) => MessageId::foreign(source, &id),
                (Err(_), None) => return Err(MalformedReason::NoIdentity),
            },
        };
        let source = source.ok_or(MalformedReason::Missing("source"))?;
        let kind = self.kind.ok_or(MalformedReason::Missing("type"))?;
        let occurred_at = match self.time {
            Some(time) => DateTime::parse_from_rfc3339(&time)
                .map_err(|_| MalformedReason::Invalid("time"))?
                .with_timezone(&Utc),
            None => Utc::now(),
        };
        let topic = self.topic.unwrap_or_else(|| as_topic(destination));
        let mut message = Message::from_parts(id, occurred_at, topic, kind, payload).with_source(source);
        message.key = self.key.map(Into::into);
        message.correlation = self.correlation.and_then(|text| text.parse().ok()).unwrap_or(id);
        message.causation = self.causation.and_then(|text| text.parse().ok());
        message.headers = self.headers;
        message.validate_relayed()?;
        Ok(message)
    }
}

/// A broker's destination as a topic: what a topic cannot carry becomes a hyphen.
fn as_topic(destination: &str) -> String {
    if limits::topic(destination).is_ok() {
        return destination.to_owned();
    }
    let plain = |char: char| if char.is_ascii_alphanumeric() || char == '_' { char } else { '-' };
    let topic: String = destination.chars().take(limits::NAME_BYTES).map(plain).collect();
    if topic.is_empty() { "-".to_owned() } else { topic }
}

/// Whether the content type says that the payload is JSON
/// ([JSON event format](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md#31-handling-of-data)).
pub(crate) fn is_json(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media.ends_with("/json") || media.ends_with("+json")
}
