//! A connection that comes back by itself.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use message::SubscribeError;
use tokio::time::sleep;

/// How long connecting and each request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether the connection is another: a client tells that only to who made it.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// The servers' addresses are no such thing. The text never shows them: they may hold a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// An address could not be understood.
    #[error("servers: addresses nats://host:port or tls://host:port, joined by commas")]
    Address,
    /// The client could not be set up.
    #[error("nats client: {0}")]
    Client(async_nats::ConnectErrorKind),
}

/// Connects to one of `servers` (addresses joined by commas, with user and password if need be) and goes on trying, now
/// and whenever the connection is lost. A server that is down is no error here: publishing says `Unavailable`.
///
/// For credentials files, certificates and the like, make an [`async_nats::ConnectOptions`] and hand its client to
/// [`NatsPublisher::new`](super::NatsPublisher::new) or [`NatsSubscriber::new`](super::NatsSubscriber::new).
///
/// # Errors
/// An address is not valid.
pub async fn connect(servers: &str) -> Result<Client, ConnectError> {
    let parse = |address: &str| address.trim().parse::<ServerAddr>().map_err(|_| ConnectError::Address);
    let addresses: Vec<ServerAddr> = servers.split(',').map(parse).collect::<Result<_, _>>()?;
    ConnectOptions::new()
        .retry_on_initial_connect()
        .connection_timeout(PATIENCE)
        .request_timeout(Some(PATIENCE))
        .event_callback(|event| async move { log(&event) })
        .connect(addresses)
        .await
        .map_err(|error| ConnectError::Client(error.kind()))
}

/// How often the client has connected.
pub(super) fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed)
}

/// An error while there is no connection.
pub(super) fn connected(client: &Client) -> Result<(), SubscribeError> {
    match client.connection_state() {
        State::Connected => Ok(()),
        _ => Err(SubscribeError::Unavailable("nats: not connected".to_owned())),
    }
}

/// The answer to `request`, if it comes in time, and while the connection lives: what a lost connection took along is
/// never answered, and the client waits for it all the same.
pub(super) async fn answer<T>(
    client: &Client,
    request: impl Future<Output = T>,
) -> Result<T, SubscribeError> {
    let connection = connects(client);
    let lost = async {
        while connects(client) == connection && connected(client).is_ok() {
            sleep(LOOK).await;
        }
    };
    let no_answer = |why: &str| Err(SubscribeError::Unavailable(format!("nats: {why}")));
    tokio::select! {
        biased;
        answer = request => Ok(answer),
        () = lost => no_answer("the connection was lost"),
        () = sleep(PATIENCE) => no_answer("no answer in time"),
    }
}

fn log(event: &Event) {
    match event {
        Event::Connected => tracing::info!("nats connected"),
        Event::Disconnected => tracing::warn!("nats connection lost, connecting again"),
        Event::ServerError(error) => tracing::warn!(%error, "nats server refused something"),
        Event::ClientError(error) => tracing::warn!(%error, "nats client error"),
        other => tracing::info!(event = %other, "nats"),
    }
}
