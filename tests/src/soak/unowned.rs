//! For how long a shard was nobody's, by samples of who owns it. No I/O.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

/// Who owned a shard when a sample was taken. Times are the database's, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owned {
    pub(super) shard: i16,
    pub(super) epoch: i64,
    pub(super) owner: Option<Uuid>,
    /// When the owner's lease ends or has ended; none if nobody knows the owner.
    pub(super) expires_at: Option<f64>,
    pub(super) now: f64,
}

impl Owned {
    /// Whether somebody alive, as far as leases tell, owns it.
    fn by_the_living(&self) -> bool {
        self.owner.is_some() && self.expires_at.is_some_and(|end| end > self.now)
    }
}

/// What the samples have shown so far.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Shards that are nobody's: under which epoch, and since when.
    unowned: HashMap<i16, (i64, f64)>,
    longest: Stretch,
}

/// A shard was nobody's from one moment to another.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Stretch {
    pub(super) shard: i16,
    pub(super) from: f64,
    pub(super) to: f64,
}

impl Stretch {
    /// How long.
    pub(super) fn ms(&self) -> u64 {
        ((self.to - self.from) * 1000.0) as u64
    }
}

impl Owners {
    /// A sample of all shards. A stretch counts from the end of the lease, or from the sample that first saw the shard
    /// given up, to the last sample that saw nobody own it: never too much, and too little by less than two samples.
    pub(super) fn see(&mut self, sample: &[Owned]) {
        for owned in sample {
            if owned.by_the_living() {
                self.unowned.remove(&owned.shard);
                continue;
            }
            let ended = owned.expires_at.unwrap_or(owned.now);
            let stretch = self.unowned.entry(owned.shard).or_insert((owned.epoch, ended));
            if stretch.0 != owned.epoch {
                // It was somebody's between the samples.
                *stretch = (owned.epoch, ended);
            }
            let stretch = Stretch { shard: owned.shard, from: stretch.1, to: owned.now };
            if stretch.ms() > self.longest.ms() {
                self.longest = stretch;
            }
        }
    }

    /// The longest that any shard was nobody's.
    pub(super) fn longest_unowned(&self) -> Stretch {
        self.longest
    }
}

/// The most shards that one process owns.
pub(super) fn most_of_one(sample: &[Owned]) -> u64 {
    let mut shards: BTreeMap<Uuid, u64> = BTreeMap::new();
    for owner in sample.iter().filter_map(|owned| owned.owner) {
        *shards.entry(owner).or_default() += 1;
    }
    shards.into_values().max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIVE: Option<f64> = Some(1000.0);

    fn owned(epoch: i64, owner: Option<u128>, expires_at: Option<f64>, now: f64) -> Owned {
        Owned { shard: 3, epoch, owner: owner.map(Uuid::from_u128), expires_at, now }
    }

    fn longest(samples: &[Owned]) -> u64 {
        let mut owners = Owners::default();
        samples.iter().for_each(|sample| owners.see(&[*sample]));
        owners.longest_unowned().ms()
    }

    #[test]
    fn a_shard_is_nobodys_from_the_end_of_the_lease_to_the_next_owner() {
        let dead = |now| owned(1, Some(1), Some(10.0), now);
        assert_eq!(longest(&[dead(9.9), dead(10.5), dead(12.0), owned(2, Some(2), ALIVE, 12.1)]), 2000);
    }

    #[test]
    fn a_shard_that_was_given_up_is_nobodys_from_the_sample_that_saw_it() {
        let free = |now| owned(1, None, None, now);
        assert_eq!(longest(&[owned(1, Some(1), ALIVE, 4.0), free(5.0), free(5.5), free(6.0)]), 1000);
    }

    #[test]
    fn a_lease_that_ended_and_a_process_that_nobody_knows_make_one_stretch_with_what_follows() {
        let samples =
            [owned(1, Some(1), Some(2.0), 3.0), owned(1, Some(1), None, 4.0), owned(1, None, None, 5.0)];
        assert_eq!(longest(&samples), 3000);
    }

    #[test]
    fn a_shard_that_was_owned_between_two_samples_begins_anew() {
        assert_eq!(longest(&[owned(1, None, None, 1.0), owned(2, None, None, 9.0)]), 0);
        let renewed = owned(1, Some(1), ALIVE, 5.0);
        assert_eq!(longest(&[owned(1, Some(1), Some(1.0), 2.0), renewed, owned(1, None, None, 9.0)]), 1000);
    }

    #[test]
    fn the_most_shards_of_one_process_are_counted_by_owner() {
        let sample = [Some(1), Some(2), Some(1), None, None, None].map(|owner| owned(1, owner, ALIVE, 1.0));
        assert_eq!(most_of_one(&sample), 2);
    }
}
