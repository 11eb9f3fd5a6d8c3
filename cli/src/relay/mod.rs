//! `outbox relay`: the daemon. Reads its configuration, checks the database, runs until it is told to stop.

mod flags;
pub(crate) mod publisher;

use std::convert::Infallible;

use message::PublishError;
use migrations::Schema;
use outbox::{Fleet, Relay, RelayError, log::Refusal};
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use self::flags::Args;
use crate::config::{Config, Databases};
use crate::exit::{Failure, chain};
use crate::secret::SecretUrl;
use crate::signals::Signals;
use crate::{database, logging, schema};

/// What a relay needs at once: its log's reader, its heartbeat, its upkeep, what it holds back, and one for the publisher's sake.
const CONNECTIONS: u32 = 5;

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let config = args.config()?;
    if args.check {
        return crate::output::print(&format!("{}\n", described(&config)));
    }
    logging::start(config.log.as_deref(), config.log_format)?;
    let stop = CancellationToken::new();
    let mut watch: JoinSet<Infallible> = JoinSet::new();
    watch.spawn(Signals::catch()?.watch(stop.clone()));

    match &config.databases {
        Databases::One(database) => one(&config, database, stop).await?,
        Databases::Many(databases, connections) => many(&config, databases, *connections, stop).await?,
    }
    tracing::info!(relay = config.relay, "stopped");
    Ok(())
}

async fn one(config: &Config, database: &SecretUrl, stop: CancellationToken) -> Result<(), Failure> {
    // The relay itself waits for a database that goes away; one that was never there is a mistake to be told at once.
    let mut connection = database::connect(database, "relay").await?;
    schema::check(Schema::Outbox, &mut connection, database).await?;
    let _ = connection.close().await;

    let options = options(config, database)?;
    let pool = outbox::pool_options().max_connections(CONNECTIONS).connect_lazy_with(options);
    let publisher = publisher::of(config, &stop).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "{}", described(config));
    let relay = Relay::new(&config.relay, pool.clone(), publisher).with_settings(config.settings.clone());
    relay.run(stop).await.map_err(|error| failure(error, config))?;
    pool.close().await;
    Ok(())
}

/// A database that is away, or not set up, is said so in the log and tried again: the others go on.
async fn many(
    config: &Config,
    databases: &[SecretUrl],
    connections: usize,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let publisher = publisher::of(config, &stop).await?;
    let mut fleet = Fleet::new(&config.relay, publisher)
        .with_connections(connections)
        .with_settings(config.settings.clone());
    for database in databases {
        fleet = fleet.with_database(database.to_string(), options(config, database)?);
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "{}", described(config));
    fleet.run(stop).await.map_err(|error| failure(error, config))
}

fn options(config: &Config, database: &SecretUrl) -> Result<PgConnectOptions, Failure> {
    let options = database::options(database, &format!("relay {}", config.relay))?;
    if let Some(warning) = exposed(&options) {
        tracing::warn!("{warning}");
    }
    Ok(options)
}

/// A connection that somebody on the way could read or answer in the server's place.
fn exposed(options: &PgConnectOptions) -> Option<&'static str> {
    let host = options.get_host();
    let here = options.get_socket().is_some()
        || matches!(host, "localhost" | "127.0.0.1" | "::1" | "[::1]")
        || host.starts_with('/');
    match options.get_ssl_mode() {
        _ if here => None,
        PgSslMode::VerifyFull => None,
        _ => Some(
            "the database is on another host and its certificate is not verified: say sslmode=verify-full",
        ),
    }
}

fn described(config: &Config) -> String {
    format!("relay {}: from {} to {}", config.relay, config.databases, config.broker)
}

fn failure(error: RelayError, config: &Config) -> Failure {
    let doing = format!("relay {} of {}", config.relay, config.databases);
    match error {
        RelayError::Refused(Refusal::Schema(error)) => schema::failure(error).within(doing),
        RelayError::Broker(PublishError::Rejected(reason)) => {
            Failure::failed(format!("relay {}: broker {}: {reason}", config.relay, config.broker))
        }
        error => Failure::failed(format!("{doing}: {}", chain(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_verified_connection_to_another_host_is_silent() {
        let warns = |url: &str| exposed(&url.parse().unwrap()).is_some();
        assert!(warns("postgres://db/orders"));
        assert!(warns("postgres://db/orders?sslmode=require"));
        assert!(!warns("postgres://db/orders?sslmode=verify-full"));
        assert!(!warns("postgres://localhost/orders") && !warns("postgres:///orders?host=/run/postgresql"));
    }
}
