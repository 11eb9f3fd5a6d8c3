//! A server whose clock is wrong, and goes wrong while it runs. Linux only: a library in front of the C library shifts what
//! its processes take for the time.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use servers::{Postgres, PostgresOptions};
use tempfile::TempDir;

/// A server of its own, whose clock is right until it is [set](Self::set).
#[derive(Debug)]
pub struct WrongClock {
    /// The server.
    pub server: Postgres,
    folder: TempDir,
}

impl WrongClock {
    /// Starts the server.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // The server may run as another user.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755))
            .expect("a folder that others may read");
        let (library, file) = (folder.path().join("wrong.so"), folder.path().join("shift"));
        compile(&library);
        fs::write(&file, "0").expect("a file in a temporary folder");
        let options = PostgresOptions::new()
            .with_environment("LD_PRELOAD", &library.to_string_lossy())
            .with_environment("OUTBOX_TEST_CLOCK", &file.to_string_lossy());
        WrongClock { server: options.start().expect("PostgreSQL starts"), folder }
    }

    /// Sets the server's clock that many seconds ahead of the machine's.
    pub fn set(&self, seconds: i64) {
        let (new, file) = (self.folder.path().join("new"), self.folder.path().join("shift"));
        // In one step: a server may read it now.
        fs::write(&new, seconds.to_string()).expect("a file in a temporary folder");
        fs::rename(new, file).expect("a file in a temporary folder");
    }
}

/// The driver of the C compiler is there wherever Rust links.
fn compile(library: &std::path::Path) {
    let mut compiler = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-x", "c", "-", "-o"])
        .arg(library)
        .arg("-ldl")
        .stdin(Stdio::piped())
        .spawn()
        .expect("cc is installed");
    let mut source = compiler.stdin.take().expect("standard input is a pipe");
    source.write_all(include_bytes!("clock/wrong.c")).expect("cc reads its input");
    drop(source);
    assert!(compiler.wait().expect("cc ends").success(), "cc compiles");
}
