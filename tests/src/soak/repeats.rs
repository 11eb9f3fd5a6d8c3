//! Which copies on the wire are owed to a crash, a freeze or a lost lease, and which to nothing that may make one. No I/O.
//!
//! A message is published again when its shard goes to another process though the last owner has not given it up: what
//! that owner had not recorded is sent by the next one, or by the last one when it wakes. One such *loss* of a shard
//! makes at most one more copy of a message. A process that stood still, or says that its database failed it, may also take
//! its own shards again, from what it had recorded: the same. Where shards are given up, for a stop or to share them, nothing
//! is sent twice, unless the process says that it was not answered in time: by the broker, or by the database that was to
//! record it.
//!
//! What is sent twice was read before the loss, so it was enqueued before it: one that knows of its loss sends nothing of
//! what came later, and one that does not know has a lease that ended before.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

/// A process has acquired a shard. Times are the database's, in seconds.
#[derive(Debug, Clone)]
pub(super) struct Acquisition {
    pub(super) shard: i16,
    /// Who had not given it up.
    pub(super) previous: Option<Uuid>,
    pub(super) owner: Uuid,
    /// The owner's.
    pub(super) label: Option<String>,
    pub(super) at: f64,
}

/// What a process has logged as out of the ordinary.
#[derive(Debug, Clone)]
pub(super) struct Warning {
    pub(super) label: String,
    pub(super) at: f64,
    pub(super) line: String,
}

impl Warning {
    /// It threw away what it had in memory and takes its shards again from what it had recorded: its connection was lost, or
    /// it could not renew its lease for half of it.
    fn starts_over(&self) -> bool {
        self.line.contains("starting over")
    }

    /// It gave its shards up, or shared them, with something on the wire or unrecorded.
    fn leaves_unanswered(&self) -> bool {
        self.line.contains("did not answer in time")
    }
}

/// What the soak has done to a process: it was killed, or frozen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blow {
    pub(super) process: Uuid,
    pub(super) at: f64,
}

/// A copy of a message that was on the wire before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repeat {
    pub(super) message: Uuid,
    pub(super) shard: i16,
    pub(super) enqueued_at: f64,
    /// When it was read from the wire.
    pub(super) at: f64,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Explained {
    /// Shards that one process took though another had not given them up.
    pub(super) takeovers: u64,
    /// Processes that lost shards though nobody had touched them: they were too slow for their lease.
    pub(super) slow: u64,
    /// Copies that nothing explains.
    pub(super) unexplained: Vec<Repeat>,
    /// The most copies that one process owes to each time it lost shards.
    pub(super) most_of_one_loss: u64,
}

/// A shard was lost.
#[derive(Debug, Clone, Copy)]
struct Loss {
    of: Uuid,
    at: f64,
    copies: u64,
}

/// Explains copies, given in the order of the wire; acquisitions in the order of each shard's.
pub(super) fn explain(
    acquisitions: &[Acquisition],
    blows: &[Blow],
    warnings: &[Warning],
    repeats: &[Repeat],
) -> Explained {
    let mut losses = losses(acquisitions, blows, warnings);
    let touched = |loss: &Loss| blows.iter().any(|blow| blow.process == loss.of && blow.at <= loss.at);
    let slow = losses.values().flatten().filter(|loss| !touched(loss)).map(|loss| loss.of);
    let slow = slow.collect::<std::collections::BTreeSet<Uuid>>().len() as u64;
    let mut spent: HashMap<Uuid, Vec<usize>> = HashMap::new();
    let mut unexplained = Vec::new();
    for repeat in repeats {
        let spent = spent.entry(repeat.message).or_default();
        let losses = losses.entry(repeat.shard).or_default();
        let owed = |(_, loss): &(usize, &mut Loss)| (repeat.enqueued_at..=repeat.at).contains(&loss.at);
        let unspent = losses.iter_mut().enumerate().filter(|(index, _)| !spent.contains(index));
        // The latest: an earlier one is more likely to be owed to by a copy that comes later still.
        match unspent.filter(owed).last() {
            Some((index, loss)) => {
                loss.copies += 1;
                spent.push(index);
            }
            None => unexplained.push(*repeat),
        }
    }
    let taken =
        |acquisition: &&Acquisition| acquisition.previous.is_some_and(|from| from != acquisition.owner);
    let takeovers = acquisitions.iter().filter(taken).count() as u64;
    Explained { takeovers, slow, unexplained, most_of_one_loss: most_of_one_loss(&losses) }
}

fn losses(acquisitions: &[Acquisition], blows: &[Blow], warnings: &[Warning]) -> BTreeMap<i16, Vec<Loss>> {
    let mut losses: BTreeMap<i16, Vec<Loss>> = BTreeMap::new();
    let mut last: HashMap<i16, &Acquisition> = HashMap::new();
    for acquisition in acquisitions {
        let before = last.insert(acquisition.shard, acquisition);
        let since = before.map_or(0.0, |before| before.at);
        let left_unanswered = |before: &&Acquisition| {
            warnings.iter().any(|warning| {
                warning.leaves_unanswered()
                    && before.label.as_ref() == Some(&warning.label)
                    && (since..=acquisition.at).contains(&warning.at)
            })
        };
        let left_unanswered = before.filter(left_unanswered).map(|before| before.owner);
        let Some(previous) = acquisition.previous.or(left_unanswered) else { continue };
        let stood_still =
            blows.iter().any(|blow| blow.process == previous && (since..=acquisition.at).contains(&blow.at));
        let started_over = warnings.iter().any(|warning| {
            warning.starts_over()
                && acquisition.label.as_ref() == Some(&warning.label)
                && (since..=acquisition.at).contains(&warning.at)
        });
        if previous != acquisition.owner || stood_still || started_over || left_unanswered.is_some() {
            let loss = Loss { of: previous, at: acquisition.at, copies: 0 };
            losses.entry(acquisition.shard).or_default().push(loss);
        }
    }
    losses
}

/// A process loses each of its shards at most once at a time, so it has lost shards at least as often as any one of them.
fn most_of_one_loss(losses: &BTreeMap<i16, Vec<Loss>>) -> u64 {
    let mut of_process: BTreeMap<Uuid, (u64, u64)> = BTreeMap::new();
    for shard in losses.values() {
        let mut times: BTreeMap<Uuid, u64> = BTreeMap::new();
        for loss in shard {
            *times.entry(loss.of).or_default() += 1;
            of_process.entry(loss.of).or_default().0 += loss.copies;
        }
        for (process, times) in times {
            let most = &mut of_process.entry(process).or_default().1;
            *most = times.max(*most);
        }
    }
    of_process.into_values().map(|(copies, times)| copies.div_ceil(times.max(1))).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn acquired(shard: i16, previous: Option<u128>, owner: u128, at: f64) -> Acquisition {
        let label = Some(format!("pid {owner}"));
        Acquisition { shard, previous: previous.map(id), owner: id(owner), label, at }
    }

    fn repeat(message: u128, shard: i16, enqueued_at: f64, at: f64) -> Repeat {
        Repeat { message: id(message), shard, enqueued_at, at }
    }

    fn unexplained(acquisitions: &[Acquisition], blows: &[Blow], repeats: &[Repeat]) -> usize {
        explain(acquisitions, blows, &[], repeats).unexplained.len()
    }

    #[test]
    fn a_shard_that_was_given_up_repeats_nothing() {
        let polite = [acquired(1, None, 1, 1.0), acquired(1, None, 2, 5.0)];
        assert_eq!(unexplained(&polite, &[], &[repeat(1, 1, 4.0, 6.0)]), 1);
    }

    #[test]
    fn a_lost_shard_repeats_once_what_was_enqueued_before_and_in_no_other_shard() {
        let lost = [acquired(1, None, 1, 1.0), acquired(1, Some(1), 2, 5.0), acquired(2, None, 2, 5.0)];
        let judge = |repeats: &[Repeat]| unexplained(&lost, &[], repeats);
        assert_eq!(judge(&[repeat(1, 1, 4.0, 6.0), repeat(2, 1, 4.5, 6.0)]), 0);
        // Twice, before it, after it, and in another shard.
        assert_eq!(judge(&[repeat(1, 1, 4.0, 6.0), repeat(1, 1, 4.0, 7.0)]), 1);
        assert_eq!(judge(&[repeat(1, 1, 4.0, 4.9)]), 1);
        assert_eq!(judge(&[repeat(1, 1, 5.1, 6.0)]), 1);
        assert_eq!(judge(&[repeat(1, 2, 4.0, 6.0)]), 1);
    }

    #[test]
    fn a_message_comes_once_more_for_each_loss_of_its_shard() {
        let lost = [acquired(1, Some(1), 2, 5.0), acquired(1, Some(2), 3, 8.0)];
        assert_eq!(unexplained(&lost, &[], &[repeat(1, 1, 4.0, 6.0), repeat(1, 1, 4.0, 9.0)]), 0);
        assert_eq!(unexplained(&lost, &[], &[repeat(1, 1, 4.0, 8.5), repeat(1, 1, 4.0, 9.0)]), 0);
    }

    #[test]
    fn a_process_that_takes_its_own_shards_again_repeats_only_if_it_stood_still() {
        let again = [acquired(1, None, 1, 1.0), acquired(1, Some(1), 1, 5.0)];
        let repeats = [repeat(1, 1, 4.0, 6.0)];
        assert_eq!(unexplained(&again, &[], &repeats), 1);
        assert_eq!(unexplained(&again, &[Blow { process: id(1), at: 4.5 }], &repeats), 0);
        assert_eq!(unexplained(&again, &[Blow { process: id(1), at: 0.5 }], &repeats), 1);
    }

    #[test]
    fn a_process_that_says_that_it_starts_over_repeats_only_its_own_and_only_then() {
        let again = [acquired(1, None, 1, 1.0), acquired(1, Some(1), 1, 5.0)];
        let judge = |label: &str, at, line: &str| {
            let warning = Warning { label: label.to_owned(), at, line: line.to_owned() };
            explain(&again, &[], &[warning], &[repeat(1, 1, 4.0, 6.0)]).unexplained.len()
        };
        let says = |label, at| judge(label, at, "WARN the database failed: starting over");
        assert_eq!(
            [says("pid 1", 4.9), says("pid 2", 4.9), says("pid 1", 0.9), says("pid 1", 5.5)],
            [0, 1, 1, 1]
        );
        assert_eq!(judge("pid 1", 4.9, "WARN the broker is unavailable"), 1);
    }

    #[test]
    fn a_shard_that_was_given_up_with_something_unanswered_repeats_it_once() {
        let (polite, shared) = (
            [acquired(1, None, 1, 1.0), acquired(1, None, 2, 5.0)],
            [acquired(1, None, 1, 1.0), acquired(1, Some(1), 1, 5.0)],
        );
        let judge = |acquisitions: &[Acquisition], label: &str, at, line: &str| {
            let warning = Warning { label: label.to_owned(), at, line: line.to_owned() };
            let repeats = [repeat(1, 1, 4.0, 6.0), repeat(1, 1, 4.0, 7.0)];
            explain(acquisitions, &[], &[warning], &repeats).unexplained.len()
        };
        let said = "WARN the broker did not answer in time: what is on the wire may be published again";
        for acquisitions in [&polite, &shared] {
            assert_eq!(judge(acquisitions, "pid 1", 4.9, said), 1);
            assert_eq!(judge(acquisitions, "pid 2", 4.9, said), 2);
            assert_eq!(judge(acquisitions, "pid 1", 0.9, said), 2);
            assert_eq!(judge(acquisitions, "pid 1", 4.9, "WARN the broker is unavailable"), 2);
        }
    }

    #[test]
    fn what_was_enqueued_after_the_loss_is_owed_to_nothing() {
        // As a process sent it that had renewed its lease and had not read that its shards were another's.
        let lost = [acquired(1, None, 1, 1.0), acquired(1, Some(1), 2, 5.0)];
        let frozen = [Blow { process: id(1), at: 2.0 }];
        let repeats = [repeat(1, 1, 4.0, 6.0), repeat(2, 1, 5.2, 6.0)];
        assert_eq!(unexplained(&lost, &frozen, &repeats), 1);
    }

    #[test]
    fn what_a_loss_has_cost_is_counted_over_the_shards_of_the_process() {
        let lost = [acquired(1, Some(1), 2, 5.0), acquired(1, Some(1), 2, 9.0), acquired(2, Some(1), 3, 5.0)];
        let of = |shard, message, at| repeat(message, shard, 4.0, at);
        let repeats = [of(1, 1, 6.0), of(1, 2, 6.0), of(2, 3, 6.0), of(1, 4, 9.5)];
        let explained = explain(&lost, &[Blow { process: id(1), at: 4.0 }], &[], &repeats);
        assert_eq!((explained.unexplained.len(), explained.most_of_one_loss), (0, 2));
    }

    #[test]
    fn a_shard_that_was_given_up_or_is_ones_own_is_not_taken_over() {
        let acquisitions =
            [acquired(1, None, 1, 1.0), acquired(1, Some(1), 1, 2.0), acquired(1, Some(1), 2, 5.0)];
        assert_eq!(explain(&acquisitions, &[], &[], &[]).takeovers, 1);
    }

    #[test]
    fn a_process_that_loses_its_shards_untouched_was_slow() {
        let lost = [acquired(1, Some(1), 2, 5.0), acquired(2, Some(1), 2, 5.0), acquired(3, Some(4), 2, 5.0)];
        assert_eq!(explain(&lost, &[Blow { process: id(4), at: 4.0 }], &[], &[]).slow, 1);
    }
}
