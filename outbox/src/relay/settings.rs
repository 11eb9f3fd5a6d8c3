//! What an operator may set on a relay, and what each setting does.

use std::time::Duration;

use message::limits::LONGEST;

use super::{Backoff, Policies, Routes};
use crate::log::{ReadSettings, Start};

/// The settings of a relay, with defaults that suit most.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// Where a relay that is new begins.
    pub start: Start,
    /// Into how many shards a new relay divides the log: at most so many processes share the work. 1 to 1024.
    pub shards: i16,
    /// How the log is read.
    pub read: ReadSettings,
    /// Listens, on a connection of its own, for services whose [`Doorbell`](crate::Doorbell) rings, and looks less often
    /// by itself while it can ([`doorbell_ceiling`](ReadSettings::doorbell_ceiling)): so long waits what is enqueued
    /// without one. A pooler in transaction mode passes no ring on; then the relay polls as without.
    pub doorbell: bool,
    /// Most messages handed to the publisher at once.
    pub batch: usize,
    /// Most messages on the wire at once.
    pub max_on_wire: usize,
    /// Most messages read and not yet recorded: what a crash may repeat, and what is held in memory. While destinations are
    /// down and none confirms, up to twice as many, to try another one.
    pub max_unrecorded: usize,
    /// Most bytes of payloads in memory, not counting two pages that are being read
    /// ([`page_bytes`](ReadSettings::page_bytes)).
    pub max_bytes: usize,
    /// How often progress is recorded. A crash repeats what was confirmed since.
    pub record_interval: Duration,
    /// How long a process may be silent before another takes its shards, and the upkeep of the log if it has it.
    pub lease: Duration,
    /// How long messages are kept in the log when every relay has delivered them, if the log does not come round to
    /// their place before: it keeps the last twelve million or so. The longest of all relays of the database counts.
    pub retention: Duration,
    /// How long a stop waits for what is on the wire.
    pub drain: Duration,
    /// How long a publisher may take for a batch before its outcome counts as unknown.
    pub publish_timeout: Duration,
    /// Where topics go.
    pub routes: Routes,
    /// Waits between attempts at a message that the broker rejects.
    pub retry: Backoff,
    /// Attempts at such a message before its key is parked, or what else its topic's policy says.
    pub max_attempts: u32,
    /// What becomes of a key then, by topic.
    pub policies: Policies,
    /// Waits while the broker is unavailable.
    pub unavailable: Backoff,
}

/// Messages, more than memory holds.
const MOST: usize = 1 << 24;

impl Settings {
    /// With what would stand still raised to the least that moves, and what would overflow lowered to the most that does
    /// not.
    pub(super) fn clamped(mut self) -> Self {
        self.read = self.read.clamped();
        for count in [&mut self.batch, &mut self.max_on_wire, &mut self.max_unrecorded] {
            *count = (*count).min(MOST);
        }
        for time in [
            &mut self.record_interval,
            &mut self.lease,
            &mut self.retention,
            &mut self.drain,
            &mut self.publish_timeout,
        ] {
            *time = (*time).min(LONGEST);
        }
        let least = Duration::from_millis(1);
        self.shards = self.shards.clamp(1, 1024);
        self.batch = self.batch.max(1);
        self.max_on_wire = self.max_on_wire.max(1);
        self.max_unrecorded = self.max_unrecorded.max(2);
        self.max_bytes = self.max_bytes.max(1);
        self.record_interval = self.record_interval.max(least);
        self.lease = self.lease.max(least * 100);
        self
    }
}

impl Default for Settings {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Settings {
            start: Start::Beginning,
            shards: 16,
            read: ReadSettings::default(),
            doorbell: false,
            batch: 500,
            max_on_wire: 4000,
            max_unrecorded: 10_000,
            max_bytes: 64 << 20,
            record_interval: ms(100),
            lease: ms(10_000),
            retention: ms(3 * 86_400_000),
            drain: ms(10_000),
            publish_timeout: ms(30_000),
            routes: Routes::default(),
            retry: Backoff { first: ms(200), ceiling: ms(300_000) },
            max_attempts: 10,
            policies: Policies::default(),
            unavailable: Backoff { first: ms(50), ceiling: ms(5_000) },
        }
    }
}
