//! The official image, run by Docker when `OUTBOX_POSTGRES=docker` asks for it.
//!
//! The container is removed by the keeper, as everything else is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::{StartError, random_password};
use crate::process::{Process, Signal};

const IMAGE: &str = "postgres:18";

/// The image may have to be fetched first.
pub(super) const PULL_AND_START: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct Docker {
    /// The container's data on this machine, when it is to be kept.
    kept: OnceLock<PathBuf>,
}

impl Docker {
    pub(super) fn describe(&self) -> String {
        format!("PostgreSQL from the image {IMAGE}")
    }

    pub(super) fn prepare(
        &self,
        process: &mut Process,
        data: &Path,
        kept: bool,
    ) -> Result<String, StartError> {
        let name = name(process);
        // `docker kill` by name: the client's end does not end the container.
        process.finally(&format!("docker rm --force --volumes {name}"))?;
        let failed = |path: PathBuf| move |source| StartError::Prepare { path, source };
        if !kept {
            return random_password();
        }
        std::fs::create_dir_all(data).map_err(failed(data.to_owned()))?;
        self.kept.set(data.to_owned()).ok();
        let file = data.with_file_name("password");
        if let Ok(password) = std::fs::read_to_string(&file) {
            return Ok(password);
        }
        let password = random_password()?;
        std::fs::write(&file, &password).map_err(failed(file.clone()))?;
        Ok(password)
    }

    /// The first start makes the container, later ones start it again; both stay attached, so that the
    /// client's process lives as long as the server.
    pub(super) fn command(
        &self,
        process: &Process,
        port: u16,
        password: &str,
        settings: &[(String, String)],
    ) -> Command {
        let name = name(process);
        let mut docker = Command::new("docker");
        if made(&name, port) {
            docker.args(["start", "--attach", &name]);
            return docker;
        }
        remove(&name);
        docker.args(["run", "--name", &name, "--env", "POSTGRES_PASSWORD"]);
        docker.env("POSTGRES_PASSWORD", password);
        docker.args(["--publish", &format!("127.0.0.1:{port}:5432")]);
        if let Some(data) = self.kept.get() {
            docker.args(["--env", "PGDATA=/kept", "--volume", &format!("{}:/kept", data.display())]);
        }
        docker.args([IMAGE, "postgres"]);
        for (name, value) in settings {
            docker.args(["-c", &format!("{name}={value}")]);
        }
        docker
    }

    pub(super) fn end_by(&self, process: &mut Process, signal: Signal) {
        let signal = match signal {
            Signal::Quit => "QUIT",
            Signal::Kill => "KILL",
            _ => "INT",
        };
        quiet(Command::new("docker").args(["kill", "--signal", signal, &name(process)]));
        // The client ends with its container; a client left over is ended below.
        process.ended_within(crate::process::GRACE);
        process.kill();
    }
}

/// Unlike other containers of this machine, like the folder.
fn name(process: &Process) -> String {
    process.folder().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether the container exists with this port; one that lost a race for its port is no use for another.
fn made(name: &str, port: u16) -> bool {
    let ports = Command::new("docker")
        .args(["inspect", "--format", "{{json .HostConfig.PortBindings}}", name])
        .stdin(Stdio::null())
        .output();
    ports.is_ok_and(|out| {
        out.status.success() && String::from_utf8_lossy(&out.stdout).contains(&format!("\"{port}\""))
    })
}

fn remove(name: &str) {
    quiet(Command::new("docker").args(["rm", "--force", "--volumes", name]));
}

fn quiet(command: &mut Command) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
}
