//! A typed event, as a service thinks of it, and its way into a message and out of one.

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

/// The payload is not what the handler expects.
#[derive(Debug, thiserror::Error)]
#[error("payload of kind {kind} is not valid")]
pub struct DecodeError {
    /// The message's kind.
    pub kind: String,
    /// Where the payload departs from the type.
    pub source: serde_json::Error,
}

impl Message {
    /// The event in a JSON payload.
    ///
    /// # Errors
    /// The payload is not such an event.
    pub fn decode<E: DeserializeOwned>(&self) -> Result<E, DecodeError> {
        serde_json::from_slice(&self.payload)
            .map_err(|source| DecodeError { kind: self.kind.to_string(), source })
    }
}
