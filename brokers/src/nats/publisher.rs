//! The way into JetStream: every message awaited by its own acknowledgement.

use std::str::FromStr;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::{ContextBuilder, GetStreamErrorKind, PublishAckFuture};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, HeaderMap, HeaderName, HeaderValue, header};
use async_trait::async_trait;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use message::{Message, Outcomes, Outgoing, Pipelining, PublishError, Publisher, wire};
use tokio::time::timeout;

use super::refusal::meaning;
use super::stream::StreamPolicy;
use super::subject::is_subject;

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
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use brokers::nats::{NatsPublisher, StreamPolicy, connect};
/// use message::Publisher;
///
/// let client = connect("nats://localhost:4222").await?;
/// let publisher = NatsPublisher::new(client).with_stream(StreamPolicy::create("ORDERS", ["orders.>"]));
/// publisher.check().await?;
/// # Ok(()) }
/// ```
pub struct NatsPublisher {
    client: Client,
    context: Context,
    ack_wait: Duration,
    stream: Option<StreamPolicy>,
}

impl NatsPublisher {
    /// Publishes over `client` to whichever stream takes a subject. Must be called within a tokio runtime.
    pub fn new(client: Client) -> Self {
        let ack_wait = Duration::from_secs(5);
        NatsPublisher { context: context(&client, ack_wait), client, ack_wait, stream: None }
    }

    /// Sends to this stream only: created or checked by [`check`](Publisher::check), and named with every message, so
    /// that another stream that takes the subject refuses it.
    pub fn with_stream(mut self, stream: StreamPolicy) -> Self {
        self.stream = Some(stream);
        self
    }

    /// How long an acknowledgement is waited for: 5 seconds by default.
    pub fn with_ack_wait(mut self, wait: Duration) -> Self {
        self.context = context(&self.client, wait);
        self.ack_wait = wait;
        self
    }

    fn stream_name(&self) -> Option<&str> {
        self.stream.as_ref().map(StreamPolicy::name)
    }

    async fn send(&self, outgoing: &Outgoing) -> Result<PublishAckFuture, PublishError> {
        let destination = &*outgoing.destination;
        if !is_subject(destination) {
            return Err(PublishError::Rejected("destination: is no NATS subject".to_owned()));
        }
        let headers = headers(outgoing, self.stream_name())?;
        self.connected()?;
        let message = PublishMessage::build().payload(outgoing.message.payload.clone()).headers(headers);
        match timeout(self.ack_wait, self.context.send_publish(destination.to_owned(), message)).await {
            Ok(Ok(acknowledgement)) => Ok(acknowledgement),
            Ok(Err(error)) => Err(meaning(&error, destination, self.stream_name())),
            // Not even handed to the connection.
            Err(_) => Err(PublishError::Unavailable("the connection takes nothing".to_owned())),
        }
    }

    /// The client keeps what it is given while the connection is down and sends it later, perhaps after somebody else
    /// has: so it is not given anything.
    fn connected(&self) -> Result<(), PublishError> {
        match self.client.connection_state() {
            State::Connected => Ok(()),
            _ => Err(PublishError::Unavailable("nats: not connected".to_owned())),
        }
    }

    async fn check_stream(&self, policy: &StreamPolicy) -> Result<(), PublishError> {
        let found = match self.context.get_stream(policy.name()).await {
            Ok(stream) => stream.cached_info().config.clone(),
            Err(error) => {
                let missing = matches!(error.kind(), GetStreamErrorKind::JetStream(answer)
                    if answer.error_code() == ErrorCode::STREAM_NOT_FOUND);
                match (missing, policy.wanted()) {
                    (true, Some(wanted)) => self
                        .context
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

fn unavailable(policy: &StreamPolicy, error: &dyn std::fmt::Display) -> PublishError {
    PublishError::Unavailable(format!("stream {}: {error}", policy.name()))
}

fn headers(outgoing: &Outgoing, stream: Option<&str>) -> Result<HeaderMap, PublishError> {
    let mut headers = HeaderMap::new();
    for (name, value) in wire::binary::NATS.encode(&outgoing.message) {
        let (Ok(name), Ok(value)) = (HeaderName::from_str(&name), HeaderValue::from_str(&value)) else {
            return Err(PublishError::Rejected("headers: cannot be NATS headers".to_owned()));
        };
        headers.insert(name, value);
    }
    headers.insert(header::NATS_MESSAGE_ID, message_id(&outgoing.message));
    if let Some(stream) = stream {
        headers.insert(header::NATS_EXPECTED_STREAM, stream);
    }
    Ok(headers)
}

/// What JetStream knows a copy by. A replay's is another than the first one's, else a stream that still remembers that
/// would drop it without a word.
fn message_id(message: &Message) -> String {
    match message.headers.replay() {
        Some(replay) => format!("{replay}/{}", message.id),
        None => message.id.to_string(),
    }
}

#[async_trait]
impl Publisher for NatsPublisher {
    /// JetStream stores a later message of a key although it has refused an earlier one.
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let report = |index: usize, result: Result<(), PublishError>| outcomes.report(index, result);
        let mut on_wire = FuturesUnordered::new();
        for (index, outgoing) in batch.iter().enumerate() {
            if on_wire.len() == WINDOW
                && let Some((index, result)) = on_wire.next().await
            {
                report(index, result);
            }
            match self.send(outgoing).await {
                Err(error) => report(index, Err(error)),
                Ok(acknowledgement) => on_wire.push(async move {
                    let answer = acknowledgement.await;
                    let result = answer.map(drop);
                    (
                        index,
                        result.map_err(|error| meaning(&error, &outgoing.destination, self.stream_name())),
                    )
                }),
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
        self.connected()?;
        if !self.client.is_server_compatible(2, 10, 23) {
            tracing::warn!(
                "nats server is older than 2.10.23 and may lose acknowledged messages when it is killed"
            );
        }
        let check = async {
            match &self.stream {
                Some(policy) => self.check_stream(policy).await,
                None => self.context.query_account().await.map(drop).map_err(|error| {
                    PublishError::Unavailable(format!("nats: JetStream does not answer: {error}"))
                }),
            }
        };
        timeout(self.ack_wait * 2, check)
            .await
            .unwrap_or_else(|_| Err(PublishError::Unavailable("nats: no answer in time".to_owned())))
    }
}
