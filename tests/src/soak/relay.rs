//! The relay under test as processes: of the shipped binary, or of our own with a bug in it.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::DateTime;
use serde::Deserialize;
use servers::process::{NotReady, Process, Signal};

use super::Plant;
use super::repeats::Warning;

/// How long a relay that has one process may be silent before its shards are free: what every kill costs.
const LEASE: &str = "1s";

/// The same where several share the machine: one that is only slow should not be thought dead.
pub(super) const SHARED_LEASE: Duration = Duration::from_secs(2);
/// What a process of several may have on the wire and not recorded: what each of its losses may repeat.
pub(super) const SHARED_UNRECORDED: u64 = 1000;

/// How long a file may be another's before somebody must be holding it: a write and its sync are over sooner.
const A_WRITE: Duration = Duration::from_millis(300);
/// Levels of what a process logs that is not only progress.
const WARNINGS: [&str; 2] = [" WARN ", " ERROR "];
/// How often a process is frozen anew because it held the file.
const FREEZES: u32 = 5;

/// A process of the relay, which can be killed and started again.
pub(super) struct Relay {
    process: Process,
    command: Command,
    /// The label of each process there was, and where its part of the log begins.
    lives: Vec<(String, usize)>,
}

impl Relay {
    /// Starts what [`program`] answered, so often, for that database.
    pub(super) fn start_all(program: &Command, processes: usize, database: &str) -> Result<Vec<Relay>> {
        (0..processes).map(|_| Relay::start(copy(program), database)).collect()
    }

    fn start(mut program: Command, database: &str) -> Result<Relay> {
        // Not in the arguments, which every process of the machine can read.
        program.env("DATABASE_URL", database);
        let process = Process::new("outbox-soak-relay", Signal::Terminate)?;
        let mut relay = Relay { process, command: program, lives: Vec::new() };
        relay.restart()?;
        Ok(relay)
    }

    /// Starts it again.
    pub(super) fn restart(&mut self) -> Result<()> {
        let begins = self.process.log().metadata().map_or(0, |log| log.len()) as usize;
        self.process.launch(&self.command)?;
        self.lives.extend(self.label().map(|label| (label, begins)));
        Ok(())
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to end (SIGTERM); [`has_stopped`](Self::has_stopped) tells when it has.
    pub(super) fn ask_to_stop(&self) {
        self.process.signal(Signal::Terminate);
    }

    /// Whether it has ended, as it was asked to. An error if it says that it failed.
    pub(super) fn has_stopped(&mut self) -> Result<bool> {
        match self.process.ready(Duration::ZERO, || true) {
            Ok(()) => Ok(false),
            Err(NotReady::Ended { status, .. }) if status.success() => Ok(true),
            Err(error) => Err(anyhow::anyhow!(error).context("a relay that was asked to stop has failed")),
        }
    }

    /// Asks all of them to end and waits.
    pub(super) fn stop_all(relays: &mut [Relay]) {
        relays.iter().for_each(Relay::ask_to_stop);
        relays.iter_mut().for_each(|relay| relay.process.stop());
    }

    /// Makes it stand still (SIGSTOP), though not while it has the file locked: the file is the broker of all processes, and
    /// that it is down is another matter. A process that waits for the lock, and writes when it wakes, is as much a zombie.
    /// Whether it stands still.
    pub(super) fn freeze(&self, file: &Path) -> Result<bool> {
        for _ in 0..FREEZES {
            self.process.signal(Signal::Pause);
            if is_free(file)? {
                return Ok(true);
            }
            self.thaw();
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(false)
    }

    /// Lets it go on (SIGCONT).
    pub(super) fn thaw(&self) {
        self.process.signal(Signal::Resume);
    }

    /// As the database knows it; nothing, if it does not run.
    pub(super) fn label(&self) -> Option<String> {
        self.process.pid().map(|pid| format!("pid {pid}"))
    }

    /// What its processes have logged as out of the ordinary.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        let log = std::fs::read(self.process.log()).unwrap_or_default();
        let ends = self.lives.iter().skip(1).map(|(_, begins)| *begins).chain([log.len()]);
        let mut warnings = Vec::new();
        for ((label, begins), ends) in self.lives.iter().zip(ends) {
            let said = String::from_utf8_lossy(log.get(*begins..ends).unwrap_or_default());
            let lines = said.lines().filter(|line| WARNINGS.iter().any(|level| line.contains(level)));
            warnings.extend(lines.filter_map(|line| {
                let at = DateTime::parse_from_rfc3339(line.split_whitespace().next()?).ok()?;
                let at = at.timestamp_micros() as f64 / 1e6;
                Some(Warning { label: label.clone(), at, line: line.to_owned() })
            }));
        }
        warnings
    }

    /// An error if it has ended by itself.
    pub(super) fn is_alive(&mut self) -> Result<()> {
        ensure!(self.process.is_running(), "the relay has ended by itself:\n{}", self.process.log_tail());
        Ok(())
    }
}

/// Of program, arguments and environment, which is all that is ever set.
fn copy(program: &Command) -> Command {
    let mut copy = Command::new(program.get_program());
    copy.args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => copy.env(name, value),
            None => copy.env_remove(name),
        };
    }
    copy
}

/// Whether no process keeps the file locked. Those that write lock it for a moment.
fn is_free(file: &Path) -> Result<bool> {
    // Locked only by who has written to it.
    let Ok(file) = File::open(file) else { return Ok(true) };
    let deadline = Instant::now() + A_WRITE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error.into()),
            Err(TryLockError::WouldBlock) if Instant::now() > deadline => return Ok(false),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_micros(500)),
        }
    }
}

/// The relay that publishes to `file`: the shipped binary, built now if it has to be, or a naive one with that bug.
pub(super) fn program(plant: Option<Plant>, processes: usize, file: &Path) -> Result<Command> {
    match plant {
        None => shipped(processes, file),
        Some(plant) => naive(plant, file),
    }
}

fn shipped(processes: usize, file: &Path) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.arg("relay").arg("--broker").arg(format!("file:{}", file.display()));
    if processes == 1 {
        command.args(["--lease", LEASE]);
    } else {
        command.arg("--lease").arg(format!("{}ms", SHARED_LEASE.as_millis()));
        command.arg("--max-unrecorded").arg(SHARED_UNRECORDED.to_string());
        command.arg("--max-on-wire").arg((SHARED_UNRECORDED / 2).to_string());
    }
    for (name, _) in std::env::vars_os() {
        // What is set here for another relay is not for this one.
        if name.to_string_lossy().starts_with("OUTBOX_") {
            command.env_remove(name);
        }
    }
    Ok(command)
}

fn naive(plant: Plant, file: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("naive-relay").arg(plant.name()).arg(file);
    Ok(command)
}

/// What cargo says of what it has built.
#[derive(Deserialize)]
struct Built {
    executable: Option<PathBuf>,
}

/// The `outbox` binary of the same profile as ours, built by the cargo that runs us; without one, the one beside us.
fn binary() -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let beside = me.with_file_name("outbox");
    let Some(cargo) = std::env::var_os("CARGO") else {
        ensure!(
            beside.is_file(),
            "no outbox binary beside {}: build it with cargo build --bin outbox",
            me.display()
        );
        return Ok(beside);
    };
    let target =
        me.parent().and_then(Path::parent).context("a program of cargo's lies in its target folder")?;
    let mut build = Command::new(cargo);
    build.args(["build", "--package", "outbox-cli", "--bin", "outbox"]);
    build.args(["--message-format", "json-render-diagnostics"]).arg("--target-dir").arg(target);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    build.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit());
    let built =
        build.output().map_err(|error: io::Error| anyhow::anyhow!(error).context("cargo cannot be run"))?;
    if !built.status.success() {
        bail!("the outbox binary cannot be built");
    }
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Built>(line).ok()?.executable)
        .next_back()
        .context("cargo names what it has built")
}
