//! Server programs in a folder of this machine: making their data directory, and their command line.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{StartError, random_password};
use crate::process::{Process, User, private_folder};

/// How long a program that prepares a server may take.
pub(super) const PROGRAM: Duration = Duration::from_secs(120);

/// A folder that holds `postgres` and `initdb`.
#[derive(Clone, Debug)]
pub(super) struct Installed {
    pub(super) bin: PathBuf,
    pub(super) version: String,
}

impl Installed {
    /// Makes the data directory unless it is there, and returns the superuser's password.
    pub(super) fn prepare(&self, process: &mut Process, data: &Path) -> Result<String, StartError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StartError::Prepare { path, source }
        };
        if let Some(user) = User::unprivileged()? {
            process.run_as(user).map_err(failed(process.folder()))?;
        }
        // Beside the data, so that a kept directory opens again.
        let kept = data.with_file_name("password");
        if data.join("PG_VERSION").exists() {
            return fs::read_to_string(&kept).map_err(failed(&kept));
        }
        if let Some(folder) = data.parent().filter(|folder| is_missing_or_empty(folder)) {
            private_folder(folder, process.user()).map_err(failed(folder))?;
        }
        private_folder(data, process.user()).map_err(failed(data))?;
        let password = random_password()?;
        write_private(&kept, &password, process.user()).map_err(failed(&kept))?;
        let mut initdb = Command::new(self.bin.join("initdb"));
        initdb.arg("--pgdata").arg(data).arg("--pwfile").arg(&kept).args([
            "--username=postgres",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--encoding=UTF8",
            // The machine's language would change sorting and the texts of errors from one machine to another.
            "--locale=C",
            "--no-sync",
        ]);
        process.launch(&initdb)?;
        process.done(PROGRAM).map_err(StartError::Initdb)?;
        Ok(password)
    }

    /// Makes the data directory as a copy of the server's that answers on this port, in this folder.
    pub(super) fn copy(
        &self,
        process: &mut Process,
        data: &Path,
        original: &Path,
        port: u16,
        arguments: &[&str],
    ) -> Result<(), StartError> {
        let failed = |source| StartError::Prepare { path: data.to_owned(), source };
        if let Some(user) = User::unprivileged()? {
            process.run_as(user).map_err(failed)?;
        }
        private_folder(data, process.user()).map_err(failed)?;
        let mut backup = Command::new(self.bin.join("pg_basebackup"));
        backup.arg("--pgdata").arg(data).arg("--host").arg(original).args(["--port", &port.to_string()]);
        backup.args(["--username=postgres", "--checkpoint=fast", "--wal-method=stream", "--no-sync"]);
        process.launch(backup.args(arguments))?;
        process.done(PROGRAM).map_err(StartError::Copy)
    }

    pub(super) fn command(
        &self,
        data: &Path,
        socket: &Path,
        port: u16,
        settings: &[(String, String)],
    ) -> Command {
        let mut postgres = Command::new(self.bin.join("postgres"));
        postgres.arg("-D").arg(data).arg("-k").arg(socket);
        postgres.args(["-c", "listen_addresses=127.0.0.1", "-c", &format!("port={port}")]);
        for (name, value) in settings {
            postgres.args(["-c", &format!("{name}={value}")]);
        }
        // The server may not be able to stand where we are.
        postgres.current_dir(data);
        postgres
    }
}

/// Then it becomes the server user's: root's temporary folders cannot be entered by others.
fn is_missing_or_empty(folder: &Path) -> bool {
    fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

fn write_private(path: &Path, text: &str, user: Option<&User>) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    match user {
        Some(user) => chown(path, Some(user.uid()), Some(user.gid())),
        None => Ok(()),
    }
}
