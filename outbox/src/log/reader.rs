//! Reads the log for all shards of a process, one page after another, and writes its records, on one connection.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::connection::{LogConnection, Page};
use super::lease::Lease;
use super::pace::Pace;
use super::progress::{CursorRecord, Progress};
use super::store::{Cursor, Record, Store};
use super::window::{Look, Reading};
use super::{LogError, ReadSettings};
use crate::bell::Ear;

/// A record to write, and where the answer goes: the shards whose lease is lost.
pub type RecordCommand = (Record, oneshot::Sender<Vec<i16>>);

/// Produces the pages of the shards it was given, in order, until nobody wants them.
#[derive(Debug)]
pub struct Reader {
    connection: LogConnection,
    store: Store,
    settings: ReadSettings,
    readings: Vec<Reading>,
    windows: u64,
    proven: i64,
    proven_at: Instant,
    read_since_proof: usize,
    pace: Pace,
    ear: Ear,
    heard: bool,
    look_at: Instant,
    /// How long messages were of late.
    length: usize,
    /// Positions above the proven bound at the last look.
    scanned: i64,
    /// Of the window being read: whether a page was sent. Of all since the last look: whether anything was found, and
    /// whether a page was full.
    sent: bool,
    found: bool,
    full: bool,
    /// Nudged when a look has seen that the sharing has changed.
    lease: Arc<Lease>,
}

impl Reader {
    /// Reads from the cursors given, which `store` owns for as long as the lease holds.
    ///
    /// # Errors
    /// See [`LogError`].
    pub async fn new(
        mut connection: LogConnection,
        store: Store,
        cursors: &[Cursor],
        settings: ReadSettings,
        lease: Arc<Lease>,
    ) -> Result<Self, LogError> {
        let proven = connection.prove_bound().await?;
        let look = connection.look(store.relay()).await?;
        let mut reader = Reader {
            connection,
            store,
            pace: Pace::new(settings.busy_poll, settings.poll_ceiling),
            settings,
            readings: Vec::new(),
            windows: 0,
            proven,
            proven_at: Instant::now(),
            read_since_proof: 0,
            ear: Ear::new(),
            heard: false,
            look_at: Instant::now(),
            length: 0,
            scanned: 0,
            sent: false,
            found: false,
            full: false,
            lease,
        };
        for cursor in cursors {
            reader.add(&cursor.record, &look);
        }
        Ok(reader)
    }

    /// Where each shard's progress begins.
    pub fn progress(cursors: &[Cursor]) -> Vec<Progress> {
        cursors.iter().map(|cursor| Progress::new(cursor.shard, cursor.record.seen.clone())).collect()
    }

    fn add(&mut self, record: &CursorRecord, look: &Look) {
        let mut reading = Reading::new(vec![record.shard], record.seen.clone());
        if let Some(until) = &record.until {
            if let Some(other) = self.readings.iter_mut().find(|other| other.is_within(&record.seen, until)) {
                other.resume_beside(record.shard, record.after);
                return;
            }
            self.windows += 1;
            reading.resume(self.windows, until.clone(), record.after, look, self.store.eras());
        } else if let Some(other) = self.readings.iter_mut().find(|other| other.is_beside(&reading)) {
            other.join(reading);
            return;
        }
        self.readings.push(reading);
    }

    /// Reads and records until nobody sends records any more; stops reading when nobody takes pages. Then it is given
    /// back, to leave the relay.
    ///
    /// # Errors
    /// See [`LogError`]: all that is in memory is void.
    pub async fn run(
        mut self,
        pages: mpsc::Sender<Page>,
        mut records: mpsc::Receiver<RecordCommand>,
    ) -> Result<(LogConnection, Store), LogError> {
        loop {
            let open = self.readings.iter().any(|reading| reading.window().is_some());
            let waiting = !open && !self.readings.is_empty();
            tokio::select! {
                biased;
                command = records.recv() => match command {
                    Some((record, answer)) => {
                        let lost = self.store.record(&mut self.connection, record).await?;
                        // Nobody waits for it any more when the session is ending.
                        let _ = answer.send(lost);
                    }
                    None => return Ok((self.connection, self.store)),
                },
                permit = pages.reserve(), if open => match permit {
                    Ok(permit) => {
                        if let Some(page) = self.page().await? {
                            permit.send(page);
                        }
                    }
                    Err(_) => self.readings.clear(),
                },
                () = pages.closed(), if waiting => self.readings.clear(),
                () = tokio::time::sleep_until(self.look_at), if waiting => self.look().await?,
                () = self.ear.wait(), if waiting && !self.heard => {
                    self.ear.heard();
                    self.heard = true;
                    self.look_at = self.look_at.min(Instant::now() + self.pace.heard());
                }
            }
        }
    }

    async fn look(&mut self) -> Result<(), LogError> {
        self.heard = false;
        // Before the look: a bound holds for snapshots taken after it was proven. Not on idle looks, which must not
        // write; but many positions that nobody can see yet are worth a transaction id now and then, since every look
        // scans them.
        let many = self.scanned > 4 * i64::try_from(self.settings.page).unwrap_or(i64::MAX);
        let due = self.proven_at.elapsed() >= self.settings.proof_interval;
        if self.read_since_proof >= self.settings.page || (due && (self.read_since_proof > 0 || many)) {
            self.proven = self.connection.prove_bound().await?;
            self.proven_at = Instant::now();
            self.read_since_proof = 0;
        }
        let began = Instant::now();
        let look = self.connection.look(self.store.relay()).await?;
        metrics::histogram!("outbox_look_seconds", "relay" => self.store.relay().to_owned())
            .record(began.elapsed().as_secs_f64());
        self.lease.has_seen(look.changes);
        self.scanned = look.last_position - self.proven;
        self.align();
        (self.sent, self.found, self.full) = (false, false, false);
        let mut opened = false;
        for reading in &mut self.readings {
            self.windows += 1;
            opened |= reading.advance(self.windows, &look, self.proven, self.store.eras());
        }
        if !opened {
            self.rest();
        }
        Ok(())
    }

    /// When to look again.
    fn rest(&mut self) {
        let pause = if self.found { self.pace.found(self.full) } else { self.pace.nothing() };
        self.look_at = Instant::now() + pause;
    }

    /// Joins readings that have come to stand at the same place.
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

    /// How many messages to ask for: not many more than a page's bytes hold, if they go on as they were.
    fn limit(&self) -> usize {
        (self.settings.page_bytes / self.length.max(1) + 1).clamp(1, self.settings.page)
    }

    /// Reads a page of the oldest open window. `None`: it had nothing to send.
    async fn page(&mut self) -> Result<Option<Page>, LogError> {
        let limit = self.limit();
        let open = self.readings.iter_mut().filter(|reading| reading.window().is_some());
        let Some(reading) = open.min_by_key(|reading| reading.window().map(|window| window.id)) else {
            return Ok(None);
        };
        if let Some((stragglers, from, to)) = reading.far_stragglers() {
            let first = self.connection.first_of(stragglers, from, to).await?;
            reading.first_is(first);
        }
        let Some(window) = reading.window().cloned() else { return Ok(None) };
        let (mut messages, mut last) = (Vec::new(), true);
        if let Some(range) = reading.page() {
            let (bytes, shards) = (self.settings.page_bytes, self.store.shards());
            let began = Instant::now();
            let full;
            (messages, full) =
                self.connection.page(&window, &range, limit, bytes, shards, &reading.shards).await?;
            metrics::histogram!("outbox_page_seconds", "relay" => self.store.relay().to_owned())
                .record(began.elapsed().as_secs_f64());
            if let Some(last) = messages.last() {
                let read: usize = messages.iter().map(|log| log.message.payload.len()).sum();
                self.length = (read / messages.len()).max(last.message.payload.len());
            }
            let read_to = messages.last().filter(|_| full).map_or(range.to, |message| message.position);
            last = reading.read(read_to);
            self.full |= full;
            self.read_since_proof += messages.len();
            messages.retain(|message| !reading.was_delivered(message.slot % shards, message.position));
        }
        if !messages.is_empty() {
            self.connection.make_durable(reading.must_be_flushed()).await?;
        }
        let page = Page {
            window,
            shards: reading.shards.as_slice().into(),
            read_to: reading.read_to(),
            messages,
            last,
        };
        // The end of an era is told also if nothing was left of it, to be recorded.
        let send = !page.messages.is_empty() || self.sent || (last && page.window.until.is_end());
        self.found |= send;
        self.sent = send && !last;
        if last {
            reading.close();
            if self.readings.iter().all(|reading| reading.window().is_none()) {
                self.rest();
            }
        }
        Ok(send.then_some(page))
    }
}
