//! The way out of JetStream, for one group: a durable pull consumer with one active client.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::{Info, PullConsumer};
use async_nats::jetstream::{self, AckKind, Context};
use async_nats::{Client, header};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use message::limits::LONGEST;
use message::{Delivery, Malformed, Message, SubscribeError, Subscriber, wire};
use tokio::time::sleep;

use super::answer::Answer;
use super::connect::{answer, connected, connects};
use super::connection::Connection;
use super::consumer;
use super::hold::{Hold, Place, Tell};
use super::passing::{self, Passing};
use super::pull::Pull;
use super::requests::Heard;

/// How often it is looked, while nothing arrives, whether the connection is another, the requests are lost or the doubt
/// is over.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Messages asked of the server at a time.
const BATCH: usize = 200;

/// Receives from a stream for one group, which is a durable consumer of that name. Needs a server of version 2.11.
///
/// **One subscriber of a group is active at a time**, however many there are: JetStream spreads messages over
/// subscribers without regard to keys, so several at once could not keep a key in order. The server pins one client;
/// the others stand by, and one takes over when the active one has not asked for messages for
/// [`takeover`](Self::with_takeover_after). It hands nothing out before every message that the last one had is answered
/// or has come again, which takes up to the [ack wait](Self::with_ack_wait), longer only while what the last one has in
/// hand is [extended](Delivery::extend). More groups, each with subjects of its own, are the way to share work between
/// processes.
///
/// **It lives through the loss of its connection and of its server.** A server that was killed may have forgotten the
/// last deliveries and acknowledgements, and messages may have been lost on their way here. Nothing is handed out before
/// those have come again, which takes up to the ack wait as above; a server that was stopped in order, and a lost
/// connection that took nothing along, make nobody wait. In rare cases the server first waits for somebody who is gone,
/// up to the takeover. What was received over a connection that is lost may come again; answering it sends the answer
/// and says `Unavailable`, because a server that forgot the delivery never says anything. A copy of what was
/// acknowledged here is not handed out again.
///
/// Order per key holds across retries, lost connections and takeovers: a message that is sent back
/// ([`retry_after`](Delivery::retry_after)), or dropped without an answer, holds back the later ones of its key that
/// were not handed out yet.
///
/// **Whatever arrives is passed.** The client library cannot read some messages (a header that is not UTF-8, say): it drops
/// the connection, or panics. Such a message is read in another way and handed out as malformed, with its header block and
/// body as they came. For that the subscriber must be allowed to request `$JS.API.STREAM.MSG.GET.STREAM`; to live through
/// the panic, it needs a [`Connection`] and not a [`Client`].
///
/// An acknowledgement waits for the server's word, since an acknowledgement that was only handed to the connection may
/// be lost with it, and saying that it was taken would be wrong. Acknowledge several at once if the round trip matters.
pub struct NatsSubscriber {
    connection: Connection,
    /// The connection's, with its number.
    client: Client,
    number: u64,
    context: Context,
    wanted: consumer::Wanted,
    pull: Option<Pull>,
    /// As wanted when it was looked at last.
    consumer: Option<PullConsumer>,
    /// What the server was asked and has not answered yet.
    asking: Option<BoxFuture<'static, Result<Info, SubscribeError>>>,
    hold: Shared,
    passing: Passing,
    connects: u64,
}

/// What has arrived, shared with the deliveries that are under way.
pub(super) type Shared = Arc<Mutex<Hold<Arrived>>>;

pub(super) struct Arrived {
    received: Result<Message, Malformed>,
    reply: async_nats::Subject,
}

pub(super) fn lock(hold: &Shared) -> MutexGuard<'_, Hold<Arrived>> {
    // No code panics while it holds the lock, so what a poisoned one holds is whole.
    hold.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NatsSubscriber {
    /// Receives all messages of `stream` over `connection` (a [`Client`], too) for `group`, from the first one kept. The
    /// consumer is made, or changed, at the first [`receive`](Subscriber::receive). Must be called within a tokio runtime.
    pub fn new(
        connection: impl Into<Connection>,
        stream: impl Into<String>,
        group: impl Into<String>,
    ) -> Self {
        let connection = connection.into();
        let client = connection.client();
        NatsSubscriber {
            context: jetstream::new(client.clone()),
            connection,
            client,
            number: 0,
            wanted: consumer::Wanted::new(stream.into(), group.into()),
            pull: None,
            consumer: None,
            asking: None,
            hold: Arc::new(Mutex::new(Hold::new())),
            passing: Passing::default(),
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
        self.wanted.ack_wait = wait.min(LONGEST);
        self
    }

    /// How long the active subscriber may not ask for messages before another takes over: 10 seconds by default.
    pub fn with_takeover_after(mut self, takeover: Duration) -> Self {
        self.wanted.takeover = takeover.min(LONGEST);
        self
    }

    /// How many unanswered messages there may be: 1,000 by default. Those that wait behind their key count.
    pub fn with_max_ack_pending(mut self, messages: u32) -> Self {
        self.wanted.max_ack_pending = messages;
        self
    }

    /// Goes on with another client if the last one has ended.
    async fn follow(&mut self) {
        let (client, number) = self.connection.live().await;
        if number != self.number {
            self.context = jetstream::new(client.clone());
            (self.client, self.number) = (client, number);
            (self.pull, self.consumer, self.asking) = (None, None, None);
            // Another client counts from the beginning.
            self.connects = u64::MAX;
        }
    }

    /// Makes what there must be before anything can be asked for. Cancelled half-way it starts again.
    async fn prepare(&mut self) -> Result<(), SubscribeError> {
        if self.consumer.is_none() {
            self.consumer = Some(self.wanted.make(&self.client, &self.context).await?);
        }
        if self.pull.is_none() {
            let (name, wanted) = (self.wanted.name(), &self.wanted);
            let most = BATCH.min(wanted.max_ack_pending as usize);
            self.pull = Some(Pull::open(&self.client, name, most, wanted.takeover).await?);
        }
        Ok(())
    }

    /// Takes in what has arrived, without waiting. Not while an answer is awaited that must be compared with what is here
    /// now, unless the connection took it along.
    fn take_in(&mut self) -> Result<(), SubscribeError> {
        if self.asking.is_some() && connects(&self.client) == self.connects {
            return Ok(());
        }
        self.asking = None;
        while let Some(message) = self.pull.as_mut().and_then(Pull::next_now) {
            self.hear(message)?;
        }
        // Only now: what came over another connection than what is here is not handed out before this was seen.
        let connects = connects(&self.client);
        let Some(pull) = &mut self.pull else { return Ok(()) };
        if connects != self.connects {
            if self.connects != 0 {
                self.passing.suspect();
            }
            self.connects = connects;
            pull.forget_requests();
            lock(&self.hold).doubt();
        } else if pull.is_silent() {
            tracing::warn!(group = %self.wanted.group, "nats gives no sign of life, asking again");
            self.look_again();
        }
        Ok(())
    }

    /// Something is not as it was: nothing is handed out before the server has said what it remembers.
    fn look_again(&mut self) {
        self.consumer = None;
        if let Some(pull) = &mut self.pull {
            pull.forget_requests();
        }
        lock(&self.hold).doubt();
    }

    fn hear(&mut self, message: async_nats::Message) -> Result<(), SubscribeError> {
        let Some(pull) = &mut self.pull else { return Ok(()) };
        match pull.hear(&message) {
            Heard::Nothing => {}
            Heard::Message => self.keep(message),
            Heard::Unpinned => lock(&self.hold).void(),
            Heard::Refused(why) => {
                self.look_again();
                return Err(SubscribeError::Unavailable(format!("nats: {why}")));
            }
            Heard::Gone(why) => {
                self.look_again();
                lock(&self.hold).forget();
                return Err(SubscribeError::Unavailable(format!("nats: {why}")));
            }
        }
        Ok(())
    }

    fn keep(&mut self, message: async_nats::Message) {
        let message = jetstream::Message { message, context: self.context.clone() };
        let info = message.info().map(|info| {
            let place = Place { number: info.stream_sequence, stored_at: info.published.into() };
            (place, info.consumer_sequence)
        });
        let (Ok((place, count)), Some(reply)) = (info, message.reply.clone()) else {
            return tracing::warn!("nats delivered something that is no JetStream message");
        };
        let headers = message.headers.as_ref();
        // The last: whoever published it may have written one, too.
        let pin = headers.and_then(|headers| headers.get_last(header::NATS_PIN_ID));
        let Some(pin) = pin.map(async_nats::HeaderValue::as_str).filter(|pin| is_pin(pin)) else {
            // Its headers have no end, and took in the server's.
            return self.passing.suspect();
        };
        let named = headers.into_iter().flat_map(async_nats::HeaderMap::iter);
        let pairs = named.flat_map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(move |value| (name, value.as_str()))
        });
        let received = wire::binary::NATS.decode(pairs, message.payload.clone(), &message.subject);
        let key = received.as_ref().ok().and_then(|message| message.key.clone());
        let mut hold = lock(&self.hold);
        hold.follow(Some(pin), count);
        hold.arrive(place, key, Arrived { received, reply });
    }

    /// Looks for what the client cannot read, if a connection was lost, and hands out what was found.
    async fn pass(&mut self, max: usize) -> Result<Vec<Delivery>, SubscribeError> {
        if let (true, Some(consumer)) = (self.passing.is_due(), &self.consumer) {
            let (here, unanswered) = {
                let hold = lock(&self.hold);
                (hold.sequences(), hold.unanswered())
            };
            self.passing.begin(passing::Wanted {
                client: self.client.clone(),
                consumer: consumer.clone(),
                stream: self.wanted.name().0.to_owned(),
                subjects: self.wanted.subjects.clone(),
                here,
                unanswered,
            });
        }
        if let Some(found) = self.passing.ended() {
            let (here, active) = {
                let hold = lock(&self.hold);
                (hold.sequences(), found.pin.is_some() && hold.pin() == found.pin.as_deref())
            };
            let missing =
                found.readable.iter().copied().filter(|sequence| active && !here.contains(sequence));
            passing::send_back(&self.client, self.wanted.name(), &found, missing).await?;
            self.passing.acknowledge_again(&self.client, self.wanted.name()).await?;
        }
        Ok(self.passing.take(&self.client, self.wanted.name(), max))
    }

    /// Asks the server how many messages are under way, if something here waits for that. Cancelled, it goes on awaiting
    /// the same answer when it is called again.
    async fn settle(&mut self) -> Result<(), SubscribeError> {
        if self.asking.is_none() && lock(&self.hold).waits_in_doubt() {
            let (Some(consumer), client) = (self.consumer.clone(), self.client.clone()) else {
                return Ok(());
            };
            self.asking = Some(Box::pin(async move {
                let info = answer(&client, consumer.get_info()).await?;
                info.map_err(|error| SubscribeError::Unavailable(format!("nats: {error}")))
            }));
        }
        let Some(asking) = &mut self.asking else { return Ok(()) };
        let info = asking.await;
        self.asking = None;
        let info = info.inspect_err(|_| self.look_again())?;
        let group = info.priority_groups.iter().find(|group| group.group == consumer::PRIORITY_GROUP);
        let pin = group.and_then(|group| group.pinned_client_id.as_deref());
        lock(&self.hold).settle(pin.filter(|pin| !pin.is_empty()), info.num_ack_pending);
        Ok(())
    }

    /// Answers what is not handed out. An answer that is lost does no harm: the message comes again.
    async fn tell(&mut self) -> Result<(), SubscribeError> {
        loop {
            let Some((tell, Arrived { reply, .. })) = lock(&self.hold).tell() else { return Ok(()) };
            let kind = match tell {
                Tell::Acknowledged => AckKind::Ack,
                Tell::SentBack => AckKind::Nak(None),
            };
            let sent = self.client.publish(reply, kind.into()).await;
            sent.map_err(|error| SubscribeError::Unavailable(format!("nats: {error}")))?;
        }
    }

    async fn ask(&mut self) -> Result<(), SubscribeError> {
        let (pin, enough) = {
            let hold = lock(&self.hold);
            (hold.pin().map(ToOwned::to_owned), hold.has_some() && hold.waiting() >= BATCH / 2)
        };
        match &mut self.pull {
            Some(pull) => pull.ask(pin.as_deref(), enough).await,
            None => Ok(()),
        }
    }

    fn take(&self, max: usize) -> Vec<Delivery> {
        let taken = lock(&self.hold).take(max);
        let deliver = |(place, Arrived { received, reply })| {
            let answer = Answer::new(self.client.clone(), self.hold.clone(), place, reply, self.connects);
            Delivery::new(received, Box::new(answer))
        };
        taken.into_iter().map(deliver).collect()
    }

    async fn wait(&mut self) -> Result<(), SubscribeError> {
        let Some(pull) = &mut self.pull else { return Ok(()) };
        let next = tokio::select! {
            next = pull.next() => next,
            () = sleep(LOOK_AGAIN) => return Ok(()),
        };
        match next {
            Some(message) => self.hear(message),
            None => {
                self.pull = None;
                Err(SubscribeError::Unavailable("nats: the client is closed".to_owned()))
            }
        }
    }
}

/// Whether the server makes such pins.
fn is_pin(pin: &str) -> bool {
    !pin.is_empty() && pin.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[async_trait]
impl Subscriber for NatsSubscriber {
    /// A stream that keeps only what a consumer is interested in keeps it from then on.
    async fn subscribe(&mut self) -> Result<(), SubscribeError> {
        self.follow().await;
        connected(&self.client)?;
        self.prepare().await
    }

    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscribeError> {
        loop {
            self.follow().await;
            connected(&self.client)?;
            self.prepare().await?;
            self.take_in()?;
            let malformed = self.pass(max.max(1)).await?;
            if !malformed.is_empty() {
                return Ok(malformed);
            }
            self.settle().await?;
            self.tell().await?;
            self.ask().await?;
            let ready = self.take(max.max(1));
            if !ready.is_empty() {
                return Ok(ready);
            }
            self.wait().await?;
        }
    }
}
