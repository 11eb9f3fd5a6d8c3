//! The answer to one delivery.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use message::limits::LONGEST;
use message::{Acknowledge, Delivery, SubscribeError};
use tokio::time::Instant;

use super::desk::{HandedOut, Said};
use super::subscriber::Shared;

struct Answer {
    shared: Arc<Shared>,
    position: i64,
    delivery: u64,
    /// How long until it comes again if it is dropped.
    redelivery: Duration,
    answered: bool,
}

/// A delivery of what was handed out.
pub(super) fn delivery(shared: &Arc<Shared>, redelivery: Duration, handed_out: HandedOut) -> Delivery {
    let HandedOut { position, delivery, message } = handed_out;
    let answer = Answer { shared: Arc::clone(shared), position, delivery, redelivery, answered: false };
    let received = match message {
        Ok(message) => Ok((*message).clone()),
        Err(malformed) => Err((*malformed).clone()),
    };
    Delivery::new(received, Box::new(answer))
}

impl Answer {
    fn say(&mut self, said: Said) -> Result<(), SubscribeError> {
        self.answered = true;
        if self.shared.answer(self.position, self.delivery, said) {
            return Ok(());
        }
        Err(SubscribeError::Unavailable(
            "the lease was lost: the message goes to another of the group".to_owned(),
        ))
    }
}

#[async_trait]
impl Acknowledge for Answer {
    async fn acknowledge(mut self: Box<Self>) -> Result<(), SubscribeError> {
        self.say(Said::Acknowledged)
    }

    async fn retry_after(mut self: Box<Self>, delay: Duration) -> Result<(), SubscribeError> {
        self.say(Said::Again(Instant::now() + delay.min(LONGEST)))
    }

    /// Nothing measures how long a delivery is at work.
    async fn extend(&self) -> Result<(), SubscribeError> {
        Ok(())
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.answered {
            let again = Said::Again(Instant::now() + self.redelivery);
            self.shared.answer(self.position, self.delivery, again);
        }
    }
}
