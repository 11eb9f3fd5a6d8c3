//! `cargo demo`: the four services, their relays and a broker on this machine; a few hundred orders; a service and a relay
//! killed in the middle; and the proof that everything adds up.
//!
//! Everything it starts ends with it, however it ends.

mod arguments;
mod binary;
mod carrier;
mod child;
mod databases;
mod fleet;
mod orders;
mod place;
mod report;
mod say;
mod serve;
mod story;
mod tally;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use tokio::task::JoinSet;

use arguments::{Arguments, BrokerChoice, What};
use carrier::Carrier;
use databases::Databases;
use fleet::Fleet;
use report::Report;
use say::Say;
use story::Stage;

use crate::service;

/// Why the demo did not come to its end.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("no PostgreSQL")]
    Postgres(#[from] servers::postgres::StartError),
    #[error(transparent)]
    Create(#[from] databases::CreateError),
    #[error("a database cannot be used")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Carrier(#[from] carrier::CarrierError),
    #[error(transparent)]
    Binary(#[from] binary::BinaryError),
    #[error(transparent)]
    Orders(#[from] orders::OrdersError),
    #[error(transparent)]
    Child(#[from] child::ChildError),
    #[error(transparent)]
    Place(#[from] place::PlaceError),
    #[error("a service does not answer")]
    Http(#[from] reqwest::Error),
    #[error("nothing has happened for {seconds} s, and not all orders have ended")]
    Stuck { seconds: u64 },
    #[error("outbox trace cannot be run")]
    Trace(#[source] io::Error),
    #[error("outbox trace failed: {said}")]
    TraceFailed { said: String },
    #[error("signals cannot be listened to")]
    Signals(#[source] io::Error),
}

/// How it ended, if it was not an error.
enum Ended {
    AddsUp,
    DoesNotAddUp,
    Interrupted,
}

/// The demo's `main`.
pub fn main() -> ExitCode {
    let arguments = <Arguments as clap::Parser>::parse();
    if let Some(What::Service { name, config }) = arguments.what {
        return match service::ALL.into_iter().find(|service| service.name == name) {
            Some(definition) => service::run_to_the_end(definition, config),
            None => ExitCode::FAILURE,
        };
    }
    let broker = match arguments.broker() {
        Ok(broker) => broker,
        Err(error) => {
            writeln!(io::stderr(), "demo: {error}").ok();
            return ExitCode::from(2);
        }
    };
    rustls::crypto::ring::default_provider().install_default().ok();
    let ended = tokio::runtime::Runtime::new()
        .map_err(DemoError::Signals)
        .and_then(|runtime| runtime.block_on(run(&arguments, &broker)));
    match ended {
        Ok(Ended::AddsUp) => ExitCode::SUCCESS,
        Ok(Ended::DoesNotAddUp) => ExitCode::FAILURE,
        Ok(Ended::Interrupted) => ExitCode::from(130),
        Err(error) => {
            writeln!(io::stderr(), "demo: {}", message::error_chain(&error)).ok();
            ExitCode::FAILURE
        }
    }
}

/// Sets everything up, plays or serves, and clears up, whatever happens in between.
async fn run(arguments: &Arguments, choice: &BrokerChoice) -> Result<Ended, DemoError> {
    let mut signals = JoinSet::new();
    let stop = service::stop_on_signal(&mut signals).map_err(DemoError::Signals)?;

    let outbox = binary::find()?;
    let say = Say::new();
    let postgres = servers::Postgres::start()?;
    say.now(postgres.describe());
    let broker = match choice {
        BrokerChoice::PostgresAt(server) => Some(server.0.as_str()),
        _ => None,
    };
    let databases = Databases::new(&postgres, broker)?;
    let mut carrier = None;
    let ended = tokio::select! {
        ended = perform(arguments, choice, say, &databases, &mut carrier, &outbox) => ended,
        () = stop.cancelled() => {
            say.line("\nstopped; everything that was started is being ended");
            Ok(Ended::Interrupted)
        }
    };
    // The processes are gone by now, with the future that held them.
    let cleared = async {
        if let Some(carrier) = carrier {
            carrier.remove().await?;
        }
        if postgres.is_given() || broker.is_some() {
            databases.remove().await?;
        }
        Ok(())
    };
    let cleared = cleared.await;
    ended.and_then(|ended| cleared.map(|()| ended))
}

async fn perform(
    arguments: &Arguments,
    choice: &BrokerChoice,
    say: Say,
    databases: &Databases,
    carrier: &mut Option<Carrier>,
    outbox: &Path,
) -> Result<Ended, DemoError> {
    databases.create().await?;
    let carrier = carrier.insert(Carrier::start(choice, databases).await?);
    say.now(format_args!("broker: {}", carrier.describe()));
    let mut fleet = Fleet::start(databases, carrier, outbox).await?;
    say.now("four services and four relays are at work, each service with a database of its own");

    if let Some(What::Serve { .. }) = arguments.what {
        serve::until_stopped(say, databases, &mut fleet, outbox).await?;
        return Ok(Ended::AddsUp);
    }
    let planned = match arguments.orders {
        Some(count) => orders::generate(count, arguments.seed),
        None => orders::from_csv()?,
    };
    let client = reqwest::Client::new();
    let broker_is_a_log = carrier.is_a_log();
    let stage = Stage { say, databases, fleet: &mut fleet, client: client.clone(), broker_is_a_log };
    let told = stage.play(&planned).await?;
    let report = Report { say, databases, fleet: &fleet, client: &client, outbox, carrier };
    let adds_up = report.print(&told, &planned).await?;
    drop(fleet);
    say.line(format_args!(
        "\n{} in {:.0} s",
        if adds_up { "Everything adds up" } else { "It does NOT add up" },
        say.seconds()
    ));
    Ok(if adds_up { Ended::AddsUp } else { Ended::DoesNotAddUp })
}
