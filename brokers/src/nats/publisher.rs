//! The way into JetStream: every message awaited by its own acknowledgement.

use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream::context::{ContextBuilder, GetStreamErrorKind, PublishAckFuture};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, HeaderMap, HeaderName, HeaderValue, header};
use async_trait::async_trait;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use message::limits::LONGEST;
use message::{Outcomes, Outgoing, Pipelining, PublishError, Publisher, wire};
use tokio::time::timeout;
use uuid::Uuid;

use super::connection::Connection;
use super::identity::{self, Found};
use super::refusal::meaning;
use super::stored;
use super::stream::StreamPolicy;
use super::subject::is_subject;
use crate::pace::Pace;

/// Unacknowledged messages of one batch on the wire.
const WINDOW: usize = 1_000;
/// How many a client may wait for; past any number of windows, because waiting here could wait for itself.
const ACKNOWLEDGEMENTS: usize = 1 << 20;

/// Publishes to JetStream: the destination is the subject.
///
/// A message is confirmed by the acknowledgement of the stream that stored it; none within the
/// [patience](Self::with_ack_wait) is `Unknown`. While the connection is down nothing is sent, and everything is
/// `Unavailable`; a subject that no stream takes, or whose stream is full, is `DestinationUnavailable`. A message is `Rejected` only for what it is itself: too long for the server, or a destination that is
/// no subject.
///
/// **A copy is known by its `Nats-Msg-Id`**, which is of the message's id and source, the destination, the
/// [relay](Self::with_relay) and the replay. When the stream calls a message a copy, the publisher reads what it keeps under
/// the sequence that it answers (`$JS.API.STREAM.MSG.GET.STREAM`, which its user must be allowed to request): that is this
/// message at this subject, or was consumed meanwhile. If it is another message, or cannot be read, the message is published
/// again, under another id: rather a copy than a loss.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use brokers::nats::{NatsPublisher, StreamPolicy, connect};
/// use message::Publisher;
///
/// let connection = connect("nats://localhost:4222").await?;
/// let publisher = NatsPublisher::new(connection).with_stream(StreamPolicy::create("ORDERS", ["orders.>"]));
/// publisher.check().await?;
/// # Ok(()) }
/// ```
pub struct NatsPublisher {
    connection: Connection,
    live: Mutex<Live>,
    relay: String,
    ack_wait: Duration,
    stream: Option<StreamPolicy>,
    /// The lines about copies that cannot be looked at.
    lines: Mutex<Pace>,
}

/// The connection's client, with its number and what belongs to it.
#[derive(Clone)]
struct Live {
    client: Client,
    number: u64,
    context: Context,
}

impl NatsPublisher {
    /// Publishes over `connection` (a [`Client`], too) to whichever stream takes a subject. Must be called within a tokio
    /// runtime.
    pub fn new(connection: impl Into<Connection>) -> Self {
        let (connection, ack_wait) = (connection.into(), Duration::from_secs(5));
        let client = connection.client();
        let live = Mutex::new(Live { context: context(&client, ack_wait), client, number: 0 });
        NatsPublisher {
            connection,
            live,
            relay: String::new(),
            ack_wait,
            stream: None,
            lines: Mutex::default(),
        }
    }

    /// For the relay of this name: what another relay sends to the same subject is no copy of it. Without a name, two
    /// relays that send one message to one subject of one stream store it once.
    pub fn with_relay(mut self, relay: impl Into<String>) -> Self {
        self.relay = relay.into();
        self
    }

    /// Sends to this stream only: created or checked by [`check`](Publisher::check), and named with every message, so
    /// that another stream that takes the subject refuses it.
    pub fn with_stream(mut self, stream: StreamPolicy) -> Self {
        self.stream = Some(stream);
        self
    }

    /// How long an acknowledgement is waited for: 5 seconds by default.
    pub fn with_ack_wait(mut self, wait: Duration) -> Self {
        let wait = wait.min(LONGEST);
        let live = self.live.get_mut().unwrap_or_else(PoisonError::into_inner);
        live.context = context(&live.client, wait);
        self.ack_wait = wait;
        self
    }

    /// The client of now.
    async fn live(&self) -> Live {
        let (client, number) = self.connection.live().await;
        // No code panics while it holds the lock, so what a poisoned one holds is whole.
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.number != number {
            *live = Live { context: context(&client, self.ack_wait), client, number };
        }
        live.clone()
    }

    fn stream_name(&self) -> Option<&str> {
        self.stream.as_ref().map(StreamPolicy::name)
    }

    async fn send(
        &self,
        live: &Live,
        outgoing: &Outgoing,
        id: &str,
    ) -> Result<PublishAckFuture, PublishError> {
        let destination = &*outgoing.destination;
        if !is_subject(destination) {
            return Err(PublishError::Rejected("destination: is no NATS subject".to_owned()));
        }
        let headers = headers(outgoing, id, self.stream_name())?;
        connected(&live.client)?;
        let message = PublishMessage::build().payload(outgoing.message.payload.clone()).headers(headers);
        match timeout(self.ack_wait, live.context.send_publish(destination.to_owned(), message)).await {
            Ok(Ok(acknowledgement)) => Ok(acknowledgement),
            Ok(Err(error)) => Err(meaning(&error, destination, self.stream_name())),
            // Not even handed to the connection.
            Err(_) => Err(PublishError::Unavailable("the connection takes nothing".to_owned())),
        }
    }

    /// The outcome of a message that was sent.
    async fn outcome(
        &self,
        live: &Live,
        outgoing: &Outgoing,
        first: String,
        mut acknowledgement: PublishAckFuture,
    ) -> Result<(), PublishError> {
        // The last id is one that no message has, so this ends.
        let ids = [identity::suffixed(&first, outgoing), format!("{first}/{}", Uuid::new_v4().simple())];
        for id in ids {
            let answer = acknowledgement.await;
            let answer =
                answer.map_err(|error| meaning(&error, &outgoing.destination, self.stream_name()))?;
            if !answer.duplicate || self.is_kept(live, outgoing, &answer.stream, answer.sequence).await {
                return Ok(());
            }
            acknowledgement = self.send(live, outgoing, &id).await?;
        }
        let answer = acknowledgement.await;
        answer.map(drop).map_err(|error| meaning(&error, &outgoing.destination, self.stream_name()))
    }

    /// Whether what the stream keeps, or kept, under the sequence that it calls the copy of is this message.
    async fn is_kept(&self, live: &Live, outgoing: &Outgoing, stream: &str, sequence: u64) -> bool {
        let found = match stored::message(&live.client, stream, sequence).await {
            Ok(None) => return true,
            Ok(Some(stored)) => identity::compare(&stored, outgoing),
            Err(error) => {
                let due = self.lines.lock().unwrap_or_else(PoisonError::into_inner).is_due(Instant::now());
                if due {
                    tracing::warn!(
                        stream,
                        sequence,
                        error,
                        "cannot read what a message is a copy of, publishing it again"
                    );
                }
                return false;
            }
        };
        match found {
            Found::Same => true,
            Found::Other => false,
            Found::SameElsewhere => {
                let stream = live.context.get_stream(stream).await;
                stream.is_ok_and(|stream| stream.cached_info().config.subject_transform.is_some())
            }
        }
    }

    async fn check_stream(&self, context: &Context, policy: &StreamPolicy) -> Result<(), PublishError> {
        let found = match context.get_stream(policy.name()).await {
            Ok(stream) => stream.cached_info().config.clone(),
            Err(error) => {
                let missing = matches!(error.kind(), GetStreamErrorKind::JetStream(answer)
                    if answer.error_code() == ErrorCode::STREAM_NOT_FOUND);
                match (missing, policy.wanted()) {
                    (true, Some(wanted)) => context
                        .create_stream(wanted.clone())
                        .await
                        .map_err(|error| unavailable(policy, &error))?
                        .cached_info()
                        .config
                        .clone(),
                    (true, None) => {
                        return Err(PublishError::Unavailable(format!(
                            "stream {}: is missing",
                            policy.name()
                        )));
                    }
                    (false, _) => return Err(unavailable(policy, &error)),
                }
            }
        };
        policy.fault(&found).map_or(Ok(()), |fault| Err(PublishError::Rejected(fault)))
    }
}

fn context(client: &Client, ack_wait: Duration) -> Context {
    ContextBuilder::new()
        .timeout(ack_wait)
        .ack_timeout(ack_wait)
        .max_ack_inflight(ACKNOWLEDGEMENTS)
        .build(client.clone())
}

/// The client keeps what it is given while the connection is down and sends it later, perhaps after somebody else has: so
/// it is not given anything.
fn connected(client: &Client) -> Result<(), PublishError> {
    match client.connection_state() {
        State::Connected => Ok(()),
        _ => Err(PublishError::Unavailable("nats: not connected".to_owned())),
    }
}

fn unavailable(policy: &StreamPolicy, error: &dyn std::fmt::Display) -> PublishError {
    PublishError::Unavailable(format!("stream {}: {error}", policy.name()))
}

fn headers(outgoing: &Outgoing, id: &str, stream: Option<&str>) -> Result<HeaderMap, PublishError> {
    let mut headers = HeaderMap::new();
    for (name, value) in wire::binary::NATS.encode(&outgoing.message) {
        let (Ok(name), Ok(value)) = (HeaderName::from_str(&name), HeaderValue::from_str(&value)) else {
            return Err(PublishError::Rejected("headers: cannot be NATS headers".to_owned()));
        };
        headers.insert(name, value);
    }
    headers.insert(header::NATS_MESSAGE_ID, id);
    if let Some(stream) = stream {
        headers.insert(header::NATS_EXPECTED_STREAM, stream);
    }
    Ok(headers)
}

#[async_trait]
impl Publisher for NatsPublisher {
    /// JetStream stores a later message of a key although it has refused an earlier one.
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let live = self.live().await;
        let live = &live;
        let report = |index: usize, result: Result<(), PublishError>| outcomes.report(index, result);
        let mut on_wire = FuturesUnordered::new();
        for (index, outgoing) in batch.iter().enumerate() {
            if on_wire.len() == WINDOW
                && let Some((index, result)) = on_wire.next().await
            {
                report(index, result);
            }
            let id = identity::of(&self.relay, outgoing);
            match self.send(live, outgoing, &id).await {
                Err(error) => report(index, Err(error)),
                Ok(acknowledgement) => on_wire
                    .push(async move { (index, self.outcome(live, outgoing, id, acknowledgement).await) }),
            }
            while let Some(Some((index, result))) = on_wire.next().now_or_never() {
                report(index, result);
            }
        }
        while let Some((index, result)) = on_wire.next().await {
            report(index, result);
        }
    }

    async fn check(&self) -> Result<(), PublishError> {
        let live = self.live().await;
        connected(&live.client)?;
        if !live.client.is_server_compatible(2, 10, 23) {
            tracing::warn!(
                "nats server is older than 2.10.23 and may lose acknowledged messages when it is killed"
            );
        }
        let check = async {
            match &self.stream {
                Some(policy) => self.check_stream(&live.context, policy).await,
                None => live.context.query_account().await.map(drop).map_err(|error| {
                    PublishError::Unavailable(format!("nats: JetStream does not answer: {error}"))
                }),
            }
        };
        timeout(self.ack_wait * 2, check)
            .await
            .unwrap_or_else(|_| Err(PublishError::Unavailable("nats: no answer in time".to_owned())))
    }

    fn describe(&self) -> Option<String> {
        let stream = self.stream_name().map(|name| format!(", stream {name}")).unwrap_or_default();
        Some(format!("{}{stream}", self.connection.servers()))
    }
}
