//! The keeper: a small shell process which outlives ours, and then clears up.
//!
//! It holds the read end of a pipe whose only write end is ours. The operating system closes that end when we
//! end, after `kill -9` too, which is the one moment no destructor, signal handler or `atexit` can see. So
//! there is never a stale folder of a dead run to sweep: the keeper of that run has removed it.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use super::{GRACE, Signal};

/// Why no folder with a keeper could be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeepError {
    /// `/bin/sh` did not start or did not answer.
    #[error("cannot run the keeper with /bin/sh")]
    Shell(#[from] io::Error),
    /// `mktemp` did not make a folder.
    #[error("cannot make a folder in {}: {said}", within.display())]
    Folder {
        /// Where the folder was to be.
        within: PathBuf,
        /// What `mktemp` said.
        said: String,
    },
}

#[derive(Debug)]
pub(super) struct Keeper {
    shell: Child,
    pipe: Option<ChildStdin>,
    folder: PathBuf,
}

impl Keeper {
    pub(super) fn start(name: &str, stop: Signal) -> Result<Keeper, KeepError> {
        let within = std::env::temp_dir();
        let mut shell = Command::new("/bin/sh")
            .args(["-c", include_str!("keeper.sh"), "keeper"])
            .arg(within.join(format!("{name}-XXXXXX")))
            .args([stop.name(), &GRACE.as_secs().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C at a terminal goes to our group; the keeper has to live on to clear up after it.
            .process_group(0)
            .spawn()?;
        let pipe = shell.stdin.take();
        let mut said = Vec::new();
        if let Some(mut out) = shell.stdout.take() {
            out.read_to_end(&mut said)?;
        }
        let said = said.trim_ascii();
        let folder = PathBuf::from(OsStr::from_bytes(said));
        if !folder.is_absolute() || !folder.is_dir() {
            shell.wait()?;
            let said = String::from_utf8_lossy(said).into_owned();
            return Err(KeepError::Folder { within, said });
        }
        Ok(Keeper { shell, pipe, folder })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn tell(&mut self, word: &str, rest: &OsStr) -> io::Result<()> {
        let mut line = word.as_bytes().to_vec();
        line.push(b' ');
        line.extend(rest.to_os_string().into_vec());
        line.push(b'\n');
        match &mut self.pipe {
            Some(pipe) => pipe.write_all(&line),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.pipe = None;
        // Waiting is what lets a caller say "dropped, so the folder is gone"; a failure leaves no one to tell.
        self.shell.wait().ok();
    }
}
