//! One try: the first messages of some held keys, in order, and what becomes of each key.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use message::{Outcomes, Outgoing, Pipelining, PublishError, Publisher};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::record::{After, Done};
use super::rows::{Begun, Due};
use super::{Holds, Notice};
use crate::relay::hearing::hear;
use crate::relay::{Policy, backoff};

/// A key that is being tried.
struct Try {
    key: Due,
    attempts: i32,
    waiting: VecDeque<(i64, Outgoing)>,
    /// It held nothing, or all that was taken of it is published.
    delivered: Vec<i64>,
    failure: Option<Failure>,
    /// What comes after it is no message.
    fault: Option<String>,
}

/// A message that was not taken, or not sent.
struct Failure {
    position: i64,
    outgoing: Outgoing,
    error: PublishError,
}

impl<P: Publisher> Holds<P> {
    /// Tries some held keys together, each as far as it goes; one for the destination that it waits for, if it is to probe
    /// that.
    pub(super) async fn drain(&self, keys: Vec<Due>, probe: Option<Arc<str>>) -> Result<(), sqlx::Error> {
        let most = self.settings.batch.clamp(1, 500);
        let begun = self.begin_attempts(&keys, (most / keys.len().max(1)).max(1)).await?;
        let mut tries: Vec<Try> = begun.into_iter().map(|begun| self.to_try(begun)).collect();
        let mut probe = probe;
        while !self.stop.is_cancelled() && self.lease_holds(tries.iter().map(|one| &one.key)) {
            let batch = self.next(&mut tries, probe.as_deref());
            if batch.is_empty() {
                break;
            }
            if let Some(destination) = probe.take() {
                self.begin_probe(&destination, &batch);
            }
            let messages: Vec<Outgoing> = batch.iter().map(|(_, _, outgoing)| outgoing.clone()).collect();
            let results = self.publish(&messages).await;
            for ((place, position, outgoing), result) in batch.into_iter().zip(results) {
                hear(&self.availability, &self.relay, &outgoing.destination, position, &result);
                let one = &mut tries[place];
                match result {
                    Ok(()) => one.delivered.push(position),
                    // What was not sent for it comes after it.
                    Err(error) if one.failure.is_none() => {
                        one.failure = Some(Failure { position, outgoing, error });
                    }
                    Err(_) => {}
                }
            }
        }
        self.record(tries).await
    }

    fn to_try(&self, begun: Begun) -> Try {
        let outgoing = |(position, message): (i64, message::Message)| {
            let destination = self.settings.routes.destination(&message.topic);
            (position, Outgoing { destination, message: Arc::new(message) })
        };
        let waiting = begun.messages.into_iter().map(outgoing).collect();
        Try {
            key: begun.key,
            attempts: begun.attempts,
            waiting,
            delivered: Vec::new(),
            failure: None,
            fault: begun.fault,
        }
    }

    /// The next batch: of each key what may be on the wire together. A key whose message goes to a destination that is down
    /// waits, but for what probes it.
    fn next(&self, tries: &mut [Try], probe: Option<&str>) -> Vec<(usize, i64, Outgoing)> {
        let a_key = match self.publisher.pipelining() {
            Pipelining::OnePerKey => 1,
            Pipelining::PerBatch | Pipelining::Unlimited if probe.is_some() => 1,
            Pipelining::PerBatch | Pipelining::Unlimited => usize::MAX,
        };
        let mut batch = Vec::new();
        for (place, one) in tries.iter_mut().enumerate().filter(|(_, one)| one.failure.is_none()) {
            for taken in 0..a_key {
                let Some((position, outgoing)) = one.waiting.pop_front() else { break };
                let destination = &*outgoing.destination;
                let reason =
                    || self.availability.with(|state| state.reason(destination).map(ToOwned::to_owned));
                if probe != Some(destination)
                    && let Some(reason) = reason()
                {
                    if taken == 0 {
                        let error = PublishError::DestinationUnavailable(reason);
                        one.failure = Some(Failure { position, outgoing, error });
                    } else {
                        one.waiting.push_front((position, outgoing));
                    }
                    break;
                }
                batch.push((place, position, outgoing));
            }
        }
        batch
    }

    fn begin_probe(&self, destination: &str, batch: &[(usize, i64, Outgoing)]) {
        let now = Instant::now();
        let patience = self.settings.publish_timeout;
        self.availability.with(|state| match batch.first() {
            Some((_, position, outgoing)) if &*outgoing.destination == destination => {
                state.probe(destination, *position, now, patience);
            }
            _ => state.probe_went_elsewhere(destination, now),
        });
    }

    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let (sender, mut outcomes) = mpsc::unbounded_channel();
        let publish = self.publisher.publish(batch, Outcomes::new(0, sender));
        // Dropped in time, what the publisher has not reported counts as unknown.
        let _ = tokio::time::timeout(self.settings.publish_timeout, publish).await;
        let mut results: Vec<Option<Result<(), PublishError>>> = vec![None; batch.len()];
        while let Ok(outcome) = outcomes.try_recv() {
            let reported = outcome.index.map_or(0..batch.len(), |index| index..index + 1);
            for result in results.get_mut(reported).into_iter().flatten() {
                result.get_or_insert_with(|| outcome.result.clone());
            }
        }
        let unknown = || Err(PublishError::Unknown("no answer in time".to_owned()));
        results.into_iter().map(|result| result.unwrap_or_else(unknown)).collect()
    }

    /// Records what came of a try, and lets go of keys that hold nothing any more.
    async fn record(&self, tries: Vec<Try>) -> Result<(), sqlx::Error> {
        let mut results = self.results(tries);
        let asked = self.may_go(&results.empty).await;
        let may_go: BTreeSet<i64> = asked.iter().copied().collect();
        let named: BTreeSet<i64> = results.done.iter().map(|done| done.key.position).collect();
        let bare = results.empty.iter().map(|empty| empty.key);
        let bare = bare.filter(|key| may_go.contains(&key.position) && !named.contains(&key.position));
        results.done.extend(bare.map(|key| Done { key, position: None, error: None, attempts: None }));
        let mut released = BTreeMap::new();
        if !results.done.is_empty() {
            // After an error the session is ending, and neither copies to keys that may have gone nor sends of them any more.
            let settlement = self.settle(&results.done, &asked).await?;
            // A session that has ended has no use for it.
            if !settlement.settled.is_empty() {
                let _ = self.notices.send(Notice::Settled(settlement.settled)).await;
            }
            released = settlement.released;
        }
        if results.published > 0 {
            let _ = self.notices.send(Notice::Published(results.published)).await;
        }
        // Copies came, or are on their way: they are found when the key is due again, which is now. No attempt was made.
        let held = results.empty.iter().filter(|empty| !released.contains_key(&empty.key.position));
        results.after.extend(held.map(|empty| not_tried(empty.key, empty.recorded)));
        let recorded = self.failed(&results.after).await;
        // It may be recorded though no answer says so.
        let waits = results.after.into_iter().filter_map(|after| after.destination);
        let waits: BTreeSet<Arc<str>> = waits.collect();
        if !waits.is_empty() {
            self.availability.with(|state| waits.into_iter().for_each(|name| state.keys_wait(name)));
        }
        if !asked.is_empty() {
            let gone = released.into_iter().collect();
            let _ = self.notices.send(Notice::Released { asked, gone }).await;
        }
        recorded
    }

    /// Those of some keys that hold nothing any more to which no copies are on their way. None will be, until it is said what
    /// became of them.
    async fn may_go(&self, empty: &[Empty]) -> Vec<i64> {
        if empty.is_empty() {
            return Vec::new();
        }
        let (answer, may) = oneshot::channel();
        let asked = empty.iter().map(|empty| empty.key.position).collect();
        match self.notices.send(Notice::MayRelease(asked, answer)).await {
            Ok(()) => may.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// What is to be recorded of tries.
    fn results(&self, tries: Vec<Try>) -> Results {
        let mut results = Results::default();
        for one in tries {
            let key = one.key;
            let is_first = one.delivered.is_empty();
            results.published += u64::try_from(one.delivered.len()).unwrap_or_default();
            results.done.extend(one.delivered.into_iter().map(|position| Done {
                key,
                position: Some(position),
                error: None,
                attempts: None,
            }));
            // The first message after one that was delivered is tried afresh, and the key's row may say nothing yet of what
            // was delivered.
            let recorded = if is_first { one.attempts } else { 0 };
            let all = one.waiting.is_empty();
            match (one.failure, one.fault) {
                (Some(failure), fault) => {
                    let made = if is_first { one.attempts } else { 1 };
                    let attempts = is_first.then_some(one.attempts);
                    if self.is_given_up(&failure, made) {
                        let (position, error) = (failure.position, failure.error.to_string());
                        tracing::warn!(
                            relay = self.relay,
                            position,
                            error,
                            "given up: its topic's policy is to skip"
                        );
                        results.done.push(Done {
                            key,
                            position: Some(position),
                            error: Some(error),
                            attempts,
                        });
                        if all && fault.is_none() {
                            results.empty.push(Empty { key, recorded: one.attempts });
                        }
                    } else {
                        results.after.push(After { attempts, ..self.after(key, recorded, made, &failure) });
                    }
                }
                // It was to stop before it was sent.
                (None, _) if is_first && !all => results.after.push(not_tried(key, 1)),
                (None, Some(fault)) if all => {
                    let attempts = is_first.then_some(one.attempts);
                    results.after.push(After { attempts, ..self.unreadable(key, fault) });
                }
                (None, None) if all => {
                    results.empty.push(Empty { key, recorded: if is_first { 1 } else { one.attempts } });
                }
                (None, _) => {}
            }
        }
        results
    }

    /// What comes next of a key cannot be read as a message: another attempt would end as this one, which was not made.
    fn unreadable(&self, key: Due, fault: String) -> After {
        tracing::error!(relay = self.relay, position = key.position, fault, "parked: it waits for a person");
        After {
            key,
            retry_in: None,
            error: Some(fault),
            taken_back: 1,
            attempts: None,
            reason: Some("failed"),
            destination: None,
        }
    }

    /// Whether this was the last attempt at a message of a topic whose keys are not parked.
    fn is_given_up(&self, failure: &Failure, made: i32) -> bool {
        matches!(failure.error, PublishError::Rejected(_))
            && self.is_last(made)
            && self.settings.policies.of(&failure.outgoing.message.topic) == Policy::Skip
    }

    fn is_last(&self, made: i32) -> bool {
        u32::try_from(made).unwrap_or(1) >= self.settings.max_attempts
    }

    /// What becomes of a key whose message was not taken: `recorded` attempts stand in its row, and `made` count.
    fn after(&self, key: Due, recorded: i32, made: i32, failure: &Failure) -> After {
        let error = failure.error.to_string();
        let messages_fault = matches!(failure.error, PublishError::Rejected(_));
        let count = if messages_fault { made } else { made - 1 };
        let after = After {
            key,
            retry_in: None,
            error: Some(error.clone()),
            taken_back: recorded - count,
            attempts: None,
            reason: None,
            destination: None,
        };
        let failures = u32::try_from(made).unwrap_or(1).max(1);
        match &failure.error {
            PublishError::Rejected(_) if self.is_last(made) => {
                let position = key.position;
                tracing::error!(relay = self.relay, position, error, "parked: it waits for a person");
                After { reason: Some("failed"), ..after }
            }
            PublishError::Rejected(_) => {
                let retry_in = Some(self.settings.retry.after(failures, backoff::chance()));
                After { reason: Some("failed"), retry_in, ..after }
            }
            PublishError::DestinationUnavailable(_) => {
                let retry_in = Some(self.settings.unavailable.ceiling);
                let destination = Some(Arc::clone(&failure.outgoing.destination));
                After { reason: Some("destination"), retry_in, destination, ..after }
            }
            _ => {
                let retry_in = Some(self.settings.unavailable.after(failures, backoff::chance()));
                After { retry_in, ..after }
            }
        }
    }
}

/// What is to be recorded of tries.
#[derive(Default)]
struct Results {
    done: Vec<Done>,
    after: Vec<After>,
    empty: Vec<Empty>,
    published: u64,
}

/// A key of which nothing is left, and the attempts in its row that do not count.
struct Empty {
    key: Due,
    recorded: i32,
}

/// A key that was not tried, and is due.
fn not_tried(key: Due, taken_back: i32) -> After {
    let retry_in = Some(Duration::ZERO);
    After { key, retry_in, error: None, taken_back, attempts: None, reason: None, destination: None }
}
