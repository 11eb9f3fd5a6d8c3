//! `outbox relays`: the relays of a database, and what a person decides about them.

use outbox::admin::StateError;
use serde::Serialize;

use crate::duration::{passed, seconds};
use crate::exit::{Failure, chain};
use crate::output::{self, Format};
use crate::who::{self, Who};
use crate::{database, schema};

/// List relays; pause, resume or retire one
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: List,
}

const EXAMPLES: &str = "\
Examples:
  outbox relays                                   every relay, its state, its processes, how far behind it is
  outbox relays pause partners --reason 'they migrate tonight'
  outbox relays resume partners
  outbox relays retire partners --reason 'contract ended'

A paused relay publishes nothing: its processes stop politely, stay, and go on when it is resumed. The log keeps what
waits for it. A retired relay is given up for good: no process runs it any more, the log keeps nothing for it, and the
name is not used again. What it holds stays listed (`outbox parked`) until it is skipped. Each decision is written down:
`outbox audit`.

Exit codes: 0 done, or so already; 1 no such relay, it is retired, or the database refused; 2 wrong usage; 3 the database
cannot be reached; 4 the schema is missing or does not fit this build.";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List relays (also without any word)
    List(List),
    /// Have a relay publish nothing until it is resumed
    Pause(Choice),
    /// Have a paused relay go on where it was
    Resume(Choice),
    /// Give a relay up, for good
    Retire(Choice),
}

#[derive(Debug, clap::Args)]
struct List {
    /// A URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

#[derive(Debug, clap::Args)]
struct Choice {
    /// The relay
    name: String,
    /// A URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    #[command(flatten)]
    who: Who,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

#[derive(Serialize)]
struct Line {
    relay: String,
    state: String,
    processes: i64,
    pending: i64,
    lag_seconds: f64,
    parked: i64,
    held: i64,
}

/// What was done, for a script.
#[derive(Serialize)]
struct Done<'a> {
    relay: &'a str,
    state: &'static str,
    /// `false`: it was so already.
    changed: bool,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    match args.command.unwrap_or(Command::List(args.list)) {
        Command::List(list) => run_list(list).await,
        Command::Pause(choice) => decide(choice, "paused").await,
        Command::Resume(choice) => decide(choice, "running").await,
        Command::Retire(choice) => decide(choice, "retired").await,
    }
}

async fn run_list(List { database, output }: List) -> Result<(), Failure> {
    let url = database::named(database.as_deref())?;
    let pool = database::pool(&url, "relays").await?;
    let failed = |error: sqlx::Error| database::failed(&format!("database {url}"), &error);
    let mut connection = pool.acquire().await.map_err(failed)?;
    schema::check(migrations::Schema::Outbox, &mut connection, &url).await?;
    let status = outbox::admin::status(&pool).await.map_err(failed)?;
    let lines: Vec<Line> = status
        .into_iter()
        .map(|status| Line {
            relay: status.relay,
            state: status.state,
            processes: status.processes,
            pending: status.pending,
            lag_seconds: status.lag_seconds,
            parked: status.parked,
            held: status.held_messages,
        })
        .collect();
    match output {
        Format::Json => output::print_json(&lines),
        Format::Text if lines.is_empty() => output::print("no relay has run here (outbox relay)\n"),
        Format::Text => output::print(&text(&lines)),
    }
}

fn text(lines: &[Line]) -> String {
    let cells = |line: &Line| {
        let lag = seconds(line.lag_seconds);
        vec![
            line.relay.clone(),
            line.state.clone(),
            line.processes.to_string(),
            line.pending.to_string(),
            passed(lag),
            line.parked.to_string(),
            line.held.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = lines.iter().map(cells).collect();
    output::table(&["relay", "state", "processes", "pending", "lag", "parked", "held"], &rows)
}

async fn decide(choice: Choice, state: &'static str) -> Result<(), Failure> {
    let (who, reason) = (choice.who.name()?, who::reason(choice.reason.as_deref())?);
    let url = database::named(choice.database.as_deref())?;
    let pool = database::pool(&url, "relays").await?;
    let name = &*choice.name;
    let mut connection =
        pool.acquire().await.map_err(|error| database::failed(&format!("database {url}"), &error))?;
    schema::check(migrations::Schema::Outbox, &mut connection, &url).await?;
    drop(connection);
    let decided = match state {
        "paused" => outbox::admin::pause(&pool, name, &who, reason).await,
        "running" => outbox::admin::resume(&pool, name, &who, reason).await,
        _ => outbox::admin::retire(&pool, name, &who, reason).await,
    };
    let changed = decided.map_err(|error| match error {
        StateError::Database(error) => database::failed(&format!("database {url}"), &error),
        error => Failure::failed(format!("relay {name}: {}", chain(&error))),
    })?;
    let already = if changed { "" } else { " already" };
    match choice.output {
        Format::Json => output::print_json(&Done { relay: name, state, changed }),
        Format::Text => output::print(&format!("relay {name} is {state}{already}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_who_is_behind() {
        let line = Line {
            relay: "default".to_owned(),
            state: "paused".to_owned(),
            processes: 0,
            pending: 12,
            lag_seconds: 90.0,
            parked: 1,
            held: 3,
        };
        let expected = "\
relay    state   processes  pending  lag    parked  held
default  paused  0          12       1m30s  1       3
";
        assert_eq!(text(&[line]), expected);
    }
}
