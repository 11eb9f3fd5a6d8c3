//! Binary mode: the payload is the body, byte for byte, and each attribute is a header.

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::{Attributes, attributes};
use crate::headers::CONTENT_TYPE;
use crate::{Malformed, Message};

/// How a broker spells headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    attribute_prefix: &'static str,
    header_prefix: &'static str,
    percent_encoded: bool,
    /// Whether `content-type` is, too.
    content_type_encoded: bool,
}

const PLAIN: Binding = Binding {
    attribute_prefix: "ce-",
    header_prefix: "",
    percent_encoded: false,
    content_type_encoded: false,
};

/// HTTP. `Content-Type` is HTTP's own header and stays as it is.
pub const HTTP: Binding = Binding { percent_encoded: true, ..PLAIN };
/// NATS, which follows HTTP; but `content-type` is a header like the others there.
pub const NATS: Binding = Binding { content_type_encoded: true, ..HTTP };
/// Kafka.
pub const KAFKA: Binding = Binding { attribute_prefix: "ce_", ..PLAIN };
/// AMQP, as RabbitMQ speaks it.
pub const AMQP: Binding = Binding { attribute_prefix: "cloudEvents:", ..PLAIN };
/// Redis Streams: the fields of an entry.
pub const REDIS: Binding = Binding { header_prefix: "h-", ..PLAIN };

/// Outside printable ASCII, and space, `"` and `%`: the rule of the CloudEvents HTTP binding.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

impl Binding {
    /// The headers of a message; its payload is the body.
    ///
    /// ```
    /// use message::{Message, wire::binary};
    /// let message = Message::new("orders", "order.placed", "{}").with_key("é");
    /// let headers = binary::HTTP.encode(&message);
    /// assert!(headers.contains(&("ce-type".to_owned(), "order.placed".to_owned())));
    /// assert!(headers.contains(&("ce-partitionkey".to_owned(), "%C3%A9".to_owned())));
    ///
    /// let again = binary::HTTP.decode(
    ///     headers.iter().map(|(name, value)| (name.as_str(), value.as_str())), message.payload.clone(), "orders");
    /// assert_eq!(again.unwrap().key, message.key);
    /// ```
    pub fn encode(&self, message: &Message) -> Vec<(String, String)> {
        let mut headers: Vec<(String, String)> = attributes(message)
            .into_iter()
            .map(|(name, value)| (format!("{}{name}", self.attribute_prefix), self.escape(&value)))
            .collect();
        let content_type = message.headers.content_type();
        let content_type =
            if self.content_type_encoded { self.escape(content_type) } else { content_type.to_owned() };
        headers.push((CONTENT_TYPE.to_owned(), content_type));
        for (name, value) in message.headers.others() {
            headers.push((format!("{}{name}", self.header_prefix), self.escape(value)));
        }
        headers
    }

    /// The message in what arrived from `destination`. Names are compared without case, and the first of a name counts.
    ///
    /// # Errors
    /// It is no CloudEvent 1.0, has no usable identity, or breaks a limit.
    pub fn decode<'a>(
        &self,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        payload: Bytes,
        destination: &str,
    ) -> Result<Message, Malformed> {
        let prefix = self.attribute_prefix.to_ascii_lowercase();
        let mut attributes = Attributes::default();
        let mut seen = std::collections::HashSet::new();
        for (name, value) in headers {
            let name = name.to_ascii_lowercase();
            if !seen.insert(name.clone()) {
                continue;
            }
            if let Some(attribute) = name.strip_prefix(&prefix) {
                attributes.set(attribute, self.unescape(value));
            } else if name == CONTENT_TYPE {
                let decoded = if self.content_type_encoded { self.unescape(value) } else { value.to_owned() };
                attributes.header(CONTENT_TYPE, decoded);
            } else if let Some(name) = name.strip_prefix(self.header_prefix) {
                attributes.header(name, self.unescape(value));
            }
        }
        attributes
            .into_message(destination, payload.clone())
            .map_err(|reason| Malformed::new(reason, destination, payload))
    }

    fn escape(&self, value: &str) -> String {
        if self.percent_encoded { utf8_percent_encode(value, ENCODED).to_string() } else { value.to_owned() }
    }

    fn unescape(&self, value: &str) -> String {
        if self.percent_encoded {
            percent_decode_str(value).decode_utf8_lossy().into_owned()
        } else {
            value.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::MalformedReason;

    fn decode(
        binding: &Binding,
        headers: &[(&str, &str)],
        payload: &'static str,
    ) -> Result<Message, Malformed> {
        binding.decode(headers.iter().copied(), Bytes::from_static(payload.as_bytes()), "from.here")
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_the_same_on_every_broker(
            topic in "[A-Za-z0-9_-]{1,20}([.][A-Za-z0-9_-]{1,20}){0,3}",
            kind in "[!-~]{1,60}",
            source in "[!-~]{1,60}",
            key in proptest::option::of("[^\\x00]{1,60}"),
            name in "x[a-z0-9._-]{0,20}",
            value in "[^\\x00-\\x1f\\x7f]{0,60}",
            content_type in proptest::option::of("[^\\x00-\\x1f\\x7f]{0,60}"),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            micros in 0_i64..250_000_000_000_000_000,
            replay in "[a-z0-9][a-z0-9._-]{0,62}",
        ) {
            let cause = Message::new("t", "k", "").with_header("traceparent", "00-x");
            let mut message = Message::new(topic, kind, payload)
                .with_source(source)
                .with_header(name, value)
                .with_occurred_at(chrono::DateTime::from_timestamp_micros(micros).unwrap())
                .caused_by(&cause);
            message.key = key.map(Into::into);
            if let Some(content_type) = content_type {
                message = message.with_content_type(content_type);
            }
            prop_assume!(message.validate().is_ok());
            message.headers.insert(crate::limits::REPLAY, replay);
            for binding in [HTTP, NATS, KAFKA, AMQP, REDIS] {
                let headers = binding.encode(&message);
                if binding.percent_encoded {
                    let plain = |value: &str| value.bytes().all(|byte| (0x21..0x7f).contains(&byte));
                    let mut encoded = headers.iter().filter(|(name, _)| binding == NATS || name != CONTENT_TYPE);
                    prop_assert!(encoded.all(|(name, value)| name.is_ascii() && plain(value)));
                }
                let again = binding.decode(
                    headers.iter().map(|(name, value)| (name.as_str(), value.as_str())),
                    message.payload.clone(),
                    "elsewhere",
                );
                let mut expected = message.clone();
                expected.headers.insert("content-type", message.headers.content_type());
                prop_assert_eq!(again, Ok(expected));
            }
        }
    }

    #[test]
    fn the_longest_valid_message_fits_into_the_smallest_default_limit_of_a_broker() {
        let headers = (0..30).map(|n| (format!("h{n:02}"), "é".repeat(267)));
        let mut message = Message::new("t".repeat(200), "%".repeat(200), vec![0; 983_040])
            .with_source("%".repeat(200))
            .with_key("é".repeat(256));
        message.headers = headers.collect();
        message.validate().unwrap();
        assert!(
            message.clone().with_header("h30", "é".repeat(140)).validate().is_err(),
            "the headers are full"
        );
        message.headers.insert(crate::limits::REPLAY, "n".repeat(63));
        message.validate_relayed().unwrap();
        let headers: usize =
            NATS.encode(&message).iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        assert!(headers + message.payload.len() < 1_048_576, "{headers}");
    }

    #[test]
    fn a_content_type_of_any_characters_is_a_nats_header_and_comes_back() {
        for content_type in ["text/plain; charset=utf-8", " padded ", "x/\u{e9}; 100%", "a/%41"] {
            let message = Message::new("t", "k", "x").with_source("/s").with_content_type(content_type);
            let headers = NATS.encode(&message);
            let (_, value) = headers.iter().find(|(name, _)| name == CONTENT_TYPE).unwrap();
            assert!(value.bytes().all(|byte| (0x21..0x7f).contains(&byte)), "{value}");
            // As a server's client reads it.
            let trimmed = headers.iter().map(|(name, value)| (name.as_str(), value.trim()));
            let again = NATS.decode(trimmed, message.payload.clone(), "t").unwrap();
            assert_eq!(again.headers.content_type(), content_type);
        }
        let foreign = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/a"),
            ("ce-type", "k"),
            ("Content-Type", "text/plain; charset=utf-8"),
        ];
        assert_eq!(decode(&NATS, &foreign, "x").unwrap().headers.content_type(), "text/plain; charset=utf-8");
    }

    #[test]
    fn a_foreign_event_without_a_uuid_has_the_same_identity_every_time() {
        let headers =
            [("CE-SpecVersion", "1.0"), ("ce-id", "A-1"), ("ce-source", "/shop"), ("ce-type", "sold")];
        let first = decode(&HTTP, &headers, "x").unwrap();
        assert_eq!(first.id, crate::MessageId::foreign("/shop", "A-1"));
        assert_eq!((&*first.topic, first.correlation), ("from.here", first.id));
        assert_eq!(decode(&HTTP, &headers, "x").unwrap().id, first.id);
    }

    #[test]
    fn what_has_no_usable_identity_says_so() {
        let reason = |headers: &[(&str, &str)]| decode(&HTTP, headers, "x").unwrap_err().reason;
        assert_eq!(reason(&[]), MalformedReason::NoIdentity);
        assert_eq!(
            reason(&[("ce-specversion", "1.0"), ("ce-id", ""), ("ce-source", "/a")]),
            MalformedReason::NoIdentity
        );
        assert_eq!(
            reason(&[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-type", "k")]),
            MalformedReason::NoIdentity
        );
        assert_eq!(
            reason(&[("ce-specversion", "0.3"), ("ce-id", "1")]),
            MalformedReason::Invalid("specversion")
        );
        assert_eq!(
            reason(&[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/a")]),
            MalformedReason::Missing("type")
        );
        assert_eq!(
            reason(&[
                ("ce-specversion", "1.0"),
                ("ce-id", "1"),
                ("ce-source", "/a"),
                ("ce-type", "k"),
                ("ce-time", "noon")
            ]),
            MalformedReason::Invalid("time")
        );
    }

    #[test]
    fn what_stands_beside_a_message_does_not_spoil_it() {
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/a"),
            ("ce-type", "k"),
            ("ce-sequence", "12"),
            ("Nats-Msg-Id", "1"),
            ("host", "h"),
            ("host", "twice"),
            ("x y", "z"),
            ("outbox-other", "1"),
            ("outbox-replay", "No Name"),
        ];
        let message = decode(&NATS, &headers, "x").unwrap();
        assert_eq!(message.headers.iter().collect::<Vec<_>>(), [("host", "h"), ("sequence", "12")]);
    }
}
