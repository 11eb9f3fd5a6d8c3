//! `outbox consumers`: the kinds that consumers of a database handle, and what a person decides about them.

use chrono::{DateTime, Utc};
use inbox::admin::{self, ForgetKindError, KindStatus};
use serde::Serialize;
use sqlx::postgres::{PgConnection, PgPool};

use crate::duration::{passed, seconds};
use crate::exit::Failure;
use crate::output::{self, Format, plain};
use crate::secret::SecretUrl;
use crate::who::{self, Who};
use crate::{database, schema};

/// List the kinds that consumers handle; forget one that none handles any more
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    kinds: Kinds,
}

const EXAMPLES: &str = "\
Examples:
  outbox consumers                                     every consumer's kinds, and when a process handled each last
  outbox consumers kinds --consumer payment
  outbox consumers forget-kind payment order.amended --reason 'rolled back for good'
                                                       says what it would do; with --execute, does it

A message whose kind a running process does not handle is kept for another process of the same consumer that has
registered the kind: one of a newer build, or of an older one. Only what none has registered is acknowledged. When the
last process that handled a kind is gone for good, what is kept for it waits, and its keys with it. Forget the kind
then: its held messages are given up, which cannot be undone, and their keys go on. It is written down: `outbox audit`.

Exit codes: 0 done, or said; 1 no such kind, a process handles it, or the database refused; 2 wrong usage; 3 the
database cannot be reached; 4 the schema is missing or does not fit this build.";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the kinds of consumers (also without any word)
    Kinds(Kinds),
    /// Forget a kind that no process of the consumer handles any more
    ForgetKind(Forget),
}

#[derive(Debug, clap::Args)]
struct Kinds {
    /// A URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// Only of this consumer
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

#[derive(Debug, clap::Args)]
struct Forget {
    /// The consumer
    consumer: String,
    /// The kind
    kind: String,
    /// A URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// Do it; otherwise say what it would do
    #[arg(long)]
    execute: bool,
    #[command(flatten)]
    who: Who,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT", required = true)]
    reason: String,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

#[derive(Serialize)]
struct Line {
    consumer: String,
    kind: String,
    last_seen_at: Option<DateTime<Utc>>,
    unseen_seconds: Option<f64>,
    held: i64,
}

/// What was done, or would be, for a script.
#[derive(Serialize)]
struct Done<'a> {
    consumer: &'a str,
    kind: &'a str,
    /// `false`: this is what `--execute` would do.
    done: bool,
    messages: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<i64>,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    match args.command.unwrap_or(Command::Kinds(args.kinds)) {
        Command::Kinds(kinds) => list(kinds).await,
        Command::ForgetKind(forget) => run_forget(forget).await,
    }
}

async fn list(Kinds { database, consumer, output }: Kinds) -> Result<(), Failure> {
    let (pool, url) = open(database.as_deref()).await?;
    let lines: Vec<Line> =
        kinds(&pool, &url, consumer.as_deref()).await?.into_iter().map(Line::from).collect();
    match output {
        Format::Json => output::print_json(&lines),
        Format::Text if lines.is_empty() => output::print("no consumer has registered a kind here\n"),
        Format::Text => output::print(&text(&lines)),
    }
}

async fn run_forget(forget: Forget) -> Result<(), Failure> {
    let Forget { consumer, kind, database, execute, who, reason, output } = forget;
    let who = who.name()?;
    who::reason(Some(&reason))?;
    let (pool, url) = open(database.as_deref()).await?;
    let known = kinds(&pool, &url, Some(&consumer)).await?;
    let Some(status) = known.into_iter().find(|status| status.kind == kind) else {
        return Err(Failure::failed(format!(
            "consumer {consumer} has no kind {kind}; `outbox consumers` lists them"
        )));
    };
    if status.is_handled() {
        return Err(Failure::failed(format!(
            "consumer {consumer}, kind {kind}: {}",
            ForgetKindError::Handled
        )));
    }
    if !execute {
        let done =
            Done { consumer: &consumer, kind: &kind, done: false, messages: status.messages, keys: None };
        let seen = status.unseen.map_or_else(
            || "it is not registered".to_owned(),
            |unseen| format!("a process registered it last {} ago", passed(seconds(unseen.as_secs_f64()))),
        );
        let text = format!(
            "kind {} of consumer {}: {seen}; {} held messages of it would be given up. Nothing is changed without --execute\n",
            plain(&kind),
            plain(&consumer),
            status.messages
        );
        return report(output, &done, &text);
    }
    let mut connection = acquire(&pool, &url).await?;
    let forgotten = admin::forget_kind(&mut connection, &consumer, &kind, &who, &reason).await;
    let forgotten = forgotten.map_err(|error| match error {
        ForgetKindError::Database(error) => failed(&url, &error),
        error => Failure::failed(format!("consumer {consumer}, kind {kind}: {error}")),
    })?;
    let done = Done {
        consumer: &consumer,
        kind: &kind,
        done: true,
        messages: forgotten.messages,
        keys: Some(forgotten.keys),
    };
    let text = format!(
        "kind {} of consumer {} is forgotten; {} held messages of it are given up, {} keys are free\n",
        plain(&kind),
        plain(&consumer),
        forgotten.messages,
        forgotten.keys
    );
    report(output, &done, &text)
}

async fn open(database: Option<&str>) -> Result<(PgPool, SecretUrl), Failure> {
    let url = database::named(database)?;
    let pool = database::pool(&url, "consumers").await?;
    schema::check(migrations::Schema::Inbox, &mut *acquire(&pool, &url).await?, &url).await?;
    Ok((pool, url))
}

async fn acquire(
    pool: &PgPool,
    url: &SecretUrl,
) -> Result<sqlx::pool::PoolConnection<sqlx::Postgres>, Failure> {
    pool.acquire().await.map_err(|error| failed(url, &error))
}

async fn kinds(pool: &PgPool, url: &SecretUrl, consumer: Option<&str>) -> Result<Vec<KindStatus>, Failure> {
    let connection: &mut PgConnection = &mut *acquire(pool, url).await?;
    admin::kinds(connection, consumer).await.map_err(|error| failed(url, &error))
}

fn failed(url: &SecretUrl, error: &sqlx::Error) -> Failure {
    database::failed(&format!("database {url}"), error)
}

fn report(format: Format, done: &Done<'_>, text: &str) -> Result<(), Failure> {
    match format {
        Format::Json => output::print_json(done),
        Format::Text => output::print(text),
    }
}

impl From<KindStatus> for Line {
    fn from(status: KindStatus) -> Self {
        Line {
            consumer: status.consumer,
            kind: status.kind,
            last_seen_at: status.last_seen_at,
            unseen_seconds: status.unseen.map(|unseen| unseen.as_secs_f64()),
            held: status.messages,
        }
    }
}

fn text(lines: &[Line]) -> String {
    let cells = |line: &Line| {
        let seen = line.unseen_seconds.map(seconds);
        vec![
            line.consumer.clone(),
            line.kind.clone(),
            seen.map_or_else(|| "not registered".to_owned(), |seen| format!("{} ago", passed(seen))),
            line.held.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = lines.iter().map(cells).collect();
    output::table(&["consumer", "kind", "last seen", "held"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_which_kind_none_handles() {
        let line = |kind: &str, unseen_seconds, held| Line {
            consumer: "payment".to_owned(),
            kind: kind.to_owned(),
            last_seen_at: None,
            unseen_seconds,
            held,
        };
        let expected = "\
consumer  kind           last seen       held
payment   order.amended  8d02h ago       3
payment   order.dreamt   not registered  1
";
        let lines = [line("order.amended", Some(700_000.5), 3), line("order.dreamt", None, 1)];
        assert_eq!(text(&lines), expected);
    }
}
