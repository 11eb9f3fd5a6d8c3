//! One life of a relay process between two failures of the database, or two ways of sharing: from the recorded cursors
//! on, everything is in memory, and when anything about the log goes wrong all of it is thrown away.

mod beyond;
mod destinations;
mod open;
mod publish;
mod record;
mod unreadable;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use message::{Outcome, Publisher};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::availability::SharedAvailability;
use super::holds::Notice;
use super::lanes::{Item, Lanes, Resting};
use super::routes::Router;
use super::settled::Settled;
use super::{Relay, Settings};
use crate::log::{
    Eras, Lease, LogConnection, LogError, LogMessage, NewHold, Page, Progress, RecordCommand, Share, Store,
};
use beyond::Found;

/// How a session ended, if not by an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was told to, and has left the relay.
    Stopped,
    /// The shards are shared anew: the next session takes its part.
    Shared,
    /// It was thought dead.
    LeaseLost,
}

/// What a task of the session ended with.
enum Task {
    Reader(Result<(LogConnection, Store), LogError>),
    Lease(Result<(), sqlx::Error>),
    Holds,
}

/// How often the cursors of shards without messages are recorded, too, while others have some: a takeover need not read
/// again what they have long passed. Before a process rests, which it does after 8 seconds at the earliest: a record is work.
const QUIET: Duration = Duration::from_secs(5);

/// Owners of a shard that died in a row, without its cursor moving, before it is thought that a message kills them.
const SUSPICIOUS: i32 = 2;

/// A batch on the wire; a message leaves it when its outcome is known.
struct Batch {
    items: Vec<Option<Item>>,
    left: usize,
}

pub(super) struct Session<'a, P> {
    relay: &'a Relay<P>,
    settings: &'a Settings,
    shards: i16,
    /// The shards that are ours, at which epochs, since when, and how the lease sees it.
    epochs: BTreeMap<i16, i64>,
    acquired: Instant,
    /// Some of them beyond its fair share.
    beyond: bool,
    share: watch::Receiver<Share>,
    lease: Arc<Lease>,
    lanes: Lanes,
    router: Router,
    progress: BTreeMap<i16, Progress>,
    batches: HashMap<u64, Batch>,
    last_batch: u64,
    on_wire: usize,
    outcomes: (mpsc::UnboundedSender<Outcome>, mpsc::UnboundedReceiver<Outcome>),
    pages: Option<mpsc::Receiver<Page>>,
    records: Option<mpsc::Sender<RecordCommand>>,
    notices: mpsc::Receiver<Notice>,
    /// The record being written, the holds to which it copies, and the destinations that its new holds wait for.
    writing: Option<oneshot::Receiver<Vec<i16>>>,
    writing_copies: HashSet<i64>,
    writing_waits: HashSet<Arc<str>>,
    new_holds: Vec<NewHold>,
    copies: Vec<(i64, LogMessage)>,
    copied_bytes: usize,
    /// Held keys by the position that names the hold, and those about to be released.
    held: BTreeMap<i64, Option<Arc<str>>>,
    releasing: BTreeSet<i64>,
    held_count: watch::Sender<usize>,
    /// Messages of held keys that are done with, and that a cursor may not have passed; and when that was last asked.
    settled: Settled,
    settled_since: Instant,
    eras: Eras,
    /// Shards whose owners died again and again before their cursor moved, and how often; and whether what was held for
    /// that reason is being recorded.
    suspects: BTreeMap<i16, i32>,
    on_suspicion: bool,
    /// Confirmed since the last record, and whether any was since quiet shards were recorded, and when that was.
    confirmed: u64,
    moved: bool,
    quiet_since: Instant,
    resting: Vec<(Instant, Resting)>,
    availability: Arc<SharedAvailability>,
    changes: watch::Receiver<u64>,
    /// What lies beyond the pages read, and is looked for while the look-ahead is full of what cannot be sent.
    read_to: i64,
    looking: JoinSet<Result<Found, sqlx::Error>>,
    look_beyond_at: Instant,
    /// From where the last look read, and how far it came, if it was not at the end.
    looked_to: Option<(i64, i64)>,
    publishing: JoinSet<()>,
    tasks: JoinSet<Task>,
    /// No further attempt at a held message begins; and its task has ended.
    holds_stop: CancellationToken,
    holds_ended: bool,
    /// Nothing more is read; what is on the wire is waited for, until then.
    ending: Option<(Ended, Instant)>,
    /// It ends now: what comes of what is on the wire is not waited for any more.
    leaving: bool,
}

impl<'a, P: Publisher + 'static> Session<'a, P> {
    /// Publishes until it is stopped, the shards are to be shared anew, the lease is lost, or the database fails.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Result<Ended, LogError> {
        let mut tick = tokio::time::interval(self.settings.record_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut outcomes = Vec::new();
        self.relay.busy.is_at_work();
        // What came between the look that these shards were acquired by and now is in no later change.
        self.lease.look_again();
        loop {
            let wake_at = self.wake_at();
            let room = self.has_room(1) || self.reads_beyond();
            tokio::select! {
                biased;
                () = stop.cancelled(), if !self.ends_with(Ended::Stopped) => self.end(Ended::Stopped),
                Some(task) = self.tasks.join_next() => match task {
                    Ok(Task::Reader(Err(error))) => return Err(error),
                    // Then it is to stop, and what is on the wire is waited for; the lease ends by itself.
                    Ok(Task::Lease(Err(sqlx::Error::PoolClosed))) => {}
                    Ok(Task::Lease(Err(error))) => return Err(error.into()),
                    Ok(Task::Lease(Ok(()))) => return Ok(Ended::LeaseLost),
                    Ok(Task::Holds) => self.holds_ended = true,
                    // Nothing in memory can be relied on.
                    Ok(Task::Reader(Ok(_))) | Err(_) => return Err(LogError::ReaderEnded),
                },
                Ok(()) = self.share.changed() => self.look_at_share(),
                Some(published) = self.publishing.join_next() => if let Err(error) = published {
                    // It has let go of its batch, whose outcome is unknown by that.
                    tracing::error!(relay = self.relay.name, %error, "the publisher panicked");
                },
                Some(lost) = answer(&mut self.writing) => {
                    self.written();
                    self.lose(&lost);
                }
                _ = self.outcomes.1.recv_many(&mut outcomes, 1024) => {
                    for outcome in outcomes.drain(..) {
                        self.take_outcome(outcome);
                    }
                }
                Some(notice) = self.notices.recv() => self.take_notice(notice),
                Ok(()) = self.changes.changed() => {}
                Some(looked) = self.looking.join_next() => self.looked_beyond(looked),
                Some(page) = next(&mut self.pages), if room => self.take_page(page),
                () = tokio::time::sleep_until(wake_at) => {}
                _ = tick.tick() => {
                    self.set_aside();
                    self.record(false);
                }
            }
            self.wake();
            self.follow_destinations();
            if let Some((ended, deadline)) = self.ending {
                self.copies_from_lanes();
                // A held message that is on the wire is recorded by its own task, while the shard is still ours.
                let answered = self.batches.is_empty() && self.holds_ended;
                if answered || Instant::now() >= deadline {
                    if !answered {
                        tracing::warn!(
                            relay = self.relay.name,
                            on_wire = self.on_wire,
                            held_on_wire = !self.holds_ended,
                            "messages on the wire were not answered in time: they may be published again"
                        );
                    }
                    return self.leave(ended).await;
                }
                continue;
            }
            self.send();
            self.hold_for_destinations();
            self.look_beyond();
            if self.lanes.len() > 0 || self.unrecorded() > 0 {
                self.relay.busy.is_at_work();
                self.lease.is_at_work();
            }
            if !self.new_holds.is_empty() || self.unrecorded() >= self.settings.max_unrecorded / 2 {
                self.record(false);
            }
        }
    }

    /// Whether less than a part of the look-ahead, 1 of so many, is taken.
    fn has_room(&self, part: usize) -> bool {
        self.lanes.len() + self.unrecorded() < self.settings.max_unrecorded / part
            && self.lanes.bytes() + self.copied_bytes < self.settings.max_bytes / part
    }

    /// Nothing more is read or sent, and what is on the wire is waited for. What is confirmed and lies behind what was not
    /// sent is recorded as settled, so that the next owner does not repeat it.
    fn end(&mut self, ended: Ended) {
        self.pages = None;
        self.holds_stop.cancel();
        self.ending = Some((ended, Instant::now() + self.settings.drain));
    }

    fn ends_with(&self, ended: Ended) -> bool {
        self.ending.is_some_and(|(ending, _)| ending == ended)
    }

    /// Whether the lease still holds, by the local clock: a process that stood still must look before it sends. A renewal
    /// that was not looked at yet does not count: it may say that the shards are another's, and what was read since would
    /// be sent by both.
    fn lease_holds(&self) -> bool {
        let unseen = self.share.has_changed().unwrap_or(true);
        !unseen && self.share.borrow().renewed.elapsed() < self.settings.lease * 3 / 4
    }

    fn look_at_share(&mut self) {
        let (lost, shares_anew) = {
            let share = self.share.borrow_and_update();
            if share.renewed < self.acquired {
                // Read before these shards were acquired. What it says of others may be news all the same, and no look at
                // the log would bring it again.
                self.lease.look_again();
                return;
            }
            let lost = self.epochs.iter().filter(|(shard, epoch)| !share.owns(**shard, **epoch));
            let lost: Vec<i16> = lost.map(|(shard, _)| *shard).collect();
            let had_for = self.acquired.elapsed();
            let due = share.is_due(self.epochs.len(), had_for, self.beyond, self.settings.lease);
            (lost, !share.running || due)
        };
        self.lose(&lost);
        if shares_anew && self.ending.is_none() {
            self.end(Ended::Shared);
        }
    }

    /// Others own these shards: nothing more of them is sent or recorded.
    fn lose(&mut self, shards: &[i16]) {
        if shards.is_empty() {
            return;
        }
        tracing::warn!(relay = self.relay.name, ?shards, "leases lost: other processes have these shards");
        for shard in shards {
            self.epochs.remove(shard);
            self.progress.remove(shard);
        }
        if self.ending.is_none() {
            self.end(Ended::Shared);
        }
    }

    /// Records what was confirmed and hands over what is another's, in bounded time: after it, the lease ends by itself.
    async fn leave(mut self, ended: Ended) -> Result<Ended, LogError> {
        self.leaving = true;
        match tokio::time::timeout(self.settings.drain, self.hand_over(ended)).await {
            Ok(handed_over) => {
                let shards = handed_over?;
                tracing::info!(relay = self.relay.name, ?shards, "shards handed over");
            }
            Err(_) => tracing::warn!(
                relay = self.relay.name,
                "the database did not answer in time: shards are free when the lease ends"
            ),
        }
        Ok(ended)
    }

    async fn hand_over(&mut self, ended: Ended) -> Result<Vec<i16>, LogError> {
        for _ in 0..2 {
            if let Some(writing) = self.writing.take() {
                let _ = writing.await;
                self.written();
            }
            self.record(true);
        }
        if let Some(writing) = self.writing.take() {
            let _ = writing.await;
        }
        // The reader gives back its connection when nobody sends records any more.
        self.records = None;
        while let Some(task) = self.tasks.join_next().await {
            let Ok(Task::Reader(reader)) = task else { continue };
            let (mut log, mut store) = reader?;
            let owned: Vec<i16> = self.epochs.keys().copied().collect();
            // Of one that is paused no process lives.
            if ended == Ended::Stopped || !self.share.borrow().running {
                store.leave(log.connection()).await?;
                return Ok(owned);
            }
            let kept = self.share.borrow().fair().min(owned.len());
            store.release(log.connection(), &owned[kept..]).await?;
            return Ok(owned[kept..].to_vec());
        }
        Err(LogError::ReaderEnded)
    }
}

/// The answer to the record being written; never, if there is none.
async fn answer(writing: &mut Option<oneshot::Receiver<Vec<i16>>>) -> Option<Vec<i16>> {
    match writing {
        Some(receiver) => match receiver.await {
            Ok(lost) => Some(lost),
            Err(_) => {
                // The reader's own task tells of its end. Whoever asks the same receiver once more, before it has, panics.
                *writing = None;
                std::future::pending().await
            }
        },
        None => std::future::pending().await,
    }
}

async fn next(pages: &mut Option<mpsc::Receiver<Page>>) -> Option<Page> {
    match pages {
        Some(pages) => pages.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_will_not_come_is_waited_for_more_than_once() {
        let (sender, receiver) = oneshot::channel();
        drop(sender);
        let mut writing = Some(receiver);
        // As the session's loop does, which drops the wait whenever something else happens.
        for _ in 0..2 {
            let waited = tokio::time::timeout(Duration::from_millis(1), answer(&mut writing)).await;
            assert!(waited.is_err());
        }
    }
}
