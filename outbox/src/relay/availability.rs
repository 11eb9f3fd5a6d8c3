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
/// Destinations remembered that have confirmed: one is proof enough, and others follow when it goes down itself.
const CONFIRMING: usize = 16;
/// Destinations that are probed at once.
pub(super) const PROBES: usize = 8;
/// Probes in a second of all destinations that are down, while none of them succeeds.
const PROBES_A_SECOND: f64 = 50.0;
/// More destinations than these that are down are likely to be the broker.
const FEW: usize = 8;

/// What the broker and its destinations have said of late.
#[derive(Debug)]
pub(crate) struct Availability {
    backoff: Backoff,
    failures: u32,
    paused_until: Option<Instant>,
    down: HashMap<Arc<str>, Down>,
    /// Destinations that have confirmed while another one was down, and when they did last.
    confirming: HashMap<Arc<str>, Instant>,
    /// When messages of a destination that is not down were found beyond the look-ahead, for which it is to be held.
    found_beyond: Option<Instant>,
    /// When messages of a destination that has not confirmed of late were found there: more is read, to try it.
    untried_beyond: Option<Instant>,
    /// Since when such messages have waited while nothing confirmed, and for how many of them keys were held in vain.
    in_vain: Option<(Instant, u32)>,
    /// Destinations that are probed before their time, because a probe of another one has succeeded.
    hurried: usize,
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
            untried_beyond: None,
            in_vain: None,
            hurried: 0,
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

    /// How often in a row the broker was unavailable.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
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
        let shortest = self.shortest_pause(chance);
        if let Some(down) = self.down.get_mut(destination) {
            // What was on the wire when it went down says nothing new.
            if down.probe.is_some_and(|(probe, _)| probe == position) {
                down.fails_again(&self.backoff, shortest, now, chance);
                reason.clone_into(&mut down.reason);
            }
            return Outage::Known;
        }
        // One that goes down again at once is probed as seldom as before.
        let known = self.recovered.remove(destination);
        let again =
            known.filter(|(failures, at)| now.duration_since(*at) < self.backoff.after(*failures, 0.0));
        let failures = again.map_or(1, |(failures, _)| failures);
        let pause = self.backoff.after(failures, chance).max(shortest);
        let down =
            Down { since: now, failures, reason: reason.to_owned(), probe_at: now + pause, probe: None };
        self.down.insert(Arc::clone(destination), down);
        self.confirming.remove(destination);
        self.untried_beyond = None;
        if self.found_beyond.take().is_some() {
            // What keys were held for does not work, either.
            let in_vain = self.in_vain.map_or(0, |(_, in_vain)| in_vain);
            self.in_vain = Some((now, in_vain.saturating_add(1)));
        }
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
            self.confirms(destination, now);
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
            (self.untried_beyond, self.in_vain, self.hurried) = (None, None, 0);
        } else {
            self.confirms(destination, now);
            self.hurried = (self.hurried + 2).min(2 * PROBES);
        }
        self.changes += 1;
        true
    }

    /// A destination that is not down has confirmed while others are.
    fn confirms(&mut self, destination: &Arc<str>, now: Instant) {
        (self.untried_beyond, self.in_vain) = (None, None);
        if let Some(at) = self.confirming.get_mut(destination) {
            *at = now;
            return;
        }
        if self.confirming.len() >= CONFIRMING {
            let oldest = self.confirming.iter().min_by_key(|(_, at)| **at);
            if let Some(oldest) = oldest.map(|(destination, _)| Arc::clone(destination)) {
                self.confirming.remove(&oldest);
            }
        }
        self.confirming.insert(Arc::clone(destination), now);
    }

    /// The shortest pause between two probes of a destination: the more of them are down, the longer.
    fn shortest_pause(&self, chance: f64) -> Duration {
        let down = u32::try_from(self.down.len()).unwrap_or(u32::MAX);
        if self.down.len() <= PROBES {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(f64::from(down) / PROBES_A_SECOND).mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0)
    }

    /// What came of a message at a position does not say whether its destination works.
    pub(crate) fn unanswered(&mut self, destination: &str, position: i64, now: Instant, chance: f64) {
        let shortest = self.shortest_pause(chance);
        if let Some(down) = self.down.get_mut(destination)
            && down.probe.is_some_and(|(probe, _)| probe == position)
        {
            down.fails_again(&self.backoff, shortest, now, chance);
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

    /// Of some destinations those that are to be probed now: the ones that are due, in the order of their time, and after a
    /// probe that succeeded a few more; all that are being probed are a few at once.
    pub(crate) fn due_probes<'a>(
        &self,
        destinations: impl IntoIterator<Item = &'a Arc<str>>,
        now: Instant,
    ) -> Vec<Arc<str>> {
        let room = PROBES.saturating_sub(self.probes(now));
        if room == 0 {
            return Vec::new();
        }
        let mut next: Vec<(Instant, &Arc<str>)> = destinations
            .into_iter()
            .filter_map(|destination| Some((self.probe_at(destination, now)?, destination)))
            .collect();
        next.sort_unstable();
        let due = next.partition_point(|(at, _)| *at <= now);
        next.truncate(room.min(due + self.hurried));
        next.into_iter().map(|(_, destination)| Arc::clone(destination)).collect()
    }

    /// Destinations that are being probed.
    fn probes(&self, now: Instant) -> usize {
        self.down.values().filter(|down| down.probe.is_some_and(|(_, until)| until > now)).count()
    }

    /// When the next of some destinations is to be probed, if one is.
    pub(crate) fn next_probe_at<'a>(
        &self,
        destinations: impl IntoIterator<Item = &'a Arc<str>>,
        now: Instant,
    ) -> Option<Instant> {
        if self.probes(now) >= PROBES {
            // The end of one of them is noticed.
            return None;
        }
        let next = destinations.into_iter().filter_map(|destination| self.probe_at(destination, now)).min();
        if self.hurried > 0 { next.map(|at| at.min(now)) } else { next }
    }

    /// The message at a position probes a destination; its answer is waited for, for so long.
    pub(crate) fn probe(&mut self, destination: &str, position: i64, now: Instant, patience: Duration) {
        if let Some(down) = self.down.get_mut(destination) {
            if down.probe_at > now {
                self.hurried = self.hurried.saturating_sub(1);
            }
            down.probe = Some((position, now + patience));
        }
    }

    /// The probe has gone elsewhere: another message may probe at once.
    pub(crate) fn probe_went_elsewhere(&mut self, destination: &str, now: Instant) {
        if let Some(down) = self.down.get_mut(destination) {
            (down.probe, down.probe_at) = (None, now);
        }
    }

    /// Messages of a destination that is not down wait beyond the look-ahead, of which `all` is read that may be.
    ///
    /// That it was never tried is no proof that it works. So more is read first, to try it. If that does not reach it, keys
    /// are held for it: at once while few destinations are down; if they are many and none confirms, which is likely to be
    /// the broker, after a while, and more and more seldom.
    pub(crate) fn found_beyond(&mut self, destination: &str, all: bool, now: Instant) {
        let fresh = |at: &Instant| now.duration_since(*at) < PROOF;
        if self.confirming.get(destination).is_some_and(fresh) {
            self.found_beyond = Some(now);
            return;
        }
        self.untried_beyond = Some(now);
        let (since, in_vain) = *self.in_vain.get_or_insert((now, 0));
        let wait = match self.down.len() {
            0..=FEW => Duration::ZERO,
            _ => PROOF.saturating_mul(2_u32.saturating_pow(in_vain.min(6))),
        };
        if all && now.duration_since(since) >= wait {
            self.found_beyond = Some(now);
        }
    }

    /// Whether more is to be read than usual, to try a destination whose messages wait beyond.
    pub(crate) fn reads_beyond(&self, now: Instant) -> bool {
        self.untried_beyond.is_some_and(|at| now.duration_since(at) < PROOF)
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
    fn fails_again(&mut self, backoff: &Backoff, shortest: Duration, now: Instant, chance: f64) {
        self.failures = self.failures.saturating_add(1);
        self.probe = None;
        self.probe_at = now + backoff.after(self.failures, chance).max(shortest);
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
