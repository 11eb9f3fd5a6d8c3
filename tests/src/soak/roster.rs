//! Which processes of the relay are at work, and which of them may be taken from it. No I/O.

use std::time::{Duration, Instant};

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It runs, and nobody has touched it since.
    AtWork { since: Instant },
    /// It stands still until then; whether it had joined the relay before.
    Frozen { until: Instant, joined: bool },
    /// It was asked to end.
    Stopping { since: Instant },
    /// It has ended, and is started again then.
    Down { until: Instant },
}

/// All processes of a relay.
#[derive(Debug)]
pub(super) struct Roster {
    states: Vec<State>,
    /// After so long at work a process must have found its place among the others, and the dead before it are forgotten.
    seasoning: Duration,
}

impl Roster {
    /// So many, all just started.
    pub(super) fn new(processes: usize, seasoning: Duration, now: Instant) -> Self {
        Roster { states: vec![State::AtWork { since: now }; processes], seasoning }
    }

    /// What a process does.
    pub(super) fn state(&self, process: usize) -> State {
        self.states[process]
    }

    /// A process does something else from now on.
    pub(super) fn set(&mut self, process: usize, state: State) {
        self.states[process] = state;
    }

    /// The processes.
    pub(super) fn all(&self) -> std::ops::Range<usize> {
        0..self.states.len()
    }

    /// Those at work which may be disturbed. One that has its place already always stays at work beside them: the promise
    /// that no shard is without an owner for long is that somebody is there to take it, and a process that has only just
    /// come may itself be what the shard waits for.
    pub(super) fn dispensable(&self, now: Instant) -> Vec<usize> {
        let seasoned: Vec<usize> = self.all().filter(|process| self.is_seasoned(*process, now)).collect();
        let remains = |process: usize| seasoned.iter().any(|other| *other != process);
        let at_work = |process: &usize| matches!(self.states[*process], State::AtWork { .. });
        self.all().filter(at_work).filter(|process| remains(*process)).collect()
    }

    /// Whether all of them are at work and have their place.
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        self.all().all(|process| self.is_seasoned(process, now))
    }

    fn is_seasoned(&self, process: usize, now: Instant) -> bool {
        match self.states[process] {
            State::AtWork { since } => now.saturating_duration_since(since) >= self.seasoning,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEASONING: Duration = Duration::from_secs(3);

    #[test]
    fn the_last_one_that_has_its_place_is_never_disturbed() {
        let start = Instant::now();
        let mut roster = Roster::new(3, SEASONING, start);
        assert_eq!(roster.dispensable(start), [0; 0]);
        let later = start + SEASONING;
        assert_eq!(roster.dispensable(later), [0, 1, 2]);
        roster.set(0, State::Down { until: later });
        roster.set(1, State::AtWork { since: later });
        // Number 2 is the only one that has its place: the newcomer may go, it may not.
        assert_eq!(roster.dispensable(later), [1]);
        roster.set(1, State::Frozen { until: later, joined: true });
        assert_eq!(roster.dispensable(later), [0; 0]);
    }

    #[test]
    fn they_are_settled_when_all_have_been_at_work_for_long_enough() {
        let start = Instant::now();
        let mut roster = Roster::new(2, SEASONING, start);
        let later = start + SEASONING;
        assert!(!roster.is_settled(start));
        assert!(roster.is_settled(later));
        roster.set(1, State::Stopping { since: later });
        assert!(!roster.is_settled(later + SEASONING));
        roster.set(1, State::AtWork { since: later });
        assert!(!roster.is_settled(later));
        assert!(roster.is_settled(later + SEASONING));
    }
}
