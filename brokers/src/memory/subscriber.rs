//! The way out of the memory broker, for one group.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use message::limits::LONGEST;
use message::{Acknowledge, Delivery, SubscribeError, Subscriber};
use tokio::time::{Instant, timeout_at};

use super::broker::{GroupName, Shared, State};
use super::group::{Group, Ticket};

/// Receives from a memory [`Broker`](super::Broker) for one group.
///
/// The subscribers of a group share its messages; a key is in one subscriber's hands at a time. What is not answered in
/// time comes again, to this subscriber or another.
pub struct MemorySubscriber {
    seat: Seat,
}

/// A subscriber's place in its group.
#[derive(Clone)]
struct Seat {
    shared: Arc<Shared>,
    group: Arc<GroupName>,
    number: u64,
    answer_wait: Duration,
}

impl MemorySubscriber {
    pub(super) fn new(shared: Arc<Shared>, group: GroupName, answer_wait: Duration) -> Self {
        let group = Arc::new(group);
        let number = {
            let mut state = shared.lock();
            state.subscribers += 1;
            state.groups.entry(group.clone()).or_default();
            state.subscribers
        };
        MemorySubscriber { seat: Seat { shared, group, number, answer_wait } }
    }
}

#[async_trait]
impl Subscriber for MemorySubscriber {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscribeError> {
        loop {
            let changed = self.seat.shared.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let (deliveries, next_change) = self.seat.take(max)?;
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
            match next_change {
                // A time-out is a change too.
                Some(at) => drop(timeout_at(at, changed).await),
                None => changed.await,
            }
        }
    }
}

impl Seat {
    /// What can be had now; if that is nothing, when to look again. It does not wait, so nothing is lost half-way.
    fn take(&self, max: usize) -> Result<(Vec<Delivery>, Option<Instant>), SubscribeError> {
        self.with_group(|group, state| {
            let now = Instant::now();
            let wanted = |entry: &_| self.group.wants(entry);
            let tickets = group.take(&state.log, wanted, self.number, max.max(1), now, self.answer_wait);
            let deliver = |ticket: Ticket| {
                let received = state.log.get(ticket.position)?.received.clone();
                let received = received.map(|message| (*message).clone());
                Some(Delivery::new(
                    received,
                    Box::new(Answer { seat: self.clone(), ticket, answered: false }),
                ))
            };
            let deliveries: Vec<Delivery> = tickets.into_iter().filter_map(deliver).collect();
            (deliveries, group.next_change(now))
        })
    }

    fn with_group<T>(&self, act: impl FnOnce(&mut Group, &mut State) -> T) -> Result<T, SubscribeError> {
        let mut state = self.shared.lock();
        if state.faults.down {
            return Err(SubscribeError::Unavailable("the memory broker is down".to_owned()));
        }
        // Out of the map and back, so that the group can read the log beside it.
        let mut group = state.groups.remove(&self.group).unwrap_or_default();
        let answer = act(&mut group, &mut state);
        state.groups.insert(self.group.clone(), group);
        Ok(answer)
    }

    fn answer(&self, act: impl FnOnce(&mut Group, &mut State)) -> Result<(), SubscribeError> {
        let answer = self.with_group(act);
        self.shared.changed.notify_waiters();
        answer
    }
}

struct Answer {
    seat: Seat,
    ticket: Ticket,
    answered: bool,
}

#[async_trait]
impl Acknowledge for Answer {
    async fn acknowledge(mut self: Box<Self>) -> Result<(), SubscribeError> {
        self.answered = true;
        self.seat.answer(|group, state| group.acknowledge(self.ticket, state.faults.lose_acknowledgement()))
    }

    async fn retry_after(mut self: Box<Self>, delay: Duration) -> Result<(), SubscribeError> {
        self.answered = true;
        self.seat.answer(|group, _| group.retry(self.ticket, Instant::now() + delay.min(LONGEST)))
    }

    async fn extend(&self) -> Result<(), SubscribeError> {
        let until = Instant::now() + self.seat.answer_wait;
        self.seat.answer(|group, _| group.extend(self.ticket, self.seat.number, until))
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.answered {
            let mut state = self.seat.shared.lock();
            if let Some(group) = state.groups.get_mut(&self.seat.group) {
                group.leave_unanswered(self.ticket);
            }
        }
    }
}
