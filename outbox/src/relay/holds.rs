//! Held keys: each is tried again in its time, drained in order when that succeeds, and parked when it will not.
//!
//! Keys are tried many at a time. What may have ended the relay's process is tried while no other held key is: first in
//! groups that grow with each success, then alone.

mod drain;
mod hand;
mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use message::Publisher;
use sqlx::postgres::PgPool;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::availability::SharedAvailability;
use super::claim::Unmade;
use super::settled::SettledMessage;
use super::{Settings, chain};
use crate::log::Lease;
use hand::{Hand, Plan};
pub(crate) use rows::shorten;
pub(super) use rows::{Due, Loaded};

/// How often due keys are looked for while any key is held. A redrive by an operator is noticed as soon.
const LOOK: Duration = Duration::from_millis(250);
/// How long the database may take to answer: a network can swallow the connection of a held key and no other, so that the
/// session goes on, and these keys would wait for its end.
const ANSWER: Duration = Duration::from_secs(10);

/// What the session must know of a hold.
#[derive(Debug)]
pub(super) enum Notice {
    /// Nothing of these is held in the database any more. Answers which of the keys may go: not those of which copies are on
    /// their way.
    MayRelease(Vec<i64>, oneshot::Sender<Vec<i64>>),
    /// Of the keys that might go, these went.
    Released {
        /// Those that might.
        asked: Vec<i64>,
        /// Those that went, each with its messages that are settled.
        gone: Vec<(i64, Vec<SettledMessage>)>,
    },
    /// Held messages were published or given up, and the cursors have not passed them.
    Settled(Vec<SettledMessage>),
    /// So many held messages were published.
    Published(u64),
}

/// Tries the held keys of the shards that a session owns.
#[derive(Debug)]
pub(super) struct Holds<P> {
    pub(super) relay: String,
    pub(super) pool: PgPool,
    pub(super) publisher: Arc<P>,
    pub(super) settings: Settings,
    pub(super) shards: i16,
    pub(super) epochs: BTreeMap<i16, i64>,
    /// When these shards were acquired, and the lease on them.
    pub(super) acquired: Instant,
    pub(super) lease: Arc<Lease>,
    pub(super) notices: mpsc::Sender<Notice>,
    pub(super) availability: Arc<SharedAvailability>,
    pub(super) unmade: Unmade,
    /// No further attempt begins.
    pub(super) stop: CancellationToken,
}

impl<P: Publisher> Holds<P> {
    /// Works while keys are held (`held` says how many), until the session ends. What is being published is recorded then.
    pub(super) async fn run(self, mut held: watch::Receiver<usize>) {
        let mut changes = self.availability.subscribe();
        let mut hand = Hand::new(self.settings.batch, self.settings.max_attempts);
        // The log is read on another connection, which may well be fine: only these keys wait.
        if let Err(error) = self.reroute().await {
            self.could_not_be_tried(&error);
        }
        loop {
            if hand.is_empty() {
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    known = held.wait_for(|count| *count > 0) => if known.is_err() { return },
                }
            }
            if !self.stop.is_cancelled()
                && let Err(error) = self.begin(&mut hand).await
            {
                self.could_not_be_tried(&error);
            }
            let is_stopped = self.stop.is_cancelled();
            if is_stopped && hand.is_empty() {
                return;
            }
            tokio::select! {
                Some(error) = hand.ended() => {
                    if let Some(error) = error {
                        self.could_not_be_tried(&error);
                    }
                }
                () = self.stop.cancelled(), if !is_stopped => {}
                changed = changes.changed(), if !is_stopped => if changed.is_err() { return },
                () = tokio::time::sleep(self.pause()), if !is_stopped => {}
            }
        }
    }

    /// Whether these keys' shards are still ours, by the local clock: a process that stood still must look before it sends.
    fn lease_holds<'k>(&self, keys: impl IntoIterator<Item = &'k Due>) -> bool {
        let shares = self.lease.shares();
        let share = shares.borrow();
        // What was read before the shards were acquired does not know of them.
        let knows = share.renewed >= self.acquired;
        share.renewed.elapsed() < self.settings.lease * 3 / 4
            && keys.into_iter().all(|key| !knows || share.owns(key.shard, key.epoch))
    }

    /// Until there may be something to begin.
    fn pause(&self) -> Duration {
        let now = Instant::now();
        let probe = self.availability.with(|state| {
            let waited_for = state.waited_for();
            let probes = waited_for.iter().filter_map(|(destination, _)| state.probe_at(destination, now));
            probes.min()
        });
        let probe = probe.map_or(LOOK, |at| at.saturating_duration_since(now));
        // One that is due and not sent has no key to send.
        probe.clamp(Duration::from_millis(5), LOOK)
    }

    /// Begins what there is room for.
    async fn begin<'h>(&'h self, hand: &mut Hand<'h>) -> Result<(), sqlx::Error> {
        let now = Instant::now();
        if self.availability.with(|state| state.paused_until(now).is_some()) || hand.is_exclusive() {
            return Ok(());
        }
        if !self.lease_holds([]) {
            self.lease.look_again();
            return Ok(());
        }
        if hand.has_room() {
            // What is being tried may be due.
            let due = self.due(hand.limit() + hand.positions().len()).await?;
            hand.offer(due);
        }
        for (destination, number) in self.availability.with(|state| state.waited_for()) {
            let (is_down, probes) = self
                .availability
                .with(|state| (state.is_down(&destination), state.is_probe_due(&destination, now)));
            let limit = match is_down {
                false if hand.has_room() => hand.limit(),
                true if probes && !hand.probes(&destination) => 1,
                _ => continue,
            };
            let waiting = self.waiting(&destination, limit, hand.positions()).await?;
            match waiting.first().copied() {
                // One that is being tried waits, too: what comes of it may not be recorded.
                None if !hand.is_empty() && !self.waiting(&destination, 1, Vec::new()).await?.is_empty() => {}
                None => self.availability.with(|state| state.no_key_waits(&destination, number)),
                Some(key) if is_down => {
                    let probe = self.drain(vec![key], Some(Arc::clone(&destination)));
                    hand.begin(Plan::Probe(key, destination), Box::pin(probe));
                }
                Some(_) => hand.offer(waiting),
            }
        }
        for plan in hand.plans(now) {
            match plan.clone() {
                Plan::Together(keys) => hand.begin(plan, Box::pin(self.drain(keys, None))),
                Plan::Exclusive { group, alone } => {
                    hand.begin(plan, Box::pin(self.drain_exclusively(group, alone)));
                }
                Plan::Probe(..) => {}
            }
        }
        Ok(())
    }

    /// Tries what may end the process: a group, then keys one after the other.
    async fn drain_exclusively(&self, group: Vec<Due>, alone: Vec<Due>) -> Result<(), sqlx::Error> {
        let mut result = Ok(());
        if !group.is_empty() {
            result = self.drain(group, None).await;
        }
        for key in alone {
            if self.stop.is_cancelled() {
                break;
            }
            // A key whose attempt failed keeps no other waiting.
            if let Err(error) = self.drain(vec![key], None).await {
                result = Err(error);
            }
        }
        result
    }

    fn could_not_be_tried(&self, error: &sqlx::Error) {
        tracing::warn!(relay = self.relay, error = chain(error), "a held key could not be tried");
    }
}
