//! How a service starts, works and stops: its schema, its consumer, its HTTP server, and SIGTERM.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use inbox::Consumer;
use migrations::Schema;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor, PgPool};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, BrokerError};
use crate::counts::Counts;
use crate::http;

/// What a service is, apart from where it runs.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    /// Its name, which is also its consumer's: a group at the broker, a consumer in the inbox.
    pub name: &'static str,
    /// Its tables, safe to run at every start.
    pub schema: &'static str,
    /// The topics it listens to.
    pub topics: &'static [&'static str],
    /// The kinds it reacts to.
    pub kinds: &'static [&'static str],
    /// Adds its handlers.
    pub react: fn(Consumer) -> Consumer,
    /// Its routes.
    pub routes: fn() -> Router<PgPool>,
}

/// The four services.
pub const ALL: [Definition; 4] = [
    crate::order::DEFINITION,
    crate::stock::DEFINITION,
    crate::payment::DEFINITION,
    crate::shipping::DEFINITION,
];

/// Where a service runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// The service's own database, postgres://…
    #[arg(long, env = "SERVICE_DATABASE", hide_env_values = true)]
    pub database: Address,
    /// The broker: postgres://… (a database with schema outbox) or nats://…
    #[arg(long, env = "SERVICE_BROKER", hide_env_values = true)]
    pub broker: Address,
    /// Where HTTP is served; port 0 takes a free one.
    #[arg(long, env = "SERVICE_LISTEN", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
}

/// An address that may hold a password: `Debug` does not show it.
#[derive(Clone)]
pub struct Address(pub String);

impl std::str::FromStr for Address {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Address(text.to_owned()))
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Address(..)")
    }
}

/// Why a service does not run, or no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The operator's: the service's database.
    #[error("the service's database cannot be used")]
    Database(#[from] sqlx::Error),
    /// The operator's: the outbox or inbox of that database.
    #[error("the service's database cannot be migrated")]
    Migrate(#[from] migrations::MigrateError),
    /// The operator's: the broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The operator's: the port.
    #[error("cannot serve HTTP on {listen}")]
    Listen {
        /// Where it was to listen.
        listen: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The HTTP server ended.
    #[error("the HTTP server ended")]
    Http(#[source] io::Error),
    /// The consumer ended.
    #[error("the consumer ended")]
    Consumer(#[from] inbox::ConsumerError),
    /// A task panicked.
    #[error("a task of the service panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Runs a service until `stop`: then what is being handled is finished, and nothing is begun.
///
/// # Errors
/// See [`ServiceError`].
pub async fn run(
    definition: Definition,
    config: Config,
    stop: CancellationToken,
) -> Result<(), ServiceError> {
    let options = outbox::connect_options(&config.database.0)?;
    let Some(()) = stop.run_until_cancelled(reached("database", &options)).await.transpose()? else {
        return Ok(());
    };
    let pool = outbox::pool_options().max_connections(10).connect_with(options).await?;
    migrate(&pool, definition.schema).await?;
    let broker = Broker::parse(&config.broker.0)?;
    let consumer = broker.consumer(definition.name, pool.clone(), definition.topics);
    let Some(consumer) = stop.run_until_cancelled(consumer).await.transpose()? else { return Ok(()) };
    let consumer = (definition.react)(consumer);
    let counts = Counts::install();
    let router = (definition.routes)()
        .with_state(pool.clone())
        .layer(DefaultBodyLimit::max(64 * 1024))
        .merge(http::health(pool.clone(), consumer.ready()))
        .merge(http::stats(counts));

    let listen = config.listen;
    let listener =
        TcpListener::bind(listen).await.map_err(|source| ServiceError::Listen { listen, source })?;
    let address = listener.local_addr().map_err(|source| ServiceError::Listen { listen, source })?;
    announce(&address);
    tracing::info!(service = definition.name, %address, "listening");

    let mut tasks: JoinSet<Result<(), ServiceError>> = JoinSet::new();
    let consuming = stop.clone();
    tasks.spawn(async move { Ok(consumer.run(consuming).await?) });
    let serving = stop.clone();
    tasks.spawn(async move {
        axum::serve(listener, router)
            .with_graceful_shutdown(serving.cancelled_owned())
            .await
            .map_err(ServiceError::Http)
    });
    let mut ended = Ok(());
    while let Some(done) = tasks.join_next().await {
        // Whichever ends first takes the other with it: half a service would look alive and do nothing.
        stop.cancel();
        let done = done.map_err(ServiceError::Panicked).and_then(|done| done);
        ended = ended.and(done);
    }
    pool.close().await;
    ended
}

/// Waits for a database that is down: the first failure is logged at once, with host, port and cause, the next ones more and
/// more seldom.
///
/// # Errors
/// What waiting does not mend: it does not let us in, there is no such database, or TLS does not come about.
pub(crate) async fn reached(what: &str, options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    let (mut failures, mut next_line) = (0_u32, 0);
    loop {
        let connected = tokio::time::timeout(CONNECT, PgConnection::connect_with(options)).await;
        let error = match connected.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into())) {
            Ok(connection) => return connection.close().await,
            Err(sqlx::Error::Io(error)) => error.to_string(),
            Err(sqlx::Error::Database(error)) if !is_final(&*error) => error.message().to_owned(),
            Err(error) => return Err(error),
        };
        if failures == next_line {
            let server = format!("{}:{}", options.get_host(), options.get_port());
            tracing::warn!(server, error, "the {what} cannot be reached, trying again");
            next_line = failures * 2 + 4;
        }
        failures += 1;
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
}

/// Password, authorization, no such database, no right to connect.
fn is_final(error: &dyn sqlx::error::DatabaseError) -> bool {
    matches!(error.code().as_deref(), Some("28P01" | "28000" | "3D000" | "42501"))
}

/// How long a database may take to answer at all.
const CONNECT: Duration = Duration::from_secs(5);
/// How long to wait between tries.
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// Brings a service's database up to date: the outbox, the inbox, and tables of its own. Safe for several processes at
/// once, and with nothing to do the second time.
///
/// # Errors
/// The database or its migrations.
pub async fn migrate(pool: &PgPool, schema: &'static str) -> Result<(), ServiceError> {
    let mut connection = pool.acquire().await?;
    Schema::Outbox.migrate(&mut connection).await?;
    Schema::Inbox.migrate(&mut connection).await?;
    let mut tx = pool.begin().await?;
    tx.execute(include_str!("lock_schema.sql")).await?;
    tx.execute(sqlx::raw_sql(schema)).await?;
    tx.commit().await?;
    Ok(())
}

/// Whoever started us, and let us choose the port, reads it here.
fn announce(address: &SocketAddr) {
    // With nobody reading, there is nobody to tell.
    writeln!(io::stdout(), "{LISTENING}{address}").ok();
}

/// What a service's line begins with that says where it listens.
pub const LISTENING: &str = "listening on http://";

/// Cancelled by SIGTERM or Ctrl-C; the second one ends the process at once.
///
/// # Errors
/// The signals cannot be listened to.
pub fn stop_on_signal(tasks: &mut JoinSet<()>) -> io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    tasks.spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if told.is_cancelled() {
                std::process::exit(130);
            }
            told.cancel();
        }
    });
    Ok(stop)
}

/// The whole of a service's `main`: arguments, logging, run; the exit code says whether it ended as asked.
pub fn main(definition: Definition) -> std::process::ExitCode {
    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        config: Config,
    }
    let command = <Arguments as clap::CommandFactory>::command().name(definition.name);
    let arguments = <Arguments as clap::FromArgMatches>::from_arg_matches(&command.get_matches());
    match arguments {
        Ok(arguments) => run_to_the_end(definition, arguments.config),
        Err(error) => error.exit(),
    }
}

/// Runs a service on a runtime of its own until SIGTERM or Ctrl-C.
pub fn run_to_the_end(definition: Definition, config: Config) -> std::process::ExitCode {
    // Several libraries bring rustls; where two crypto providers are compiled in, one must be chosen first.
    rustls::crypto::ring::default_provider().install_default().ok();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
    let ended = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            let mut signals = JoinSet::new();
            let stop = stop_on_signal(&mut signals)?;
            Ok(run(definition, config, stop).await?)
        })
    });
    match ended {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            writeln!(io::stderr(), "{}: {}", definition.name, message::error_chain(&*error)).ok();
            std::process::ExitCode::FAILURE
        }
    }
}
