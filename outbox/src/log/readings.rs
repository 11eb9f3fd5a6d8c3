//! All readings of a process: which shards are read together, which window is next, and what of a page is sent. No I/O.

use std::sync::Arc;

use super::eras::Eras;
use super::progress::CursorRecord;
use super::row::LogMessage;
use super::window::{Look, Reading, Window};

/// What a page holds once it is read.
#[derive(Debug)]
pub struct Page {
    /// The window it is of.
    pub window: Arc<Window>,
    /// The shards it was read for.
    pub shards: Arc<[i16]>,
    /// The messages, in order of position.
    pub messages: Vec<LogMessage>,
    /// The window has no messages up to here that were not read.
    pub read_to: i64,
    /// The window is read to its end.
    pub last: bool,
}

/// Where a process stands in the log, with all its shards.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readings {
    readings: Vec<Reading>,
    windows: u64,
    /// A page of the window being read was sent.
    sent: bool,
}

/// For the model: windows are open in the order of their numbers, which count on for ever.
#[cfg(test)]
impl std::hash::Hash for Readings {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (&self.readings, self.sent).hash(state);
    }
}

impl Readings {
    /// Reads from a cursor that was recorded, beside those that stand at the same place.
    pub(crate) fn add(&mut self, record: &CursorRecord, look: &Look, eras: &Eras) {
        let mut reading = Reading::new(vec![record.shard], record.seen.clone());
        if let Some(until) = &record.until {
            if let Some(other) = self.readings.iter_mut().find(|other| other.is_within(&record.seen, until)) {
                other.resume_beside(record.shard, record.after);
                return;
            }
            self.windows += 1;
            reading.resume(self.windows, until.clone(), record.after, look, eras);
        } else if let Some(other) = self.readings.iter_mut().find(|other| other.is_beside(&reading)) {
            other.join(reading);
            return;
        }
        self.readings.push(reading);
    }

    /// For the model: whether a shard's reader has left behind what a transaction has written.
    #[cfg(test)]
    pub(crate) fn has_passed(&self, shard: i16, xid: u64) -> bool {
        self.readings.iter().any(|reading| reading.shards.contains(&shard) && reading.has_seen(xid))
    }

    /// Whether there is nothing to read, ever.
    pub(crate) fn is_empty(&self) -> bool {
        self.readings.is_empty()
    }

    /// Whether a window is open.
    pub(crate) fn is_open(&self) -> bool {
        self.readings.iter().any(|reading| reading.window().is_some())
    }

    /// Reads nothing any more.
    pub(crate) fn clear(&mut self) {
        self.readings.clear();
    }

    /// Opens the windows that the look shows, for readings that stand at the same place together. Whether there are any.
    /// `proven` is a bound for every snapshot taken since it was proven, this one included.
    pub(crate) fn look(&mut self, look: &Look, proven: i64, eras: &Eras) -> bool {
        self.align();
        self.sent = false;
        let mut opened = false;
        for reading in &mut self.readings {
            self.windows += 1;
            opened |= reading.advance(self.windows, look, proven, eras);
        }
        opened
    }

    fn align(&mut self) {
        let mut aligned: Vec<Reading> = Vec::with_capacity(self.readings.len());
        for reading in self.readings.drain(..) {
            match aligned.iter_mut().find(|other| other.is_beside(&reading)) {
                Some(other) => other.join(reading),
                None => aligned.push(reading),
            }
        }
        self.readings = aligned;
    }

    /// The reading whose window is the oldest that is open.
    pub(crate) fn next(&mut self) -> Option<&mut Reading> {
        let open = self.readings.iter_mut().filter(|reading| reading.window().is_some());
        open.min_by_key(|reading| reading.window().map(|window| window.id))
    }

    /// Takes what was read of the [next](Self::next) window's page, `full` if there may be more in it. Answers the page
    /// to send, if it or an earlier one of its window holds a message: a window without any concerns nobody, unless it ends an
    /// era, which is to be recorded.
    pub(crate) fn take(&mut self, mut messages: Vec<LogMessage>, full: bool, shards: i16) -> Option<Page> {
        let sent = self.sent;
        let reading = self.next()?;
        let window = Arc::clone(reading.window()?);
        let last = reading.page().is_none_or(|range| {
            let read_to = messages.last().filter(|_| full).map_or(range.to, |message| message.position);
            reading.read(read_to)
        });
        messages.retain(|message| !reading.was_delivered(message.slot % shards, message.position));
        let send = sent || !messages.is_empty() || (last && window.until.is_end());
        let (shards, read_to) = (reading.shards.as_slice().into(), reading.read_to());
        if last {
            reading.close();
        }
        self.sent = send && !last;
        send.then_some(Page { window, shards, messages, read_to, last })
    }
}
