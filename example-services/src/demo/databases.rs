//! The demo's databases: one a service, one for the broker, made at the start and gone at the end.

use std::str::FromStr;

use servers::Postgres;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool};

/// Why the databases were not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CreateError {
    #[error("the role may not create databases there: give it CREATEDB, or unset DATABASE_URL")]
    NotAllowed,
    #[error("a database cannot be created")]
    Database(#[from] sqlx::Error),
}

/// SQLSTATE insufficient_privilege.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Names of the services that have a database each, in the order in which they work on an order.
pub(super) const SERVICES: [&str; 4] = ["order", "stock", "payment", "shipping"];

/// A database: what the demo reads it through, and its address.
pub(super) struct Database {
    pub(super) url: String,
    pub(super) pool: PgPool,
    pub(super) name: String,
    server: PgPool,
}

/// All of them.
pub(super) struct Databases {
    pub(super) order: Database,
    pub(super) stock: Database,
    pub(super) payment: Database,
    pub(super) shipping: Database,
    pub(super) broker: Database,
}

impl Databases {
    /// Names them; no other run has these names. Nothing is created yet. The broker's is on the server of `broker`, if
    /// that is given.
    pub(super) fn new(postgres: &Postgres, broker: Option<&str>) -> Result<Databases, sqlx::Error> {
        let run = std::process::id();
        let server = outbox::pool_options()
            .max_connections(1)
            .connect_lazy_with(outbox::connect_options(&postgres.url("postgres"))?);
        let database = |role: &str| {
            let name = format!("outbox_demo_{role}_{run}");
            Database::named(postgres.url(&name), name, server.clone())
        };
        let [order, stock, payment, shipping] = SERVICES;
        Ok(Databases {
            order: database(order)?,
            stock: database(stock)?,
            payment: database(payment)?,
            shipping: database(shipping)?,
            broker: match broker {
                None => database("broker")?,
                Some(given) => {
                    let name = format!("outbox_demo_broker_{run}");
                    let url = PgConnectOptions::from_str(given)?.database(&name).to_url_lossy().to_string();
                    Database::named(
                        url,
                        name,
                        outbox::pool_options()
                            .max_connections(1)
                            .connect_lazy_with(outbox::connect_options(given)?),
                    )?
                }
            },
        })
    }

    /// Creates them.
    pub(super) async fn create(&self) -> Result<(), CreateError> {
        for database in self.all() {
            let create = format!("create database {}", database.name);
            let created = sqlx::query(AssertSqlSafe(create)).execute(&database.server).await;
            created.map_err(|error| match error.as_database_error().and_then(DatabaseError::code) {
                Some(code) if code == INSUFFICIENT_PRIVILEGE => CreateError::NotAllowed,
                _ => CreateError::Database(error),
            })?;
        }
        Ok(())
    }

    /// The services' databases, with their names, in the order in which they work on an order.
    pub(super) fn of_services(&self) -> [(&'static str, &Database); 4] {
        let [order, stock, payment, shipping] = SERVICES;
        [(order, &self.order), (stock, &self.stock), (payment, &self.payment), (shipping, &self.shipping)]
    }

    /// Drops those that are there; for servers that outlive the demo. Whoever is connected is thrown out.
    pub(super) async fn remove(&self) -> Result<(), sqlx::Error> {
        for database in self.all() {
            let drop = format!("drop database if exists {} with (force)", database.name);
            sqlx::query(AssertSqlSafe(drop)).execute(&database.server).await?;
        }
        Ok(())
    }

    fn all(&self) -> [&Database; 5] {
        [&self.order, &self.stock, &self.payment, &self.shipping, &self.broker]
    }
}

impl Database {
    fn named(url: String, name: String, server: PgPool) -> Result<Database, sqlx::Error> {
        let pool =
            outbox::pool_options().max_connections(2).connect_lazy_with(outbox::connect_options(&url)?);
        Ok(Database { url, pool, name, server })
    }
}
