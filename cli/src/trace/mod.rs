//! `outbox trace`: one workflow across the services' databases, as a tree. Who emitted what, who handled it when, what is
//! retried or parked, and what cannot be known from the tables. Payloads and headers are never read.

mod load;
mod mermaid;
mod rows;
#[cfg(test)]
mod sample;
mod text;
mod tree;
mod unknown;

use uuid::Uuid;

use crate::database;
use crate::exit::Failure;
use crate::output;

/// Show one workflow across databases, from the id of any of its messages
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The id of a message, or of the message that began the workflow (its correlation id)
    id: String,
    /// A database to read: a URL without a password, @FILE, or env:NAME; give one per service [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Vec<String>,
    /// text for a terminal, json for a script, mermaid for a page that renders flowcharts
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
    /// Read at most so many messages of each database
    #[arg(long, value_name = "MESSAGES", default_value_t = 10_000, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    limit: i64,
}

const EXAMPLES: &str = "\
Examples:
  outbox trace 0193b5a0-7c1e-7000-8000-000000000001 \\
      --database env:ORDERS_DATABASE_URL --database env:STOCK_DATABASE_URL
  outbox trace $ID --database @/run/secrets/orders --output mermaid > workflow.mmd
  outbox trace $ID --output json | jq '.messages[] | select(.held != [])'

Each message stands under the one that caused it, with the consumers that handled it (✓), retry it (…) or have
parked it (✗). Reads ids, kinds, keys, times and errors; never a payload or a header. The log does not store when
a message was published, and a trace says what else it cannot tell.

Exit codes: 0 printed; 1 no database knows the id; 2 wrong usage; 3 a database cannot be reached; 4 a schema is
missing or does not fit this build.";

/// How the tree is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
    Mermaid,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let sought = Uuid::try_parse(&args.id).map_err(|_| Failure::usage("the id: not a UUID"))?;
    let urls = match args.database.as_slice() {
        [] => vec![database::named(None)?],
        given => {
            given.iter().map(|text| database::from_argument("--database", text)).collect::<Result<_, _>>()?
        }
    };
    let loaded = load::load(&urls, sought, args.limit).await?;
    let count = loaded.found.len();
    let Some(trace) = tree::Trace::new(sought, loaded.workflows, loaded.found) else {
        return Err(Failure::failed(format!(
            "no message and no workflow {sought} in {count} {}: it is in another one, no longer kept, or was never \
             committed",
            if count == 1 { "database" } else { "databases" }
        )));
    };
    match args.output {
        Format::Text => output::print(&text::render(&trace)),
        Format::Json => output::print_json(&trace),
        Format::Mermaid => output::print(&mermaid::render(&trace)),
    }
}
