//! SIGTERM and SIGINT: the first asks to stop, the second ends the process at once.

use std::convert::Infallible;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::Failure;

/// The two signals that end a process politely, caught from the moment this is made.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn catch() -> Result<Self, Failure> {
        let catch =
            |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot catch signals: {error}")));
        Ok(Signals { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// Cancels `stop` at the first signal and ends the process at the second. Whoever runs it drops it when the work is
    /// done.
    pub(crate) async fn watch(mut self, stop: CancellationToken) -> Infallible {
        let first = self.next().await;
        tracing::info!(
            signal = name(first),
            "stopping: what is on the wire is finished; a second signal ends at once"
        );
        stop.cancel();
        let second = self.next().await;
        crate::output::complain("outbox: ended at once; what was on the wire may be published again");
        std::process::exit(128 + second);
    }

    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => INTERRUPT,
            _ = self.terminate.recv() => TERMINATE,
        }
    }
}

const INTERRUPT: i32 = 2;
const TERMINATE: i32 = 15;

fn name(signal: i32) -> &'static str {
    if signal == INTERRUPT { "SIGINT" } else { "SIGTERM" }
}
