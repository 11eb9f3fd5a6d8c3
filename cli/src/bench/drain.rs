//! How fast a relay drains a backlog, beside a COPY of the same columns through the same client library.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures_util::TryStreamExt;
use message::{Outcomes, Outgoing, Pipelining, Publisher};
use outbox::{Relay, Settings};
use serde::Serialize;
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::place::Place;
use super::server::Spent;
use super::{median, pages, round};
use crate::exit::{Failure, chain};
use crate::{database, output};

/// How fast a relay drains a backlog, to a publisher that keeps nothing, beside a COPY of the same rows
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outbox bench drain
  outbox bench drain --messages 200000 --rounds 3 --output json

`ratio` is the relay's messages per second by the COPY's of the same round: compare ratios, machines are noisy.
`page` is the time of one page of 1,000 messages: over a backlog of 10,000, over all of it, and over all of it while
another session holds a write transaction open.")]
pub(crate) struct Args {
    /// The server, by a database on it: a URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long)]
    database: Option<String>,
    /// Messages of backlog
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(20_000..))]
    messages: u64,
    /// Bytes of payload
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    payload: u32,
    /// Messages a page
    #[arg(long, default_value_t = 1000)]
    batch: usize,
    /// Rounds, of a COPY and a relay each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How to answer
    #[arg(long, value_enum, default_value_t = output::Format::Json)]
    output: output::Format,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    postgres: String,
    messages: u64,
    payload: u32,
    batch: usize,
    rounds: Vec<Round>,
    median: Round,
    page: Page,
}

#[derive(Debug, Clone, Serialize)]
struct Round {
    copy_per_second: f64,
    relay_per_second: f64,
    ratio: f64,
    copy_server_us: Option<f64>,
    relay_server_us: Option<f64>,
    relay_wal_bytes: f64,
}

#[derive(Debug, Serialize)]
struct Page {
    short_ms: f64,
    long_ms: f64,
    held_ms: f64,
    long_by_short: f64,
    held_by_short: f64,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let place = Place::make(database::named(args.database.as_deref())?).await?;
    let measured = measure(&args, &place).await;
    let dropped = place.drop().await;
    let report = measured?;
    dropped?;
    match args.output {
        output::Format::Json => output::print_json(&report),
        output::Format::Text => output::print(&text(&report)),
    }
}

async fn measure(args: &Args, place: &Place) -> Result<Report, Failure> {
    let failed = |error: sqlx::Error| database::failed("bench", &error);
    output::complain("bench: the first 10,000 messages, and what a page of them costs");
    place.fill(10_000, args.payload).await?;
    let short_ms = pages::cost(&place.pool, 20).await?;
    output::complain(&format!("bench: writing {} messages", args.messages));
    place.fill(args.messages - 10_000, args.payload).await?;
    let (_, postgres) = Spent::now(&place.pool).await?;
    let mut copying = PgConnection::connect_with(&place.options).await.map_err(failed)?;
    let mut rounds = Vec::new();
    // The first touch of each row sets its hint bits: nobody's cost.
    copy(&mut copying).await?;
    for number in 0..args.rounds {
        let before = Spent::now(&place.pool).await?.0;
        let copied = args.messages as f64 / copy(&mut copying).await?;
        let between = Spent::now(&place.pool).await?.0;
        let relayed = args.messages as f64 / drain(args, place, number).await?;
        let after = Spent::now(&place.pool).await?.0;
        rounds.push(Round {
            copy_per_second: copied.round(),
            relay_per_second: relayed.round(),
            ratio: round(relayed / copied),
            copy_server_us: between.cpu_each(&before, args.messages),
            relay_server_us: after.cpu_each(&between, args.messages),
            relay_wal_bytes: after.wal_each(&between, args.messages),
        });
        output::complain(&format!("bench: round {}: {:.3} of COPY", number + 1, relayed / copied));
    }
    let long_ms = pages::cost(&place.pool, 1).await?;
    let mut held = place.pool.begin().await.map_err(failed)?;
    sqlx::query(include_str!("sql/fill.sql")).bind(1).execute(&mut *held).await.map_err(failed)?;
    let held_ms = pages::cost(&place.pool, 1).await?;
    held.rollback().await.map_err(failed)?;
    let page = Page {
        short_ms: round(short_ms),
        long_ms: round(long_ms),
        held_ms: round(held_ms),
        long_by_short: round(long_ms / short_ms),
        held_by_short: round(held_ms / short_ms),
    };
    let (messages, payload, batch) = (args.messages, args.payload, args.batch);
    Ok(Report { bench: "drain", postgres, messages, payload, batch, median: middle(&rounds), rounds, page })
}

fn middle(rounds: &[Round]) -> Round {
    let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
    let maybe = |figure: fn(&Round) -> Option<f64>| {
        let figures: Option<Vec<f64>> = rounds.iter().map(figure).collect();
        figures.map(median)
    };
    Round {
        copy_per_second: of(|round| round.copy_per_second),
        relay_per_second: of(|round| round.relay_per_second),
        ratio: of(|round| round.ratio),
        copy_server_us: maybe(|round| round.copy_server_us),
        relay_server_us: maybe(|round| round.relay_server_us),
        relay_wal_bytes: of(|round| round.relay_wal_bytes),
    }
}

/// Seconds that a COPY of the whole log takes.
async fn copy(connection: &mut PgConnection) -> Result<f64, Failure> {
    let failed = |error: sqlx::Error| database::failed("bench", &error);
    let began = Instant::now();
    let mut bytes = 0_u64;
    let mut data = connection.copy_out_raw(include_str!("sql/copy.sql")).await.map_err(failed)?;
    while let Some(chunk) = data.try_next().await.map_err(failed)? {
        bytes += chunk.len() as u64;
    }
    tracing::debug!(bytes, "copied");
    Ok(began.elapsed().as_secs_f64())
}

/// Seconds that a new relay takes from its first batch to the last confirmation.
async fn drain(args: &Args, place: &Place, number: u32) -> Result<f64, Failure> {
    let counter = Arc::new(Counter { wanted: args.messages, ..Counter::default() });
    let mut settings = Settings::default();
    settings.read.page = args.batch;
    settings.batch = args.batch;
    let relay = Relay::new(format!("bench-{number}"), place.pool.clone(), Arc::clone(&counter))
        .with_settings(settings);
    let stop = CancellationToken::new();
    let mut running = tokio::task::JoinSet::new();
    running.spawn(relay.run(stop.clone()));
    let began = Instant::now();
    tokio::select! {
        () = counter.done.notified() => {}
        Some(ended) = running.join_next() => {
            let reason = match ended {
                Ok(Err(error)) => chain(&error),
                _ => "it ended by itself".to_owned(),
            };
            return Err(Failure::failed(format!("bench: relay: {reason}")));
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    stop.cancel();
    while running.join_next().await.is_some() {}
    Ok(seconds)
}

/// Confirms everything, keeps nothing but the count.
#[derive(Debug, Default)]
struct Counter {
    wanted: u64,
    count: AtomicU64,
    done: Notify,
}

#[async_trait::async_trait]
impl Publisher for Counter {
    fn pipelining(&self) -> Pipelining {
        Pipelining::PerBatch
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let length = batch.len() as u64;
        outcomes.confirm_all();
        if self.count.fetch_add(length, Ordering::Relaxed) + length >= self.wanted {
            self.done.notify_one();
        }
    }
}

fn text(report: &Report) -> String {
    let figures = |round: &Round| {
        let us = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |us| format!("{us:.2}"));
        vec![
            format!("{:.0}", round.copy_per_second),
            format!("{:.0}", round.relay_per_second),
            format!("{:.3}", round.ratio),
            us(round.copy_server_us),
            us(round.relay_server_us),
            format!("{:.1}", round.relay_wal_bytes),
        ]
    };
    let mut rows: Vec<Vec<String>> = report.rounds.iter().map(figures).collect();
    rows.push(figures(&report.median));
    let head = ["COPY /s", "relay /s", "ratio", "COPY server µs", "relay server µs", "WAL B"];
    format!(
        "{} messages of {} bytes, {} a page, PostgreSQL {}; the last row is the median\n\n{}\nA page: {:.3} ms over \
         10,000 messages, {:.3} ms over all ({:.2} ×), {:.3} ms with a transaction held open ({:.2} ×)\n",
        report.messages,
        report.payload,
        report.batch,
        report.postgres,
        output::table(&head, &rows),
        report.page.short_ms,
        report.page.long_ms,
        report.page.long_by_short,
        report.page.held_ms,
        report.page.held_by_short,
    )
}
