//! Follows the file that the relay writes, line by line, and tells what was on the wire so far.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use message::Message;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ledger::{Fact, Ledger};

/// The payload of every message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Payload {
    pub(super) key: i32,
    pub(super) version: i64,
    /// Drawn just before the enqueue; of two, the later one is the greater.
    pub(super) stamp: u64,
}

/// What was on the wire so far.
#[derive(Debug, Default)]
pub(super) struct Wire {
    ledger: Mutex<Ledger>,
    bytes: AtomicU64,
    lines: AtomicU64,
    torn: AtomicU64,
    repeats: Mutex<Vec<(Uuid, Instant)>>,
    newest_stamp: AtomicU64,
}

impl Wire {
    /// The judge's view of it.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages and their copies.
    pub(super) fn lines(&self) -> u64 {
        self.lines.load(Relaxed)
    }

    /// Lines that a kill has cut off.
    pub(super) fn torn(&self) -> u64 {
        self.torn.load(Relaxed)
    }

    /// Copies of messages that were on the wire before, in its order, and when they were read.
    pub(super) fn repeats(&self) -> Vec<(Uuid, Instant)> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The highest stamp delivered.
    pub(super) fn newest_stamp(&self) -> u64 {
        self.newest_stamp.load(Relaxed)
    }

    /// How much of the file was taken into the ledger.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    fn take(&self, line: &[u8]) -> Result<Option<(Message, Fact)>> {
        let Ok(message) = message::wire::structured::decode(line, "soak") else {
            self.torn.fetch_add(1, Relaxed);
            return Ok(None);
        };
        let payload: Payload = serde_json::from_slice(&message.payload).context("a payload of the soak")?;
        // A key that does not fit is no fact that ever committed.
        let key_fits = message.key.as_deref() == Some(payload.key.to_string().as_str());
        let fact = Fact { key: if key_fits { payload.key } else { -1 }, version: payload.version };
        let id = message.id.into();
        if !self.ledger().delivered(id, fact) {
            self.repeats.lock().unwrap_or_else(PoisonError::into_inner).push((id, Instant::now()));
        }
        self.lines.fetch_add(1, Relaxed);
        self.newest_stamp.fetch_max(payload.stamp, Relaxed);
        Ok(Some((message, fact)))
    }
}

/// Reads the file as it grows.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    file: Option<File>,
    read: u64,
    /// A line whose end is not written yet.
    rest: Vec<u8>,
}

impl Follower {
    /// From the beginning of the file, which need not be there yet.
    pub(super) fn new(path: &Path) -> Self {
        Follower { path: path.to_owned(), file: None, read: 0, rest: Vec::new() }
    }

    /// What was written since the last call, up to a limit; nothing, if there is nothing.
    pub(super) fn read(&mut self, wire: &Wire) -> Result<Vec<(Message, Fact)>> {
        if self.file.is_none() && self.path.exists() {
            self.file = Some(File::open(&self.path)?);
        }
        let Some(file) = &mut self.file else { return Ok(Vec::new()) };
        let before = self.rest.len();
        file.seek(SeekFrom::Start(self.read))?;
        file.take(256 * 1024).read_to_end(&mut self.rest)?;
        self.read += (self.rest.len() - before) as u64;
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let rest = self.rest.split_off(whole);
        let lines = std::mem::replace(&mut self.rest, rest);
        let mut taken = Vec::new();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            taken.extend(wire.take(line)?);
        }
        wire.bytes.store(self.read, Relaxed);
        Ok(taken)
    }
}
