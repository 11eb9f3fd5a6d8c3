//! What of the broker takes messages now: which destination is down, when it is probed, and when its keys are held. No I/O.
//!
//! A broker that is unavailable pauses everything. A destination that is unavailable keeps only its own messages: one of
//! them at a time probes it, with growing pauses. While another destination confirms, its keys are held in the database, so
//! that they neither fill the look-ahead nor keep the cursor. While nothing confirms, nothing is copied.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Backoff;

/// How long a confirmation is proof that another destination works.
const PROOF: Duration = Duration::from_secs(60);

/// What the broker and its destinations have said of late.
#[derive(Debug)]
pub(crate) struct Availability {
    backoff: Backoff,
    failures: u32,
    paused_until: Option<Instant>,
    down: HashMap<Arc<str>, Down>,
    /// Destinations that have confirmed while another one was down, and when they did last.
    confirming: HashMap<Arc<str>, Instant>,
    /// When messages of a destination that is not down were found beyond the look-ahead.
    found_beyond: Option<Instant>,
    /// Destinations for which keys wait in the database, and how often some were found or written.
    waited_for: HashMap<Arc<str>, u64>,
    /// Outages that are over: how often the destination had failed, and when it came back.
    recovered: HashMap<Arc<str>, (u32, Instant)>,
    /// Counts what has changed about the destinations that are down, and which keys wait for some.
    changes: u64,
}

#[derive(Debug)]
struct Down {
    since: Instant,
    failures: u32,
    reason: String,
    probe_at: Instant,
    /// The position of the message that probes it, and until when its answer is waited for.
    probe: Option<(i64, Instant)>,
}

/// What a failure of a destination means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// It was not known to be down. It is probed after this.
    New(Duration),
    /// It is down still.
    Known,
}

impl Availability {
    /// Everything works, as far as is known. `backoff`: the pauses between probes.
    pub(crate) fn new(backoff: Backoff) -> Self {
        Availability {
            backoff,
            failures: 0,
            paused_until: None,
            down: HashMap::new(),
            confirming: HashMap::new(),
            found_beyond: None,
            waited_for: HashMap::new(),
            recovered: HashMap::new(),
            changes: 0,
        }
    }

    /// The broker is unavailable: pauses everything, and answers for how long, if it was not paused already.
    pub(crate) fn pause(&mut self, now: Instant, chance: f64) -> Option<Duration> {
        if self.paused_until(now).is_some() {
            return None;
        }
        self.failures += 1;
        let pause = self.backoff.after(self.failures, chance);
        self.paused_until = Some(now + pause);
        Some(pause)
    }

    /// Until when everything is paused.
    pub(crate) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| *until > now)
    }

    /// The destinations that are down.
    pub(crate) fn down(&self) -> impl Iterator<Item = &Arc<str>> {
        self.down.keys()
    }

    /// Whether a destination is down.
    pub(crate) fn is_down(&self, destination: &str) -> bool {
        self.down.contains_key(destination)
    }

    /// What a destination that is down said.
    pub(crate) fn reason(&self, destination: &str) -> Option<&str> {
        self.down.get(destination).map(|down| down.reason.as_str())
    }

    /// Keys were found that have waited for this destination since before this process: it is probed first.
    pub(crate) fn has_waited(&mut self, destination: Arc<str>, now: Instant) {
        self.keys_wait(Arc::clone(&destination));
        let reason = "keys of an earlier process wait for it".to_owned();
        let down = Down { since: now, failures: 1, reason, probe_at: now, probe: None };
        self.down.entry(destination).or_insert(down);
    }

    /// Keys that wait for a destination were written.
    pub(crate) fn keys_wait(&mut self, destination: Arc<str>) {
        *self.waited_for.entry(destination).or_default() += 1;
        self.changes += 1;
    }

    /// The destinations for which keys wait, each with a number for [`no_key_waits`](Self::no_key_waits).
    pub(crate) fn waited_for(&self) -> Vec<(Arc<str>, u64)> {
        self.waited_for.iter().map(|(destination, number)| (Arc::clone(destination), *number)).collect()
    }

    /// No key was found that waits for a destination; unless some were written since.
    pub(crate) fn no_key_waits(&mut self, destination: &str, number: u64) {
        if self.waited_for.get(destination) == Some(&number) {
            self.waited_for.remove(destination);
        }
    }

    /// A destination did not take the message at a position, because it takes none now.
    pub(crate) fn failed(
        &mut self,
        destination: &Arc<str>,
        position: i64,
        reason: &str,
        now: Instant,
        chance: f64,
    ) -> Outage {
        if let Some(down) = self.down.get_mut(destination) {
            // What was on the wire when it went down says nothing new.
            if down.probe.is_some_and(|(probe, _)| probe == position) {
                down.fails_again(&self.backoff, now, chance);
                reason.clone_into(&mut down.reason);
            }
            return Outage::Known;
        }
        // One that goes down again at once is probed as seldom as before.
        let known = self.recovered.remove(destination);
        let again =
            known.filter(|(failures, at)| now.duration_since(*at) < self.backoff.after(*failures, 0.0));
        let failures = again.map_or(1, |(failures, _)| failures);
        let pause = self.backoff.after(failures, chance);
        let down =
            Down { since: now, failures, reason: reason.to_owned(), probe_at: now + pause, probe: None };
        self.down.insert(Arc::clone(destination), down);
        self.confirming.remove(destination);
        self.found_beyond = None;
        self.changes += 1;
        Outage::New(pause)
    }

    /// A destination has confirmed the message at a position, or said that the message is at fault. Whether it was down and
    /// is not any more: only a probe's answer says that, since others were sent before.
    pub(crate) fn answered(&mut self, destination: &Arc<str>, position: i64, now: Instant) -> bool {
        self.failures = 0;
        if self.down.is_empty() {
            return false;
        }
        let Some(down) = self.down.get(destination) else {
            self.confirming.insert(Arc::clone(destination), now);
            return false;
        };
        if down.probe.is_none_or(|(probe, _)| probe != position) {
            return false;
        }
        self.recovered.retain(|_, (_, at)| now.duration_since(*at) < PROOF);
        self.recovered.insert(Arc::clone(destination), (down.failures, now));
        self.down.remove(destination);
        if self.down.is_empty() {
            self.confirming.clear();
        } else {
            self.confirming.insert(Arc::clone(destination), now);
        }
        self.changes += 1;
        true
    }

    /// What came of a message at a position does not say whether its destination works.
    pub(crate) fn unanswered(&mut self, destination: &str, position: i64, now: Instant, chance: f64) {
        if let Some(down) = self.down.get_mut(destination)
            && down.probe.is_some_and(|(probe, _)| probe == position)
        {
            down.fails_again(&self.backoff, now, chance);
        }
    }

    /// When a destination that is down is probed next; `None`: it is not down, or is being probed.
    pub(crate) fn probe_at(&self, destination: &str, now: Instant) -> Option<Instant> {
        let down = self.down.get(destination)?;
        match down.probe {
            Some((_, until)) if until > now => None,
            _ => Some(down.probe_at),
        }
    }

    /// Whether it is time to probe a destination.
    pub(crate) fn is_probe_due(&self, destination: &str, now: Instant) -> bool {
        self.probe_at(destination, now).is_some_and(|at| at <= now)
    }

    /// The message at a position probes a destination; its answer is waited for, for so long.
    pub(crate) fn probe(&mut self, destination: &str, position: i64, now: Instant, patience: Duration) {
        if let Some(down) = self.down.get_mut(destination) {
            down.probe = Some((position, now + patience));
        }
    }

    /// The probe has gone elsewhere: another message may probe at once.
    pub(crate) fn probe_went_elsewhere(&mut self, destination: &str, now: Instant) {
        if let Some(down) = self.down.get_mut(destination) {
            (down.probe, down.probe_at) = (None, now);
        }
    }

    /// Messages of a destination that is not down wait beyond the look-ahead.
    pub(crate) fn found_beyond(&mut self, now: Instant) {
        self.found_beyond = Some(now);
    }

    /// Whether the keys of a destination are to be held in the database: it has failed a probe, or the look-ahead is half
    /// `full`, while another destination confirms; or the look-ahead is full, and another destination's messages wait beyond.
    pub(crate) fn is_holding(&self, destination: &str, full: bool, now: Instant) -> bool {
        let Some(down) = self.down.get(destination) else { return false };
        let fresh = |at: &Instant| now.duration_since(*at) < PROOF;
        let confirms = self.confirming.values().any(|at| *at >= down.since && fresh(at));
        let waits = full && self.found_beyond.as_ref().is_some_and(fresh);
        (confirms && (full || down.failures > 1)) || waits
    }
}

impl Down {
    fn fails_again(&mut self, backoff: &Backoff, now: Instant, chance: f64) {
        self.failures = self.failures.saturating_add(1);
        self.probe = None;
        self.probe_at = now + backoff.after(self.failures, chance);
    }
}

/// What the session and the task that tries held keys both know of the broker.
#[derive(Debug)]
pub(crate) struct SharedAvailability {
    state: Mutex<Availability>,
    changes: watch::Sender<u64>,
}

impl SharedAvailability {
    pub(crate) fn new(backoff: Backoff) -> Self {
        SharedAvailability { state: Mutex::new(Availability::new(backoff)), changes: watch::Sender::new(0) }
    }

    /// Looks at it, or changes it; others learn that a destination went down or came back.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Availability) -> T) -> T {
        let mut state: MutexGuard<'_, Availability> =
            self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.changes;
        let result = act(&mut state);
        let changes = state.changes;
        drop(state);
        if changes != before {
            self.changes.send_replace(changes);
        }
        result
    }

    /// Changes when a destination goes down or comes back.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests;
