//! `outbox replays`: the replays of a database, and the end of one.

use chrono::{DateTime, Utc};
use migrations::Schema;
use outbox::replay::{CancelError, Found, ReplayError, ReplayStatus};
use serde::Serialize;
use sqlx::postgres::PgPool;

use crate::exit::{Failure, chain};
use crate::output::{self, Format, plain};
use crate::secret::SecretUrl;
use crate::who::{self, Who};
use crate::{database, schema};

/// List replays, or cancel one
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
  outbox replays                       every replay, the latest first
  outbox replays cancel search-2       what that would give up; nothing is changed
  outbox replays cancel search-2 --execute --reason 'the index is built'

A replay that is not finished keeps the log from being emptied, whether a process works at it or not;
`outbox replay NAME --execute` goes on with it. Cancelling stops a process that works at it, takes back nothing, and is
for good: what it has not published it never will.

Exit codes: 0 done, or so already; 1 no such replay, it is finished, or the database refused; 2 wrong usage; 3 the
database cannot be reached; 4 the schema is missing or does not fit this build.";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List replays (also without any word)
    List(List),
    /// End a replay that is not finished, for good: says what would go unpublished, and does it with --execute
    Cancel(Cancel),
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
struct Cancel {
    /// The replay
    name: String,
    #[command(flatten)]
    list: List,
    #[command(flatten)]
    who: Who,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Do it. Without, nothing is changed
    #[arg(long, requires = "reason")]
    execute: bool,
}

#[derive(Serialize)]
struct Line {
    replay: String,
    state: String,
    working: bool,
    published: i64,
    skipped: i64,
    after: i64,
    to_position: i64,
    last_error: Option<String>,
    created_at: DateTime<Utc>,
    recorded_at: DateTime<Utc>,
}

/// What was done, for a script.
#[derive(Serialize)]
struct Done<'a> {
    replay: &'a str,
    state: &'a str,
    /// `false`: a dry run, or it was so already.
    changed: bool,
    /// Messages that it has not published.
    unpublished: i64,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    match args.command.unwrap_or(Command::List(args.list)) {
        Command::List(list) => run_list(list).await,
        Command::Cancel(cancel) => run_cancel(cancel).await,
    }
}

async fn open(database: Option<&str>) -> Result<(PgPool, SecretUrl), Failure> {
    let url = database::named(database)?;
    let pool = database::pool(&url, "replays").await?;
    let acquired = pool.acquire().await;
    let mut connection = acquired.map_err(|error| database::failed(&format!("database {url}"), &error))?;
    schema::check(Schema::Outbox, &mut connection, &url).await?;
    drop(connection);
    Ok((pool, url))
}

async fn run_list(List { database, output }: List) -> Result<(), Failure> {
    let (pool, url) = open(database.as_deref()).await?;
    let replays = outbox::replay::list(&pool).await;
    let replays = replays.map_err(|error| database::failed(&format!("database {url}"), &error))?;
    let lines: Vec<Line> = replays.into_iter().map(Line::from).collect();
    match output {
        Format::Json => output::print_json(&lines),
        Format::Text if lines.is_empty() => output::print("nothing was replayed here (outbox replay)\n"),
        Format::Text => output::print(&text(&lines)),
    }
}

async fn run_cancel(Cancel { name, list, who, reason, execute }: Cancel) -> Result<(), Failure> {
    let (who, reason) = (who.name()?, who::reason(reason.as_deref())?);
    let (pool, url) = open(list.database.as_deref()).await?;
    let failed = |error: CancelError| match error {
        CancelError::Admin(error) => database::undecided(&format!("database {url}"), &error),
        error => Failure::failed(format!("replay {name}: {}", chain(&error))),
    };
    let preview = match outbox::replay::preview(&pool, &name, None).await {
        Ok(preview) => preview,
        Err(ReplayError::NotBegun) => return Err(failed(CancelError::Unknown)),
        Err(ReplayError::Database(error)) => return Err(failed(error.into())),
        Err(error) => return Err(Failure::failed(format!("replay {name}: {}", chain(&error)))),
    };
    let unpublished = preview.messages;
    let found = match preview.found {
        Found::Finished(_) => return Err(failed(CancelError::Finished)),
        Found::Cancelled => "cancelled",
        _ => "running",
    };
    let changed = match reason.filter(|_| execute) {
        Some(reason) => outbox::replay::cancel(&pool, &name, &who, reason).await.map_err(failed)?,
        None => false,
    };
    let messages = if unpublished == 1 { "message" } else { "messages" };
    let text = match (changed, found) {
        (true, _) => format!("replay {name} is cancelled, with {unpublished} {messages} unpublished\n"),
        (false, "cancelled") => format!("replay {name} is cancelled already\n"),
        (false, _) => format!(
            "replay {name} would leave {unpublished} {messages} unpublished, for good\n\
             Nothing was changed: --execute with --reason does it.\n"
        ),
    };
    let state = if changed { "cancelled" } else { found };
    match list.output {
        Format::Json => output::print_json(&Done { replay: &name, state, changed, unpublished }),
        Format::Text => output::print(&text),
    }
}

impl Line {
    /// A running one that no process works at is stopped.
    fn state(&self) -> &str {
        match (self.state.as_str(), self.working) {
            ("running", false) => "stopped",
            (state, _) => state,
        }
    }
}

fn text(lines: &[Line]) -> String {
    let cells = |line: &Line| {
        vec![
            line.replay.clone(),
            line.state().to_owned(),
            line.published.to_string(),
            line.skipped.to_string(),
            line.after.to_string(),
            line.to_position.to_string(),
            line.recorded_at.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = lines.iter().map(cells).collect();
    let head = ["replay", "state", "published", "given up", "after", "to position", "recorded"];
    let mut text = output::table(&head, &rows);
    for line in lines {
        if let Some(error) = &line.last_error {
            text.push_str(&format!("\n{}: {}\n", plain(&line.replay), plain(error)));
        }
    }
    text
}

impl From<ReplayStatus> for Line {
    fn from(status: ReplayStatus) -> Self {
        Line {
            replay: status.name,
            state: status.state,
            working: status.working,
            published: status.published,
            skipped: status.skipped,
            after: status.after,
            to_position: status.to_position,
            last_error: status.last_error,
            created_at: status.created_at,
            recorded_at: status.recorded_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_that_nobody_works_at_is_stopped_and_says_why() {
        let at = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let line = Line {
            replay: "search-2".to_owned(),
            state: "running".to_owned(),
            working: false,
            published: 12,
            skipped: 1,
            after: 99,
            to_position: 812,
            last_error: Some("message rejected: too\u{1b}[2J long".to_owned()),
            created_at: at,
            recorded_at: at,
        };
        let expected = r"replay    state    published  given up  after  to position  recorded
search-2  stopped  12         1         99     812          2023-11-14 22:13:20 UTC

search-2: message rejected: too\u{1b}[2J long
";
        assert_eq!(text(&[line]), expected);
    }
}
