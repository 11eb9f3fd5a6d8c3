//! The consumer that is measured: a process that the bench can kill.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use brokers::postgres::PostgresSubscriber;
use inbox::{Consumer, HandlerError};
use message::Message;
use sqlx::PgTransaction;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::super::place::Place;
use super::Args;
use crate::database;
use crate::exit::{Failure, chain};

pub(super) const CONSUMER: &str = "bench";

/// Such a process.
pub(super) struct Child(tokio::process::Child);

impl Child {
    pub(super) fn start(place: &Place, args: &Args) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(Failure::failed)?;
        let child = Command::new(program)
            .args(["bench", "consumer-restart", "--child"])
            .args(["--concurrency", &args.concurrency.to_string(), "--lease", &args.lease.to_string()])
            .env(database::VARIABLE, place.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure::failed(format!("bench: cannot start the consumer: {error}")))?;
        Ok(Child(child))
    }

    /// An error if it has ended.
    pub(super) fn is_running(&mut self) -> Result<(), Failure> {
        match self.0.try_wait().map_err(Failure::failed)? {
            None => Ok(()),
            Some(status) => Err(Failure::failed(format!("bench: the consumer ended by itself: {status}"))),
        }
    }

    /// With -9.
    pub(super) async fn kill(&mut self) -> Result<(), Failure> {
        self.0.kill().await.map_err(|error| Failure::failed(format!("bench: cannot kill: {error}")))
    }

    /// In good order: its input ends.
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        drop(self.0.stdin.take());
        self.0.wait().await.map_err(Failure::failed)?;
        Ok(())
    }
}

/// Consumes until the input ends.
pub(super) async fn consume(concurrency: usize, lease: Duration) -> Result<(), Failure> {
    let options = database::options(&database::named(None)?, "bench")?;
    let pool =
        |connections| outbox::pool_options().max_connections(connections).connect_lazy_with(options.clone());
    let group = CONSUMER.parse().map_err(|error| Failure::failed(chain(&error)))?;
    let subscriber = PostgresSubscriber::new(pool(4), group).with_lease(lease);
    let connections = u32::try_from(concurrency).unwrap_or(u32::MAX).saturating_add(4);
    let stop = CancellationToken::new();
    let ends = stop.clone();
    // A thread, which may stand in its read when the process ends.
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        ends.cancel();
    });
    let consumer = Consumer::new(CONSUMER, pool(connections), subscriber)
        .with_concurrency(concurrency)
        .on("bench.filled", handle);
    consumer.run(stop).await.map_err(|error| Failure::failed(chain(&error)))
}

async fn handle(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    sqlx::query(include_str!("../sql/effect.sql")).bind(message.id.as_uuid()).execute(&mut **tx).await?;
    Ok(())
}
