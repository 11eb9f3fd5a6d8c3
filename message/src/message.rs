//! A message: what a service writes beside its state change, and what another one receives.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, SubsecRound, Utc};

use crate::headers::{CONTENT_TYPE, TRACEPARENT, TRACESTATE};
use crate::{Headers, InvalidMessage, MessageId, limits};

/// One message. `docs/wire.md` says under which name each part travels.
///
/// Construction cannot fail; the limits are checked at enqueue, before any SQL ([`validate`](Self::validate)).
/// `Debug` shows neither the payload nor header values.
///
/// ```
/// use message::Message;
/// let placed = Message::new("orders", "order.placed", r#"{"order":7}"#).with_key("order-7");
/// let paid = Message::new("payments", "payment.taken", "{}").with_key("order-7").caused_by(&placed);
/// assert_eq!(paid.correlation, placed.id);
/// assert_eq!(paid.causation, Some(placed.id));
/// assert!(placed.validate().is_ok());
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The identity.
    pub id: MessageId,
    /// Who produced it; `None` until the database's default is filled in at enqueue.
    pub source: Option<Arc<str>>,
    /// What it is about; a relay's routes map it to a destination.
    pub topic: Arc<str>,
    /// What happened; a consumer chooses the handler by it.
    pub kind: Arc<str>,
    /// Messages of one key stay in order.
    pub key: Option<Arc<str>>,
    /// The message that began the workflow.
    pub correlation: MessageId,
    /// The message whose handler enqueued this one.
    pub causation: Option<MessageId>,
    /// When it happened, to the microsecond.
    pub occurred_at: DateTime<Utc>,
    /// Content type, trace context, and whatever the producer adds.
    pub headers: Headers,
    /// Opaque bytes.
    pub payload: Bytes,
}

impl Message {
    /// A message that begins a workflow of its own: no key, no headers, a JSON payload, happening now.
    pub fn new(topic: impl Into<Arc<str>>, kind: impl Into<Arc<str>>, payload: impl Into<Bytes>) -> Self {
        Message::from_parts(MessageId::new(), Utc::now(), topic, kind, payload)
    }

    /// A message as it was stored or received: nothing of it is made up here, and it begins its own workflow until
    /// [`correlation`](Self::correlation) says otherwise.
    pub fn from_parts(
        id: MessageId,
        occurred_at: DateTime<Utc>,
        topic: impl Into<Arc<str>>,
        kind: impl Into<Arc<str>>,
        payload: impl Into<Bytes>,
    ) -> Self {
        Message {
            id,
            source: None,
            topic: topic.into(),
            kind: kind.into(),
            key: None,
            correlation: id,
            causation: None,
            occurred_at: occurred_at.trunc_subsecs(6),
            headers: Headers::default(),
            payload: payload.into(),
        }
    }

    /// With another identity; a message that began its own workflow still does.
    pub fn with_id(mut self, id: MessageId) -> Self {
        if self.correlation == self.id {
            self.correlation = id;
        }
        self.id = id;
        self
    }

    /// With the key that keeps it in order.
    pub fn with_key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With a source of its own instead of the database's default.
    pub fn with_source(mut self, source: impl Into<Arc<str>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// With a payload that is not JSON.
    pub fn with_content_type(self, content_type: impl Into<String>) -> Self {
        self.with_header(CONTENT_TYPE, content_type)
    }

    /// With a header, in place of one of that name.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// With another time of happening, cut to the microsecond, which is what the log keeps.
    pub fn with_occurred_at(mut self, moment: DateTime<Utc>) -> Self {
        self.occurred_at = moment.trunc_subsecs(6);
        self
    }

    /// As an answer to `cause`: the same workflow, the cause's id, and its trace context unless it has one of its own.
    pub fn caused_by(mut self, cause: &Message) -> Self {
        self.correlation = cause.correlation;
        self.causation = Some(cause.id);
        if self.headers.traceparent().is_none() {
            for name in [TRACEPARENT, TRACESTATE] {
                if let Some(value) = cause.headers.get(name) {
                    self.headers.insert(name, value);
                }
            }
        }
        self
    }

    /// Whether it keeps every limit of [`limits`].
    ///
    /// # Errors
    /// The first field that does not, and what it must be.
    pub fn validate(&self) -> Result<(), InvalidMessage> {
        self.check(false)
    }

    /// The same for a message that a relay publishes or a broker delivers: it may bear the [mark](limits::REPLAY) of a
    /// replay.
    ///
    /// # Errors
    /// The first field that does not, and what it must be.
    pub fn validate_relayed(&self) -> Result<(), InvalidMessage> {
        self.check(true)
    }

    fn check(&self, relayed: bool) -> Result<(), InvalidMessage> {
        limits::topic(&self.topic)?;
        limits::kind(&self.kind)?;
        if let Some(source) = &self.source {
            limits::source(source)?;
        }
        if let Some(key) = &self.key {
            limits::key(key)?;
        }
        limits::payload(&self.payload)?;
        limits::occurred_at(self.occurred_at)?;
        self.headers.validate(relayed)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("source", &self.source)
            .field("topic", &self.topic)
            .field("kind", &self.kind)
            .field("correlation", &self.correlation)
            .field("causation", &self.causation)
            .field("headers", &self.headers)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Field;

    fn plain() -> Message {
        Message::new("orders", "order.placed", "{}")
    }

    fn fault(message: Message) -> Option<Field> {
        message.validate().err().map(|error| error.field)
    }

    #[test]
    fn each_limit_holds_at_its_last_value_and_not_one_further() {
        assert_eq!(fault(Message::new("t".repeat(200), "k".repeat(200), vec![0; 983_040])), None);
        assert_eq!(fault(Message::new("t".repeat(201), "k", "")), Some(Field::Topic));
        assert_eq!(fault(Message::new("t", "k".repeat(201), "")), Some(Field::Kind));
        assert_eq!(fault(Message::new("t", "k", vec![0; 983_041])), Some(Field::Payload));
        assert_eq!(fault(plain().with_key("é".repeat(256))), None);
        assert_eq!(fault(plain().with_key("é".repeat(257))), Some(Field::Key));
        assert_eq!(fault(plain().with_key("")), Some(Field::Key));
        assert_eq!(fault(plain().with_key("a\0b")), Some(Field::Key));
        assert_eq!(fault(plain().with_key("a\nb")), None);
        assert_eq!(fault(plain().with_source("/a b")), Some(Field::Source));
        assert_eq!(fault(plain().with_header("a".repeat(64), "")), None);
        assert_eq!(fault(plain().with_header("a".repeat(65), "")), Some(Field::Headers));
        assert_eq!(fault(plain().with_header("a", "v".repeat(16_384 - 9))), None);
        assert_eq!(fault(plain().with_header("a", "v".repeat(16_384 - 8))), Some(Field::Headers));
        assert_eq!(fault(plain().with_occurred_at(DateTime::UNIX_EPOCH)), None);
        assert_eq!(fault(plain().with_occurred_at(DateTime::<Utc>::MIN_UTC)), Some(Field::OccurredAt));
    }

    #[test]
    fn a_topic_or_header_cannot_carry_another_brokers_syntax() {
        for topic in ["", ".", "a.", ".a", "a..b", "a b", "a*", "a.>", "a#", "a/b", "a\nb", "é"] {
            assert_eq!(fault(Message::new(topic, "k", "")), Some(Field::Topic), "{topic:?}");
        }
        for name in ["", "A", "a:b", "a\r\nb", "-a", "ce-id", "nats-msg-id", "webhook-id", "outbox-replay"] {
            assert_eq!(fault(plain().with_header(name, "")), Some(Field::Headers), "{name:?}");
        }
        for value in ["a\r\nb", "a\nb", "\0", "\x7f"] {
            assert_eq!(fault(plain().with_header("a", value)), Some(Field::Headers), "{value:?}");
        }
    }

    #[test]
    fn the_mark_of_a_replay_travels_and_is_not_enqueued() {
        let full = plain().with_header("a", "v".repeat(16_384 - 9));
        let marked = |name: &str| full.clone().with_header("outbox-replay", name);
        assert_eq!(fault(marked("monthly-2")), Some(Field::Headers));
        assert_eq!(
            (marked("monthly-2").headers.replay(), plain().headers.replay()),
            (Some("monthly-2"), None)
        );
        for (name, fits) in [
            ("monthly-2", true),
            (&"n".repeat(63), true),
            ("", false),
            ("a b", false),
            (&"n".repeat(64), false),
        ] {
            assert_eq!(marked(name).validate_relayed().is_ok(), fits, "{name}");
        }
        assert!(plain().with_header("outbox-other", "a").validate_relayed().is_err());
    }

    #[test]
    fn an_error_never_repeats_the_value() {
        let error = plain().with_header("card", "4111\n").validate().unwrap_err();
        assert_eq!(error.to_string(), "headers: a value is a string without control characters");
        assert!(
            !format!("{:?}", Message::new("t", "k", "4111").with_header("card", "4111")).contains("4111")
        );
    }

    #[test]
    fn a_cause_hands_on_its_workflow_and_its_trace() {
        let first = plain().with_header("traceparent", "00-a").with_header("tracestate", "b=c");
        let second = plain().caused_by(&first);
        let third = plain().with_header("traceparent", "00-z").caused_by(&second);
        assert_eq!((third.correlation, third.causation), (first.id, Some(second.id)));
        assert_eq!(second.headers.tracestate(), Some("b=c"));
        assert_eq!((third.headers.traceparent(), third.headers.tracestate()), (Some("00-z"), None));
    }
}
