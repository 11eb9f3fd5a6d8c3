//! A connection that comes back by itself.

use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectErrorKind, rustls};
use message::SubscribeError;
use tokio::time::sleep;

use super::access::Access;
use super::connection::Connection;

/// How long connecting and each request may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether the connection is another: a client tells that only to who made it.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// Why there is no connection, and why trying again will not help. The text shows no user, password or token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// An address could not be understood.
    #[error("servers: addresses nats://host:port or tls://host:port, joined by commas")]
    Address,
    /// One client has one identity.
    #[error("servers: two addresses have different credentials")]
    TwoCredentials,
    /// The text of a credentials file could not be understood.
    #[error("nats credentials: not the text of a credentials file")]
    Credentials,
    /// A certificate's or key's file could not be read.
    #[error("{}: cannot be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A server was reached and does not let this client in, or this client does not trust it.
    #[error("{servers}: {reason}")]
    Refused {
        /// The addresses, without credentials.
        servers: String,
        /// The cause.
        reason: String,
    },
    /// The client could not be set up.
    #[error("nats client: {0}")]
    Client(ConnectErrorKind),
}

/// Connects to one of `servers` (addresses joined by commas, with `USER:PASSWORD@` or `TOKEN@` before the host if need be,
/// percent-encoded) and goes on trying, now and whenever the connection is lost. A server that is down is no error here:
/// publishing says `Unavailable`.
///
/// [`Access`] takes credentials files, NKeys and certificates. A client with other options can be handed to
/// [`NatsPublisher::new`](super::NatsPublisher::new) or [`NatsSubscriber::new`](super::NatsSubscriber::new), too.
///
/// # Errors
/// See [`Access::parse`] and [`Access::connect`].
pub async fn connect(servers: &str) -> Result<Connection, ConnectError> {
    Access::parse(servers)?.connect().await
}

/// Whether the next try would fail in the same way: credentials or certificates were not accepted. A host without an
/// address is not among them, since a name appears when its service is started.
pub(super) fn is_final(error: &async_nats::ConnectError) -> bool {
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation
        | ConnectErrorKind::Authentication
        | ConnectErrorKind::Tls
        | ConnectErrorKind::ServerParse => true,
        // A handshake that fails is an I/O error around one of TLS.
        ConnectErrorKind::Io => {
            let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
            io.and_then(std::io::Error::get_ref).is_some_and(|inner| inner.is::<rustls::Error>())
        }
        _ => false,
    }
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
