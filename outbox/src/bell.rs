//! The bell: an enqueue in this process tells the relays in this process that a commit is coming.
//!
//! The driver's commit has no hook, so the bell cannot say that one happened. A relay that hears it polls at short,
//! growing intervals until it finds the rows. A bell that nobody hears costs nothing; a hint that is lost costs the
//! poll's ceiling.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

static RUNG: AtomicU64 = AtomicU64::new(0);
static BELL: LazyLock<Notify> = LazyLock::new(Notify::new);

/// Rings for every relay in this process.
pub(crate) fn ring() {
    RUNG.fetch_add(1, Ordering::Relaxed);
    BELL.notify_waiters();
}

/// A relay's ear: it hears each ring since it last listened, also one between two calls.
#[derive(Debug)]
pub(crate) struct Ear {
    heard: u64,
}

impl Ear {
    pub(crate) fn new() -> Self {
        Ear { heard: RUNG.load(Ordering::Relaxed) }
    }

    /// Whether it has rung since the last call.
    pub(crate) fn heard(&mut self) -> bool {
        let rung = RUNG.load(Ordering::Relaxed);
        std::mem::replace(&mut self.heard, rung) != rung
    }

    /// Waits until it has rung since [`heard`](Self::heard) last answered.
    pub(crate) async fn wait(&self) {
        loop {
            let mut ring = std::pin::pin!(BELL.notified());
            // Registered before the count is read: a ring in between wakes us.
            ring.as_mut().enable();
            if RUNG.load(Ordering::Relaxed) != self.heard {
                return;
            }
            ring.await;
        }
    }
}
