//! Who decides, and why: what the audit keeps of a command that changes something.

use crate::exit::Failure;

/// Longest name and longest reason, in bytes; the schema says the same.
const WHO: usize = 200;
const REASON: usize = 4096;

/// Who decides.
#[derive(Debug, clap::Args)]
pub(crate) struct Who {
    /// Who decides this, for the audit [default: the user of this machine]; the database's role is kept, too
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

impl Who {
    /// What the audit is to say.
    pub(crate) fn name(&self) -> Result<String, Failure> {
        let name = match &self.by {
            Some(name) => name.clone(),
            None => user(),
        };
        if (1..=WHO).contains(&name.len()) && !name.contains('\0') {
            Ok(name)
        } else {
            Err(Failure::usage("--by: 1 to 200 bytes"))
        }
    }
}

/// Why, if it was said.
pub(crate) fn reason(given: Option<&str>) -> Result<Option<&str>, Failure> {
    match given {
        Some(reason) if !(1..=REASON).contains(&reason.len()) => {
            Err(Failure::usage("--reason: 1 to 4096 bytes"))
        }
        given => Ok(given),
    }
}

/// The user of this machine, as far as it is known: a container has a number, and often no name.
fn user() -> String {
    let named = |variable| std::env::var(variable).ok().filter(|name| (1..=WHO).contains(&name.len()));
    named("USER").or_else(|| named("LOGNAME")).unwrap_or_else(number)
}

#[cfg(unix)]
fn number() -> String {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata("/proc/self") {
        Ok(process) => format!("user {}", process.uid()),
        Err(_) => "unknown".to_owned(),
    }
}

#[cfg(not(unix))]
fn number() -> String {
    "unknown".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_reason_are_there_or_refused() {
        let who =
            |by: Option<&str>| Who { by: by.map(str::to_owned) }.name().map_err(|error| error.to_string());
        assert_eq!(who(Some("ada")), Ok("ada".to_owned()));
        assert_eq!(who(Some("")), Err("--by: 1 to 200 bytes".to_owned()));
        assert!(who(Some(&"a".repeat(201))).is_err() && !who(None).unwrap().is_empty());
        assert_eq!(reason(None).unwrap(), None);
        assert!(reason(Some("")).is_err() && reason(Some(&"a".repeat(4097))).is_err());
    }
}
