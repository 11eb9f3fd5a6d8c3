//! A typed event, as a service thinks of it, and its way into a message and out of one.

use std::error::Error;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Message;

/// Something that happened, with the topic and kind under which it travels.
///
/// ```
/// use message::{Event, Message};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, PartialEq, Debug)]
/// struct OrderPlaced { order: u64 }
///
/// impl Event for OrderPlaced {
///     const TOPIC: &'static str = "orders";
///     const KIND: &'static str = "order.placed";
///     fn key(&self) -> Option<String> { Some(self.order.to_string()) }
/// }
///
/// let message = OrderPlaced { order: 7 }.to_message()?;
/// assert_eq!(message.key.as_deref(), Some("7"));
/// assert_eq!(message.decode::<OrderPlaced>()?, OrderPlaced { order: 7 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Event: Serialize {
    /// What it is about.
    const TOPIC: &'static str;
    /// What happened.
    const KIND: &'static str;

    /// Events of one key stay in order; usually the aggregate's id.
    fn key(&self) -> Option<String> {
        None
    }

    /// As a message with a JSON payload.
    ///
    /// # Errors
    /// The event does not serialise as JSON (a map with keys that are no strings, for instance).
    fn to_message(&self) -> Result<Message, serde_json::Error> {
        let mut message = Message::new(Self::TOPIC, Self::KIND, serde_json::to_vec(self)?);
        message.key = self.key().map(Into::into);
        Ok(message)
    }
}

/// The message's: its payload is not what the handler expects. No repetition helps.
#[derive(Debug, thiserror::Error)]
#[error("payload of kind {kind} is not valid")]
#[non_exhaustive]
pub struct DecodeError {
    /// The message's kind.
    pub kind: String,
    /// Where the payload departs from the type.
    pub source: InvalidPayload,
}

/// Where a payload departs from the type into which it is decoded.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct InvalidPayload(#[from] pub serde_json::Error);

impl DecodeError {
    /// Whether this error, or one of its causes, is a payload that could not be decoded.
    pub fn causes(error: &(dyn Error + 'static)) -> bool {
        let mut next = Some(error);
        while let Some(error) = next {
            // The cause alone, too: an error that was boxed by `anyhow` cannot be recognised itself, only its causes.
            if error.is::<DecodeError>() || error.is::<InvalidPayload>() {
                return true;
            }
            next = error.source();
        }
        false
    }
}

impl Message {
    /// The event in a JSON payload.
    ///
    /// # Errors
    /// The payload is not such an event.
    pub fn decode<E: DeserializeOwned>(&self) -> Result<E, DecodeError> {
        serde_json::from_slice(&self.payload)
            .map_err(|error| DecodeError { kind: self.kind.to_string(), source: InvalidPayload(error) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("order cannot be read")]
    struct Wrapped(#[source] DecodeError);

    #[test]
    fn a_payload_that_cannot_be_decoded_is_found_among_the_causes() {
        let undecodable = || Message::new("t", "k", "no json").decode::<u64>().unwrap_err();
        assert!(DecodeError::causes(&undecodable()));
        assert!(DecodeError::causes(&Wrapped(undecodable())));
        assert!(DecodeError::causes(&undecodable().source));
        assert!(!DecodeError::causes(&std::io::Error::other("no stock")));
        assert!(!DecodeError::causes(&serde_json::from_str::<u64>("no json").unwrap_err()));
        let text = undecodable();
        assert_eq!(text.to_string(), "payload of kind k is not valid");
        assert!(text.source().is_some_and(|source| source.to_string().contains("line 1")));
    }
}
