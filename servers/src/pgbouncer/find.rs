//! Which PgBouncer there is: on PATH, beside it, or installed now.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{self, FetchError};

const PACKAGE: &str = "pgbouncer";

/// No PgBouncer is on this machine and none could be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotFound {
    /// It is not installed, and only root may install it.
    #[error("pgbouncer is neither on PATH nor in /usr/sbin, and only root may install it.\n{HELP}")]
    NotInstalled,
    /// It is not installed, and could not be.
    #[error("pgbouncer is neither on PATH nor in /usr/sbin, and apt-get did not install it.\n{HELP}")]
    Install(#[source] FetchError),
}

const HELP: &str = "One of these helps:
  Debian, Ubuntu   apt-get install pgbouncer
  Fedora, RHEL     dnf install pgbouncer
  macOS            brew install pgbouncer";

#[derive(Debug)]
pub(super) struct Program {
    pub(super) file: PathBuf,
    version: String,
}

impl Program {
    pub(super) fn describe(&self) -> String {
        format!("{} from {}", self.version, self.file.display())
    }
}

pub(super) fn find() -> Result<Program, NotFound> {
    if let Some(found) = installed() {
        return Ok(found);
    }
    if !rustix::process::geteuid().is_root() || cache::on_path("apt-get").is_none() {
        return Err(NotFound::NotInstalled);
    }
    by_apt().map_err(NotFound::Install)?;
    installed().ok_or(NotFound::NotInstalled)
}

fn installed() -> Option<Program> {
    // Debian puts it where only root's PATH leads.
    let beside = || Some(PathBuf::from("/usr/sbin/pgbouncer")).filter(|file| cache::is_program(file));
    cache::on_path("pgbouncer").or_else(beside).and_then(|file| program(&file))
}

/// A list of packages that is missing or old is fetched, but only then: it takes a while.
fn by_apt() -> Result<(), FetchError> {
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        // Not started as a service of the machine: none is, in the rescue mode.
        cache::run(command.env("RUNLEVEL", "1"))
    };
    let install = || apt(&["install", "--yes", "--no-install-recommends", PACKAGE]);
    install().or_else(|_| apt(&["update"]).and_then(|()| install()))
}

fn program(file: &Path) -> Option<Program> {
    let output = Command::new(file).arg("--version").output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let version = said.lines().next()?.to_owned();
    version.starts_with("PgBouncer").then(|| Program { file: file.to_owned(), version })
}
