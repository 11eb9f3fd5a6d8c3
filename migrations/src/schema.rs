//! The two schemas and their scripts: one list, which the migrator applies and another tool can run.

use std::borrow::Cow;
use std::fmt;

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// A schema that this framework keeps in a service's database.
///
/// ```no_run
/// # async fn start(connection: &mut sqlx::PgConnection) -> Result<(), Box<dyn std::error::Error>> {
/// use migrations::Schema;
/// Schema::Outbox.migrate(connection).await?;   // or, where another tool migrates:
/// Schema::Outbox.check(connection).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Schema {
    /// The log, its readers' cursors, and what they hold back.
    Outbox,
    /// What each consumer has handled, and what it holds back.
    Inbox,
}

/// One migration as text, for psql (`psql --single-transaction`) or any migration tool. Each is meant for one
/// transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Script {
    /// The version of the schema once it has run.
    pub version: i64,
    /// What it adds.
    pub description: &'static str,
    /// Its statements, separated by semicolons. The first script creates the schema too.
    pub sql: &'static str,
}

const CREATE_OUTBOX: &str = include_str!("sql/outbox_schema.sql");
const CREATE_INBOX: &str = include_str!("sql/inbox_schema.sql");

// A released script never changes: its checksum is in every database that it has migrated.
static OUTBOX: [Script; 1] = [Script {
    version: 1,
    description: "log",
    sql: concat!(include_str!("sql/outbox_schema.sql"), include_str!("../outbox/0001_log.sql")),
}];
static INBOX: [Script; 1] = [Script {
    version: 1,
    description: "inbox",
    sql: concat!(include_str!("sql/inbox_schema.sql"), include_str!("../inbox/0001_inbox.sql")),
}];

impl Schema {
    /// Every migration, oldest first, for printing or for another migration tool.
    pub fn sql(self) -> &'static [Script] {
        match self {
            Schema::Outbox => &OUTBOX,
            Schema::Inbox => &INBOX,
        }
    }

    /// The newest version this build knows, which is the one it needs.
    pub fn version(self) -> i32 {
        self.sql().last().map_or(0, |script| script.version as i32)
    }

    /// The migrations for sqlx, with a history table of their own (`outbox._migrations`): nothing is written to the
    /// `_sqlx_migrations` of the service. [`migrate`](Self::migrate) does more, and is what to call at start.
    ///
    /// It takes a session's advisory lock, so it needs a direct connection and not a transaction-mode pooler.
    pub fn migrator(self) -> Migrator {
        let mut migrator = self.scripts_only();
        migrator.create_schema(self.name());
        migrator
    }

    /// Without the schema's own creation, which takes rights that the schema's owner may not have.
    pub(crate) fn scripts_only(self) -> Migrator {
        let create = self.create();
        let migrations = self.sql().iter().map(|script| {
            let sql = script.sql.strip_prefix(create).unwrap_or(script.sql);
            let description = Cow::Borrowed(script.description);
            Migration::new(script.version, description, MigrationType::Simple, sql.into_sql_str(), false)
        });
        let mut migrator = Migrator::with_migrations(migrations.collect());
        migrator.dangerous_set_table_name(self.history());
        // A newer build may have migrated this database already; whether it serves this one is `check`'s to say.
        migrator.set_ignore_missing(true);
        migrator
    }

    /// Where the migrator keeps what it has applied.
    pub(crate) fn history(self) -> String {
        format!("{self}._migrations")
    }

    pub(crate) fn create(self) -> &'static str {
        match self {
            Schema::Outbox => CREATE_OUTBOX,
            Schema::Inbox => CREATE_INBOX,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Schema::Outbox => "outbox",
            Schema::Inbox => "inbox",
        }
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_from_one_without_a_gap() {
        for schema in [Schema::Outbox, Schema::Inbox] {
            let versions = schema.sql().iter().map(|script| script.version);
            assert!(versions.eq(1..=i64::from(schema.version())), "{schema}");
        }
    }

    #[test]
    fn each_script_says_which_version_it_makes_and_what_that_serves() {
        for schema in [Schema::Outbox, Schema::Inbox] {
            for script in schema.sql() {
                let says = format!(
                    "insert into {schema}.schema_version (version, serves) values ({}, ",
                    script.version
                );
                assert!(script.sql.contains(&says), "{schema} {}", script.version);
            }
        }
    }

    #[test]
    fn only_the_printed_script_creates_the_schema() {
        for schema in [Schema::Outbox, Schema::Inbox] {
            assert!(schema.sql()[0].sql.starts_with(schema.create()));
            assert!(
                !schema.scripts_only().iter().any(|script| script.sql.as_str().contains("create schema"))
            );
        }
    }
}
