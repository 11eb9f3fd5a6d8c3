//! The broker: one log, its groups, and the faults asked for.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use message::limits::LONGEST;
use message::{Malformed, Message, Outgoing, PublishError, wire};
use tokio::sync::{Notify, watch};

use super::faults::Faults;
use super::group::Group;
use super::{Fault, MemoryPublisher, MemorySubscriber};

/// A broker in the process. Clones are the same broker.
///
/// A delivery that is not answered comes again after 30 seconds ([`with_answer_wait`](Self::with_answer_wait)), by
/// tokio's clock, so a test with paused time need not wait for it. The log is never shortened.
#[derive(Clone)]
pub struct Broker {
    shared: Arc<Shared>,
    answer_wait: Duration,
}

/// A message that the broker keeps.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Published {
    /// Where it was sent.
    pub destination: Arc<str>,
    /// What was sent.
    pub message: Arc<Message>,
}

pub(super) struct Shared {
    state: Mutex<State>,
    /// Something was published, answered, or made ready.
    pub(super) changed: Notify,
    pub(super) confirmations_held: watch::Sender<bool>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) log: Vec<Entry>,
    pub(super) groups: HashMap<Arc<GroupName>, Group>,
    pub(super) faults: Faults,
    pub(super) overlaps: usize,
    pub(super) subscribers: u64,
}

/// A group's positions belong to its name and to what it reads.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct GroupName {
    pub(super) name: String,
    pub(super) destinations: BTreeSet<String>,
}

impl GroupName {
    pub(super) fn wants(&self, entry: &Entry) -> bool {
        self.destinations.contains(&*entry.destination)
    }
}

pub(super) struct Entry {
    destination: Arc<str>,
    pub(super) received: Result<Arc<Message>, Malformed>,
}

impl Entry {
    pub(super) fn key(&self) -> Option<Arc<str>> {
        self.received.as_ref().ok()?.key.clone()
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock, so what a poisoned one holds is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Keeps the message or not, as the faults have it.
    pub(super) fn keep(&mut self, outgoing: &Outgoing) -> Result<(), PublishError> {
        let fate = self.faults.meet(outgoing);
        if fate.kept {
            self.log.push(Entry {
                destination: outgoing.destination.clone(),
                received: Ok(outgoing.message.clone()),
            });
        }
        fate.result
    }
}

impl Default for Broker {
    fn default() -> Self {
        Broker::new()
    }
}

impl Broker {
    /// An empty broker without faults.
    pub fn new() -> Self {
        let shared = Shared {
            state: Mutex::default(),
            changed: Notify::new(),
            confirmations_held: watch::Sender::new(false),
        };
        Broker { shared: Arc::new(shared), answer_wait: Duration::from_secs(30) }
    }

    /// How long subscribers made from now on wait for an answer before a delivery comes again.
    pub fn with_answer_wait(mut self, wait: Duration) -> Self {
        self.answer_wait = wait.min(LONGEST);
        self
    }

    /// A publisher to this broker.
    pub fn publisher(&self) -> MemoryPublisher {
        MemoryPublisher::new(self.shared.clone())
    }

    /// A subscriber of `group` to these destinations. The first of a group begins at the beginning of the log. A group
    /// has positions for each set of destinations it reads.
    pub fn subscriber(
        &self,
        group: &str,
        destinations: impl IntoIterator<Item = impl Into<String>>,
    ) -> MemorySubscriber {
        let group = GroupName {
            name: group.to_owned(),
            destinations: destinations.into_iter().map(Into::into).collect(),
        };
        MemorySubscriber::new(self.shared.clone(), group, self.answer_wait)
    }

    /// All messages that the broker keeps, in order. A copy stands there as often as it was published.
    pub fn published(&self) -> Vec<Published> {
        let state = self.shared.lock();
        let message = |entry: &Entry| {
            let message = entry.received.as_ref().ok()?.clone();
            Some(Published { destination: entry.destination.clone(), message })
        };
        state.log.iter().filter_map(message).collect()
    }

    /// Waits until the broker keeps at least `count` messages, and answers with all of them.
    pub async fn wait_for_published(&self, count: usize) -> Vec<Published> {
        self.wait_for(|| Some(self.published()).filter(|published| published.len() >= count)).await
    }

    /// How many messages the group has not acknowledged: those on their way to it, and those in its hands.
    pub fn unacknowledged(&self, group: &str) -> usize {
        let state = self.shared.lock();
        let mine = state.groups.iter().filter(|(name, _)| name.name == group);
        mine.map(|(name, group)| group.unacknowledged(&state.log, |entry| name.wants(entry))).sum()
    }

    /// Waits until `group` has acknowledged everything that is published.
    pub async fn wait_until_acknowledged(&self, group: &str) {
        self.wait_for(|| (self.unacknowledged(group) == 0).then_some(())).await;
    }

    async fn wait_for<T>(&self, ready: impl Fn() -> Option<T>) -> T {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(value) = ready() {
                return value;
            }
            changed.await;
        }
    }

    /// How often a publisher was given a message while an unconfirmed one of its key forbade it
    /// ([`Publisher::pipelining`](message::Publisher::pipelining)). A relay that keeps order leaves it at zero.
    pub fn overlaps(&self) -> usize {
        self.shared.lock().overlaps
    }

    /// Puts something on the broker as another producer would: its headers as CloudEvents over HTTP spells them.
    pub fn put_foreign(&self, destination: &str, headers: &[(&str, &str)], payload: impl Into<Bytes>) {
        let received = wire::binary::HTTP.decode(headers.iter().copied(), payload.into(), destination);
        let entry = Entry { destination: destination.into(), received: received.map(Arc::new) };
        self.change(|state| state.log.push(entry));
    }

    /// The next `count` messages that are published fail like this; calls add up, in order.
    pub fn fail_next(&self, count: usize, fault: Fault) {
        self.change(|state| state.faults.next.extend(std::iter::repeat_n(fault, count)));
    }

    /// Messages of this key are rejected until [`accept_key`](Self::accept_key).
    pub fn reject_key(&self, key: &str) {
        self.change(|state| state.faults.rejected_keys.insert(key.into()));
    }

    /// Messages of this key are no longer rejected.
    pub fn accept_key(&self, key: &str) {
        self.change(|state| state.faults.rejected_keys.remove(key));
    }

    /// This destination takes nothing until [`open_destination`](Self::open_destination): publishers hear
    /// `DestinationUnavailable`.
    pub fn close_destination(&self, destination: &str) {
        self.change(|state| state.faults.closed_destinations.insert(destination.into()));
    }

    /// The destination takes messages again.
    pub fn open_destination(&self, destination: &str) {
        self.change(|state| state.faults.closed_destinations.remove(destination));
    }

    /// How many messages were refused because their destination was closed.
    pub fn refused_by_destinations(&self) -> usize {
        self.shared.lock().faults.refused_by_destinations
    }

    /// Nothing is taken and nothing delivered until [`come_up`](Self::come_up): publishers, subscribers and answers
    /// hear `Unavailable`.
    pub fn go_down(&self) {
        self.change(|state| state.faults.down = true);
    }

    /// The broker works again.
    pub fn come_up(&self) {
        self.change(|state| state.faults.down = false);
    }

    /// Each batch is kept at once and its outcomes are told this much later.
    pub fn delay_confirmations(&self, delay: Duration) {
        self.change(|state| state.faults.confirmation_delay = delay);
    }

    /// Batches are kept and no outcome is told until [`release_confirmations`](Self::release_confirmations).
    pub fn hold_confirmations(&self) {
        self.shared.confirmations_held.send_replace(true);
    }

    /// Tells the outcomes that were held back, and holds back no more.
    pub fn release_confirmations(&self) {
        self.shared.confirmations_held.send_replace(false);
    }

    /// The next `count` messages that are acknowledged are delivered once more, as if the acknowledgement had been lost.
    pub fn duplicate_deliveries(&self, count: usize) {
        self.change(|state| state.faults.duplicates += count);
    }

    /// Everything in subscribers' hands, and everything that waits to be tried again, is delivered again now.
    pub fn redeliver_now(&self) {
        self.change(|state| state.groups.values_mut().for_each(Group::give_up_waiting));
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) {
        change(&mut self.shared.lock());
        self.shared.changed.notify_waiters();
    }
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("messages", &self.shared.lock().log.len()).finish_non_exhaustive()
    }
}
