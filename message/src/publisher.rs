//! The port to a broker, for what goes out.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::Message;

/// A message on its way to one broker.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where the relay's routes send it: a topic, subject, queue or URL of that broker.
    pub destination: Arc<str>,
    /// What to send. Its `source` is filled in.
    pub message: Arc<Message>,
}

/// How many unconfirmed messages of one key may be on the wire: what the broker itself keeps in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pipelining {
    /// One. A failure in a pipeline would let a later message pass an earlier one.
    OnePerKey,
    /// Several in one batch, none in another: within a batch, what succeeds for a key comes before what fails.
    PerBatch,
    /// Any number: the broker refuses a message of a key whose predecessor it does not have.
    Unlimited,
}

/// Why a message is not confirmed: whose fault it was decides what the relay does next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The broker's: it cannot be reached or takes nothing now, for any destination. Tried again; nothing counts against the
    /// message.
    #[error("broker unavailable: {0}")]
    Unavailable(String),
    /// The destination's: the broker answers, and this destination is missing, full or closed. Messages to other
    /// destinations go on. Tried again; nothing counts against the message.
    #[error("destination unavailable: {0}")]
    DestinationUnavailable(String),
    /// The predecessor's: an earlier message of the key was not kept, so this one was not sent. Tried again after it.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The message's: the broker will not take it. Its key is held back, others go on.
    #[error("message rejected: {0}")]
    Rejected(String),
    /// Nobody's yet: sent, and no answer came. Published again, perhaps a second copy.
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

/// Sends batches of messages to a broker.
///
/// ```
/// use message::{Outcomes, Outgoing, Pipelining, Publisher};
///
/// /// Confirms everything, keeps nothing.
/// struct Null;
///
/// #[async_trait::async_trait]
/// impl Publisher for Null {
///     fn pipelining(&self) -> Pipelining { Pipelining::PerBatch }
///     async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
///         outcomes.confirm_all();
///     }
/// }
/// ```
#[async_trait]
pub trait Publisher: Send + Sync {
    /// What may be on the wire at once. The relay never sends more.
    fn pipelining(&self) -> Pipelining;

    /// Sends `batch` and reports each message's outcome as soon as it is known. A message that is not reported when the
    /// future ends or is dropped counts as [`PublishError::Unknown`]. Several batches may be under way at once.
    ///
    /// A message is confirmed when the broker has promised to keep it, and not when it was handed over.
    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes);

    /// Asked once at start: whether the broker is reachable and set up so that it keeps what it confirms.
    ///
    /// # Errors
    /// [`PublishError::Unavailable`]: asked again later. [`PublishError::Rejected`]: the relay refuses to run.
    async fn check(&self) -> Result<(), PublishError> {
        Ok(())
    }

    /// Asked at start: the log that it appends to, where the broker is an outbox's log, by a name that no other has then.
    /// A relay refuses to publish a log into itself, which would not end. A publisher that wraps another passes it on.
    ///
    /// # Errors
    /// As of [`check`](Self::check).
    async fn log(&self) -> Result<Option<String>, PublishError> {
        Ok(None)
    }

    /// What it publishes to, for a person: the kind of broker and its address, without a secret. Processes of one relay
    /// whose answers differ split its log between two brokers, and are warned of. `None`: it does not say. A publisher that
    /// wraps another passes it on.
    fn describe(&self) -> Option<String> {
        None
    }
}

#[async_trait]
impl<P: Publisher + ?Sized> Publisher for Arc<P> {
    fn pipelining(&self) -> Pipelining {
        (**self).pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        (**self).publish(batch, outcomes).await;
    }

    async fn check(&self) -> Result<(), PublishError> {
        (**self).check().await
    }

    async fn log(&self) -> Result<Option<String>, PublishError> {
        (**self).log().await
    }

    fn describe(&self) -> Option<String> {
        (**self).describe()
    }
}

/// What became of one message of a batch, or of all.
#[derive(Debug)]
pub struct Outcome {
    /// The number given to [`Outcomes::new`].
    pub batch: u64,
    /// Which message of the batch; `None`: all that were not reported.
    pub index: Option<usize>,
    /// Confirmed, or why not.
    pub result: Result<(), PublishError>,
}

/// Reports the outcomes of one batch to the relay, in any order. Dropping it reports the rest as unknown.
#[derive(Debug)]
pub struct Outcomes {
    batch: u64,
    sender: mpsc::UnboundedSender<Outcome>,
    settled: bool,
}

impl Outcomes {
    /// For a batch numbered `batch`; outcomes arrive at the other end of `sender`.
    pub fn new(batch: u64, sender: mpsc::UnboundedSender<Outcome>) -> Self {
        Outcomes { batch, sender, settled: false }
    }

    /// The message at `index` of the batch is kept by the broker, or not.
    pub fn report(&self, index: usize, result: Result<(), PublishError>) {
        self.send(Some(index), result);
    }

    /// Every message that was not reported is kept by the broker.
    pub fn confirm_all(mut self) {
        self.settled = true;
        self.send(None, Ok(()));
    }

    /// Every message that was not reported failed in this way.
    pub fn fail_all(mut self, error: PublishError) {
        self.settled = true;
        self.send(None, Err(error));
    }

    fn send(&self, index: Option<usize>, result: Result<(), PublishError>) {
        // Nobody listens any more once the relay has given the batch up.
        let _ = self.sender.send(Outcome { batch: self.batch, index, result });
    }
}

impl Drop for Outcomes {
    fn drop(&mut self) {
        if !self.settled {
            self.send(None, Err(PublishError::Unknown("the publisher did not say".to_owned())));
        }
    }
}

/// Publishes one batch and waits for all of it: the results, in the order of the batch.
pub async fn publish_all(publisher: &dyn Publisher, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
    let (sender, mut outcomes) = mpsc::unbounded_channel();
    publisher.publish(batch, Outcomes::new(0, sender)).await;
    let mut results: Vec<Option<Result<(), PublishError>>> = vec![None; batch.len()];
    while let Some(outcome) = outcomes.recv().await {
        match outcome.index {
            Some(index) => {
                if let Some(result) = results.get_mut(index) {
                    result.get_or_insert(outcome.result);
                }
            }
            None => {
                for result in &mut results {
                    result.get_or_insert_with(|| outcome.result.clone());
                }
            }
        }
    }
    let unknown = || Err(PublishError::Unknown("the publisher did not say".to_owned()));
    results.into_iter().map(|result| result.unwrap_or_else(unknown)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Halfway;

    #[async_trait]
    impl Publisher for Halfway {
        fn pipelining(&self) -> Pipelining {
            Pipelining::OnePerKey
        }

        async fn publish(&self, _: &[Outgoing], outcomes: Outcomes) {
            outcomes.report(1, Ok(()));
        }
    }

    #[tokio::test]
    async fn what_a_publisher_does_not_report_is_unknown() {
        let message = Arc::new(Message::new("t", "k", ""));
        let batch = vec![Outgoing { destination: "t".into(), message }; 3];
        let results = publish_all(&Halfway, &batch).await;
        assert_eq!(results[1], Ok(()));
        assert!(matches!(results[0], Err(PublishError::Unknown(_))));
        assert!(matches!(results[2], Err(PublishError::Unknown(_))));
    }
}
