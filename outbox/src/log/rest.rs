//! Whether a process need be heard of: nobody waits for one that is alone and has nothing to do. No I/O.
//!
//! Its lease then lasts long, and nothing is written while it rests. Whoever joins gives it the end that it would have had
//! (`wake.sql`), which its next look tells it: a look that sees no change is as good as a renewal.

use std::time::Duration;

use tokio::time::Instant;

use super::share::Share;

/// How long the lease of a process at rest lasts. It is renewed when half of that is over.
pub(crate) const LASTS: Duration = Duration::from_secs(600);
/// The longest lease that is given up for a rest: beyond it, little is saved.
const MOST: Duration = Duration::from_secs(150);
/// The shortest lease that is given up for a rest: it must outlast a few looks of somebody who has nothing to do.
const LEAST: Duration = Duration::from_secs(8);

/// Whether somebody who should be heard of so often may rest at all.
pub(crate) fn suits(lease: Duration) -> bool {
    (LEAST..=MOST).contains(&lease)
}

/// What a process does about its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It renews it.
    Renew,
    /// It rests, or goes on resting.
    Rest,
    /// Nothing: it rests.
    Nothing,
}

/// A process at rest, or about to.
#[derive(Debug)]
pub(super) struct Rest {
    /// When it last had something to do, and when a look last saw that nobody has joined.
    worked: Instant,
    looked: Instant,
    /// Until when its lease lasts, if it rests.
    until: Option<Instant>,
    /// It looks too seldom for a rest, as it turned out.
    restless: bool,
}

impl Rest {
    pub(super) fn new(now: Instant) -> Self {
        Rest { worked: now, looked: now, until: None, restless: false }
    }

    /// There is something to do.
    pub(super) fn works(&mut self, now: Instant) {
        self.worked = now;
    }

    /// A look that was asked for then has seen that nobody has joined. Whether that is as good as a renewal.
    pub(super) fn looked(&mut self, asked: Instant, lease: Duration) -> bool {
        self.looked = self.looked.max(asked);
        self.until.is_some_and(|until| asked + lease <= until)
    }

    /// Its lease was renewed then, for a rest or not.
    pub(super) fn renewed(&mut self, asked: Instant, rests: bool) {
        self.until = rests.then(|| asked + LASTS);
    }

    pub(super) fn next(&mut self, share: &Share, lease: Duration, now: Instant) -> Next {
        let alone = share.running && share.processes == 1;
        let idle = now.saturating_duration_since(self.worked) >= lease;
        let looks = now.saturating_duration_since(self.looked) < lease / 2;
        self.restless |= self.until.is_some() && alone && idle && !looks;
        if !(suits(lease) && alone && idle && looks) || self.restless {
            return Next::Renew;
        }
        match self.until {
            Some(until) if now + LASTS / 2 < until => Next::Nothing,
            _ => Next::Rest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn share(processes: i64, now: Instant) -> Share {
        Share {
            running: true,
            changes: 0,
            processes,
            rank: 0,
            shards: 16,
            free: 0,
            overdue: 0,
            owned: Vec::new(),
            expires_in: None,
            renewed: now,
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn one_that_is_alone_rests_when_it_has_had_nothing_to_do_for_as_long_as_its_lease_lasts() {
        let now = Instant::now();
        let mut rest = Rest::new(now);
        let next = |rest: &mut Rest, processes, at| rest.next(&share(processes, now), LEASE, now + at);
        assert_eq!(next(&mut rest, 1, seconds(1)), Next::Renew);
        assert!(!rest.looked(now + seconds(9), LEASE));
        assert_eq!(
            (next(&mut rest, 1, seconds(9)), next(&mut rest, 1, seconds(10))),
            (Next::Renew, Next::Rest)
        );
        assert_eq!(next(&mut rest, 2, seconds(10)), Next::Renew);
        rest.works(now + seconds(9));
        assert_eq!(next(&mut rest, 1, seconds(10)), Next::Renew);
    }

    #[test]
    fn while_it_rests_it_renews_when_half_is_over() {
        let now = Instant::now();
        let mut rest = Rest::new(now);
        assert!(!rest.looked(now + seconds(10), LEASE));
        rest.renewed(now + seconds(10), true);
        let mut next = |at, looked| {
            assert!(rest.looked(now + seconds(looked), LEASE));
            rest.next(&share(1, now), LEASE, now + seconds(at))
        };
        assert_eq!(
            (next(14, 14), next(309, 309), next(310, 309)),
            (Next::Nothing, Next::Nothing, Next::Rest)
        );
        rest.renewed(now + seconds(310), false);
        assert!(!rest.looked(now + seconds(311), LEASE), "it rests no more");
    }

    #[test]
    fn a_look_is_no_renewal_of_what_has_ended_meanwhile() {
        let now = Instant::now();
        let mut rest = Rest::new(now);
        rest.renewed(now, true);
        assert!(rest.looked(now + LASTS - LEASE, LEASE));
        assert!(!rest.looked(now + LASTS - LEASE + seconds(1), LEASE));
    }

    #[test]
    fn one_that_looks_too_seldom_does_not_rest_again() {
        let now = Instant::now();
        let mut rest = Rest::new(now);
        rest.looked(now + seconds(10), LEASE);
        rest.renewed(now + seconds(10), true);
        assert_eq!(rest.next(&share(1, now), LEASE, now + seconds(15)), Next::Renew);
        rest.renewed(now + seconds(15), false);
        rest.looked(now + seconds(30), LEASE);
        assert_eq!(rest.next(&share(1, now), LEASE, now + seconds(30)), Next::Renew);
    }

    #[test]
    fn a_lease_that_is_too_short_for_looks_or_long_anyhow_is_renewed() {
        let now = Instant::now();
        let mut rest = Rest::new(now);
        rest.looked(now + seconds(500), LEASE);
        let mut next = |lease| rest.next(&share(1, now), lease, now + seconds(500));
        assert_eq!(next(seconds(7)), Next::Renew);
        assert_eq!(
            (next(seconds(8)), next(seconds(150)), next(seconds(151))),
            (Next::Rest, Next::Rest, Next::Renew)
        );
    }

    #[test]
    fn a_relay_that_is_paused_does_not_rest() {
        let now = Instant::now();
        let mut rest = Rest::new(now);
        rest.looked(now + seconds(20), LEASE);
        let paused = Share { running: false, ..share(1, now) };
        assert_eq!(rest.next(&paused, LEASE, now + seconds(20)), Next::Renew);
    }
}
