//! The databases of a soak: the writers', the consumer's, and one in which a transaction stays open all the while.

use anyhow::{Context, Result};
use migrations::Schema;
use servers::{Postgres, PostgresOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Postgres as Driver, Transaction};
use uuid::Uuid;

use super::writers::WRITERS;

/// A server with three fresh databases.
pub(super) struct Cluster {
    /// Of the writers, with the outbox.
    pub(super) producer: PgPool,
    /// Of the consumer, with the inbox.
    pub(super) consumer: PgPool,
    pub(super) version: String,
    elsewhere: PgPool,
    names: [String; 3],
    // Last: it is dropped last, and takes a server of our own with it.
    server: Postgres,
}

impl Cluster {
    /// On the server that `DATABASE_URL` names, or on one of our own. `alone`: always on one of our own, because what
    /// others do in the same cluster changes what a snapshot holds, and with it whether a planted bug shows.
    /// `shared`: with what is written down of several processes.
    pub(super) async fn start(alone: bool, shared: bool) -> Result<Cluster> {
        let server = match Postgres::given().filter(|_| !alone) {
            Some(given) => given,
            // Without the disk a commit takes a moment; the order of commits is the same.
            None => PostgresOptions::new().start().context("a PostgreSQL of our own")?,
        };
        let run = Uuid::new_v4().simple().to_string();
        let names =
            ["producer", "consumer", "elsewhere"].map(|role| format!("outbox_soak_{}_{role}", &run[..8]));
        let mut admin = PgConnection::connect(&server.url("postgres")).await?;
        for name in &names {
            let create = format!("create database {name} template template0 encoding 'UTF8'");
            admin.execute(AssertSqlSafe(create)).await?;
        }
        let version = sqlx::query_scalar("show server_version").fetch_one(&mut admin).await?;
        admin.close().await?;
        let pool = |name: &str, connections| {
            outbox::pool_options().max_connections(connections).connect_lazy(&server.url(name))
        };
        let producer = pool(&names[0], WRITERS + 4)?;
        let consumer = pool(&names[1], 3)?;
        let elsewhere = pool(&names[2], 1)?;
        Schema::Outbox.migrate(&mut *producer.acquire().await?).await?;
        Schema::Inbox.migrate(&mut *consumer.acquire().await?).await?;
        producer.execute(include_str!("sql/schema.sql")).await?;
        if shared {
            producer.execute(include_str!("sql/sharing_schema.sql")).await?;
        }
        consumer.execute(include_str!("sql/consumer_schema.sql")).await?;
        Ok(Cluster { producer, consumer, version, elsewhere, names, server })
    }

    /// For the relay's process.
    pub(super) fn producer_url(&self) -> String {
        self.server.url(&self.names[0])
    }

    /// Begins a transaction elsewhere in the cluster, which has written and stays open until it is dropped.
    pub(super) async fn hold_transaction(&self) -> Result<Transaction<'static, Driver>> {
        let mut held = self.elsewhere.begin().await?;
        held.execute(include_str!("sql/held.sql")).await?;
        Ok(held)
    }

    /// Removes the databases; a server of our own goes with its data anyway.
    pub(super) async fn remove(self) -> Result<()> {
        for pool in [&self.producer, &self.consumer, &self.elsewhere] {
            pool.close().await;
        }
        let mut admin = PgConnection::connect(&self.server.url("postgres")).await?;
        for name in &self.names {
            admin.execute(AssertSqlSafe(format!("drop database if exists {name} with (force)"))).await?;
        }
        Ok(())
    }
}
