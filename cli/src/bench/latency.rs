//! How soon a message is delivered while business transactions go on: from just before the enqueue to the delivery.

use std::sync::Arc;

use outbox::Relay;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::load::{Change, Clock, Load, Since, separate, until_delivered};
use super::place::Place;
use super::server::Spent;
use super::{percentile, round};
use crate::exit::{Failure, chain};
use crate::{database, output};

/// How soon a message is delivered while business transactions go on
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outbox bench latency
  outbox bench latency --rate 200 --seconds 10 --output text

Each transaction changes a row and enqueues a message. `embedded` runs the relay in the writers' process, where an
enqueue rings its bell; `separate` runs `outbox relay` as a process of its own, which polls. `none` is the writers alone.
Server CPU and WAL are of the whole transaction and its delivery.")]
pub(crate) struct Args {
    /// The server, by a database on it: a URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long)]
    database: Option<String>,
    /// Business transactions a second
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// For so many seconds each
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Writers side by side
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=50))]
    writers: u32,
    /// Bytes of payload
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    payload: u32,
    /// How to answer
    #[arg(long, value_enum, default_value_t = output::Format::Json)]
    output: output::Format,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    postgres: String,
    rate: u32,
    seconds: u32,
    payload: u32,
    none: Figures,
    embedded: Figures,
    separate: Figures,
}

#[derive(Debug, Serialize)]
struct Figures {
    /// From just before the enqueue to the delivery, in milliseconds; without a relay, to the commit.
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    delivered: usize,
    /// Of the whole transaction and its delivery.
    server_us: Option<f64>,
    wal_bytes: f64,
}

/// How the messages of a run are delivered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delivery {
    None,
    Embedded,
    Separate,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let server = database::named(args.database.as_deref())?;
    let mut postgres = String::new();
    let mut figures = Vec::new();
    for (name, delivery) in
        [("none", Delivery::None), ("embedded", Delivery::Embedded), ("separate", Delivery::Separate)]
    {
        output::complain(&format!("bench: {name}, {} s", args.seconds));
        let place = Place::make(server.clone()).await?;
        let measured = measure(&args, &place, delivery).await;
        let dropped = place.drop().await;
        let (measured, version) = measured?;
        dropped?;
        postgres = version;
        figures.push(measured);
    }
    let (Some(separate), Some(embedded), Some(none)) = (figures.pop(), figures.pop(), figures.pop()) else {
        return Err(Failure::failed("bench: a run is missing"));
    };
    let (rate, seconds, payload) = (args.rate, args.seconds, args.payload);
    let report = Report { bench: "latency", postgres, rate, seconds, payload, none, embedded, separate };
    match args.output {
        output::Format::Json => output::print_json(&report),
        output::Format::Text => output::print(&text(&report)),
    }
}

async fn measure(args: &Args, place: &Place, delivery: Delivery) -> Result<(Figures, String), Failure> {
    let failed = |error: sqlx::Error| database::failed("bench", &error);
    Load::prepare(&place.pool).await.map_err(failed)?;
    let enqueues = delivery != Delivery::None;
    let load = Load {
        rate: args.rate,
        writers: args.writers,
        payload: args.payload,
        change: Change::Updates,
        since: Since::Enqueue,
        enqueues,
    };
    let clock = Arc::new(Clock::default());
    let stop = CancellationToken::new();
    let mut relays = JoinSet::new();
    match delivery {
        Delivery::None => {}
        Delivery::Embedded => {
            let relay = Relay::new("bench", place.pool.clone(), Arc::clone(&clock)).run(stop.clone());
            relays.spawn(async move { relay.await.map_err(|error| Failure::failed(chain(&error))) });
        }
        Delivery::Separate => {
            relays.spawn(separate(place.url(), &[], Arc::clone(&clock), stop.clone()));
        }
    }
    // A first second that does not count: connections are made, plans and caches warm up.
    load.write(&place.pool, &clock, 1).await?;
    until_delivered(&clock, args.rate as usize, &mut relays).await?;
    clock.take();
    let (before, version) = Spent::now(&place.pool).await?;
    load.write(&place.pool, &clock, args.seconds).await?;
    let wanted = args.rate as usize * args.seconds as usize;
    until_delivered(&clock, wanted, &mut relays).await?;
    let (after, _) = Spent::now(&place.pool).await?;
    stop.cancel();
    while let Some(ended) = relays.join_next().await {
        ended.map_err(Failure::failed)??;
    }
    let took = clock.take();
    let figures = Figures {
        p50_ms: round(percentile(took.clone(), 0.5)),
        p99_ms: round(percentile(took.clone(), 0.99)),
        max_ms: round(percentile(took.clone(), 1.0)),
        delivered: took.len(),
        server_us: after.cpu_each(&before, wanted as u64),
        wal_bytes: after.wal_each(&before, wanted as u64),
    };
    Ok((figures, version))
}

fn text(report: &Report) -> String {
    let row = |name: &str, figures: &Figures| {
        vec![
            name.to_owned(),
            format!("{:.1}", figures.p50_ms),
            format!("{:.1}", figures.p99_ms),
            format!("{:.1}", figures.max_ms),
            figures.server_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.0}")),
            format!("{:.0}", figures.wal_bytes),
        ]
    };
    let rows =
        [row("none", &report.none), row("embedded", &report.embedded), row("separate", &report.separate)];
    let head = ["relay", "p50 ms", "p99 ms", "max ms", "server µs", "WAL B"];
    format!(
        "{} transactions a second for {} s, {} bytes of payload, PostgreSQL {}\n\n{}",
        report.rate,
        report.seconds,
        report.payload,
        report.postgres,
        output::table(&head, &rows)
    )
}
