//! Asking for messages, so that a request of ours always waits at the server.
//!
//! Not the client library's stream of messages: after a lost connection that asks again only if it happened to see the
//! connection down; and one made anew asks without the pin, and gets nothing until the server has given us up. The inbox
//! here is one for life, so that nothing on its way to us is thrown away.

use std::time::{Duration, Instant};

use async_nats::{Client, Message, Subject};
use futures_util::{FutureExt, StreamExt};
use message::SubscribeError;
use serde_json::json;
use tokio::task::unconstrained;

use super::consumer::PRIORITY_GROUP;
use super::requests::{Heard, Requests};

/// What the server says of a request that ended.
const UNSERVED: &str = "Nats-Pending-Messages";
/// What the answer to a delivery is sent to begins with.
const DELIVERY: &str = "$JS.ACK.";

pub(super) struct Pull {
    client: Client,
    subject: String,
    inbox: Subject,
    arrivals: async_nats::Subscriber,
    requests: Requests,
}

impl Pull {
    /// From the consumer `name`, a pair of its stream and itself, up to `most` messages at a time.
    pub(super) async fn open(
        client: &Client,
        (stream, consumer): (&str, &str),
        most: usize,
        takeover: Duration,
    ) -> Result<Self, SubscribeError> {
        let inbox = Subject::from(client.new_inbox());
        let arrivals = client.subscribe(inbox.clone()).await;
        Ok(Pull {
            client: client.clone(),
            subject: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            inbox,
            arrivals: arrivals.map_err(unavailable)?,
            requests: Requests::new(most, takeover),
        })
    }

    /// What arrives next. Dropped, it loses nothing. `None`: the client is closed.
    pub(super) async fn next(&mut self) -> Option<Message> {
        self.arrivals.next().await
    }

    /// What is there already, and all of it, however much that is to the runtime's mind.
    pub(super) fn next_now(&mut self) -> Option<Message> {
        unconstrained(self.next()).now_or_never().flatten()
    }

    /// What `message` means. A producer may have written a status, too: what has a place for its acknowledgement is a
    /// message.
    pub(super) fn hear(&mut self, message: &Message) -> Heard {
        let is_delivery = message.reply.as_ref().is_some_and(|reply| reply.starts_with(DELIVERY));
        if is_delivery {
            return self.requests.hear(None, None, None, Instant::now());
        }
        let unserved = message.headers.as_ref().and_then(|headers| headers.get(UNSERVED));
        let unserved = unserved.and_then(|unserved| unserved.as_str().parse().ok());
        self.requests.hear(message.status, message.description.as_deref(), unserved, Instant::now())
    }

    /// Asks for messages if it is time to; `enough`: only to stay pinned. Cancelled, it asks again.
    pub(super) async fn ask(&mut self, pin: Option<&str>, enough: bool) -> Result<(), SubscribeError> {
        let Some(messages) = self.requests.due(enough, Instant::now()) else { return Ok(()) };
        let request = json!({
            "batch": messages,
            "expires": nanoseconds(self.requests.expires()),
            "idle_heartbeat": nanoseconds(self.requests.heartbeat()),
            "group": PRIORITY_GROUP,
            "id": pin.unwrap_or_default(),
        });
        let request = request.to_string().into();
        let sent = self.client.publish_with_reply(self.subject.clone(), self.inbox.clone(), request).await;
        sent.map_err(unavailable)?;
        self.requests.asked(messages, Instant::now());
        Ok(())
    }

    /// No request of ours waits at the server any more.
    pub(super) fn forget_requests(&mut self) {
        self.requests.forget();
    }

    /// Whether the server gave no sign of life for too long.
    pub(super) fn is_silent(&self) -> bool {
        self.requests.are_lost(Instant::now())
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn unavailable(error: impl std::fmt::Display) -> SubscribeError {
    SubscribeError::Unavailable(format!("nats: {error}"))
}
