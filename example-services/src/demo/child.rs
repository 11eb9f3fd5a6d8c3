//! One process of the demo, which it can kill and start again. It ends with the demo, however the demo ends.

use std::process::Command;
use std::time::{Duration, Instant};

use servers::process::{KeepError, LaunchError, Process, Signal};

use crate::service::LISTENING;

/// How long a process has to be ready: migrations of a fresh database on a busy machine included.
const START: Duration = Duration::from_secs(30);
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// A process and how it was started.
pub(super) struct Child {
    pub(super) name: String,
    process: Process,
    command: Command,
    /// We killed it, so its end is no failure.
    killed: bool,
    /// How often it was started: so many times a service says where it listens.
    launches: usize,
}

/// Why a process is not at work.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChildError {
    #[error("no folder for {name}")]
    Keep { name: String, source: KeepError },
    #[error("{name} was not started")]
    Launch { name: String, source: LaunchError },
    #[error("{name} has ended; its log ends with:\n{log}")]
    Ended { name: String, log: String },
    #[error("{name} was not ready within 30 s; its log ends with:\n{log}")]
    Late { name: String, log: String },
}

impl Child {
    /// Starts `command`.
    pub(super) fn start(name: String, command: Command) -> Result<Child, ChildError> {
        let process = Process::new(&format!("outbox-demo-{}", name.replace(' ', "-")), Signal::Terminate)
            .map_err(|source| ChildError::Keep { name: name.clone(), source })?;
        let mut child = Child { name, process, command, killed: false, launches: 0 };
        child.restart()?;
        Ok(child)
    }

    /// Starts it again.
    pub(super) fn restart(&mut self) -> Result<(), ChildError> {
        self.killed = false;
        self.launches += 1;
        let launched = self.process.launch(&self.command);
        launched.map_err(|source| ChildError::Launch { name: self.name.clone(), source })
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) {
        self.killed = true;
        self.process.kill();
    }

    /// Asks it to end, and does not wait.
    pub(super) fn ask_to_end(&self) {
        self.process.signal(Signal::Terminate);
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid().unwrap_or_default()
    }

    /// An error if it has ended by itself.
    pub(super) fn alive(&mut self) -> Result<(), ChildError> {
        if self.killed || self.process.is_running() {
            return Ok(());
        }
        Err(ChildError::Ended { name: self.name.clone(), log: self.process.log_tail() })
    }

    /// Waits until a service says where it listens.
    pub(super) async fn address(&mut self) -> Result<String, ChildError> {
        let started = Instant::now();
        loop {
            self.alive()?;
            let log = std::fs::read_to_string(self.process.log()).unwrap_or_default();
            // Whole lines only: the last one may still be being written.
            let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let said = whole.lines().filter_map(|line| line.strip_prefix(LISTENING)).nth(self.launches - 1);
            if let Some(address) = said {
                return Ok(format!("http://{address}"));
            }
            if started.elapsed() > START {
                return Err(ChildError::Late { name: self.name.clone(), log: self.process.log_tail() });
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }
}
