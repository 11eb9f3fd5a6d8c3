//! What stands between a service and its database: an address that leads to another server after a failover, and a pooler
//! whose clients do not notice that their server has crashed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// An address on loopback that leads to whatever server it is told.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    target: watch::Sender<Option<u16>>,
    _task: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap().port();
        let (target, targets) = watch::channel(Some(port));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(serve(client, targets.clone()));
            }
        });
        Proxy { port: address, target, _task: task }
    }

    /// Cuts every connection; new ones lead to this port, or nowhere.
    pub(crate) fn lead_to(&self, port: Option<u16>) {
        self.target.send_replace(port);
    }
}

async fn serve(mut client: TcpStream, mut targets: watch::Receiver<Option<u16>>) {
    let Some(port) = *targets.borrow_and_update() else { return };
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        _ = targets.changed() => {}
    }
}

/// A pooler in transaction mode, as far as it matters here: a server connection that is lost while nobody waits for an
/// answer is replaced by another one, and the client does not notice.
pub(crate) struct Pooler {
    pub(crate) port: u16,
    /// Clients whose server connection was replaced.
    pub(crate) replaced: Arc<AtomicUsize>,
    open: watch::Sender<bool>,
    idle: watch::Sender<usize>,
    clients: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Pooler {
    /// To the server with this socket, over which it asks for no password.
    pub(crate) async fn to(socket: PathBuf) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, gate) = watch::channel(true);
        let idle = watch::Sender::new(0);
        let (replaced, clients) = (Arc::default(), Arc::<AtomicUsize>::default());
        let mut task = JoinSet::new();
        let shared = (Arc::clone(&replaced), Arc::clone(&clients), idle.clone());
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (replaced, clients, idle) = shared.clone();
                let pooled = Pooled { socket: socket.clone(), gate: gate.clone(), replaced, idle };
                connections.spawn(async move {
                    clients.fetch_add(1, Ordering::SeqCst);
                    pooled.serve(client).await;
                    clients.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Pooler { port, replaced, open, idle, clients, _task: task }
    }

    /// From the time this returns nothing is asked of the server and nothing waits for an answer, until
    /// [`resume`](Self::resume).
    pub(crate) async fn pause(&self) {
        self.open.send_replace(false);
        let mut idle = self.idle.subscribe();
        let all = |idle: &usize| *idle >= self.clients.load(Ordering::SeqCst);
        tokio::time::timeout(Duration::from_secs(30), idle.wait_for(all)).await.expect("all idle").unwrap();
    }

    pub(crate) fn resume(&self) {
        self.open.send_replace(true);
    }
}

struct Pooled {
    socket: PathBuf,
    gate: watch::Receiver<bool>,
    replaced: Arc<AtomicUsize>,
    idle: watch::Sender<usize>,
}

impl Pooled {
    async fn serve(mut self, client: TcpStream) -> Option<()> {
        let (client, mut to_client) = client.into_split();
        let mut client = Messages { from: client, read: Vec::new(), head: 0 };
        let startup = client.next().await?;
        client.head = 1;
        let (mut server, greeting) = self.connect(&startup).await;
        to_client.write_all(&greeting).await.ok()?;
        loop {
            // Between transactions: here the server's connection may go, and another come.
            let asked = loop {
                if !*self.gate.borrow_and_update() {
                    self.idle.send_modify(|idle| *idle += 1);
                    self.gate.wait_for(|open| *open).await.ok()?;
                    self.idle.send_modify(|idle| *idle -= 1);
                }
                tokio::select! {
                    biased;
                    _ = self.gate.changed() => {}
                    asked = client.next() => break asked?,
                }
            };
            if server.is_gone() || server.to.write_all(&asked).await.is_err() {
                self.replaced.fetch_add(1, Ordering::SeqCst);
                (server, _) = self.connect(&startup).await;
                server.to.write_all(&asked).await.ok()?;
            }
            // Both ways, until the server is ready for another transaction.
            loop {
                tokio::select! {
                    more = client.next() => server.to.write_all(&more?).await.ok()?,
                    answered = server.from.next() => {
                        let answered = answered?;
                        to_client.write_all(&answered).await.ok()?;
                        if answered[0] == b'Z' && answered[5] == b'I' {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// A server connection, as soon as there is one, and what it said up to being ready.
    async fn connect(&self, startup: &[u8]) -> (Server, Vec<u8>) {
        loop {
            if let Some(connected) = self.try_connect(startup).await {
                return connected;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn try_connect(&self, startup: &[u8]) -> Option<(Server, Vec<u8>)> {
        let (from, to) = UnixStream::connect(&self.socket).await.ok()?.into_split();
        let mut server = Server { from: Messages { from, read: Vec::new(), head: 1 }, to };
        server.to.write_all(startup).await.ok()?;
        let mut greeting = Vec::new();
        loop {
            let said = server.from.next().await.filter(|said| said[0] != b'E')?;
            greeting.extend_from_slice(&said);
            if said[0] == b'Z' {
                return Some((server, greeting));
            }
        }
    }
}

struct Server {
    from: Messages<tokio::net::unix::OwnedReadHalf>,
    to: tokio::net::unix::OwnedWriteHalf,
}

impl Server {
    /// It has closed its end, perhaps with a last word: while it is idle there is nothing else to read.
    fn is_gone(&self) -> bool {
        self.from.from.try_read(&mut [0]).is_ok()
    }
}

/// The messages of PostgreSQL's protocol, one by one. `head`: how many bytes stand before the length, none in the first one.
struct Messages<R> {
    from: R,
    read: Vec<u8>,
    head: usize,
}

impl<R: AsyncReadExt + Unpin> Messages<R> {
    /// Dropped before it is done, it has lost nothing.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = self.read.get(self.head..self.head + 4) {
                let length = u32::from_be_bytes(length.try_into().ok()?);
                let whole = self.head + usize::try_from(length).ok()?;
                if self.read.len() >= whole {
                    return Some(self.read.drain(..whole).collect());
                }
            }
            if self.from.read_buf(&mut self.read).await.ok()? == 0 {
                return None;
            }
        }
    }
}
