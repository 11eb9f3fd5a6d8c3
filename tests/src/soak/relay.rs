//! The relay under test as a process: the shipped binary, or our own with a bug in it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use servers::process::{Process, Signal};

use super::Plant;

/// How long a relay may be silent before its shards are free: what every kill costs.
const LEASE: &str = "1s";

/// A relay, which can be killed and started again.
pub(super) struct Relay {
    process: Process,
    command: Command,
}

impl Relay {
    /// Starts what [`program`] answered, for that database.
    pub(super) fn start(mut program: Command, database: &str) -> Result<Relay> {
        // Not in the arguments, which every process of the machine can read.
        program.env("DATABASE_URL", database);
        let process = Process::new("outbox-soak-relay", Signal::Terminate)?;
        let mut relay = Relay { process, command: program };
        relay.restart()?;
        Ok(relay)
    }

    /// Starts it again.
    pub(super) fn restart(&mut self) -> Result<()> {
        Ok(self.process.launch(&self.command)?)
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to end and waits.
    pub(super) fn stop(&mut self) {
        self.process.stop();
    }

    /// An error if it has ended by itself.
    pub(super) fn is_alive(&mut self) -> Result<()> {
        ensure!(self.process.is_running(), "the relay has ended by itself:\n{}", self.process.log_tail());
        Ok(())
    }
}

/// The relay that publishes to `file`: the shipped binary, built now if it has to be, or a naive one with that bug.
pub(super) fn program(plant: Option<Plant>, file: &Path) -> Result<Command> {
    match plant {
        None => shipped(file),
        Some(plant) => naive(plant, file),
    }
}

fn shipped(file: &Path) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.arg("relay").arg("--broker").arg(format!("file:{}", file.display()));
    command.args(["--lease", LEASE]);
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
