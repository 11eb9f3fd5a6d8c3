//! The daemon's log, on standard error: standard output is data.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::exit::Failure;

/// What is logged unless something else is asked for: the drivers tell too much at `info`, and the NATS client says each
/// failed try again, without an address.
const DIRECTIVES: &str = "info,sqlx=warn,async_nats=off";

/// Starts the log of this process.
pub(crate) fn start(directives: Option<&str>, format: LogFormat) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(directives.unwrap_or(DIRECTIVES))
        .map_err(|error| Failure::usage(format!("log: {error}")))?;
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // A log that nobody reads any more is no reason to end: the crate's own complaint about it would panic.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(color)
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    }
    .map_err(|error| Failure::failed(format!("the log cannot be started: {error}")))
}
