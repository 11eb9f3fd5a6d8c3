//! The answer to one delivery.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::AckKind;
use async_nats::{Client, Request, Subject};
use async_trait::async_trait;
use message::{Acknowledge, SubscribeError};

use super::subscriber::{Shared, lock};

/// How long the server may take for an answer.
pub(super) const REQUEST: Duration = Duration::from_secs(5);
/// The same, over another connection than the delivery came by. A server that was restarted may have forgotten the
/// delivery, and then says nothing at all; the message comes again, so little is won by waiting.
const STALE: Duration = Duration::from_millis(250);

/// How often the client has connected.
pub(super) fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed)
}

pub(super) struct Answer {
    client: Client,
    hold: Shared,
    number: u64,
    reply: Subject,
    connects: u64,
    answered: bool,
}

impl Answer {
    /// `connects`: of the connection that the delivery came by.
    pub(super) fn new(client: Client, hold: Shared, number: u64, reply: Subject, connects: u64) -> Self {
        Answer { client, hold, number, reply, connects, answered: false }
    }

    async fn send(&self, kind: AckKind) -> Result<(), SubscribeError> {
        if self.client.connection_state() != State::Connected {
            return Err(SubscribeError::Unavailable("nats: not connected".to_owned()));
        }
        let patience = if connects(&self.client) == self.connects { REQUEST } else { STALE };
        let request = Request::new().payload(kind.into()).timeout(Some(patience));
        let answer = self.client.send_request(self.reply.clone(), request).await;
        answer.map(drop).map_err(|error| SubscribeError::Unavailable(format!("nats: {}", error.kind())))
    }
}

#[async_trait]
impl Acknowledge for Answer {
    async fn acknowledge(mut self: Box<Self>) -> Result<(), SubscribeError> {
        self.answered = true;
        lock(&self.hold).done(self.number);
        self.send(AckKind::Ack).await?;
        lock(&self.hold).acknowledged(self.number);
        Ok(())
    }

    async fn retry_after(mut self: Box<Self>, delay: Duration) -> Result<(), SubscribeError> {
        self.answered = true;
        lock(&self.hold).comes_again(self.number);
        self.send(AckKind::Nak(Some(delay))).await
    }

    async fn extend(&self) -> Result<(), SubscribeError> {
        self.send(AckKind::Progress).await
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.answered {
            lock(&self.hold).comes_again(self.number);
        }
    }
}
