//! `outbox relays`: the relays of a database, and what a person decides about them.

use chrono::{DateTime, Utc};
use outbox::admin::{Retirement, StateError};
use serde::Serialize;
use sqlx::postgres::PgPool;

use crate::duration::{passed, seconds};
use crate::exit::{Failure, chain};
use crate::output::{self, Format, plain};
use crate::secret::SecretUrl;
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
  outbox relays retire partners                   what that would give up; nothing is changed
  outbox relays retire partners --execute --reason 'contract ended'

A paused relay publishes nothing: its processes stop politely, stay, and go on when it is resumed. The log keeps what
waits for it. A retired relay is given up for good: what it has not published it never will, no process runs it any more,
the log keeps nothing for it, and the name is not used again. In a database that is a broker, a consumer group is a
relay: what a retired group has not received it never will. What it holds stays listed (`outbox parked`) until it is skipped. Each decision is written down:
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
    /// Give a relay up, for good: says what would go unpublished, and does it with --execute
    Retire(Retire),
}

#[derive(Debug, clap::Args)]
struct Retire {
    #[command(flatten)]
    choice: Choice,
    /// Do it. Without, nothing is changed
    #[arg(long, requires = "reason")]
    execute: bool,
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
        Command::Retire(retire) => run_retire(retire).await,
    }
}

async fn run_list(List { database, output }: List) -> Result<(), Failure> {
    let url = database::named(database.as_deref())?;
    let pool = database::pool(&url, "relays").await?;
    let failed =
        |error: sqlx::Error| database::failed_for("outbox_monitor", &format!("database {url}"), &error);
    let mut connection = pool.acquire().await.map_err(failed)?;
    schema::check(migrations::Schema::Outbox, &mut connection, &url).await?;
    let status = outbox::admin::status(&pool).await.map_err(failed)?;
    let lines: Vec<Line> = status
        .into_iter()
        .map(|status| Line {
            state: output::state(&status),
            relay: status.relay,
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

async fn open(choice: &Choice) -> Result<(PgPool, SecretUrl), Failure> {
    let url = database::named(choice.database.as_deref())?;
    let pool = database::pool(&url, "relays").await?;
    let acquired = pool.acquire().await;
    let mut connection = acquired.map_err(|error| database::failed(&format!("database {url}"), &error))?;
    schema::check(migrations::Schema::Outbox, &mut connection, &url).await?;
    drop(connection);
    Ok((pool, url))
}

fn failure(error: StateError, name: &str, url: &SecretUrl) -> Failure {
    match error {
        StateError::Admin(error) => database::undecided(&format!("database {url}"), &error),
        error => Failure::failed(format!("relay {name}: {}", chain(&error))),
    }
}

/// What retiring gives up, or gave up, for a script.
#[derive(Serialize)]
struct Retired<'a> {
    relay: &'a str,
    is_group: bool,
    destination: Option<&'a str>,
    /// After the command.
    state: &'a str,
    /// `false`: a dry run, or it was so already.
    changed: bool,
    /// Messages that it has not published: `pending` of the log, `held` back.
    unpublished: i64,
    pending: i64,
    held: i64,
    processes: i64,
    unattended_since: Option<DateTime<Utc>>,
    /// No other relay here is left that is not retired.
    is_last: bool,
}

async fn run_retire(Retire { choice, execute }: Retire) -> Result<(), Failure> {
    let (who, reason) = (choice.who.name()?, who::reason(choice.reason.as_deref())?);
    let (pool, url) = open(&choice).await?;
    let name = &*choice.name;
    let found = outbox::admin::retirement(&pool, name).await;
    let found = found.map_err(|error| failure(error, name, &url))?;
    let changed = match reason.filter(|_| execute) {
        Some(reason) => outbox::admin::retire(&pool, name, &who, reason)
            .await
            .map_err(|error| failure(error, name, &url))?,
        None => false,
    };
    match choice.output {
        Format::Json => output::print_json(&Retired {
            relay: name,
            is_group: found.is_group,
            destination: found.destination.as_deref(),
            state: if changed { "retired" } else { &found.state },
            changed,
            unpublished: found.unpublished(),
            pending: found.pending,
            held: found.held,
            processes: found.processes,
            unattended_since: found.unattended_since,
            is_last: found.is_last,
        }),
        Format::Text => output::print(&retirement(&found, changed, Utc::now())),
    }
}

/// What a person reads before, and after.
fn retirement(found: &Retirement, changed: bool, now: DateTime<Utc>) -> String {
    let (kind, misses) = if found.is_group {
        ("consumer group", "it has not received")
    } else {
        ("relay", "it has not published")
    };
    let mut text = format!("{kind} {}", plain(&found.relay));
    if let Some(destination) = &found.destination {
        text.push_str(&format!(" ({})", plain(destination)));
    }
    let count = found.unpublished();
    let messages = if count == 1 { "message" } else { "messages" };
    let lost =
        format!("{count} {messages} that {misses}: {} pending, {} held back", found.pending, found.held);
    if found.state == "retired" {
        text.push_str(&format!(" is retired already. There are {lost}\n"));
        return text;
    }
    if changed {
        text.push_str(&format!(" is retired. It gives up {lost}\n"));
        return text;
    }
    text.push_str(&format!(" would give up, for good, {lost}\n"));
    text.push_str(&match (found.processes, found.unattended_since) {
        (0, Some(since)) => format!("no process has run it for {}\n", passed(now - since)),
        (1, _) => "1 process runs it now\n".to_owned(),
        (processes, _) => format!("{processes} processes run it now\n"),
    });
    if found.is_last {
        text.push_str("no other relay here is left: what is enqueued later would wait for a new one\n");
    }
    text.push_str("Nothing was changed: --execute with --reason does it.\n");
    text
}

async fn decide(choice: Choice, state: &'static str) -> Result<(), Failure> {
    let (who, reason) = (choice.who.name()?, who::reason(choice.reason.as_deref())?);
    let (pool, url) = open(&choice).await?;
    let name = &*choice.name;
    let decided = match state {
        "paused" => outbox::admin::pause(&pool, name, &who, reason).await,
        _ => outbox::admin::resume(&pool, name, &who, reason).await,
    };
    let changed = decided.map_err(|error| failure(error, name, &url))?;
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
