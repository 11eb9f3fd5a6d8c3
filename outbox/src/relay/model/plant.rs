//! The bugs that the model must find, each shipped by somebody, and the law that each of them breaks.

use super::laws::Law;

/// What is done wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plant {
    /// What is new has a higher position than anything that was visible at the last look.
    PositionCursor,
    /// A page shows what running transactions have written.
    ReadsRunning,
    /// The lower bound is read just before the snapshot, without a transaction of our own in between.
    BoundAtSnapshot,
    /// Writers draw the position before their transaction has its id.
    PositionBeforeTransaction,
    /// A look that sees the same last position as the one before is taken for idle.
    IdleBySequence,
    /// A page is sent in the order of transaction ids.
    OrderByTransaction,
    /// What was seen in memory is kept over a crash of the server.
    MemoryOverCrash,
    /// A record that does not name the epoch.
    RecordWithoutEpoch,
    /// A key's messages are sent without waiting for one another, to a broker that does not keep them in order.
    SideBySide,
    /// A message that waits to be sent again does not hold back its key.
    RetryOvertaken,
    /// A key that rests after a failure is never tried again.
    RestForgotten,
    /// The cursor passes a message when it is sent.
    PassedWhenSent,
    /// A process hands over its shards without recording what it has published.
    LeaveWithoutRecord,
    /// A process that is told to stop, or to share, does not settle what was confirmed behind what was not sent.
    StopsAtOnce,
    /// What comes after a held message of its key is sent.
    HoldOvertaken,
    /// A hold is recorded without what stood behind the message that failed.
    HoldWithoutSuccessors,
    /// A message whose destination takes nothing does not hold back its key.
    DestinationOvertaken,
    /// Of a key that waits for its destination only the first message is held.
    DestinationForgotten,
    /// A key is let go as soon as nothing of it is held, though copies are on their way.
    ReleasedTooEarly,
    /// A held message that is done with, while the cursor has not passed it, leaves no trace.
    SettledForgotten,
    /// What is settled is forgotten with the hold that it was of.
    SettledWithHold,
    /// A session does not ask what a person has settled of a key that it lets go.
    SkipUnheard,
    /// A message that is settled is copied to its held key when it is read again.
    SettledCopied,
    /// What is settled is not taken out of what waits while a destination is down.
    SettledAtDestination,
}

impl Plant {
    /// The law that it breaks first.
    pub(super) fn breaks(self) -> Law {
        match self {
            Plant::PositionCursor
            | Plant::BoundAtSnapshot
            | Plant::PositionBeforeTransaction
            | Plant::IdleBySequence
            | Plant::MemoryOverCrash
            | Plant::PassedWhenSent
            | Plant::DestinationForgotten
            | Plant::HoldWithoutSuccessors => Law::NoLoss,
            Plant::OrderByTransaction
            | Plant::SideBySide
            | Plant::RetryOvertaken
            | Plant::HoldOvertaken
            | Plant::DestinationOvertaken
            | Plant::ReleasedTooEarly => Law::Order,
            Plant::ReadsRunning => Law::NoPhantom,
            Plant::RestForgotten => Law::NothingSticks,
            Plant::RecordWithoutEpoch => Law::RecordedIsDone,
            Plant::SettledForgotten
            | Plant::SettledWithHold
            | Plant::SkipUnheard
            | Plant::SettledCopied
            | Plant::SettledAtDestination => Law::SettledIsDone,
            Plant::LeaveWithoutRecord | Plant::StopsAtOnce => Law::BoundedDuplicates,
        }
    }
}
