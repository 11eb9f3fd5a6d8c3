//! How a command ends: the exit code a script decides by, and one line on standard error that says why.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use crate::secret;

/// The exit codes. `outbox --help` lists them; they are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// What was asked for did not happen, or was not found.
    Failed = 1,
    /// The command line or the configuration is not as it must be; nothing was tried.
    Usage = 2,
    /// The database cannot be reached; or it, or the broker, does not let us in.
    Unreachable = 3,
    /// The schema is missing, older than this build needs, or newer than it understands.
    Schema = 4,
    /// The doctor found what makes a set-up unsafe.
    Unsafe = 5,
}

/// Why a command ends with something else than 0. What is printed of it never holds a password.
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    reason: String,
}

impl Failure {
    pub(crate) fn failed(reason: impl fmt::Display) -> Self {
        Failure::new(Exit::Failed, reason)
    }

    pub(crate) fn usage(reason: impl fmt::Display) -> Self {
        Failure::new(Exit::Usage, reason)
    }

    pub(crate) fn unreachable(reason: impl fmt::Display) -> Self {
        Failure::new(Exit::Unreachable, reason)
    }

    pub(crate) fn schema(reason: impl fmt::Display) -> Self {
        Failure::new(Exit::Schema, reason)
    }

    pub(crate) fn unsafe_set_up(reason: impl fmt::Display) -> Self {
        Failure::new(Exit::Unsafe, reason)
    }

    /// With what was being done in front.
    pub(crate) fn within(mut self, what: impl fmt::Display) -> Self {
        self.reason = line(format!("{what}: {}", self.reason));
        self
    }

    fn new(exit: Exit, reason: impl fmt::Display) -> Self {
        Failure { exit, reason: line(reason.to_string()) }
    }
}

/// An error and its causes in one line, each cause once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    // What the driver says of a setting may be a part of a password, and its causes would tell it again.
    if let Cow::Owned(shown) = message::without_settings(&text) {
        return shown;
    }
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if let Cow::Owned(shown) = message::without_settings(&cause_text) {
            return if text.contains(&cause_text) { shown } else { format!("{text}: {shown}") };
        }
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The last gate before the terminal: whatever a library put into its message, no credentials of a URL and no line
/// break pass.
fn line(text: String) -> String {
    crate::output::plain(&secret::redact(&text.replace('\n', " ")))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure({}, {})", self.exit as u8, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_library_can_put_a_password_or_a_second_line_into_a_failure() {
        let failure = Failure::failed("cannot reach\nnats://user:m4rker@host:4222\x1b[2J").within("relay");
        assert_eq!(failure.to_string(), r"relay: cannot reach nats://host:4222\u{1b}[2J");
        assert_eq!(format!("{failure:?}"), r"Failure(1, relay: cannot reach nats://host:4222\u{1b}[2J)");
    }
}
