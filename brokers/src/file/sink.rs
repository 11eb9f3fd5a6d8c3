//! Where lines go, and what became of them when writing failed half-way. Blocking.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long another process may hold the file.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// A file or standard output.
pub(super) enum Sink {
    /// A file, opened for each batch: one that was moved or deleted in between is made anew, and nothing is confirmed
    /// that went to a file without a name.
    File { path: PathBuf, sync: bool },
    /// Standard output; `torn`: the last line there has no end.
    StandardOutput { torn: bool },
}

/// Writing failed.
pub(super) struct WriteError {
    pub(super) source: io::Error,
    pub(super) kept: Kept,
}

/// What is known about the bytes of a failed write.
pub(super) enum Kept {
    /// None of them are there.
    Nothing,
    /// This many went out, and no more.
    First(usize),
    /// Any of them may be there.
    Unknown,
}

impl Sink {
    /// Writes `lines`, all of it. They are kept when it returns.
    pub(super) fn write(&mut self, lines: &[u8]) -> Result<(), WriteError> {
        match self {
            Sink::File { path, sync } => append(path, *sync, lines),
            Sink::StandardOutput { torn } => {
                let mut output = io::stdout().lock();
                write_counted(&mut output, lines, torn)
            }
        }
    }

    /// Whether lines could be written now.
    pub(super) fn check(&self) -> io::Result<()> {
        match self {
            Sink::File { path, .. } => open(path).map(drop),
            Sink::StandardOutput { .. } => Ok(()),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path)
}

fn append(path: &Path, sync: bool, lines: &[u8]) -> Result<(), WriteError> {
    let nothing = |source| WriteError { source, kept: Kept::Nothing };
    // Opening a pipe for reading too would keep it open with nobody at the other end.
    let is_plain = !std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    if !is_plain {
        let mut pipe = OpenOptions::new().write(true).open(path).map_err(nothing)?;
        return write_counted(&mut pipe, lines, &mut false);
    }
    let mut file = open(path).map_err(nothing)?;
    lock(&file).map_err(nothing)?;
    let before = file.seek(SeekFrom::End(0)).map_err(nothing)?;
    let torn = before > 0 && last_byte(&mut file).map_err(nothing)? != b'\n';
    let written = end_torn_line(&mut file, torn).and_then(|()| file.write_all(lines)).and_then(|()| {
        if sync {
            file.sync_data()?;
            if before == 0 {
                sync_name(path)?;
            }
        }
        Ok(())
    });
    written.map_err(|source| {
        // Half a batch must not stay: it would be there twice after the next try, its last line in two pieces.
        let undone = file.set_len(before).and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        WriteError { source, kept: if undone.is_ok() { Kept::Nothing } else { Kept::Unknown } }
    })
}

/// Processes that share a file take turns, so that none cuts off another's lines. Dropping the file unlocks it.
fn lock(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() > deadline => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "another process holds the file"));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn last_byte(file: &mut File) -> io::Result<u8> {
    let mut byte = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn end_torn_line(output: &mut impl Write, torn: bool) -> io::Result<()> {
    if torn { output.write_all(b"\n") } else { Ok(()) }
}

/// A new file is there after a crash only if its directory is written too.
fn sync_name(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Writes to what cannot be cut off again, and counts.
fn write_counted(output: &mut impl Write, lines: &[u8], torn: &mut bool) -> Result<(), WriteError> {
    end_torn_line(output, *torn).map_err(|source| WriteError { source, kept: Kept::Nothing })?;
    *torn = false;
    let mut written = 0;
    while written < lines.len() {
        let failure = match output.write(&lines[written..]) {
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(count) => {
                written += count;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => error,
        };
        *torn = written > 0 && lines[written - 1] != b'\n';
        return Err(WriteError { source: failure, kept: Kept::First(written) });
    }
    output.flush().map_err(|source| WriteError { source, kept: Kept::Unknown })
}
