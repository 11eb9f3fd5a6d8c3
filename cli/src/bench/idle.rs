//! What a relay costs while there is nothing to do, and how soon it delivers a single message then.

use std::sync::Arc;
use std::time::Duration;

use outbox::{Doorbell, Relay, Settings};
use serde::Serialize;
use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Connection, Executor, Row};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::load::{Change, Clock, Load, Since, separate, until_delivered};
use super::place::Place;
use super::server::Spent;
use super::{median, percentile, round};
use crate::exit::{Failure, chain};
use crate::{database, output};

/// What an idle relay asks of the server, and how soon it delivers a single message after a silence
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outbox bench idle --silence 60 --messages 5

Each message is preceded by fifteen seconds in which the last one's traces settle, and by a silence, in which the transactions of
the relay and of the doorbell, and the WAL of the server, are counted. `embedded` runs the relay in the writing process, `separate` and `doorbell` as a process of its own. The server
must have nothing else to do.")]
pub(crate) struct Args {
    /// The server, by a database on it: a URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long)]
    database: Option<String>,
    /// Seconds of silence before each message
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    silence: u32,
    /// Single messages
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    messages: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    postgres: String,
    silence: u32,
    embedded: Figures,
    separate: Figures,
    /// Separate too, and listening; the writing process has a doorbell.
    doorbell: Figures,
}

#[derive(Debug, Serialize)]
struct Figures {
    /// Each is a transaction; one that runs alone may be begun and ended by statements of its own, which are not counted.
    statements_per_second: f64,
    /// Of the whole server, over [`WINDOW`]s: their median, since it tidies up in some of them by itself.
    wal_bytes_per_second: f64,
    /// From just before the commit to the delivery.
    p50_ms: f64,
    max_ms: f64,
}

/// Seconds in which whatever a relay does regularly shows.
const WINDOW: u32 = 10;

/// How a relay hears of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wakened {
    Embedded,
    Polling,
    Doorbell,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let server = database::named(args.database.as_deref())?;
    let (mut figures, mut postgres) = (Vec::new(), String::new());
    for wakened in [Wakened::Embedded, Wakened::Polling, Wakened::Doorbell] {
        let place = Place::make(server.clone()).await?;
        let measured = measure(&args, &place, wakened).await;
        let dropped = place.drop().await;
        let (measured, version) = measured?;
        figures.push(measured);
        postgres = version;
        dropped?;
    }
    let (Some(doorbell), Some(separate), Some(embedded)) = (figures.pop(), figures.pop(), figures.pop())
    else {
        return Err(Failure::failed("bench: a run is missing"));
    };
    output::print_json(&Report {
        bench: "idle",
        postgres,
        silence: args.silence,
        embedded,
        separate,
        doorbell,
    })
}

async fn measure(args: &Args, place: &Place, wakened: Wakened) -> Result<(Figures, String), Failure> {
    let failed = |error: sqlx::Error| database::failed("bench", &error);
    let (_, postgres) = Spent::now(&place.pool).await?;
    Load::prepare(&place.pool).await.map_err(failed)?;
    let load = Load {
        rate: 1,
        writers: 1,
        payload: 256,
        change: Change::Updates,
        since: Since::Commit,
        enqueues: true,
    };
    let clock = Arc::new(Clock::default());
    let stop = CancellationToken::new();
    let mut relays = JoinSet::new();
    match wakened {
        Wakened::Embedded => {
            let relay = Relay::new("bench", place.pool.clone(), Arc::clone(&clock)).run(stop.clone());
            relays.spawn(async move { relay.await.map_err(|error| Failure::failed(chain(&error))) });
        }
        Wakened::Polling => {
            relays.spawn(separate(place.url(), &[], Arc::clone(&clock), stop.clone()));
        }
        Wakened::Doorbell => {
            relays.spawn(separate(place.url(), &["--doorbell"], Arc::clone(&clock), stop.clone()));
            let doorbell = Doorbell::new(place.pool.clone()).run(stop.clone());
            relays.spawn(async move {
                doorbell.await;
                Ok(())
            });
        }
    }
    load.transact(&place.pool, &clock, 0).await.map_err(failed)?;
    until_delivered(&clock, 1, &mut relays).await?;
    clock.take();
    // Else the server does so by itself in the silence, and its transactions and WAL are counted with the relay's. On a
    // connection that ends, since one that stays may report its own ten seconds late.
    let mut tidying = place.options.connect().await.map_err(failed)?;
    tidying.execute("vacuum (analyze)").await.map_err(failed)?;
    tidying.close().await.map_err(failed)?;
    let (mut statements, mut wal, mut took) = (0.0, Vec::new(), Vec::new());
    // Not of the pool, which asks a connection more than it was told to.
    let mut observer = place.options.connect().await.map_err(failed)?;
    for number in 1..=args.messages {
        // What the last message has stirred up settles first: a relay rests when it has had nothing to do for its lease.
        tokio::time::sleep(Settings::default().lease * 3 / 2).await;
        let mut before = counters(&mut observer).await?;
        let mut left = args.silence;
        while left > 0 {
            let seconds = left.min(WINDOW);
            tokio::time::sleep(Duration::from_secs(u64::from(seconds))).await;
            let after = counters(&mut observer).await?;
            // Statistics of this look itself: one statement.
            statements += after.0 - before.0 - 1.0;
            wal.push((after.1 - before.1) / f64::from(seconds));
            (before, left) = (after, left - seconds);
        }
        load.transact(&place.pool, &clock, number).await.map_err(failed)?;
        until_delivered(&clock, 1, &mut relays).await?;
        took.extend(clock.take());
    }
    stop.cancel();
    while let Some(ended) = relays.join_next().await {
        ended.map_err(Failure::failed)??;
    }
    let seconds = f64::from(args.silence * args.messages);
    let figures = Figures {
        statements_per_second: round(statements / seconds),
        wal_bytes_per_second: round(median(wal)),
        p50_ms: round(percentile(took.clone(), 0.5)),
        max_ms: round(percentile(took, 1.0)),
    };
    Ok((figures, postgres))
}

/// Transactions of this database, and the server's WAL in bytes.
async fn counters(observer: &mut PgConnection) -> Result<(f64, f64), Failure> {
    let row = observer.fetch_one(sqlx::raw_sql(include_str!("sql/counters.sql"))).await;
    let figures = row.and_then(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    figures.map_err(|error| database::failed("bench", &error))
}
