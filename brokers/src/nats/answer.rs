//! The answer to one delivery.

use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::{Client, Request, Subject};
use async_trait::async_trait;
use message::limits::LONGEST;
use message::{Acknowledge, SubscribeError};

use super::connect::{answer, connected, connects};
use super::hold::Place;
use super::subscriber::{Shared, lock};

pub(super) struct Answer {
    client: Client,
    hold: Shared,
    place: Place,
    reply: Subject,
    connects: u64,
    answered: bool,
}

impl Answer {
    /// `connects`: of the connection over which the server was last known to have delivered this.
    pub(super) fn new(client: Client, hold: Shared, place: Place, reply: Subject, connects: u64) -> Self {
        Answer { client, hold, place, reply, connects, answered: false }
    }

    async fn send(&self, kind: AckKind) -> Result<(), SubscribeError> {
        connected(&self.client)?;
        if connects(&self.client) != self.connects {
            // A server that was restarted may have forgotten the delivery, and then says nothing at all.
            let sent = self.client.publish(self.reply.clone(), kind.into()).await;
            let text =
                sent.map_or_else(|error| error.to_string(), |()| "the connection was lost since".to_owned());
            return Err(SubscribeError::Unavailable(format!("nats: {text}")));
        }
        let request = self.client.send_request(self.reply.clone(), Request::new().payload(kind.into()));
        let taken = answer(&self.client, request).await?;
        taken.map(drop).map_err(|error| SubscribeError::Unavailable(format!("nats: {}", error.kind())))
    }
}

#[async_trait]
impl Acknowledge for Answer {
    async fn acknowledge(mut self: Box<Self>) -> Result<(), SubscribeError> {
        self.answered = true;
        if !lock(&self.hold).done(self.place) {
            return Err(SubscribeError::Unavailable("nats: the stream has another message there".to_owned()));
        }
        self.send(AckKind::Ack).await
    }

    async fn retry_after(mut self: Box<Self>, delay: Duration) -> Result<(), SubscribeError> {
        self.answered = true;
        lock(&self.hold).comes_again(self.place);
        self.send(AckKind::Nak(Some(delay.min(LONGEST)))).await
    }

    async fn extend(&self) -> Result<(), SubscribeError> {
        self.send(AckKind::Progress).await
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.answered {
            lock(&self.hold).comes_again(self.place);
        }
    }
}
