//! Held keys: each is tried again in its time, drained in order when that succeeds, and parked when it will not.
//!
//! Keys are tried many at a time. What may have ended the relay's process is tried while no other held key is: first in
//! groups that grow with each success, then alone.

mod drain;
mod hand;
mod record;
mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use message::Publisher;
use sqlx::postgres::PgPool;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::availability::{PROBES, SharedAvailability};
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
    pub(super) async fn run(self, held: watch::Receiver<usize>) {
        tokio::join!(self.try_keys(held), self.reroute());
    }

    async fn try_keys(&self, mut held: watch::Receiver<usize>) {
        let mut changes = self.availability.subscribe();
        let mut hand = Hand::new(self.settings.batch, self.settings.max_attempts);
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
            let pause = self.pause(&hand);
            let is_stopped = self.stop.is_cancelled();
            if is_stopped && hand.is_empty() {
                return;
            }
            tokio::select! {
                Some(error) = hand.ended() => {
                    let mut ended = Some(error);
                    // All that has ended meanwhile: what begins next is looked for once.
                    while let Some(error) = ended {
                        error.iter().for_each(|error| self.could_not_be_tried(error));
                        ended = hand.ended().now_or_never().flatten();
                    }
                }
                () = self.stop.cancelled(), if !is_stopped => {}
                changed = changes.changed(), if !is_stopped => if changed.is_err() { return },
                () = tokio::time::sleep(pause), if !is_stopped => {}
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
    fn pause(&self, hand: &Hand<'_>) -> Duration {
        if hand.probing() >= PROBES {
            return LOOK;
        }
        let now = Instant::now();
        let probe = self.availability.with(|state| {
            let waited_for = state.waited_for();
            state.next_probe_at(waited_for.iter().map(|(destination, _)| destination), now)
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
            let due = self.due(hand.limit() + hand.positions().len());
            let due = hand.beside(due).await?;
            hand.offer(due);
        }
        self.begin_waiting(hand, now).await?;
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

    /// Begins probes of destinations for which keys wait, as many as are to be probed at once, and finds keys that waited for
    /// those that are back. One statement finds the keys of all of them.
    async fn begin_waiting<'h>(&'h self, hand: &mut Hand<'h>, now: Instant) -> Result<(), sqlx::Error> {
        let numbers: BTreeMap<_, _> =
            self.availability.with(|state| state.waited_for()).into_iter().collect();
        let (mut probes, mut back): (Vec<Arc<str>>, Vec<Arc<str>>) = self.availability.with(|state| {
            let down = numbers.keys().filter(|destination| !hand.probes(destination));
            (
                state.due_probes(down, now),
                numbers.keys().filter(|destination| !state.is_down(destination)).cloned().collect(),
            )
        });
        probes.truncate(if hand.gives_way(now) { 0 } else { PROBES.saturating_sub(hand.probing()) });
        back = hand.next_back(back);
        if probes.is_empty() && back.is_empty() {
            return Ok(());
        }
        let each = (hand.limit() / back.len().max(1)).max(1);
        let asked = probes.iter().map(|destination| (destination, 1));
        let asked: Vec<_> = asked.chain(back.iter().map(|destination| (destination, each))).collect();
        let waiting = self.waiting(&asked, hand.positions());
        let mut waiting = hand.beside(waiting).await?;
        let found = |destination: &&Arc<str>| !waiting.contains_key(&***destination);
        let without: Vec<_> = probes.iter().chain(&back).filter(found).cloned().collect();
        self.no_key_waits(hand, &without, &numbers).await?;
        for destination in probes {
            if let Some(key) = waiting.remove(&*destination).and_then(|keys| keys.first().copied()) {
                let probe = self.drain(vec![key], Some(Arc::clone(&destination)));
                hand.begin(Plan::Probe(key, destination), Box::pin(probe));
            }
        }
        back.iter()
            .filter_map(|destination| waiting.remove(&**destination))
            .for_each(|keys| hand.offer(keys));
        Ok(())
    }

    /// No key waits for these destinations, but for those that are being tried: one of these waits still, since what comes of
    /// it may not be recorded.
    async fn no_key_waits(
        &self,
        hand: &mut Hand<'_>,
        destinations: &[Arc<str>],
        numbers: &BTreeMap<Arc<str>, u64>,
    ) -> Result<(), sqlx::Error> {
        let mut in_hand = BTreeMap::new();
        if !destinations.is_empty() && !hand.is_empty() {
            let asked: Vec<_> = destinations.iter().map(|destination| (destination, 1)).collect();
            let waiting = self.waiting(&asked, Vec::new());
            in_hand = hand.beside(waiting).await?;
        }
        self.availability.with(|state| {
            for destination in
                destinations.iter().filter(|destination| !in_hand.contains_key(&***destination))
            {
                if let Some(number) = numbers.get(destination) {
                    state.no_key_waits(destination, *number);
                }
            }
        });
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
