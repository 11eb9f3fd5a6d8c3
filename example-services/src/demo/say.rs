//! Prints to standard output for a person who watches.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::Instant;

/// Prints lines, with the time since the start where that tells something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Say {
    since: Instant,
}

impl Say {
    pub(super) fn new() -> Self {
        Say { since: Instant::now() }
    }

    /// A line as it is.
    pub(super) fn line(&self, text: impl Display) {
        // Whoever closed our output does not want to read on; the demo's exit code still counts.
        writeln!(io::stdout(), "{text}").ok();
    }

    /// A line with the time.
    pub(super) fn now(&self, text: impl Display) {
        self.line(format_args!("{:6.1} s  {text}", self.since.elapsed().as_secs_f32()));
    }

    /// Seconds since the start.
    pub(super) fn seconds(&self) -> f32 {
        self.since.elapsed().as_secs_f32()
    }
}
