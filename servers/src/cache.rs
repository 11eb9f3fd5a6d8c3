//! The folder where downloaded servers stay between runs, and the package clients that fill it.
//!
//! It is `$OUTBOX_CACHE`, else `$XDG_CACHE_HOME/outbox`, else `~/.cache/outbox`; for root it is
//! `/var/cache/outbox`, because the server runs as another user, who cannot enter root's home.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) fn folder() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = set("OUTBOX_CACHE") {
        return folder;
    }
    if let Some(folder) = set("XDG_CACHE_HOME") {
        return folder.join("outbox");
    }
    match set("HOME") {
        Some(home) if !rustix::process::geteuid().is_root() => home.join(".cache/outbox"),
        _ => PathBuf::from("/var/cache/outbox"),
    }
}

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The cache folder cannot be used.
    #[error("cannot use the cache folder {}", folder.display())]
    Folder {
        /// The cache folder.
        folder: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A program that downloads or unpacks did not start.
    #[error("cannot run {program}")]
    Missing {
        /// The program.
        program: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A program that downloads or unpacks failed.
    #[error("{program} failed: {said}")]
    Failed {
        /// The program.
        program: String,
        /// What it said last.
        said: String,
    },
    /// There is no download for this kind of machine.
    #[error("no download is known for {} on {}", std::env::consts::OS, std::env::consts::ARCH)]
    Platform,
}

/// The folder `name` in the cache, filled by `fill` unless it is there. It appears whole or not at all, and of
/// two runs that fill it at once one wins.
pub(crate) fn fetch(
    name: &str,
    fill: impl FnOnce(&Path) -> Result<(), FetchError>,
) -> Result<PathBuf, FetchError> {
    let cache = folder();
    let done = cache.join(name);
    if done.is_dir() {
        return Ok(done);
    }
    let unusable = |source| FetchError::Folder { folder: folder(), source };
    fs::create_dir_all(&cache).map_err(unusable)?;
    let partial =
        tempfile::Builder::new().prefix(&format!(".{name}-")).tempdir_in(&cache).map_err(unusable)?;
    // A server may run as another user than the one who downloads.
    fs::set_permissions(partial.path(), fs::Permissions::from_mode(0o755)).map_err(unusable)?;
    writeln!(io::stderr(), "downloading {name} into {}", cache.display()).ok();
    fill(partial.path())?;
    match fs::rename(partial.path(), &done) {
        Err(error) if !done.is_dir() => Err(unusable(error)),
        _ => Ok(done),
    }
}

/// Runs a program to its end; what it says is kept for the error.
pub(crate) fn run(command: &mut Command) -> Result<(), FetchError> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
            let said = lines[lines.len().saturating_sub(6)..].join("\n");
            Err(FetchError::Failed { program, said })
        }
        Err(source) => Err(FetchError::Missing { program, source }),
    }
}

/// Where `program` is on PATH.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| is_program(file))
}

pub(crate) fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The folders within `within` whose name passes.
pub(crate) fn folders(within: &Path, pass: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(within).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| name_of(path).is_some_and(&pass)).collect()
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name().and_then(OsStr::to_str)
}
