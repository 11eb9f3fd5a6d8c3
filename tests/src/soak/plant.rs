//! The bugs that a soak can plant, and what each of them must do to the ledger.

use clap::ValueEnum;

use super::ledger::Violation;

/// What is wrong with the naive relay, or with the writers it reads from. Every one of them has been shipped by somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Plant {
    /// What is new has a higher position than what was read before.
    PositionCursor,
    /// In the order of (transaction, position), up to the oldest running transaction.
    XidHorizon,
    /// Between snapshots, but the lower bound is read just before the snapshot, with no write of one's own in between.
    BoundAtSnapshot,
    /// Between snapshots, but the writers draw the position before their transaction has its id.
    TxAfterPosition,
    /// Between snapshots, but each window in the order of (transaction, position).
    OrderByTx,
    /// None of the bugs, in the naive relay: the control, without which the others would prove nothing.
    Control,
    /// Of several processes: each publishes everything, whoever else does.
    NoShards,
    /// Of several processes: each claims the next window for itself and publishes it, without waiting for the last one.
    ParallelClaims,
    /// Of several processes that take turns with shards: a process that was frozen still counts what it has published as
    /// progress of a window that is no longer its own.
    UnfencedRecord,
    /// Of such processes: a shard of one that stands still is never taken over.
    NoTakeover,
    /// The same without either bug: their control.
    FencedRecord,
}

impl Plant {
    /// The violation it must be convicted of; none for a control.
    pub(super) fn expected(self) -> Option<Violation> {
        match self {
            Plant::PositionCursor
            | Plant::BoundAtSnapshot
            | Plant::TxAfterPosition
            | Plant::UnfencedRecord => Some(Violation::Lost),
            Plant::XidHorizon | Plant::OrderByTx | Plant::ParallelClaims => Some(Violation::Inversion),
            Plant::NoTakeover => Some(Violation::Unowned),
            Plant::NoShards => Some(Violation::Duplicates),
            Plant::Control | Plant::FencedRecord => None,
        }
    }

    /// Whether it takes several processes to have the bug.
    pub(super) fn is_of_several(self) -> bool {
        self.is_frozen() || matches!(self, Plant::NoShards | Plant::ParallelClaims)
    }

    /// Whether it shows only when a process stands still for a while.
    pub(super) fn is_frozen(self) -> bool {
        matches!(self, Plant::UnfencedRecord | Plant::NoTakeover | Plant::FencedRecord)
    }

    /// As the command line says it.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}
