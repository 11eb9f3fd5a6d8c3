//! `outbox repair inbox`: says whether the inbox refuses messages whose rows it has, and lowers its floor.

use ::inbox::admin::{FloorStatus, LowerFloorError};
use chrono::{DateTime, Utc};
use migrations::Schema;
use serde::Serialize;
use sqlx::PgPool;

use crate::exit::{Failure, chain};
use crate::output::{self, Format};
use crate::secret::SecretUrl;
use crate::{database, schema};

/// After a database's clock was ahead: say whether its inbox refuses too much, and with --execute lower its floor
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// A URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// Do it. Without, nothing is changed
    #[arg(long)]
    execute: bool,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

const EXAMPLES: &str = "\
Examples:
  outbox repair inbox                 what was found, and what would be done
  outbox repair inbox --execute            with the rights of outbox_consumer, while consumers run or not

An inbox refuses messages that were made before its floor. The floor follows the database's clock and the longest horizon.
It stays where a clock that was ahead has put it: every younger message is then parked as too old. The repair lowers it to
where the longest horizon puts it, but not below the end of the newest day of which rows were removed.

Exit codes: 0 printed, or repaired; 1 refused: the clocks of the database and of this machine differ by more than an hour,
or there is nothing to repair; 2 wrong usage; 3 the database cannot be reached; 4 the schema is missing or does not fit.";

#[derive(Serialize)]
struct Found {
    needs_repair: bool,
    repaired: bool,
    floor: DateTime<Utc>,
    due: DateTime<Utc>,
    emptied_before: Option<DateTime<Utc>>,
    lowest: DateTime<Utc>,
    database_time: DateTime<Utc>,
    clock_difference_seconds: Option<i64>,
}

/// Runs the command.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let url = database::named(args.database.as_deref())?;
    let pool = database::pool(&url, "repair").await?;
    let status = look(&pool, args.execute).await.map_err(|error| failure(error, &url))?;
    match args.output {
        Format::Json => output::print_json(&Found::new(&status, args.execute)),
        Format::Text => output::print(&text(&status, args.execute)),
    }
}

enum Error {
    Schema(migrations::SchemaError),
    Lower(LowerFloorError),
}

async fn look(pool: &PgPool, execute: bool) -> Result<FloorStatus, Error> {
    let database = |error| Error::Lower(LowerFloorError::Database(error));
    let mut tx = pool.begin_with(database::BEGIN_READING).await.map_err(database)?;
    Schema::Inbox.check(&mut tx).await.map_err(Error::Schema)?;
    tx.commit().await.map_err(database)?;
    let mut connection = pool.acquire().await.map_err(database)?;
    match execute {
        true => ::inbox::admin::lower_floor(&mut connection).await.map_err(Error::Lower),
        false => ::inbox::admin::floor(&mut connection).await.map_err(database),
    }
}

fn failure(error: Error, url: &SecretUrl) -> Failure {
    let database = format!("database {url}");
    match error {
        Error::Schema(error) => schema::failure(error).within(database),
        Error::Lower(LowerFloorError::Database(error)) => database::failed(&database, &error),
        Error::Lower(error) => Failure::failed(chain(&error)).within(database),
    }
}

fn text(status: &FloorStatus, repaired: bool) -> String {
    let mut lines =
        vec![format!("floor           {}  older messages are refused", status.floor.format("%F %T UTC"))];
    lines.push(format!("longest horizon {}  with its margin", status.due.format("%F %T UTC")));
    lines.push(match status.emptied_before {
        Some(emptied) => format!("rows complete   {}  and later", emptied.format("%F %T UTC")),
        None => "rows complete   none were removed".to_owned(),
    });
    if let Some(difference) = status.clock_difference {
        lines.push(format!(
            "the database's clock differs from this machine's by {} s: nothing is repaired until they agree",
            difference.num_seconds()
        ));
    }
    let lowest = status.lowest().format("%F %T UTC");
    lines.push(match (status.can_be_lowered(), repaired) {
        (false, _) => "nothing to repair: the floor is as low as it can be\n".to_owned(),
        (true, true) => format!("lowered to {lowest}: redrive what was parked as too old since\n"),
        (true, false) => {
            format!(
                "it can be lowered to {lowest}\nnothing was changed: `outbox repair inbox --execute` does it\n"
            )
        }
    });
    lines.join("\n")
}

impl Found {
    fn new(status: &FloorStatus, repaired: bool) -> Self {
        Found {
            needs_repair: status.can_be_lowered(),
            repaired,
            floor: status.floor,
            due: status.due,
            emptied_before: status.emptied_before,
            lowest: status.lowest(),
            database_time: status.database_time,
            clock_difference_seconds: status.clock_difference.map(|difference| difference.num_seconds()),
        }
    }
}
