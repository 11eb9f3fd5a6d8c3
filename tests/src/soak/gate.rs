//! How far the writers may run ahead: there must be a backlog whenever the relay is killed, and not one that grows for
//! ever.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::watch;

/// What the writers have done, and how much more they may do.
#[derive(Debug)]
pub(super) struct Gate {
    committed: AtomicU64,
    allowed: watch::Sender<Allowed>,
}

#[derive(Debug, Clone, Copy)]
struct Allowed {
    messages: u64,
    /// Nothing more will be allowed.
    last: bool,
}

impl Gate {
    /// Lets that many messages through.
    pub(super) fn new(messages: u64) -> Self {
        let allowed = watch::Sender::new(Allowed { messages, last: false });
        Gate { committed: AtomicU64::new(0), allowed }
    }

    /// Lets `more` messages through, from now on.
    pub(super) fn open(&self, more: u64) {
        self.allowed.send_modify(|allowed| allowed.messages = allowed.messages.max(self.committed()) + more);
    }

    /// Lets messages through until that many have committed, if it was less before.
    pub(super) fn reach(&self, messages: u64) {
        self.allowed.send_if_modified(|allowed| {
            let more = messages > allowed.messages && !allowed.last;
            allowed.messages = if more { messages } else { allowed.messages };
            more
        });
    }

    /// The work is done when `total` messages have committed.
    pub(super) fn finish(&self, total: u64) {
        self.allowed.send_replace(Allowed { messages: total, last: true });
    }

    /// Waits until one more transaction is wanted; `false`: none is, ever.
    pub(super) async fn passes(&self) -> bool {
        let mut allowed = self.allowed.subscribe();
        let decided = |allowed: &Allowed| allowed.last || self.committed() < allowed.messages;
        match allowed.wait_for(decided).await {
            Ok(allowed) => self.committed() < allowed.messages,
            Err(_) => false,
        }
    }

    /// Messages have committed.
    pub(super) fn count(&self, messages: u64) {
        self.committed.fetch_add(messages, Relaxed);
    }

    /// Messages committed.
    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Relaxed)
    }
}
