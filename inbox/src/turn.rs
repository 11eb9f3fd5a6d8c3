//! Consumers that run in one process make their lone tries one at a time: a message that kills it would be taken for
//! another consumer's.

use tokio::sync::{Mutex, MutexGuard};

static ALONE: Mutex<()> = Mutex::const_new(());

/// The right to make a lone try in this process.
pub(crate) type Turn = MutexGuard<'static, ()>;

/// The turn, if no other consumer of this process has it.
pub(crate) fn if_free() -> Option<Turn> {
    ALONE.try_lock().ok()
}

/// Waits for the turn, behind those that asked before.
pub(crate) async fn wait() -> Turn {
    ALONE.lock().await
}
