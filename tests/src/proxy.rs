//! A network that fails on request: between a client and PostgreSQL, on real sockets, it passes on what both say until it
//! is told what to do to the next COMMIT, or to fall silent.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::conformance::PATIENCE;

/// What becomes of a COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is passed on, and so is its answer.
    Passes,
    /// It is not passed on: both connections are cut.
    NeverArrives,
    /// It is passed on and carried out; then both connections are cut, without its answer.
    LosesItsAnswer,
    /// It is passed on and carried out, and nothing is ever said again; the connections stay.
    IsNeverAnswered,
    /// It is not passed on, and the client says nothing any more; the connections stay for as long as the server lets them:
    /// so is a client that stands still.
    IsWithheld,
}

/// Between its clients and one server, until it is dropped.
///
/// ```no_run
/// # async fn a_commit_whose_answer_is_lost() -> anyhow::Result<()> {
/// let database = tests::Database::new("lost_answer").await;
/// let proxy = tests::Proxy::start(&database.url().parse()?).await?;
/// let pool = outbox::pool_options().connect_with(proxy.options()).await?;
/// let tx = pool.begin().await?;
/// proxy.at_commit(tests::Fate::LosesItsAnswer);
/// assert!(outbox::commit(tx).await.is_err());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Proxy {
    options: PgConnectOptionsOf,
    wishes: watch::Sender<Wishes>,
    /// Aborted with it.
    _tasks: JoinSet<()>,
}

#[derive(Debug, Clone, Copy)]
struct Wishes {
    at_commit: Fate,
    /// Connections up to this one say nothing any more.
    silent_to: u64,
    connections: u64,
    /// A message of a client's longer than [`LONG`] takes so long to arrive.
    long_takes: Duration,
    /// A COMMIT has been withheld.
    withheld: bool,
}

/// Printed by the driver, they would show the password.
struct PgConnectOptionsOf(PgConnectOptions);

impl std::fmt::Debug for PgConnectOptionsOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "127.0.0.1:{}", self.0.get_port())
    }
}

impl Proxy {
    /// Listens on a port of its own, for the server of `options`.
    ///
    /// # Errors
    /// No port could be had.
    pub async fn start(options: &PgConnectOptions) -> io::Result<Proxy> {
        let server = (options.get_host().to_owned(), options.get_port());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address: SocketAddr = listener.local_addr()?;
        let wishes = watch::Sender::new(Wishes {
            at_commit: Fate::Passes,
            silent_to: 0,
            connections: 0,
            long_takes: Duration::ZERO,
            withheld: false,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, wishes.clone()));
        // In plain text, which it must be able to read.
        let options = options.clone().host("127.0.0.1").port(address.port()).ssl_mode(PgSslMode::Disable);
        Ok(Proxy { options: PgConnectOptionsOf(options), wishes, _tasks: tasks })
    }

    /// The same database, through it.
    pub fn options(&self) -> PgConnectOptions {
        self.options.0.clone()
    }

    /// What becomes of each COMMIT from now on.
    pub fn at_commit(&self, fate: Fate) {
        self.wishes.send_modify(|wishes| wishes.at_commit = fate);
    }

    /// Returns when a COMMIT has been withheld.
    pub async fn until_withheld(&self) {
        let mut wishes = self.wishes.subscribe();
        let withheld = tokio::time::timeout(PATIENCE, wishes.wait_for(|wishes| wishes.withheld)).await;
        assert!(withheld.is_ok(), "nobody has said COMMIT");
    }

    /// The connections there are fall silent and stay: neither side hears of the other again. New ones are as before.
    pub fn fall_silent(&self) {
        self.wishes.send_modify(|wishes| wishes.silent_to = wishes.connections);
    }

    /// A client's message of more than half a MiB takes so long to arrive, from now on.
    pub fn be_slow(&self, long_takes: Duration) {
        self.wishes.send_modify(|wishes| wishes.long_takes = long_takes);
    }

    /// How many connections there have been.
    pub fn connections(&self) -> u64 {
        self.wishes.borrow().connections
    }
}

async fn accept(listener: TcpListener, server: (String, u16), wishes: watch::Sender<Wishes>) {
    // Aborted with this task.
    let mut connections = JoinSet::new();
    let wishes = Arc::new(wishes);
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect((server.0.as_str(), server.1)).await else { continue };
        let mut number = 0;
        wishes.send_modify(|wishes| {
            wishes.connections += 1;
            number = wishes.connections;
        });
        let wishes = Arc::clone(&wishes);
        connections.spawn(async move {
            let link = Link { number, wishes, muted: watch::Sender::new(None) };
            let (client, server) = (client.into_split(), server.into_split());
            tokio::select! {
                _ = link.forth(client.0, server.1) => {}
                _ = link.back(server.0, client.1) => {}
            }
        });
    }
}

/// One client's connection. It ends, and both sockets with it, when either direction does.
struct Link {
    number: u64,
    wishes: Arc<watch::Sender<Wishes>>,
    /// A COMMIT that was not to be answered has been passed on.
    muted: watch::Sender<Option<Fate>>,
}

const LONG: usize = 512 << 10;

const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

impl Link {
    /// From the client, one message after the other.
    async fn forth(&self, mut client: OwnedReadHalf, mut server: OwnedWriteHalf) -> io::Result<()> {
        // Until it has said who it is, a client's messages bear no letter.
        let mut started = false;
        loop {
            let message = message(&mut client, started).await?;
            const STARTUP: &[u8] = &196_608_u32.to_be_bytes();
            started = started || message.get(4..8) == Some(STARTUP);
            self.unless_silent().await;
            let fate = self.wishes.borrow().at_commit;
            if message == COMMIT && fate != Fate::Passes {
                if fate == Fate::NeverArrives {
                    return Ok(());
                }
                if fate == Fate::IsWithheld {
                    self.wishes.send_modify(|wishes| wishes.withheld = true);
                    std::future::pending::<()>().await;
                }
                self.muted.send_replace(Some(fate));
            }
            let long_takes = self.wishes.borrow().long_takes;
            if message.len() > LONG && !long_takes.is_zero() {
                server.write_all(&message[..LONG]).await?;
                tokio::time::sleep(long_takes).await;
                server.write_all(&message[LONG..]).await?;
            } else {
                server.write_all(&message).await?;
            }
        }
    }

    /// From the server, as it comes.
    async fn back(&self, mut server: OwnedReadHalf, mut client: OwnedWriteHalf) -> io::Result<()> {
        let mut bytes = vec![0; 64 << 10];
        loop {
            let read = server.read(&mut bytes).await?;
            if read == 0 {
                return Ok(());
            }
            self.unless_silent().await;
            let muted = *self.muted.borrow();
            match muted {
                None => client.write_all(&bytes[..read]).await?,
                // It has been carried out: this is its answer.
                Some(Fate::LosesItsAnswer) => return Ok(()),
                Some(_) => {}
            }
        }
    }

    /// Never returns on a connection that has fallen silent.
    async fn unless_silent(&self) {
        if self.wishes.borrow().silent_to >= self.number {
            std::future::pending().await
        }
    }
}

/// One message of the protocol: a letter, unless it is one of the first, and a length that counts itself.
async fn message(client: &mut OwnedReadHalf, lettered: bool) -> io::Result<Vec<u8>> {
    let letter = usize::from(lettered);
    let mut message = vec![0; letter + 4];
    client.read_exact(&mut message).await?;
    let mut length = [0; 4];
    length.copy_from_slice(&message[letter..]);
    message.resize(letter + u32::from_be_bytes(length) as usize, 0);
    client.read_exact(&mut message[letter + 4..]).await?;
    Ok(message)
}
