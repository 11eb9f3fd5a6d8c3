//! `servers install` fetches what the tests need ahead of time; `servers run CMD…` runs a command with a
//! PostgreSQL in `DATABASE_URL` and a NATS in `NATS_URL`, then stops both and ends with the command's code. With `--durable`
//! its commits wait for the disk, as those of a server whose speed is of interest do.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

use servers::{Nats, Pgbouncer, Postgres, PostgresOptions};

const USAGE: &str = "usage: servers install
       servers run [--durable] COMMAND [ARGUMENT]...";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next().unwrap_or_default();
    let rest: Vec<OsString> = arguments.collect();
    let (durable, command) = match rest.split_first() {
        Some((flag, command)) if flag == "--durable" => (true, command),
        _ => (false, &rest[..]),
    };
    let outcome = match (verb.to_str(), command.split_first()) {
        (Some("install"), None) if !durable => install(),
        (Some("run"), Some((program, arguments))) => run(durable, program, arguments),
        _ => {
            say(USAGE);
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|error| {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(&format!("\n  because: {cause}"));
            source = cause.source();
        }
        say(&format!("servers: {text}"));
        ExitCode::FAILURE
    })
}

fn install() -> Result<ExitCode, Box<dyn Error>> {
    say(&Postgres::install()?);
    say(&Nats::install()?);
    say(&Pgbouncer::install()?);
    Ok(ExitCode::SUCCESS)
}

fn run(durable: bool, program: &OsString, arguments: &[OsString]) -> Result<ExitCode, Box<dyn Error>> {
    let postgres = match Postgres::given() {
        Some(_) if durable => {
            return Err("--durable is for a server of our own, and DATABASE_URL names one".into());
        }
        Some(given) => given,
        // Costs little, and lets tests of logical replication use this server too.
        None => PostgresOptions::new().with_setting("wal_level", "logical").durable(durable).start()?,
    };
    let nats = Nats::start()?;
    say(&postgres.describe());
    say(&nats.describe());
    let status = Command::new(program)
        .args(arguments)
        .env("DATABASE_URL", postgres.url("postgres"))
        .env("NATS_URL", nats.url())
        .status()
        .map_err(|error| format!("cannot run {}: {error}", program.to_string_lossy()))?;
    // A shell's habit: 128 and the signal.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Standard output belongs to the command.
fn say(line: &str) {
    writeln!(io::stderr(), "{line}").ok();
}
