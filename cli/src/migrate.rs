//! `outbox migrate`: brings a database up to this build, says whether it is, or prints the SQL for another tool.

use migrations::{MigrateError, Schema};
use serde::Serialize;
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use crate::exit::{Failure, chain};
use crate::output::{self, Format};
use crate::secret::SecretUrl;
use crate::{database, schema};

/// Create or upgrade the schemas `outbox` and `inbox`, check them, or print their SQL
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// A URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// Only this schema: a service that only emits needs no inbox
    #[arg(long, value_name = "SCHEMA")]
    schema: Option<Which>,
    /// Change nothing: exit 4 unless the database fits this build
    #[arg(long, conflicts_with_all = ["source", "print", "roles"])]
    check: bool,
    /// Print the SQL instead of running it; needs no database
    #[arg(long, conflicts_with_all = ["database", "source", "output"])]
    print: bool,
    /// Print the SQL of the least-privilege roles; needs no database
    #[arg(long, conflicts_with_all = ["database", "source", "output", "print", "schema"])]
    roles: bool,
    /// What this database calls itself on the wire (CloudEvents `source`), where a message names none
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

const EXAMPLES: &str = "\
Examples:
  DATABASE_URL=postgres://owner:secret@db/orders outbox migrate --source /orders
  outbox migrate --check                          in a deployment, before the new build starts
  outbox migrate --print --schema outbox | psql --single-transaction orders
  outbox migrate --roles | psql orders

Safe when many processes do it at once, and does nothing the second time. An older build goes on working with a
newer schema as long as that says it serves it.

Exit codes: 0 the database fits this build; 1 a migration failed, nothing was changed; 2 wrong usage; 3 the database
cannot be reached; 4 --check: missing or older; or the database is newer than this build can work with.";

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    Outbox,
    Inbox,
}

#[derive(Serialize)]
struct Line {
    schema: String,
    version: i32,
    /// It was older, or not there.
    migrated: bool,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let schemas: &[Schema] = match args.schema {
        None => &[Schema::Outbox, Schema::Inbox],
        Some(Which::Outbox) => &[Schema::Outbox],
        Some(Which::Inbox) => &[Schema::Inbox],
    };
    if args.print {
        return output::print(&script(schemas));
    }
    if args.roles {
        return output::print(migrations::roles());
    }
    let source = args.source.as_deref();
    if let Some(source) = source {
        check_source(source, schemas)?;
    }
    let url = database::named(args.database.as_deref())?;
    let mut connection = database::connect(&url, "migrate").await?;
    let mut lines = Vec::new();
    for &schema in schemas {
        let migrated = !args.check && schema.check(&mut connection).await.is_err();
        if !args.check {
            schema.migrate(&mut connection).await.map_err(|error| failure(error, &url))?;
        }
        schema::check(schema, &mut connection, &url).await?;
        lines.push(Line { schema: schema.to_string(), version: schema.version(), migrated });
    }
    if let Some(source) = source {
        name_origin(&mut connection, source, &url).await?;
    }
    // Everything is committed; an impolite goodbye changes nothing.
    let _ = connection.close().await;
    match args.output {
        Format::Json => output::print_json(&lines),
        Format::Text => {
            let line = |Line { schema, version, migrated }: &Line| {
                let done = if *migrated { "migrated: " } else { "" };
                format!("{schema}: {done}fits this build (version {version})\n")
            };
            output::print(&lines.iter().map(line).collect::<String>())
        }
    }
}

/// The same limit as the table's, so that the fault is named before anything is changed.
fn check_source(source: &str, schemas: &[Schema]) -> Result<(), Failure> {
    if !schemas.contains(&Schema::Outbox) {
        return Err(Failure::usage("--source: belongs to the schema outbox, which --schema leaves out"));
    }
    if !(1..=200).contains(&source.len()) || !source.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::usage("--source: 1 to 200 printable ASCII characters without a space"));
    }
    Ok(())
}

async fn name_origin(connection: &mut PgConnection, source: &str, url: &SecretUrl) -> Result<(), Failure> {
    sqlx::query(include_str!("sql/name_origin.sql"))
        .bind(source)
        .execute(connection)
        .await
        .map(drop)
        .map_err(|error| database::failed(&format!("database {url}: --source"), &error))
}

fn script(schemas: &[Schema]) -> String {
    let mut text = String::new();
    for schema in schemas {
        for script in schema.sql() {
            text.push_str(&format!(
                "-- schema {schema}, version {}: {}\n",
                script.version, script.description
            ));
            text.push_str(script.sql.trim_end());
            text.push_str("\n\n");
        }
    }
    text
}

fn failure(error: MigrateError, url: &SecretUrl) -> Failure {
    let doing = |what: &str| format!("database {url}: {what}");
    match error {
        MigrateError::Schema(error) => schema::failure(error).within(format!("database {url}")),
        MigrateError::Database { schema, source } => {
            database::failed(&doing(&format!("schema {schema} could not be migrated")), &source)
        }
        MigrateError::Failed { schema, version, source } => {
            database::failed(&doing(&format!("migration {version} of schema {schema} failed")), &source)
        }
        error => Failure::failed(doing(&chain(&error))),
    }
}
