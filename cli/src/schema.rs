//! Whether this build can work with a database's schema, and the exit code that says so.

use std::time::Duration;

use migrations::{Schema, SchemaError};
use sqlx::postgres::PgConnection;

use crate::database;
use crate::exit::{Failure, chain};
use crate::secret::SecretUrl;

/// How long the database may take to say which schema it has.
const ANSWER: Duration = Duration::from_secs(30);

/// Refuses a schema that is missing, older, or newer and no longer serves this build.
pub(crate) async fn check(
    schema: Schema,
    connection: &mut PgConnection,
    url: &SecretUrl,
) -> Result<(), Failure> {
    let database = format!("database {url}");
    match tokio::time::timeout(ANSWER, schema.check(connection)).await {
        Ok(checked) => checked.map_err(|error| failure(error).within(database)),
        Err(_) => Err(Failure::unreachable(format!("{database}: no answer within {}s", ANSWER.as_secs()))),
    }
}

/// The exit code that fits.
pub(crate) fn failure(error: SchemaError) -> Failure {
    match error {
        SchemaError::Unreadable { source, schema } => {
            database::failed(&format!("the version of schema {schema} could not be read"), &source)
        }
        error => Failure::schema(chain(&error)),
    }
}

/// Which of the two schemas the database has; at least one, and each fits this build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) outbox: bool,
    pub(crate) inbox: bool,
}

/// Looks which schemas are there. A service that only emits has no inbox, so that one may be missing.
pub(crate) async fn present(connection: &mut PgConnection, url: &SecretUrl) -> Result<Present, Failure> {
    let outbox = fits(Schema::Outbox, connection, url).await?;
    let inbox = fits(Schema::Inbox, connection, url).await?;
    if !outbox && !inbox {
        return Err(missing(url));
    }
    Ok(Present { outbox, inbox })
}

/// The schemas' names.
pub(crate) const OUTBOX: &str = "outbox";
/// See [`OUTBOX`].
pub(crate) const INBOX: &str = "inbox";

/// What may be shown of a database: the schemas that are there and fit, and those that this role may not look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Visible {
    pub(crate) outbox: bool,
    pub(crate) inbox: bool,
    pub(crate) unseen: Vec<&'static str>,
}

/// What to say of a schema that a role may not look at.
pub(crate) fn unseen(schema: &str) -> String {
    format!("schema {schema}: this role may not look at it; outbox_monitor may (outbox migrate --roles)\n")
}

/// Looks which schemas are there and may be looked at. At least one; where a role may look at none, that is said.
pub(crate) async fn visible(connection: &mut PgConnection, url: &SecretUrl) -> Result<Visible, Failure> {
    let mut visible = Visible { outbox: false, inbox: false, unseen: Vec::new() };
    for (schema, name) in [(Schema::Outbox, OUTBOX), (Schema::Inbox, INBOX)] {
        let there = match schema.check(connection).await {
            Ok(()) => true,
            Err(SchemaError::Missing { .. }) => false,
            Err(error) if is_unseen(&error) => {
                visible.unseen.push(name);
                false
            }
            Err(error) => return Err(failure(error).within(format!("database {url}"))),
        };
        match schema {
            Schema::Outbox => visible.outbox = there,
            Schema::Inbox => visible.inbox = there,
        }
    }
    match (visible.outbox || visible.inbox, visible.unseen.first()) {
        (true, _) => Ok(visible),
        (false, Some(_)) => Err(Failure::failed(format!(
            "database {url}: permission denied: this role may look at neither schema; outbox_monitor may (outbox migrate \
             --roles)"
        ))),
        (false, None) => Err(missing(url)),
    }
}

/// Whether the schema is there, and this role has no right to look at it.
pub(crate) fn is_unseen(error: &SchemaError) -> bool {
    matches!(error, SchemaError::Unreadable { source, .. } if database::is_denied(source))
}

fn missing(url: &SecretUrl) -> Failure {
    Failure::schema(format!("database {url}: it has neither an outbox nor an inbox; run `outbox migrate`"))
}

/// `false`: it is missing.
async fn fits(schema: Schema, connection: &mut PgConnection, url: &SecretUrl) -> Result<bool, Failure> {
    match schema.check(connection).await {
        Ok(()) => Ok(true),
        Err(SchemaError::Missing { .. }) => Ok(false),
        Err(error) => Err(failure(error).within(format!("database {url}"))),
    }
}
