//! `outbox repair`: says whether a restored log can be read here, and makes it so.

mod inbox;

use outbox::admin::{RelayStatus, RepairError, Survey};
use serde::Serialize;

use crate::exit::{Failure, chain};
use crate::output::{self, Format};
use crate::secret::SecretUrl;
use crate::who::{self, Who};
use crate::{database, schema};

/// After a restore: say whether relays can read the log here, and with --execute make it so
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    /// A URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// Do it. Without, nothing is changed
    #[arg(long)]
    execute: bool,
    #[command(flatten)]
    who: Who,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

#[derive(Debug, clap::Subcommand)]
enum Part {
    Inbox(inbox::Args),
}

const EXAMPLES: &str = "\
Examples:
  outbox repair                 what was found, and what would be done
  outbox repair --execute       as the owner of the schema, before any service that writes is started

A relay refuses a log that came from another cluster (a restored dump, a pg_upgrade), or whose transaction ids or
positions are given out again. The repair ends the era of the log and opens one of this cluster. Messages are not
changed; each relay publishes what it had not delivered, then what is new.

`outbox repair inbox` is another repair: after a clock that was ahead has made an inbox refuse what is not too old.

Exit codes: 0 printed, or repaired; 1 refused: processes of relays are alive, a transaction has the log open, or there
is nothing to repair; 2 wrong usage; 3 the database cannot be reached; 4 the schema is missing or does not fit.";

#[derive(Serialize)]
struct Found {
    needs_repair: bool,
    repaired: bool,
    era: i32,
    system_identifier: i64,
    present_identifier: i64,
    ids_behind: bool,
    positions_behind: bool,
    last_drawn: i64,
    last_written: i64,
    first_position: i64,
    written_since: i64,
    processes: Vec<String>,
    relays: Vec<Relay>,
}

#[derive(Serialize)]
struct Relay {
    relay: String,
    undelivered: i64,
    retrying: i64,
    parked: i64,
    held: i64,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    if let Some(Part::Inbox(args)) = args.part {
        return inbox::run(args).await;
    }
    let (who, reason) = (args.who.name()?, who::reason(args.reason.as_deref())?);
    let url = database::named(args.database.as_deref())?;
    let pool = database::pool(&url, "repair").await?;
    let survey = match args.execute {
        true => outbox::admin::repair(&pool, &who, reason).await,
        false => outbox::admin::survey(&pool).await,
    };
    let survey = survey.map_err(|error| failure(error, &url))?;
    match args.output {
        Format::Json => output::print_json(&Found::new(&survey, args.execute)),
        Format::Text => output::print(&text(&survey, args.execute)),
    }
}

fn failure(error: RepairError, url: &SecretUrl) -> Failure {
    let database = format!("database {url}");
    match error {
        RepairError::Schema(error) => schema::failure(error).within(database),
        RepairError::Database(error) => database::failed(&database, &error),
        error => Failure::failed(chain(&error)).within(database),
    }
}

fn text(survey: &Survey, repaired: bool) -> String {
    let mut lines = Vec::new();
    if survey.is_elsewhere() {
        lines.push(format!(
            "the log was written in cluster {}, and is in {} now",
            survey.system_identifier, survey.present_identifier
        ));
    }
    if survey.ids_behind {
        lines.push("this cluster's transaction ids are behind the log or a cursor".to_owned());
    }
    if survey.positions_behind {
        lines.push(format!(
            "the sequence of positions stands at {}, and the log reaches {}: it is set ahead",
            survey.last_drawn, survey.last_written
        ));
    }
    if !survey.needs_repair() {
        lines.push(format!("nothing to repair: era {} was written in this cluster\n", survey.era));
        return lines.join("\n");
    }
    let (ended, opened) = (survey.era, survey.era + 1);
    let (last, first) = (survey.first_position - 1, survey.first_position);
    lines.push(format!("era {ended} ends at position {last}, era {opened} begins at {first}"));
    if survey.written_since > 0 {
        lines.push(format!(
            "{} messages were written here since the restore: they belong to era {opened}",
            survey.written_since
        ));
    }
    if !survey.processes.is_empty() {
        lines.push(format!(
            "relay processes alive, or alive when the dump was made: {}; stop them first, or wait {} s",
            survey.processes.join(", "),
            survey.alive_for
        ));
    }
    let relays: Vec<Vec<String>> = survey.relays.iter().map(|relay| Relay::new(relay).cells()).collect();
    if !relays.is_empty() {
        let head = ["relay", "undelivered", "retrying", "parked", "held"];
        lines.push(format!("\n{}", output::table(&head, &relays)));
    }
    lines.push(match repaired {
        true => "repaired: start relays and services\n".to_owned(),
        false => "nothing was changed: `outbox repair --execute` does it\n".to_owned(),
    });
    lines.join("\n")
}

impl Found {
    fn new(survey: &Survey, repaired: bool) -> Self {
        Found {
            needs_repair: survey.needs_repair(),
            repaired,
            era: survey.era,
            system_identifier: survey.system_identifier,
            present_identifier: survey.present_identifier,
            ids_behind: survey.ids_behind,
            positions_behind: survey.positions_behind,
            last_drawn: survey.last_drawn,
            last_written: survey.last_written,
            first_position: survey.first_position,
            written_since: survey.written_since,
            processes: survey.processes.clone(),
            relays: survey.relays.iter().map(Relay::new).collect(),
        }
    }
}

impl Relay {
    fn new(status: &RelayStatus) -> Self {
        Relay {
            relay: status.relay.clone(),
            undelivered: status.pending,
            retrying: status.retrying,
            parked: status.parked,
            held: status.held_messages,
        }
    }

    fn cells(self) -> Vec<String> {
        let Relay { relay, undelivered, retrying, parked, held } = self;
        let numbers = [undelivered, retrying, parked, held].map(|number| number.to_string());
        [relay].into_iter().chain(numbers).collect()
    }
}
