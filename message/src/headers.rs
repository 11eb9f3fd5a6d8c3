//! The headers of a message: a few known ones and whatever else a producer adds, each name once.

use std::collections::BTreeMap;
use std::fmt;

use crate::limits;

/// Names and values that travel beside the payload, each name once. Checked at enqueue, not here
/// ([`Message::validate`](crate::Message::validate)).
///
/// `Debug` shows the names and not the values: a header may carry a secret.
///
/// ```
/// use message::Headers;
/// let mut headers = Headers::default();
/// headers.insert("tenant", "acme");
/// assert_eq!(headers.get("tenant"), Some("acme"));
/// assert_eq!(headers.content_type(), "application/json");
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    entries: BTreeMap<String, String>,
}

/// Name of the header that says what the payload is.
pub(crate) const CONTENT_TYPE: &str = "content-type";
/// Name of the header of W3C Trace Context.
pub(crate) const TRACEPARENT: &str = "traceparent";
/// Name of the vendors' header of W3C Trace Context.
pub(crate) const TRACESTATE: &str = "tracestate";
/// What the payload is if nothing says otherwise.
pub(crate) const JSON: &str = "application/json";

impl Headers {
    /// Sets a header, in place of one of that name.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.entries.insert(name.into(), value.into());
    }

    /// Removes a header.
    pub fn remove(&mut self, name: &str) {
        self.entries.remove(name);
    }

    /// The value of a header.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(String::as_str)
    }

    /// All headers, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the payload is: `application/json` if nothing says otherwise.
    pub fn content_type(&self) -> &str {
        self.get(CONTENT_TYPE).unwrap_or(JSON)
    }

    /// The trace and span that caused this message ([W3C Trace Context](https://www.w3.org/TR/trace-context/)).
    pub fn traceparent(&self) -> Option<&str> {
        self.get(TRACEPARENT)
    }

    /// The replay that published this copy, if one did: a consumer may want to treat it otherwise.
    pub fn replay(&self) -> Option<&str> {
        self.get(limits::REPLAY)
    }

    /// What tracing vendors add to [`traceparent`](Self::traceparent).
    pub fn tracestate(&self) -> Option<&str> {
        self.get(TRACESTATE)
    }

    /// The headers that are no attribute of the wire form.
    pub fn others(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter().filter(|(name, _)| !matches!(*name, CONTENT_TYPE | TRACEPARENT | TRACESTATE))
    }

    /// As the JSON object that the log stores; `None` if there are none.
    pub fn to_json(&self) -> Option<String> {
        // A map of strings always serialises.
        (!self.is_empty()).then(|| serde_json::to_string(&self.entries).unwrap_or_default())
    }

    /// From the JSON object that the log stores.
    ///
    /// # Errors
    /// It is not an object of strings.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Headers { entries: serde_json::from_slice(json)? })
    }

    /// As they are enqueued; or, `relayed`, as a relay publishes them: a mark of ours is no business of the producer's, and
    /// does not count.
    pub(crate) fn validate(&self, relayed: bool) -> Result<(), limits::InvalidMessage> {
        let mut bytes = 0;
        for (name, value) in self.iter() {
            if relayed && name == limits::REPLAY {
                limits::operation(value)?;
                continue;
            }
            limits::header_name(name)?;
            limits::header_value(value)?;
            // JSON writes these two as two bytes each.
            let escaped = value.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count();
            bytes += name.len() + value.len() + escaped + limits::HEADER_OVERHEAD;
        }
        limits::headers_bytes(bytes)
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut headers = Headers::default();
        for (name, value) in pairs {
            headers.insert(name, value);
        }
        headers
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_back_is_the_same() {
        let headers: Headers = [("b", "é\"\\"), ("a", "")].into_iter().collect();
        assert_eq!(Headers::from_json(headers.to_json().unwrap().as_bytes()).unwrap(), headers);
    }

    #[test]
    fn none_is_stored_as_null() {
        let mut headers = Headers::default();
        assert_eq!(headers.to_json(), None);
        headers.insert("a", "b");
        headers.remove("a");
        assert_eq!(headers.to_json(), None);
        assert_eq!(Headers::from_json(b"{}").unwrap(), headers);
    }

    #[test]
    fn debug_hides_the_values() {
        let headers: Headers = [("authorization", "s3cret")].into_iter().collect();
        assert_eq!(format!("{headers:?}"), r#"{"authorization"}"#);
    }
}
