//! The shipped binary, run in an environment that holds nothing of the machine's configuration.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by several tests, each of which uses a part"
)]

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A secret that must never be seen.
pub const MARKER: &str = "m4rker";

/// The binary, with these arguments and variables.
pub fn outbox(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outbox"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("OUTBOX") || name.starts_with("PG") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null());
    command
}

/// How it ended, what it wrote.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs the binary to its end. Nothing it writes may hold the marker.
pub fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    let Output { status, stdout, stderr } = outbox(arguments, environment).output().unwrap();
    let ran = Ran {
        code: status.code(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    };
    assert!(!ran.out.contains(MARKER) && !ran.err.contains(MARKER), "a secret was printed: {ran:?}");
    assert!(!ran.err.contains("panicked"), "{ran:?}");
    ran
}

impl Ran {
    /// That it failed with this code and one line that holds all of `words`.
    #[track_caller]
    pub fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert_eq!(self.out, "", "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in {self:?}");
        }
    }

    /// That the command line was refused, with words that hold `word`.
    #[track_caller]
    pub fn failed_of_usage(&self, word: &str) {
        assert_eq!((self.code, self.err.contains(word)), (Some(2), true), "no {word:?} in {self:?}");
    }

    /// That it did what it was asked, silently but for its data.
    #[track_caller]
    pub fn succeeded(&self) -> &str {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:?}");
        &self.out
    }

    /// Its data as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.succeeded()).unwrap()
    }
}

/// Waits until `holds`.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within thirty seconds");
        std::thread::sleep(Duration::from_millis(10));
    }
}
