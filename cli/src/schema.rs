//! Whether this build can work with a database's schema, and the exit code that says so.

use migrations::{Schema, SchemaError};
use sqlx::postgres::PgConnection;

use crate::database;
use crate::exit::{Failure, chain};
use crate::secret::SecretUrl;

/// Refuses a schema that is missing, older, or newer and no longer serves this build.
pub(crate) async fn check(
    schema: Schema,
    connection: &mut PgConnection,
    url: &SecretUrl,
) -> Result<(), Failure> {
    schema.check(connection).await.map_err(|error| failure(error).within(format!("database {url}")))
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
        return Err(Failure::schema(format!(
            "database {url}: it has neither an outbox nor an inbox; run `outbox migrate`"
        )));
    }
    Ok(Present { outbox, inbox })
}

/// `false`: it is missing.
async fn fits(schema: Schema, connection: &mut PgConnection, url: &SecretUrl) -> Result<bool, Failure> {
    match schema.check(connection).await {
        Ok(()) => Ok(true),
        Err(SchemaError::Missing { .. }) => Ok(false),
        Err(error) => Err(failure(error).within(format!("database {url}"))),
    }
}
