//! Structured mode: one JSON object a message, for a file, a pipe or a broker without headers
//! ([JSON event format](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md)).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::{Attributes, attributes, is_json};
use crate::{Malformed, MalformedReason, Message};

/// The media type of the structured form.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// The message as one line of JSON, without a line feed.
///
/// ```
/// use message::{Message, wire::structured};
/// let message = Message::new("orders", "order.placed", r#"{"order":7}"#).with_source("/shop");
/// let line = structured::encode(&message);
/// assert!(line.contains(r#""data":{"order":7}"#));
/// let again = structured::decode(line.as_bytes(), "orders").unwrap();
/// assert_eq!((again.id, again.payload), (message.id, message.payload));
/// ```
pub fn encode(message: &Message) -> String {
    // Strings and maps of strings always serialise.
    serde_json::to_string(&Line(message)).unwrap_or_default()
}

/// The message in one JSON object that arrived from `destination`.
///
/// # Errors
/// It is no CloudEvent 1.0 in JSON, has no usable identity, or breaks a limit.
pub fn decode(line: &[u8], destination: &str) -> Result<Message, Malformed> {
    parse(line, destination)
        .map_err(|reason| Malformed::new(reason, destination, Bytes::copy_from_slice(line)))
}

struct Line<'a>(&'a Message);

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let message = self.0;
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in attributes(message) {
            map.serialize_entry(name, &value)?;
        }
        let content_type = message.headers.content_type();
        map.serialize_entry("datacontenttype", content_type)?;
        let others: BTreeMap<&str, &str> = message.headers.others().collect();
        if !others.is_empty() {
            map.serialize_entry("headers", &serde_json::to_string(&others).unwrap_or_default())?;
        }
        match json_text(message) {
            Some(data) => map.serialize_entry("data", data)?,
            None => map.serialize_entry("data_base64", &STANDARD.encode(&message.payload))?,
        }
        map.end()
    }
}

/// The payload, if it can stand in the line as it is and come back byte for byte.
fn json_text(message: &Message) -> Option<&RawValue> {
    let payload = &message.payload;
    let trimmed = payload.trim_ascii().len() == payload.len();
    let one_line = !payload.iter().any(|byte| matches!(byte, b'\n' | b'\r'));
    // A reader takes `"data": null` for no data at all.
    if !(is_json(message.headers.content_type()) && trimmed && one_line) || payload == "null" {
        return None;
    }
    serde_json::from_slice(payload).ok()
}

fn parse(line: &[u8], destination: &str) -> Result<Message, MalformedReason> {
    let members: BTreeMap<String, Box<RawValue>> =
        serde_json::from_slice(line).map_err(|_| MalformedReason::NotJson)?;
    let mut attributes = Attributes::default();
    let mut payload = Bytes::new();
    for (name, value) in members {
        match name.as_str() {
            // CloudEvents lets absent data be written as null.
            "data" if value.get() == "null" => {}
            "data" => payload = Bytes::from(value.get().to_owned()),
            "data_base64" => {
                let text: String = from_json(&value).ok_or(MalformedReason::Invalid("data_base64"))?;
                payload = STANDARD.decode(text).map_err(|_| MalformedReason::Invalid("data_base64"))?.into();
            }
            "headers" => {
                let others: BTreeMap<String, String> = from_json::<String>(&value)
                    .and_then(|text| serde_json::from_str(&text).ok())
                    .ok_or(MalformedReason::Invalid("headers"))?;
                for (name, value) in others {
                    attributes.header(&name, value);
                }
            }
            name => match from_json::<serde_json::Value>(&value) {
                Some(serde_json::Value::String(text)) => attributes.set(name, text),
                Some(serde_json::Value::Null) => {}
                // Integers and booleans are attribute values of CloudEvents; objects are not.
                Some(other) if !other.is_object() && !other.is_array() => {
                    attributes.set(name, other.to_string())
                }
                _ => {}
            },
        }
    }
    attributes.into_message(destination, payload)
}

fn from_json<'a, T: serde::Deserialize<'a>>(value: &'a RawValue) -> Option<T> {
    serde_json::from_str(value.get()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round(message: &Message) -> Message {
        let line = encode(message);
        assert!(!line.contains('\n'), "{line}");
        decode(line.as_bytes(), "t").unwrap()
    }

    fn with_payload(payload: &[u8]) -> Message {
        Message::new("t", "k", payload.to_vec()).with_source("/s")
    }

    #[test]
    fn json_stays_readable_and_returns_byte_for_byte() {
        // Duplicate names, a number no float holds, a lone surrogate, odd spacing: the text is not re-encoded.
        let odd = br#"{"a":1,"a" : 1e400000,"b":"\ud800\u0000"}"#;
        assert!(encode(&with_payload(odd)).contains(std::str::from_utf8(odd).unwrap()));
        let deep = [vec![b'['; 20_000], vec![b']'; 20_000]].concat();
        for payload in [&odd[..], b"null", b"\"\"", b" {}", b"{}\n", b"{\n}", b"", b"\xff", b"{", &deep] {
            assert_eq!(
                round(&with_payload(payload)).payload,
                payload,
                "{:?}",
                String::from_utf8_lossy(payload)
            );
        }
    }

    #[test]
    fn what_is_not_json_goes_as_base64() {
        let message = with_payload(b"12").with_content_type("text/plain");
        assert!(encode(&message).contains(r#""data_base64":"MTI=""#));
        assert_eq!(&round(&message).payload[..], b"12");
    }

    #[test]
    fn anything_but_an_object_is_malformed_and_kept() {
        for line in ["", "[]", "{", "\u{feff}{}"] {
            let malformed = decode(line.as_bytes(), "t").unwrap_err();
            assert_eq!(
                (malformed.reason, &malformed.payload[..]),
                (MalformedReason::NotJson, line.as_bytes())
            );
        }
        assert_eq!(decode(b"{}", "t").unwrap_err().reason, MalformedReason::NoIdentity);
    }

    proptest! {
        #[test]
        fn any_message_survives_a_line(
            payload in proptest::collection::vec(any::<u8>(), 0..100),
            key in proptest::option::of("[^\\x00]{1,20}"),
            value in "[^\\x00-\\x1f\\x7f]{0,20}",
        ) {
            let mut message = with_payload(&payload).with_header("x", value).with_content_type("a/b");
            message.key = key.map(Into::into);
            prop_assert_eq!(round(&message), message);
        }
    }
}
