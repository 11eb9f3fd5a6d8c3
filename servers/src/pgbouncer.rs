//! A PgBouncer in transaction mode, in front of a PostgreSQL: each transaction may run on another server connection.
//!
//! It is found on PATH or in `/usr/sbin`, else installed by `apt-get` if we are root. Root runs it as the user who runs
//! PostgreSQL.

mod find;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub use find::NotFound;

use crate::process::{KeepError, LaunchError, NoUser, NotReady, Process, Signal, User};
use crate::{Postgres, port, postgres};
use find::Program;

const START: Duration = Duration::from_secs(30);

/// A running PgBouncer, gone when this is dropped or our process ends.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let postgres = servers::Postgres::start()?;
/// let pooler = servers::Pgbouncer::start(&postgres, 3)?;
/// println!("{}", pooler.url("postgres"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Pgbouncer {
    process: Process,
    program: Program,
    behind: String,
    port: u16,
}

/// Why no PgBouncer runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// There is none on this machine and none could be installed.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// The folder for it could not be made.
    #[error("no folder for PgBouncer")]
    Keep(#[from] KeepError),
    /// Root, without a user to run it as.
    #[error(transparent)]
    NoUser(#[from] NoUser),
    /// The address of PostgreSQL is not one that it can be put in front of.
    #[error("not an address of the form postgres://user:password@host:port/: no PgBouncer for it")]
    Address,
    /// A file or folder of it could not be written.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It was not launched.
    #[error("PgBouncer was not launched")]
    Launch(#[from] LaunchError),
    /// It did not come up.
    #[error("PgBouncer did not start")]
    NotReady(#[from] NotReady),
    /// No port could be bound.
    #[error("no free port on 127.0.0.1")]
    NoPort,
}

impl Pgbouncer {
    /// In front of `postgres`, with at most so many server connections a database, which it gives out in turn.
    pub fn start(postgres: &Postgres, connections: u32) -> Result<Pgbouncer, StartError> {
        Self::start_ignoring(postgres, connections, &[])
    }

    /// As [`start`](Self::start), and what clients ask of their session under these names at its start is dropped without a
    /// word, where it would refuse them.
    pub fn start_ignoring(
        postgres: &Postgres,
        connections: u32,
        parameters: &[&str],
    ) -> Result<Pgbouncer, StartError> {
        let program = find::find()?;
        let mut process = Process::new("outbox-pgbouncer", Signal::Interrupt)?;
        if let Some(user) = User::unprivileged()? {
            let path = process.folder().to_owned();
            process.run_as(user).map_err(|source| StartError::Prepare { path, source })?;
        }
        let behind = postgres.url("postgres");
        let mut own = Pgbouncer { process, program, behind, port: 0 };
        // What the driver asks of every session.
        let ignored = [&["extra_float_digits"], parameters].concat().join(", ");
        own.serve(connections, &ignored)?;
        Ok(own)
    }

    /// Installs it if [`start`](Self::start) would; says which one there is then.
    pub fn install() -> Result<String, NotFound> {
        find::find().map(|found| found.describe())
    }

    /// The address of a database, through it.
    pub fn url(&self, database: &str) -> String {
        let address = postgres::with_address(&self.behind, &format!("127.0.0.1:{}", self.port));
        postgres::with_database(&address.unwrap_or_default(), database)
    }

    /// One line about which program it is.
    pub fn describe(&self) -> String {
        format!("{}, port {}, in {}", self.program.describe(), self.port, self.process.folder().display())
    }

    /// The folder of its own, which holds its log.
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// The id of its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Launches it and waits until it answers, on a port that turns out to be free.
    fn serve(&mut self, connections: u32, ignored: &str) -> Result<(), StartError> {
        const TRIES: u32 = 10;
        let mut tries = 1;
        loop {
            self.port = port::free().ok_or(StartError::NoPort)?;
            match self.serve_once(connections, ignored) {
                Err(StartError::NotReady(NotReady::Ended { log, .. }))
                    if port::is_taken(&log) && tries < TRIES =>
                {
                    tries += 1;
                }
                done => return done,
            }
        }
    }

    fn serve_once(&mut self, connections: u32, ignored: &str) -> Result<(), StartError> {
        let folder = self.process.folder().to_owned();
        let server = postgres::Address::of(&self.behind).ok_or(StartError::Address)?;
        let users = folder.join("users.txt");
        // The password in clear: it must log in with it, too.
        self.write(&users, &format!("{} {}\n", quoted(&server.user), quoted(&server.password)))?;
        let config = folder.join("pgbouncer.ini");
        self.write(
            &config,
            &format!(
                "[databases]
* = host={host} port={to}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir = {folder}
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
server_round_robin = 1
max_db_connections = {connections}
default_pool_size = {connections}
max_client_conn = 500
ignore_startup_parameters = {ignored}
",
                host = server.host,
                to = server.port,
                port = self.port,
                folder = folder.display(),
                users = users.display(),
            ),
        )?;
        let mut command = Command::new(&self.program.file);
        command.arg(&config);
        self.process.launch(&command)?;
        let port = self.port;
        // The socket is in our folder, so whoever answers there is ours.
        Ok(self.process.ready(START, || postgres::answers_on_socket(&folder, port))?)
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), StartError> {
        let write = || {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
            file.write_all(text.as_bytes())?;
            match self.process.user() {
                Some(user) => chown(path, Some(user.uid()), Some(user.gid())),
                None => Ok(()),
            }
        };
        write().map_err(|source| StartError::Prepare { path: path.to_owned(), source })
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}
