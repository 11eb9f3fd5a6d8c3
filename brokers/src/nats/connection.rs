//! A client that is replaced when it has ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_nats::{Client, Event, Server};

use super::access::{Access, host_and_port};
use super::connect::{ConnectError, is_final};
use crate::pace::Pace;

/// A connection to NATS that is made again whenever it is lost.
///
/// The client library reconnects by itself; but one kind of foreign message, a carriage return inside a header, makes it
/// panic, and it has ended then. A connection from [`connect`](super::connect()) or [`Access`] replaces such a client. One
/// made from a [`Client`] cannot: it does not know how that was made.
#[derive(Clone)]
pub struct Connection(Arc<Shared>);

struct Shared {
    access: Option<Access>,
    current: Mutex<Current>,
    /// One caller at a time makes the next client.
    renewing: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Current {
    client: Client,
    /// Counts the clients.
    number: u64,
    ended: Arc<AtomicBool>,
}

impl From<Client> for Connection {
    fn from(client: Client) -> Self {
        Connection::new(None, client, Arc::default())
    }
}

impl Connection {
    fn new(access: Option<Access>, client: Client, ended: Arc<AtomicBool>) -> Self {
        let current = Mutex::new(Current { client, number: 0, ended });
        Connection(Arc::new(Shared { access, current, renewing: tokio::sync::Mutex::default() }))
    }

    /// The client of now. Ask again rather than keep it: another may have replaced it.
    pub fn client(&self) -> Client {
        self.current().client.clone()
    }

    /// The servers, for a person: the addresses that it was made with; of a given client, what its server says of itself.
    pub(super) fn servers(&self) -> String {
        if let Some(access) = &self.0.access {
            return access.described();
        }
        let server = self.client().server_info();
        match server.cluster {
            Some(cluster) => format!("nats cluster {cluster}"),
            None => format!("nats://{}:{}", server.host, server.port),
        }
    }

    /// The client of now and its number, after replacing one that has ended.
    pub(super) async fn live(&self) -> (Client, u64) {
        let current = self.current().clone();
        let (true, Some(access)) = (current.ended.load(Ordering::Acquire), &self.0.access) else {
            return (current.client, current.number);
        };
        let _renewing = self.0.renewing.lock().await;
        let number = self.current().number;
        if number == current.number {
            match access.open(Arc::default()).await {
                Ok((client, ended)) => *self.current() = Current { client, number: number + 1, ended },
                // The next call tries again; until then the one that has ended answers with errors.
                Err(error) => tracing::warn!(%error, servers = %access, "nats client not replaced"),
            }
        }
        let current = self.current();
        (current.client.clone(), current.number)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // No code panics while it holds the lock, so what a poisoned one holds is whole.
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("access", &self.0.access).finish_non_exhaustive()
    }
}

impl Access {
    /// Connects, and goes on trying whenever the connection is lost. A server that is down is no error: that is logged,
    /// publishing says `Unavailable`, and the connection is there when the server is. The first try is waited for.
    ///
    /// # Errors
    /// What no further try mends: a server does not accept the credentials or a certificate, or a file cannot be read.
    pub async fn connect(&self) -> Result<Connection, ConnectError> {
        for file in self.files() {
            let opened = std::fs::File::open(file);
            opened.map_err(|source| ConnectError::File { path: file.clone(), source })?;
        }
        let lines = Arc::new(Lines::default());
        let ended = Arc::new(AtomicBool::new(false));
        match self.client_options(&lines, &ended)?.connect(self.servers()).await {
            Ok(client) => Ok(Connection::new(Some(self.clone()), client, ended)),
            Err(error) if is_final(&error) => {
                Err(ConnectError::Refused { servers: self.to_string(), reason: error.to_string() })
            }
            Err(error) => {
                lines.cannot_reach(&self.to_string(), &error.to_string());
                let (client, ended) = self.open(lines).await?;
                Ok(Connection::new(Some(self.clone()), client, ended))
            }
        }
    }

    /// A client that is connected as soon as a server is there.
    async fn open(&self, lines: Arc<Lines>) -> Result<(Client, Arc<AtomicBool>), ConnectError> {
        let ended = Arc::new(AtomicBool::new(false));
        let options = self.client_options(&lines, &ended)?.retry_on_initial_connect();
        let client = options.connect(self.servers()).await;
        Ok((client.map_err(|error| ConnectError::Client(error.kind()))?, ended))
    }

    /// `ended` is set when the client has ended.
    fn client_options(
        &self,
        lines: &Arc<Lines>,
        ended: &Arc<AtomicBool>,
    ) -> Result<async_nats::ConnectOptions, ConnectError> {
        let (events, tries) = (Arc::clone(lines), Arc::clone(lines));
        // The client drops what it calls for its events when it has ended, after a panic, too. It tells that in no other way.
        let end = End(Arc::clone(ended));
        Ok(self
            .options()?
            .event_callback(move |event| {
                end.is_kept();
                let events = Arc::clone(&events);
                async move { events.event(&event) }
            })
            // Called before each try; it chooses nothing, and sees what the last try came to.
            .reconnect_to_server_callback(move |servers, _| {
                tries.tried(&servers);
                async { None }
            }))
    }
}

struct End(Arc<AtomicBool>);

impl End {
    /// Keeps this inside the closure that calls it.
    fn is_kept(&self) {}
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What is logged of a connection: the first failure at once, the later ones seldom.
#[derive(Default)]
struct Lines {
    unreachable: Mutex<Pace>,
    refusals: Mutex<Pace>,
}

impl Lines {
    fn event(&self, event: &Event) {
        match event {
            Event::Connected => {
                pace(&self.unreachable).reset();
                tracing::info!("nats connected");
            }
            Event::Disconnected => tracing::warn!("nats connection lost, connecting again"),
            Event::ServerError(error) if pace(&self.refusals).is_due(Instant::now()) => {
                tracing::warn!(%error, "nats server refused something");
            }
            // Each failed try, without an address: `tried` has both.
            Event::ClientError(error) => tracing::debug!(%error, "nats client error"),
            other => tracing::debug!(event = %other, "nats"),
        }
    }

    fn tried(&self, servers: &[Server]) {
        let failed = servers.iter().filter_map(|server| {
            let error = server.last_error.as_deref()?;
            Some((host_and_port(&server.addr), error))
        });
        let (addresses, errors): (Vec<String>, Vec<&str>) = failed.unzip();
        if let Some(error) = errors.first() {
            self.cannot_reach(&addresses.join(", "), error);
        }
    }

    fn cannot_reach(&self, servers: &str, error: &str) {
        if pace(&self.unreachable).is_due(Instant::now()) {
            tracing::warn!(servers, error, "nats cannot be reached, trying again");
        }
    }
}

fn pace(pace: &Mutex<Pace>) -> MutexGuard<'_, Pace> {
    pace.lock().unwrap_or_else(PoisonError::into_inner)
}
