//! The way out of JetStream, for one group: a durable pull consumer with one active client.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::consumer::pull::{MessagesErrorKind, Stream};
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, header};
use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use message::{Delivery, Malformed, Message, SubscribeError, Subscriber, wire};
use tokio::time::{sleep, timeout};

use super::answer::{Answer, REQUEST, connects};
use super::consumer;
use super::hold::Hold;

/// How often the server is asked whether everything under way is here, while it is not.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Messages asked of the server at a time.
const PULL: usize = 200;

/// Receives from a stream for one group, which is a durable consumer of that name. Needs a server of version 2.11.
///
/// **One subscriber of a group is active at a time**, however many there are: JetStream spreads messages over
/// subscribers without regard to keys, so several at once could not keep a key in order. The server pins one client;
/// the others stand by, and one takes over when the active one has not asked for messages for
/// [`takeover`](Self::with_takeover_after). It hands nothing out before every message that the last one had is answered
/// or has come again, which takes up to the [ack wait](Self::with_ack_wait). More groups, each with subjects of its own,
/// are the way to share work between processes.
///
/// Order per key holds across retries, lost connections and takeovers: a message that is sent back
/// ([`retry_after`](Delivery::retry_after)), or dropped without an answer, holds back the later ones of its key that
/// were not handed out yet.
///
/// An acknowledgement waits for the server's word, since an acknowledgement that was only handed to the connection may
/// be lost with it, and saying that it was taken would be wrong. Acknowledge several at once if the round trip matters.
pub struct NatsSubscriber {
    client: Client,
    context: Context,
    wanted: consumer::Wanted,
    pull: Option<Pull>,
    hold: Shared,
    pin: Option<String>,
    connects: u64,
}

/// What has arrived, shared with the deliveries that are under way.
pub(super) type Shared = Arc<Mutex<Hold<Arrived>>>;

pub(super) struct Arrived {
    received: Result<Message, Malformed>,
    reply: async_nats::Subject,
    connects: u64,
}

struct Pull {
    consumer: PullConsumer,
    messages: Stream,
}

pub(super) fn lock(hold: &Shared) -> MutexGuard<'_, Hold<Arrived>> {
    // No code panics while it holds the lock, so what a poisoned one holds is whole.
    hold.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NatsSubscriber {
    /// Receives all messages of `stream` over `client` for `group`, from the first one kept. The consumer is made, or
    /// changed, at the first [`receive`](Subscriber::receive). Must be called within a tokio runtime.
    pub fn new(client: Client, stream: impl Into<String>, group: impl Into<String>) -> Self {
        NatsSubscriber {
            context: jetstream::new(client.clone()),
            client,
            wanted: consumer::Wanted::new(stream.into(), group.into()),
            pull: None,
            hold: Arc::new(Mutex::new(Hold::new())),
            pin: None,
            connects: 0,
        }
    }

    /// Receives these subjects only; `orders.>` and the like are allowed.
    pub fn with_subjects(mut self, subjects: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.wanted.subjects = subjects.into_iter().map(Into::into).collect();
        self
    }

    /// How long the server waits for an answer before it delivers again: 30 seconds by default.
    pub fn with_ack_wait(mut self, wait: Duration) -> Self {
        self.wanted.ack_wait = wait;
        self
    }

    /// How long the active subscriber may not ask for messages before another takes over: 10 seconds by default.
    pub fn with_takeover_after(mut self, takeover: Duration) -> Self {
        self.wanted.takeover = takeover;
        self
    }

    /// How many unanswered messages there may be: 1,000 by default. Those that wait behind their key count.
    pub fn with_max_ack_pending(mut self, messages: u32) -> Self {
        self.wanted.max_ack_pending = messages;
        self
    }

    /// Pulls, if it does not yet. Cancelled half-way it starts again.
    async fn pull(&mut self) -> Result<(), SubscribeError> {
        if self.pull.is_none() {
            if self.client.connection_state() != State::Connected {
                return Err(SubscribeError::Unavailable("nats: not connected".to_owned()));
            }
            let consumer = self.wanted.make(&self.context).await?;
            let expires = self.wanted.takeover / 3;
            let messages = consumer
                .stream()
                .max_messages_per_batch(PULL.min(self.wanted.max_ack_pending as usize))
                .expires(expires)
                .heartbeat(expires / 3)
                .group(consumer::PRIORITY_GROUP)
                .messages();
            let messages = timeout(REQUEST, messages).await.map_err(|_| consumer::no_answer())?;
            let messages = messages.map_err(|error| SubscribeError::Unavailable(format!("nats: {error}")))?;
            self.pull = Some(Pull { consumer, messages });
        }
        Ok(())
    }

    /// Takes in one thing that the server sent. It does not wait, so that nothing is lost half-way.
    fn arrive(
        &mut self,
        next: Option<Result<jetstream::Message, pull::MessagesError>>,
    ) -> Result<(), SubscribeError> {
        match next {
            Some(Ok(message)) => {
                self.watch_connection();
                self.hold_back(message);
                Ok(())
            }
            Some(Err(error)) if error.kind() == MessagesErrorKind::MissingHeartbeat => {
                if self.client.connection_state() == State::Connected {
                    return Ok(());
                }
                Err(SubscribeError::Unavailable("nats: not connected".to_owned()))
            }
            failed => {
                // What the pull had received is dropped with it.
                self.pull = None;
                lock(&self.hold).doubt();
                let why = failed.and_then(Result::err).map_or("ended".to_owned(), |error| error.to_string());
                Err(SubscribeError::Unavailable(format!("nats: pulling messages: {why}")))
            }
        }
    }

    /// A connection that was lost may have swallowed messages that come again later than those behind them.
    fn watch_connection(&mut self) {
        let connects = connects(&self.client);
        if connects != self.connects {
            self.connects = connects;
            lock(&self.hold).doubt();
        }
    }

    fn hold_back(&mut self, message: jetstream::Message) {
        let Ok(number) = message.info().map(|info| info.stream_sequence) else {
            return tracing::warn!("nats delivered something that is no JetStream message");
        };
        let headers = message.headers.as_ref();
        let pin = headers.and_then(|headers| headers.get_last(header::NATS_PIN_ID)).map(ToString::to_string);
        let mut hold = lock(&self.hold);
        if pin != self.pin {
            hold.forget();
            self.pin = pin;
        }
        let named = headers.into_iter().flat_map(async_nats::HeaderMap::iter);
        let pairs = named.flat_map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(move |value| (name, value.as_str()))
        });
        let received = wire::binary::NATS.decode(pairs, message.payload.clone(), &message.subject);
        let key = received.as_ref().ok().and_then(|message| message.key.clone());
        let Some(reply) = message.message.reply else { return };
        hold.arrive(number, key, Arrived { received, reply, connects: self.connects });
    }

    /// Asks the server how many messages are under way, if something here waits for that.
    async fn settle(&mut self) -> Result<(), SubscribeError> {
        let waits = lock(&self.hold).waits_in_doubt();
        if let (true, Some(pull)) = (waits, &self.pull) {
            let info = timeout(REQUEST, pull.consumer.get_info()).await.map_err(|_| consumer::no_answer())?;
            let info = info.map_err(|error| SubscribeError::Unavailable(format!("nats: {error}")))?;
            lock(&self.hold).settle(info.num_ack_pending);
        }
        Ok(())
    }

    fn take(&self, max: usize) -> Vec<Delivery> {
        let taken = lock(&self.hold).take(max);
        let deliver = |(number, Arrived { received, reply, connects })| {
            let answer = Answer::new(self.client.clone(), self.hold.clone(), number, reply, connects);
            Delivery::new(received, Box::new(answer))
        };
        taken.into_iter().map(deliver).collect()
    }
}

#[async_trait]
impl Subscriber for NatsSubscriber {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscribeError> {
        let max = max.max(1);
        loop {
            self.pull().await?;
            self.watch_connection();
            let ready = self.take(max);
            if !ready.is_empty() {
                return Ok(ready);
            }
            let Some(pull) = &mut self.pull else { continue };
            let waits_in_doubt = lock(&self.hold).waits_in_doubt();
            let next = tokio::select! {
                next = pull.messages.next() => Some(next),
                () = sleep(ASK_AGAIN), if waits_in_doubt => None,
            };
            if let Some(next) = next {
                self.arrive(next)?;
            }
            // What else is there already, so that the doubt can end and a batch is a batch.
            for _ in 1..max.max(PULL) {
                let Some(pull) = &mut self.pull else { break };
                let Some(next) = pull.messages.next().now_or_never() else { break };
                self.arrive(next)?;
            }
            self.settle().await?;
        }
    }
}
