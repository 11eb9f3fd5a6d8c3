//! The port to a broker, for what comes in.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::Message;

/// Receives messages from a broker, for one group of consumers.
///
/// The broker keeps a message until it is acknowledged, and delivers it again otherwise. Where the broker only knows a
/// position (Kafka, the PostgreSQL log), the subscriber itself keeps the acknowledged prefix, so that a consumer may
/// acknowledge in any order everywhere.
#[async_trait]
pub trait Subscriber: Send {
    /// Takes its place in the group, and makes the group if it is new: what is published from now on is received, also where
    /// a new group begins with what comes. [`receive`](Self::receive) does the same. A subscriber that wraps another passes
    /// it on.
    ///
    /// Dropping the future loses nothing: a later call goes on.
    ///
    /// # Errors
    /// As of [`receive`](Self::receive).
    async fn subscribe(&mut self) -> Result<(), SubscribeError> {
        Ok(())
    }

    /// Waits for at least one delivery and answers with up to `max`; those of one key are in order, across calls too.
    ///
    /// Dropping the future loses nothing: what it had received comes with a later call.
    ///
    /// # Errors
    /// The broker cannot be reached or refuses. Calling again tries again.
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscribeError>;

    /// Says goodbye: what was acknowledged is recorded, and another subscriber of the group can go on at once. Nothing
    /// is received afterwards. Without it the broker finds out by itself, after a while.
    async fn close(&mut self) {}
}

/// One copy of a message, to be answered with one of [`acknowledge`](Self::acknowledge) and
/// [`retry_after`](Self::retry_after). Dropping it answers nothing: the broker delivers again when it has waited enough.
pub struct Delivery {
    /// The message, or what could not be understood.
    pub received: Result<Message, Malformed>,
    answer: Box<dyn Acknowledge>,
}

/// How a subscriber takes the answer to one delivery.
#[async_trait]
pub trait Acknowledge: Send + Sync {
    /// See [`Delivery::acknowledge`].
    async fn acknowledge(self: Box<Self>) -> Result<(), SubscribeError>;
    /// See [`Delivery::retry_after`].
    async fn retry_after(self: Box<Self>, delay: Duration) -> Result<(), SubscribeError>;
    /// See [`Delivery::extend`].
    async fn extend(&self) -> Result<(), SubscribeError>;
}

impl Delivery {
    /// A delivery whose answer goes to `answer`.
    pub fn new(received: Result<Message, Malformed>, answer: Box<dyn Acknowledge>) -> Self {
        Delivery { received, answer }
    }

    /// The message's effect is durable; the broker may forget this copy. In any order.
    ///
    /// # Errors
    /// The broker did not take it: the message may come again.
    pub async fn acknowledge(self) -> Result<(), SubscribeError> {
        self.answer.acknowledge().await
    }

    /// Not now: deliver again, no sooner than after `delay`. Later messages of its key stay behind it.
    ///
    /// # Errors
    /// The broker did not take it: the message comes again when the broker has waited enough.
    pub async fn retry_after(self, delay: Duration) -> Result<(), SubscribeError> {
        self.answer.retry_after(delay).await
    }

    /// Still at work: the broker shall wait as long again before it delivers to another. Nothing happens where the broker does not measure that.
    ///
    /// # Errors
    /// The broker did not take it.
    pub async fn extend(&self) -> Result<(), SubscribeError> {
        self.answer.extend().await
    }
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").field("received", &self.received).finish_non_exhaustive()
    }
}

/// What arrived and could not be understood, as it came, so that it can be parked and looked at.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Malformed {
    /// What is wrong with it.
    pub reason: MalformedReason,
    /// Where it came from.
    pub destination: String,
    /// The body as it arrived.
    pub payload: Bytes,
}

impl Malformed {
    /// Something from `destination` with that body that could not be understood.
    pub fn new(reason: MalformedReason, destination: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Malformed { reason, destination: destination.into(), payload: payload.into() }
    }
}

impl std::fmt::Debug for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Malformed")
            .field("reason", &self.reason)
            .field("destination", &self.destination)
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

/// Why something that arrived is not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedReason {
    /// An attribute that every CloudEvent has is missing.
    #[error("attribute {0} is missing")]
    Missing(&'static str),
    /// An attribute is there and not what it must be.
    #[error("attribute {0} is not valid")]
    Invalid(&'static str),
    /// No `id`, or an `id` that is no UUID without a `source` to make one from: it cannot be told from a copy.
    #[error("no usable identity")]
    NoIdentity,
    /// The structured form is not a JSON object.
    #[error("not a JSON object")]
    NotJson,
    /// The broker's client cannot read it; what arrived is kept as it came, headers and body.
    #[error("cannot be read: {0}")]
    Unreadable(&'static str),
    /// The limits of [`limits`](crate::limits) do not hold.
    #[error(transparent)]
    Limit(#[from] crate::InvalidMessage),
}

/// Why a subscriber has nothing to give or could not take an answer: the broker's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// It cannot be reached, or takes nothing now. Trying again may help.
    #[error("broker unavailable: {0}")]
    Unavailable(String),
    /// It will not serve this subscription until a person changes something.
    #[error("subscription refused: {0}")]
    Refused(String),
}
