//! Brings a database up to this build: all of it or nothing, one process at a time, nothing to do the second time.

use sqlx::migrate::Migrate;
use sqlx::{Connection, Executor, PgConnection};

use crate::{Schema, SchemaError};

/// The database could not be brought up to this build; it is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// A newer build has migrated this database, and it no longer serves this one.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A migration that this database has is not the one of that number here: somebody has edited a released script.
    #[error("migration {version} of schema {schema} is not the one that this database was given")]
    Changed {
        /// Which schema.
        schema: Schema,
        /// Which migration.
        version: i64,
    },
    /// A migration failed.
    #[error("migration {version} of schema {schema} failed")]
    Failed {
        /// Which schema.
        schema: Schema,
        /// Which migration.
        version: i64,
        /// The server's reason.
        source: sqlx::Error,
    },
    /// The database did not answer, or the role may not do this.
    #[error("schema {schema} could not be migrated")]
    Database {
        /// Which schema.
        schema: Schema,
        /// The driver's or the server's reason.
        source: sqlx::Error,
    },
}

impl Schema {
    /// Brings the database up to this build. Does nothing if it is, or if a newer build has been here and still serves
    /// this one. Any number of processes may do it at once: one works, the others wait for it.
    ///
    /// Everything happens in one transaction, which also holds the lock: a failed migration leaves nothing behind. So
    /// `conn` must not be in one. What another tool has applied (`schema_version` says so) is taken as applied. It takes
    /// the rights of the schema's owner even when nothing is left to do; [`check`](Self::check) does not.
    ///
    /// # Errors
    /// The reason; the database is then as it was.
    pub async fn migrate(self, conn: &mut PgConnection) -> Result<(), MigrateError> {
        let database = |source| MigrateError::Database { schema: self, source };
        // Not the session lock of sqlx's migrator: it would outlive an error on a pooled connection, and be lost
        // behind a transaction-mode pooler.
        let mut tx = conn.begin_with(include_str!("sql/begin.sql")).await.map_err(database)?;
        match self.migrate_within(&mut tx).await {
            Ok(()) => tx.commit().await.map_err(database),
            Err(error) => {
                // Dropping it would roll back when the connection is next used, and hold the lock until then. If even
                // this fails, the connection is lost, and the transaction with it.
                let _ = tx.rollback().await;
                Err(error)
            }
        }
    }

    async fn migrate_within(self, conn: &mut PgConnection) -> Result<(), MigrateError> {
        let database = |source| MigrateError::Database { schema: self, source };
        let number = match self {
            Schema::Outbox => 1,
            Schema::Inbox => 2,
        };
        let lock = sqlx::query(include_str!("sql/lock.sql")).bind(number);
        lock.execute(&mut *conn).await.map_err(database)?;
        conn.execute(include_str!("sql/quiet.sql")).await.map_err(database)?;
        self.create_if_missing(conn).await.map_err(database)?;
        self.apply_missing(conn).await?;
        Ok(self.check(conn).await?)
    }

    async fn create_if_missing(self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        let exists: bool = sqlx::query_scalar(include_str!("sql/schema_exists.sql"))
            .bind(self.name())
            .fetch_one(&mut *conn)
            .await?;
        if !exists {
            conn.execute(self.create()).await?;
        }
        Ok(())
    }

    /// As sqlx's `Migrator::run` does it; but that one's future cannot be spawned ("`Acquire` is not general enough"),
    /// and it cannot take a migration as applied.
    async fn apply_missing(self, conn: &mut PgConnection) -> Result<(), MigrateError> {
        let (migrator, history) = (self.scripts_only(), self.history());
        let stated =
            self.stated(conn).await.map_err(|source| MigrateError::Database { schema: self, source })?;
        conn.ensure_migrations_table(&history).await.map_err(|error| self.migrate_error(error))?;
        let applied = conn.list_applied_migrations(&history).await;
        let applied = applied.map_err(|error| self.migrate_error(error))?;
        for migration in migrator.iter() {
            match applied.iter().find(|applied| applied.version == migration.version) {
                Some(applied) if applied.checksum != migration.checksum => {
                    return Err(MigrateError::Changed { schema: self, version: migration.version });
                }
                Some(_) => Ok(()),
                None if stated.is_some_and(|stated| i64::from(stated.version) >= migration.version) => {
                    conn.skip(&history, migration).await
                }
                None => conn.apply(&history, migration).await.map(|_| ()),
            }
            .map_err(|error| self.migrate_error(error))?;
        }
        Ok(())
    }

    fn migrate_error(self, error: sqlx::migrate::MigrateError) -> MigrateError {
        use sqlx::migrate::MigrateError as Driver;
        match error {
            Driver::ExecuteMigration(source, version) => {
                MigrateError::Failed { schema: self, version, source }
            }
            Driver::Execute(source) => MigrateError::Database { schema: self, source },
            other => MigrateError::Database { schema: self, source: other.into() },
        }
    }
}
