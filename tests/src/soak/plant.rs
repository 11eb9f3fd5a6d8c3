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
}

impl Plant {
    /// The violation it must be convicted of; none for the control.
    pub(super) fn expected(self) -> Option<Violation> {
        match self {
            Plant::PositionCursor | Plant::BoundAtSnapshot | Plant::TxAfterPosition => Some(Violation::Lost),
            Plant::XidHorizon | Plant::OrderByTx => Some(Violation::Inversion),
            Plant::Control => None,
        }
    }

    /// As the command line says it.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}
