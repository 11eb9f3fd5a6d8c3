//! Which PostgreSQL there is: installed, downloaded before, downloadable, or Docker's.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::docker::Docker;
use super::download;
use super::installed::Installed;
use crate::cache::{self, FetchError};

const OLDEST: u32 = 14;

/// No PostgreSQL server is on this machine and none could be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotFound {
    /// `OUTBOX_POSTGRES` is none of the ways.
    #[error("OUTBOX_POSTGRES is {0:?}, not one of installed, download, docker")]
    Way(String),
    /// Nothing installed, and only that was allowed.
    #[error("no PostgreSQL server {OLDEST} or newer is installed.\n{HELP}")]
    NotInstalled,
    /// Nothing installed, and no package client to download it with.
    #[error("no PostgreSQL server {OLDEST} or newer is installed, and neither mvn nor npm is.\n{HELP}")]
    NoClient,
    /// Nothing installed, and the download failed.
    #[error("no PostgreSQL server {OLDEST} or newer is installed, and the download failed.\n{HELP}")]
    Download(#[source] FetchError),
    /// Docker was asked for and is not there.
    #[error("OUTBOX_POSTGRES=docker, but there is no docker on PATH")]
    NoDocker,
}

const HELP: &str = "One of these helps:
  Debian, Ubuntu   apt-get install postgresql
  Fedora, RHEL     dnf install postgresql-server
  macOS            brew install postgresql@18
  download         have mvn or npm on PATH
  Docker           OUTBOX_POSTGRES=docker
  one that runs    DATABASE_URL=postgres://user:password@host:5432/postgres";

#[derive(Debug)]
pub(super) enum Program {
    Installed(Installed),
    Docker(Docker),
}

impl Program {
    pub(super) fn describe(&self) -> String {
        match self {
            Program::Installed(found) => {
                format!("PostgreSQL {} from {}", found.version, found.bin.display())
            }
            Program::Docker(docker) => docker.describe(),
        }
    }
}

pub(super) fn find() -> Result<Program, NotFound> {
    let way = std::env::var("OUTBOX_POSTGRES").unwrap_or_default();
    match way.as_str() {
        "" => installed().or_else(cached).map_or_else(downloaded, |found| Ok(Program::Installed(found))),
        "installed" => installed().map(Program::Installed).ok_or(NotFound::NotInstalled),
        "download" => cached().map_or_else(downloaded, |found| Ok(Program::Installed(found))),
        "docker" if cache::on_path("docker").is_some() => Ok(Program::Docker(Docker::default())),
        "docker" => Err(NotFound::NoDocker),
        _ => Err(NotFound::Way(way)),
    }
}

fn installed() -> Option<Installed> {
    let on_path = cache::on_path("postgres").and_then(|file| programs_beside(&file));
    let configured = || {
        let output = Command::new("pg_config").arg("--bindir").output().ok()?;
        programs_in(Path::new(String::from_utf8_lossy(&output.stdout).trim()))
    };
    on_path.or_else(configured).or_else(|| newest(usual_folders()))
}

fn cached() -> Option<Installed> {
    let folders = cache::folders(&cache::folder(), |name| name.starts_with("postgres-"));
    newest(folders.into_iter().map(|folder| folder.join("bin")).collect())
}

fn downloaded() -> Result<Program, NotFound> {
    match download::download() {
        None => Err(NotFound::NoClient),
        Some(Err(error)) => Err(NotFound::Download(error)),
        Some(Ok(folder)) => {
            let found = programs_in(&folder.join("bin"));
            found.map(Program::Installed).ok_or_else(|| {
                let said = format!("{} holds no usable postgres", folder.display());
                NotFound::Download(FetchError::Failed { program: "the download".to_owned(), said })
            })
        }
    }
}

fn usual_folders() -> Vec<PathBuf> {
    let any = |_: &str| true;
    let postgres = |name: &str| name.starts_with("postgresql");
    let bin = |folders: Vec<PathBuf>| folders.into_iter().map(|folder| folder.join("bin"));
    let apps = Path::new("/Applications/Postgres.app/Contents/Versions");
    bin(cache::folders(Path::new("/usr/lib/postgresql"), any))
        .chain(bin(cache::folders(Path::new("/usr"), |name| name.starts_with("pgsql-"))))
        .chain(bin(cache::folders(Path::new("/opt/homebrew/opt"), postgres)))
        .chain(bin(cache::folders(Path::new("/usr/local/opt"), postgres)))
        .chain(bin(cache::folders(apps, any)))
        .chain([PathBuf::from("/usr/local/pgsql/bin")])
        .collect()
}

fn newest(folders: Vec<PathBuf>) -> Option<Installed> {
    let found = folders.iter().filter_map(|folder| programs_in(folder));
    found.max_by_key(|found| (major(&found.version), found.version.clone()))
}

/// Debian and others link programs into PATH one by one; where the link leads, `initdb` is too.
fn programs_beside(file: &Path) -> Option<Installed> {
    let real = file.canonicalize().ok()?;
    programs_in(real.parent()?).or_else(|| programs_in(file.parent()?))
}

fn programs_in(bin: &Path) -> Option<Installed> {
    let bin = bin.canonicalize().ok()?;
    if !["postgres", "initdb"].iter().all(|name| cache::is_program(&bin.join(name))) {
        return None;
    }
    let output = Command::new(bin.join("postgres")).arg("--version").output().ok()?;
    let version = version(&String::from_utf8_lossy(&output.stdout))?;
    (major(&version) >= Some(OLDEST)).then_some(Installed { bin, version })
}

/// From `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn version(said: &str) -> Option<String> {
    said.split_once("(PostgreSQL) ")?.1.split_whitespace().next().map(str::to_owned)
}

fn major(version: &str) -> Option<u32> {
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_with_and_without_a_vendor() {
        let debian = version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").unwrap();
        assert_eq!((debian.as_str(), major(&debian)), ("15.18", Some(15)));
        let beta = version("postgres (PostgreSQL) 19beta1\n").unwrap();
        assert_eq!(major(&beta), Some(19));
        assert_eq!(version("not a server"), None);
    }
}
