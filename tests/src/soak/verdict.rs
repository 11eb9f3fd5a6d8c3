//! What a soak has found, as one line of JSON, and what it means for the exit code. No I/O.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use super::ledger::Violation;
use super::sharing::Sharing;
use super::transaction::Tally;
use super::{Plant, Settings};

/// Fewer messages prove nothing, whatever was asked for.
const FEWEST_MESSAGES: u64 = 1000;

/// Owners that are looked at more seldom may leave a shard alone for long unseen.
const LONGEST_GAP_MS: u64 = 1000;

/// What was counted.
#[derive(Debug, Default, Serialize)]
pub(super) struct Counts {
    /// Committed.
    pub(super) messages: u64,
    /// Different ones on the wire.
    pub(super) delivered: u64,
    pub(super) lost: u64,
    /// Delivered only when the transaction in the other database had ended.
    pub(super) stalled: u64,
    pub(super) phantoms: u64,
    pub(super) altered: u64,
    pub(super) inversions: u64,
    pub(super) duplicates_on_wire: u64,
    pub(super) duplicates_discarded: u64,
    pub(super) effects_not_exactly_one: u64,
    pub(super) kills: u64,
    pub(super) kills_with_backlog: u64,
    pub(super) torn_lines: u64,
    /// With several processes.
    #[serde(flatten)]
    pub(super) sharing: Option<Sharing>,
}

/// The judgement.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    #[serde(flatten)]
    counts: Counts,
    workload: Tally,
    seed: u64,
    seconds: u64,
    postgres: String,
    plant: Option<String>,
    /// What the planted bug must be convicted of.
    expected: Option<Violation>,
    violations: Vec<Violation>,
    /// Why a run without violations proves nothing.
    too_little: Vec<&'static str>,
}

impl Verdict {
    /// Judges the counts.
    pub(super) fn new(
        settings: &Settings,
        counts: Counts,
        workload: Tally,
        seconds: u64,
        postgres: String,
    ) -> Self {
        let sharing = counts.sharing.as_ref();
        // Of naive relays nobody knows why they took a shard: copies count against one that is there to make them.
        let judged = settings.plant.is_none_or(|plant| plant.expected() == Some(Violation::Duplicates));
        let found = [
            (Violation::Lost, counts.lost),
            (Violation::Inversion, counts.inversions),
            (Violation::Phantom, counts.phantoms),
            (Violation::Altered, counts.altered),
            (Violation::Stalled, counts.stalled),
            (
                Violation::Effect,
                counts.effects_not_exactly_one
                    + counts.duplicates_on_wire.abs_diff(counts.duplicates_discarded),
            ),
            (Violation::Unowned, sharing.map_or(0, |sharing| sharing.unowned_too_long().into())),
            (
                Violation::Duplicates,
                sharing
                    .filter(|_| judged)
                    .map_or(0, |sharing| sharing.forbidden_duplicates(counts.duplicates_on_wire)),
            ),
        ];
        let violations = found.into_iter().filter(|(_, count)| *count > 0).map(|(violation, _)| violation);
        Verdict {
            violations: violations.collect(),
            too_little: too_little(settings, &counts, &workload),
            expected: settings.plant.and_then(Plant::expected),
            plant: settings.plant.map(Plant::name),
            seed: settings.seed,
            counts,
            workload,
            seconds,
            postgres,
        }
    }

    /// 1: a promise was broken, which a planted bug must do in its own way; 2: the run proves too little.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self.expected {
            Some(expected) if self.violations.contains(&expected) => 1,
            Some(_) => 2,
            None if !self.violations.is_empty() => 1,
            None if !self.too_little.is_empty() => 2,
            None => 0,
        }
    }
}

fn too_little(settings: &Settings, counts: &Counts, workload: &Tally) -> Vec<&'static str> {
    let none = |count: &AtomicU64| count.load(Relaxed) == 0;
    let wanted = settings.kills_wanted();
    let killed = wanted > 0;
    let sharing = counts.sharing.as_ref().filter(|_| settings.plant.is_none());
    let lacks_sharing = |lacks: &dyn Fn(&Sharing) -> bool| sharing.is_some_and(lacks);
    let lacks = [
        (counts.messages < settings.messages_wanted().max(FEWEST_MESSAGES), "messages"),
        (counts.kills_with_backlog < wanted, "kills with a backlog"),
        (killed && counts.duplicates_on_wire == 0, "duplicates on the wire"),
        (killed && counts.duplicates_discarded == 0, "duplicates discarded"),
        (none(&workload.rolled_back), "transactions rolled back"),
        (none(&workload.early), "transactions with an early id"),
        (none(&workload.stragglers), "stragglers"),
        (none(&workload.savepoints_released), "savepoints released"),
        (none(&workload.savepoints_rolled_back), "savepoints rolled back"),
        (lacks_sharing(&|sharing| sharing.starts < sharing.relays + wanted), "starts under load"),
        (lacks_sharing(&|sharing| sharing.polite_stops < wanted), "polite stops"),
        (
            lacks_sharing(&|sharing| sharing.freezes_outliving_the_lease < wanted),
            "freezes that outlive the lease",
        ),
        (lacks_sharing(&|sharing| sharing.takeovers < wanted), "takeovers"),
        (lacks_sharing(&|sharing| sharing.settled_samples == 0), "moments in which all have their places"),
        (
            lacks_sharing(&|sharing| sharing.longest_gap_between_samples_ms > LONGEST_GAP_MS),
            "samples of owners",
        ),
    ];
    lacks.into_iter().filter(|(lacks, _)| *lacks).map(|(_, what)| what).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(plant: Option<Plant>) -> Settings {
        Settings { messages: 2000, lasts: None, seed: 1, kills: 3, relays: 1, plant }
    }

    /// As of a run with several processes in which nothing was wrong.
    fn sharing() -> Sharing {
        Sharing {
            relays: 8,
            lease_ms: 2000,
            max_unrecorded: 100,
            starts: 11,
            polite_stops: 3,
            freezes: 4,
            freezes_outliving_the_lease: 3,
            takeovers: 3,
            settled_samples: 1,
            longest_unowned_ms: 3000,
            longest_gap_between_samples_ms: 1000,
            duplicates_bound: 500,
            most_duplicates_of_one_loss: 100,
            ..Sharing::default()
        }
    }

    fn counts() -> Counts {
        Counts {
            messages: 2000,
            delivered: 2000,
            duplicates_on_wire: 5,
            duplicates_discarded: 5,
            kills: 3,
            kills_with_backlog: 3,
            ..Counts::default()
        }
    }

    fn workload() -> Tally {
        let one = || AtomicU64::new(1);
        Tally {
            rolled_back: one(),
            early: one(),
            stragglers: one(),
            savepoints_released: one(),
            savepoints_rolled_back: one(),
            ..Tally::default()
        }
    }

    fn code(plant: Option<Plant>, counts: Counts, workload: Tally) -> u8 {
        Verdict::new(&settings(plant), counts, workload, 1, "15".to_owned()).code()
    }

    #[test]
    fn each_violation_alone_fails_a_run() {
        assert_eq!(code(None, counts(), workload()), 0);
        for broken in [
            Counts { lost: 1, ..counts() },
            Counts { stalled: 1, ..counts() },
            Counts { phantoms: 1, ..counts() },
            Counts { altered: 1, ..counts() },
            Counts { inversions: 1, ..counts() },
            Counts { effects_not_exactly_one: 1, ..counts() },
            Counts { duplicates_discarded: 4, ..counts() },
        ] {
            let text = format!("{broken:?}");
            assert_eq!(code(None, broken, workload()), 1, "{text}");
        }
    }

    fn code_of_several(plant: Option<Plant>, sharing: Sharing, duplicates: u64) -> u8 {
        let (duplicates_on_wire, duplicates_discarded) = (duplicates, duplicates);
        let counts = Counts { duplicates_on_wire, duplicates_discarded, sharing: Some(sharing), ..counts() };
        code(plant, counts, workload())
    }

    #[test]
    fn a_shard_that_nobody_owns_and_copies_beyond_the_bound_fail_a_run_of_several() {
        assert_eq!(code_of_several(None, sharing(), 500), 0);
        assert_eq!(code_of_several(None, sharing(), 501), 1);
        for broken in [
            Sharing { longest_unowned_ms: 3001, ..sharing() },
            Sharing { duplicates_unexplained: 1, ..sharing() },
            Sharing { most_duplicates_of_one_loss: 101, ..sharing() },
        ] {
            let text = format!("{broken:?}");
            assert_eq!(code_of_several(None, broken, 5), 1, "{text}");
        }
    }

    #[test]
    fn a_run_of_several_without_its_dangers_proves_too_little() {
        for lacking in [
            Sharing { starts: 10, ..sharing() },
            Sharing { polite_stops: 2, ..sharing() },
            Sharing { freezes_outliving_the_lease: 2, ..sharing() },
            Sharing { takeovers: 2, ..sharing() },
            Sharing { settled_samples: 0, ..sharing() },
            Sharing { longest_gap_between_samples_ms: 1001, ..sharing() },
        ] {
            let text = format!("{lacking:?}");
            assert_eq!(code_of_several(None, lacking, 5), 2, "{text}");
        }
    }

    #[test]
    fn copies_count_against_a_naive_relay_only_if_it_is_there_to_make_them() {
        let copies = || Sharing { duplicates_unexplained: 9, ..sharing() };
        assert_eq!(code_of_several(Some(Plant::NoShards), copies(), 9), 1);
        assert_eq!(code_of_several(Some(Plant::FencedRecord), copies(), 9), 0);
    }

    #[test]
    fn a_run_without_its_dangers_proves_too_little() {
        for lacking in [
            Counts { messages: 1999, ..counts() },
            Counts { kills_with_backlog: 2, ..counts() },
            Counts { duplicates_on_wire: 0, duplicates_discarded: 0, ..counts() },
        ] {
            let text = format!("{lacking:?}");
            assert_eq!(code(None, lacking, workload()), 2, "{text}");
        }
        assert_eq!(code(None, counts(), Tally { stragglers: AtomicU64::new(0), ..workload() }), 2);
        assert_eq!(code(None, counts(), Tally { rolled_back: AtomicU64::new(0), ..workload() }), 2);
    }

    #[test]
    fn a_planted_bug_is_convicted_only_of_its_own_violation() {
        let lost = || Counts { lost: 1, ..counts() };
        assert_eq!(code(Some(Plant::PositionCursor), lost(), workload()), 1);
        assert_eq!(code(Some(Plant::OrderByTx), lost(), workload()), 2);
        assert_eq!(code(Some(Plant::PositionCursor), counts(), workload()), 2);
        assert_eq!(code(Some(Plant::Control), counts(), workload()), 0);
    }
}
