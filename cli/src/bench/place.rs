//! A database for one measurement, dropped at the end, also when it fails.

use migrations::Schema;
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

use crate::database;
use crate::exit::{Failure, chain};
use crate::secret::SecretUrl;

/// Such a database.
pub(super) struct Place {
    pub(super) options: PgConnectOptions,
    pub(super) pool: PgPool,
    server: SecretUrl,
    name: String,
}

impl Place {
    /// Makes one on the server of the database named, with both schemas.
    pub(super) async fn make(server: SecretUrl) -> Result<Self, Failure> {
        let name = format!("outbox_bench_{}", uuid::Uuid::new_v4().simple());
        let mut connection = database::connect(&server, "bench").await?;
        let create = format!("create database {name} template template0");
        connection.execute(AssertSqlSafe(create)).await.map_err(|error| database::failed("bench", &error))?;
        let _ = connection.close().await;
        let options = database::options(&server, "bench")?.database(&name);
        let pool = outbox::pool_options().max_connections(64).connect_lazy_with(options.clone());
        let place = Place { options, pool, server, name };
        let mut connection = place.pool.acquire().await.map_err(|error| database::failed("bench", &error))?;
        Schema::Outbox.migrate(&mut connection).await.map_err(|error| Failure::failed(chain(&error)))?;
        Ok(place)
    }

    /// Writes a backlog: `messages` messages of `payload` bytes over 5,000 keys, 1,000 a transaction.
    pub(super) async fn fill(&self, messages: u64, payload: u32) -> Result<(), Failure> {
        let failed = |error: sqlx::Error| database::failed("bench", &error);
        for _ in 0..messages.div_ceil(1000) {
            let fill =
                sqlx::query(include_str!("sql/fill.sql")).bind(i32::try_from(payload).unwrap_or(i32::MAX));
            fill.execute(&self.pool).await.map_err(failed)?;
        }
        // As autovacuum leaves a log that was not written a second ago.
        self.pool.execute("vacuum (analyze) outbox.message").await.map_err(failed)?;
        self.pool.execute("checkpoint").await.map_err(failed)?;
        Ok(())
    }

    /// The URL of this database, for another process's environment.
    pub(super) fn url(&self) -> String {
        // The driver writes an address of IPv6 into a URL as it is.
        let host = self.options.get_host();
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        self.options.clone().host(&bracketed).to_url_lossy().to_string()
    }

    /// Drops it.
    pub(super) async fn drop(self) -> Result<(), Failure> {
        self.pool.close().await;
        let mut connection = database::connect(&self.server, "bench").await?;
        let drop = format!("drop database {} with (force)", self.name);
        connection.execute(AssertSqlSafe(drop)).await.map_err(|error| database::failed("bench", &error))?;
        Ok(())
    }
}
