//! The way into the memory broker. It keeps a batch in its order, and after a failure nothing more of that key.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use message::{Outcomes, Outgoing, Pipelining, PublishError, Publisher};

use super::broker::{Shared, State};

/// Publishes to a memory [`Broker`](super::Broker).
///
/// By default several messages of a key may be in one batch, and those after a failed one of their key are not tried.
pub struct MemoryPublisher {
    shared: Arc<Shared>,
    pipelining: Pipelining,
    /// Keys that have unconfirmed messages, and how many batches hold one.
    on_wire: Mutex<HashMap<Arc<str>, usize>>,
}

impl MemoryPublisher {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        MemoryPublisher { shared, pipelining: Pipelining::PerBatch, on_wire: Mutex::default() }
    }

    /// Allows one unconfirmed message of a key, as most brokers do.
    pub fn one_per_key(mut self) -> Self {
        self.pipelining = Pipelining::OnePerKey;
        self
    }
}

#[async_trait]
impl Publisher for MemoryPublisher {
    fn pipelining(&self) -> Pipelining {
        self.pipelining
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let on_wire = OnWire::enter(self, batch);
        let (results, delay) = {
            let mut state = self.shared.lock();
            state.overlaps += on_wire.overlaps;
            (keep_in_order(&mut state, batch), state.faults.confirmation_delay)
        };
        self.shared.changed.notify_waiters();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // It fails only when the broker is gone, and this publisher holds it.
        let _ = self.shared.confirmations_held.subscribe().wait_for(|held| !held).await;
        // Who hears of an outcome may send the key's next message at once.
        drop(on_wire);
        for (index, result) in results.into_iter().enumerate().filter(|(_, result)| result.is_err()) {
            outcomes.report(index, result);
        }
        outcomes.confirm_all();
    }

    async fn check(&self) -> Result<(), PublishError> {
        if self.shared.lock().faults.down {
            return Err(PublishError::Unavailable("the memory broker is down".to_owned()));
        }
        Ok(())
    }

    fn describe(&self) -> Option<String> {
        Some("memory".to_owned())
    }
}

fn keep_in_order(state: &mut State, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
    let mut failed: HashSet<&str> = HashSet::new();
    let mut results = Vec::with_capacity(batch.len());
    for outgoing in batch {
        let key = outgoing.message.key.as_deref();
        let result = if key.is_some_and(|key| failed.contains(key)) {
            Err(PublishError::NotSent("an earlier message of the key failed".to_owned()))
        } else {
            state.keep(outgoing)
        };
        if result.is_err() {
            failed.extend(key);
        }
        results.push(result);
    }
    results
}

/// The keys of one batch, until its outcomes are told or nobody waits for them any more.
struct OnWire<'a> {
    publisher: &'a MemoryPublisher,
    keys: HashSet<Arc<str>>,
    overlaps: usize,
}

impl<'a> OnWire<'a> {
    fn enter(publisher: &'a MemoryPublisher, batch: &[Outgoing]) -> Self {
        let mut on_wire = publisher.on_wire();
        let mut keys = HashSet::new();
        let mut overlaps = 0;
        for key in batch.iter().filter_map(|outgoing| outgoing.message.key.clone()) {
            if keys.contains(&key) {
                overlaps += usize::from(publisher.pipelining == Pipelining::OnePerKey);
            } else {
                let batches = on_wire.entry(key.clone()).or_insert(0);
                overlaps += usize::from(*batches > 0);
                *batches += 1;
                keys.insert(key);
            }
        }
        OnWire { publisher, keys, overlaps }
    }
}

impl Drop for OnWire<'_> {
    fn drop(&mut self) {
        let mut on_wire = self.publisher.on_wire();
        for key in &self.keys {
            if let Some(batches) = on_wire.get_mut(key) {
                *batches -= 1;
                if *batches == 0 {
                    on_wire.remove(key);
                }
            }
        }
    }
}

impl MemoryPublisher {
    fn on_wire(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.on_wire.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
