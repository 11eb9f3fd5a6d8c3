//! Whether anything grows while somebody holds a snapshot: a forgotten session, a dump, a stale replica.

use std::sync::Arc;

use outbox::Relay;
use serde::Serialize;
use sqlx::Executor;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::load::{Change, Clock, Load, Since, until_delivered};
use super::place::Place;
use super::polls::Polls;
use super::server::Spent;
use super::{percentile, round};
use crate::exit::{Failure, chain};
use crate::{database, output};

/// Whether polls and deliveries become slower while another session holds a snapshot
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outbox bench held --minutes 10 --rate 2000

Another session takes a snapshot and holds it, so that no dead row of the database can be
removed. Each minute is measured by itself.")]
pub(crate) struct Args {
    /// The server, by a database on it: a URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long)]
    database: Option<String>,
    /// Business transactions a second
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// For so many minutes
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1440))]
    minutes: u32,
    /// Writers side by side
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=50))]
    writers: u32,
    /// Bytes of payload
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    payload: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    postgres: String,
    rate: u32,
    payload: u32,
    minutes: Vec<Minute>,
    /// The last minute by the first.
    look_p99_ratio: f64,
    page_p99_ratio: f64,
    latency_p50_ratio: f64,
}

#[derive(Debug, Serialize)]
struct Minute {
    look_p50_ms: f64,
    look_p99_ms: f64,
    page_p50_ms: f64,
    page_p99_ms: f64,
    latency_p50_ms: f64,
    latency_p99_ms: f64,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let place = Place::make(database::named(args.database.as_deref())?).await?;
    let measured = measure(&args, &place).await;
    let dropped = place.drop().await;
    let report = measured?;
    dropped?;
    output::print_json(&report)
}

async fn measure(args: &Args, place: &Place) -> Result<Report, Failure> {
    let failed = |error: sqlx::Error| database::failed("bench", &error);
    let polls = Polls::collect()?;
    Load::prepare(&place.pool).await.map_err(failed)?;
    let load = Load {
        rate: args.rate,
        writers: args.writers,
        payload: args.payload,
        change: Change::Adds,
        since: Since::Enqueue,
        enqueues: true,
    };
    let clock = Arc::new(Clock::default());
    let stop = CancellationToken::new();
    let mut relays = JoinSet::new();
    let relay = Relay::new("bench", place.pool.clone(), Arc::clone(&clock)).run(stop.clone());
    relays.spawn(async move { relay.await.map_err(|error| Failure::failed(chain(&error))) });
    // Some seconds that do not count: connections are made, plans and caches warm up.
    load.write(&place.pool, &clock, 5).await?;
    until_delivered(&clock, args.rate as usize * 5, &mut relays).await?;
    let mut holder = place.pool.begin_with("begin isolation level repeatable read").await.map_err(failed)?;
    let (_, postgres) = held_spent(place, &mut holder).await?;
    // After one, each page is written whole into the WAL when it is first changed: not only in the minutes of the server's own.
    place.pool.execute("checkpoint").await.map_err(failed)?;
    clock.take();
    polls.take();
    let mut minutes = Vec::new();
    for number in 1..=args.minutes {
        load.write(&place.pool, &clock, 60).await?;
        until_delivered(&clock, args.rate as usize * 60, &mut relays).await?;
        let (latency, (looks, pages)) = (clock.take(), polls.take());
        let of = |figures: &[f64], part| round(percentile(figures.to_vec(), part));
        let minute = Minute {
            look_p50_ms: of(&looks, 0.5),
            look_p99_ms: of(&looks, 0.99),
            page_p50_ms: of(&pages, 0.5),
            page_p99_ms: of(&pages, 0.99),
            latency_p50_ms: of(&latency, 0.5),
            latency_p99_ms: of(&latency, 0.99),
        };
        output::complain(&format!("bench: minute {number}: {minute:?}"));
        minutes.push(minute);
    }
    holder.rollback().await.map_err(failed)?;
    stop.cancel();
    while let Some(ended) = relays.join_next().await {
        ended.map_err(Failure::failed)??;
    }
    let ratio = |figure: fn(&Minute) -> f64| {
        let (first, last) = (minutes.first().map(figure), minutes.last().map(figure));
        round(last.unwrap_or(f64::NAN) / first.unwrap_or(f64::NAN))
    };
    Ok(Report {
        bench: "held",
        postgres,
        rate: args.rate,
        payload: args.payload,
        look_p99_ratio: ratio(|minute| minute.look_p99_ms),
        page_p99_ratio: ratio(|minute| minute.page_p99_ms),
        latency_p50_ratio: ratio(|minute| minute.latency_p50_ms),
        minutes,
    })
}

/// The holder's snapshot is taken by its first statement.
async fn held_spent(place: &Place, holder: &mut sqlx::PgTransaction<'_>) -> Result<(Spent, String), Failure> {
    let taken = sqlx::query(include_str!("sql/hold.sql")).execute(&mut **holder).await;
    taken.map_err(|error| database::failed("bench", &error))?;
    Spent::now(&place.pool).await
}
