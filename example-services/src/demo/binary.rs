//! Where the `outbox` binary is: built by the cargo that runs us, or beside our own.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum BinaryError {
    #[error("cargo cannot be run")]
    Cargo(#[source] io::Error),
    #[error("the outbox binary cannot be built (cargo build --bin outbox)")]
    Build,
    #[error("there is no outbox binary beside {}: build it with cargo build --bin outbox", beside.display())]
    Missing { beside: PathBuf },
}

/// The path of the binary. Cargo runs only the binary it was asked to run, and builds no other, so the demo asks it for
/// this one; where that is up to date, it takes no time. Without cargo, the binaries were put side by side.
pub(super) fn find() -> Result<PathBuf, BinaryError> {
    match std::env::var_os("CARGO") {
        Some(cargo) => build(Command::new(cargo)),
        None => beside(),
    }
}

fn beside() -> Result<PathBuf, BinaryError> {
    let me = std::env::current_exe().unwrap_or_default();
    let path = me.with_file_name("outbox");
    if path.is_file() { Ok(path) } else { Err(BinaryError::Missing { beside: me }) }
}

/// What cargo says of what it has built.
#[derive(Deserialize)]
struct Built {
    executable: Option<PathBuf>,
}

fn build(mut cargo: Command) -> Result<PathBuf, BinaryError> {
    // With our own package beside it, the features of all that both use are those we were built with: nothing is built twice.
    cargo.args(["build", "--package", "example-services", "--package", "outbox-cli", "--bin", "outbox"]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    // Ours, not its: build scripts that watch these would run again, here and in the cargo run after it.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    // A first build takes a while: what cargo says of it goes to the terminal.
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit());
    let built = cargo.output().map_err(BinaryError::Cargo)?;
    if !built.status.success() {
        return Err(BinaryError::Build);
    }
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Built>(line).ok()?.executable)
        .next_back()
        .ok_or(BinaryError::Build)
}
