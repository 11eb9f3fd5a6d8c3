//! Reads the log for all shards of a process, one page after another, and writes its records, on one connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::connection::LogConnection;
use super::lease::Lease;
use super::pace::Pace;
use super::progress::Progress;
use super::readings::{Page, Readings};
use super::store::{Cursor, Record, Store};
use super::{LogError, ReadSettings};
use crate::bell::Ear;
use crate::statement::within;

/// How long the database may take to answer a look. The lease is renewed on another connection: when a network swallows this
/// one alone, nothing but the time says so.
const ANSWER: Duration = Duration::from_secs(60);
/// The same for a page, or a record, which may be long or wait for a lock.
const PAGE: Duration = Duration::from_secs(300);

/// A record to write, and where the answer goes: the shards whose lease is lost.
pub type RecordCommand = (Record, oneshot::Sender<Vec<i16>>);

/// Produces the pages of the shards it was given, in order, until nobody wants them.
#[derive(Debug)]
pub struct Reader {
    connection: LogConnection,
    store: Store,
    settings: ReadSettings,
    readings: Readings,
    proven: i64,
    proven_at: Instant,
    read_since_proof: usize,
    pace: Pace,
    ear: Ear,
    /// Changes at each ring of a doorbell, and says whether one would be heard.
    doorbell: watch::Receiver<bool>,
    heard: bool,
    look_at: Instant,
    /// How long messages were of late.
    length: usize,
    /// Positions above the proven bound at the last look.
    scanned: i64,
    /// Since the last look: whether anything was found, and whether a page was full.
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
            readings: Readings::default(),
            proven,
            proven_at: Instant::now(),
            read_since_proof: 0,
            ear: Ear::new(),
            // Nobody rings.
            doorbell: watch::channel(false).1,
            heard: false,
            look_at: Instant::now(),
            length: 0,
            scanned: 0,
            found: false,
            full: false,
            lease,
        };
        for cursor in cursors {
            reader.readings.add(&cursor.record, &look, reader.store.eras());
        }
        Ok(reader)
    }

    /// Looks when a doorbell rings, which is true while it would be heard; then it looks by itself less often.
    pub(crate) fn with_doorbell(mut self, doorbell: watch::Receiver<bool>) -> Self {
        self.doorbell = doorbell;
        self.doorbell.mark_changed();
        self
    }

    /// Where each shard's progress begins.
    pub fn progress(cursors: &[Cursor]) -> Vec<Progress> {
        cursors.iter().map(|cursor| Progress::resume(&cursor.record)).collect()
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
            let open = self.readings.is_open();
            let waiting = !open && !self.readings.is_empty();
            tokio::select! {
                biased;
                command = records.recv() => match command {
                    Some((record, answer)) => {
                        self.lease.is_at_work();
                        let record = self.connection.record(&mut self.store, record);
                        let lost = within(PAGE, record).await?;
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
                    self.hear();
                }
                Ok(()) = self.doorbell.changed(), if waiting && !self.heard => {
                    let usual = self.settings.poll_ceiling;
                    let is_heard = *self.doorbell.borrow_and_update();
                    self.pace.rise_to(if is_heard { usual.max(self.settings.doorbell_ceiling) } else { usual });
                    self.hear();
                }
            }
        }
    }

    /// A bell: somebody has enqueued, or rings may have been lost.
    fn hear(&mut self) {
        self.heard = true;
        self.look_at = self.look_at.min(Instant::now() + self.pace.heard());
    }

    async fn look(&mut self) -> Result<(), LogError> {
        self.heard = false;
        // Before the look: a bound holds for snapshots taken after it was proven. Not on idle looks, which must not
        // write; but many positions that nobody can see yet are worth a transaction id now and then, since every look
        // scans them.
        let many = self.scanned > 4 * i64::try_from(self.settings.page).unwrap_or(i64::MAX);
        let due = self.proven_at.elapsed() >= self.settings.proof_interval;
        if self.read_since_proof >= self.settings.page || (due && (self.read_since_proof > 0 || many)) {
            self.proven = within(ANSWER, self.connection.prove_bound()).await?;
            self.proven_at = Instant::now();
            self.read_since_proof = 0;
        }
        let began = Instant::now();
        let look = within(ANSWER, self.connection.look(self.store.relay())).await?;
        metrics::histogram!("outbox_look_seconds", "relay" => self.store.relay().to_owned())
            .record(began.elapsed().as_secs_f64());
        self.lease.has_seen(look.changes, began);
        self.scanned = look.last_position - self.proven;
        (self.found, self.full) = (false, false);
        if !self.readings.look(&look, self.proven, self.store.eras()) {
            self.rest();
        }
        Ok(())
    }

    /// When to look again.
    fn rest(&mut self) {
        let pause = if self.found { self.pace.found(self.full) } else { self.pace.nothing() };
        self.look_at = Instant::now() + pause;
    }

    /// How many messages to ask for: not many more than a page's bytes hold, if they go on as they were.
    fn limit(&self) -> usize {
        (self.settings.page_bytes / self.length.max(1) + 1).clamp(1, self.settings.page)
    }

    /// Reads a page of the oldest open window. `None`: it had nothing to send.
    async fn page(&mut self) -> Result<Option<Page>, LogError> {
        let limit = self.limit();
        let Some(reading) = self.readings.next() else { return Ok(None) };
        if let Some((stragglers, from, to)) = reading.far_stragglers() {
            let first = within(PAGE, self.connection.first_of(stragglers, from, to)).await?;
            reading.first_is(first);
        }
        let Some(window) = reading.window().cloned() else { return Ok(None) };
        let (flushed, shards) = (reading.must_be_flushed(), self.store.shards());
        let (mut messages, mut full) = (Vec::new(), false);
        if let Some(range) = reading.page() {
            let bytes = self.settings.page_bytes;
            let began = Instant::now();
            let page = self.connection.page(&window, &range, limit, bytes, shards, &reading.shards);
            (messages, full) = within(PAGE, page).await?;
            metrics::histogram!("outbox_page_seconds", "relay" => self.store.relay().to_owned())
                .record(began.elapsed().as_secs_f64());
            if let Some(last) = messages.last() {
                let read: usize = messages.iter().map(|log| log.message.payload.len()).sum();
                self.length = (read / messages.len()).max(last.message.payload.len());
            }
            self.full |= full;
            self.read_since_proof += messages.len();
        }
        let page = self.readings.take(messages, full, shards);
        if page.as_ref().is_some_and(|page| !page.messages.is_empty()) {
            self.lease.is_at_work();
            within(PAGE, self.connection.make_durable(flushed)).await?;
        }
        self.found |= page.is_some();
        if !self.readings.is_open() {
            self.rest();
        }
        Ok(page)
    }
}
