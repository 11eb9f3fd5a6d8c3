//! Whether a build can work with the schema of a database: the rule that lets old and new builds run side by side.

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use crate::Schema;

/// The database is not one that this build can work with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// Nobody has migrated this database.
    #[error(
        "schema {schema} is missing: run `outbox migrate`, or the scripts that `outbox migrate --print` shows"
    )]
    Missing {
        /// Which one.
        schema: Schema,
    },
    /// The database is behind this build.
    #[error("schema {schema} is at version {version}, this build needs {needs}: run `outbox migrate`")]
    Older {
        /// Which one.
        schema: Schema,
        /// The database's.
        version: i32,
        /// This build's.
        needs: i32,
    },
    /// The database is ahead of this build, and has left it behind.
    #[error(
        "schema {schema} is at version {version}, which serves builds that need {serves} or newer; this build needs {needs}: run a newer build"
    )]
    TooNew {
        /// Which one.
        schema: Schema,
        /// The database's.
        version: i32,
        /// The oldest build that the database still serves.
        serves: i32,
        /// This build's.
        needs: i32,
    },
    /// The database did not answer.
    #[error("the version of schema {schema} could not be read")]
    Unreadable {
        /// Which one.
        schema: Schema,
        /// The driver's or the server's reason: a missing right, a lost connection.
        source: sqlx::Error,
    },
}

/// What a database says of its schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stated {
    /// The newest migration that has run.
    pub(crate) version: i32,
    /// The oldest build that may still work with it.
    pub(crate) serves: i32,
}

impl Schema {
    /// Whether this build can work with the database: it is not behind this build, and if it is ahead, it still serves
    /// it. Reads only; aborts no transaction.
    ///
    /// # Errors
    /// Missing, older, newer and no longer serving this build, or not readable.
    pub async fn check(self, conn: &mut PgConnection) -> Result<(), SchemaError> {
        let stated =
            self.stated(conn).await.map_err(|source| SchemaError::Unreadable { schema: self, source })?;
        self.judge(stated)
    }

    /// What the database says; `None` if no migration has run to its end.
    pub(crate) async fn stated(self, conn: &mut PgConnection) -> Result<Option<Stated>, sqlx::Error> {
        // As text: behind a pooler in transaction mode, what is prepared may not be there when it is run.
        let exists = include_str!("sql/exists.sql").replace("$1", &format!("'{self}.schema_version'"));
        if !conn.fetch_one(sqlx::raw_sql(AssertSqlSafe(exists))).await?.try_get::<bool, _>(0)? {
            return Ok(None);
        }
        let sql = match self {
            Schema::Outbox => include_str!("sql/outbox_version.sql"),
            Schema::Inbox => include_str!("sql/inbox_version.sql"),
        };
        let row = conn.fetch_one(sqlx::raw_sql(sql)).await?;
        let (version, serves): (Option<i32>, Option<i32>) = (row.try_get(0)?, row.try_get(1)?);
        Ok(version.zip(serves).map(|(version, serves)| Stated { version, serves }))
    }

    fn judge(self, stated: Option<Stated>) -> Result<(), SchemaError> {
        let (schema, needs) = (self, self.version());
        match stated {
            None => Err(SchemaError::Missing { schema }),
            Some(Stated { version, .. }) if version < needs => {
                Err(SchemaError::Older { schema, version, needs })
            }
            Some(Stated { version, serves }) if version > needs && needs < serves => {
                Err(SchemaError::TooNew { schema, version, serves, needs })
            }
            Some(_) => Ok(()),
        }
    }
}
