//! Which faults were asked for, and whom they meet. A fault meets messages in the order in which they are published.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use message::{Outgoing, PublishError};

/// How publishing one message fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// [`PublishError::Unavailable`]; the message is not kept.
    Unavailable,
    /// [`PublishError::DestinationUnavailable`]; the message is not kept.
    DestinationUnavailable,
    /// [`PublishError::Rejected`]; the message is not kept.
    Rejected,
    /// [`PublishError::Unknown`]; the message is not kept: it was lost on the way there.
    Unknown,
    /// [`PublishError::Unknown`], and the message is kept: the answer was lost on the way back.
    UnknownButKept,
}

/// What happens to a message: whether the broker keeps it, and what the publisher hears.
pub(super) struct Fate {
    pub(super) kept: bool,
    pub(super) result: Result<(), PublishError>,
}

#[derive(Default)]
pub(super) struct Faults {
    pub(super) down: bool,
    pub(super) next: VecDeque<Fault>,
    pub(super) rejected_keys: HashSet<Arc<str>>,
    pub(super) closed_destinations: HashSet<Arc<str>>,
    pub(super) refused_by_destinations: usize,
    pub(super) confirmation_delay: Duration,
    pub(super) duplicates: usize,
}

impl Faults {
    /// What becomes of the next message that is published. A fault of [`Fault`] is used up by it.
    pub(super) fn meet(&mut self, outgoing: &Outgoing) -> Fate {
        if self.down {
            return lost(PublishError::Unavailable("the memory broker is down".to_owned()));
        }
        if self.closed_destinations.contains(&outgoing.destination) {
            self.refused_by_destinations += 1;
            let text = format!("{} is closed on request", outgoing.destination);
            return lost(PublishError::DestinationUnavailable(text));
        }
        if outgoing.message.key.as_ref().is_some_and(|key| self.rejected_keys.contains(key)) {
            return lost(PublishError::Rejected("the key is rejected on request".to_owned()));
        }
        let asked = || "a fault on request".to_owned();
        match self.next.pop_front() {
            None => Fate { kept: true, result: Ok(()) },
            Some(Fault::Unavailable) => lost(PublishError::Unavailable(asked())),
            Some(Fault::DestinationUnavailable) => lost(PublishError::DestinationUnavailable(asked())),
            Some(Fault::Rejected) => lost(PublishError::Rejected(asked())),
            Some(Fault::Unknown) => lost(PublishError::Unknown(asked())),
            Some(Fault::UnknownButKept) => Fate { kept: true, result: Err(PublishError::Unknown(asked())) },
        }
    }

    /// Whether the delivery just acknowledged comes once more.
    pub(super) fn lose_acknowledgement(&mut self) -> bool {
        let lose = self.duplicates > 0;
        self.duplicates -= usize::from(lose);
        lose
    }
}

fn lost(error: PublishError) -> Fate {
    Fate { kept: false, result: Err(error) }
}
