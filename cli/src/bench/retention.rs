//! Whether writers wait when leaves are emptied, least of all while somebody reads the log as a dump does.

use std::sync::Arc;
use std::time::Duration;

use outbox::{Pruned, Relay, Settings};
use serde::Serialize;
use sqlx::postgres::PgPool;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::load::{Change, Clock, Load, Since};
use super::place::Place;
use super::server::Spent;
use super::{median, percentile, round};
use crate::exit::{Failure, chain};
use crate::{database, output};

/// Whether writers wait when leaves are emptied, also while another session reads the log
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outbox bench retention
  outbox bench retention --leaves 5 --rounds 1

Each round fills so many leaves twice. `free`: a janitor that never rests empties them while writers are at work. `read`:
the same, and another session holds an ACCESS SHARE lock on the whole log all the time, so that the janitor gives way until
it is gone. A writer's latency is from when its transaction is due to its commit. `ratio` is the maximum of `read` by that
of `free`.")]
pub(crate) struct Args {
    /// The server, by a database on it: a URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long)]
    database: Option<String>,
    /// Leaves of 1,048,576 messages to fill and empty, each time
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=12))]
    leaves: u32,
    /// Rounds, of both
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// For so many seconds each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Business transactions a second
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Writers side by side
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=50))]
    writers: u32,
    /// Bytes of payload
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    payload: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    postgres: String,
    messages: u64,
    rate: u32,
    seconds: u32,
    payload: u32,
    rounds: Vec<Round>,
    /// The middle of the rounds' ratios.
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Round {
    free: Stage,
    read: Stage,
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Stage {
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Leaves emptied while writers were at work, times the janitor gave way, and leaves emptied once it need not.
    emptied: usize,
    gave_way: usize,
    emptied_after: usize,
    /// Disk that the log took before and after.
    before_mb: i64,
    after_mb: i64,
}

/// So long that no leaf comes of age before the janitor is let loose.
const LONG: f64 = 86_400.0;
/// Between two looks of a janitor that never rests.
const RESTLESS: Duration = Duration::from_millis(20);

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
    Load::prepare(&place.pool).await.map_err(failed)?;
    let clock = Arc::new(Clock::default());
    let stop = CancellationToken::new();
    let mut relays = JoinSet::new();
    let mut settings = Settings::default();
    settings.retention = Duration::from_secs_f64(LONG);
    let relay = Relay::new("bench", place.pool.clone(), Arc::clone(&clock)).with_settings(settings);
    let relay = relay.run(stop.clone());
    relays.spawn(async move { relay.await.map_err(|error| Failure::failed(chain(&error))) });
    let (_, postgres) = Spent::now(&place.pool).await?;
    let messages = u64::from(args.leaves) << 20;
    let mut rounds = Vec::new();
    for number in 1..=args.rounds {
        let mut stages = Vec::new();
        for is_read in [false, true] {
            output::complain(&format!("bench: round {number}: filling {messages} messages"));
            place.fill(messages, args.payload).await?;
            until_delivered(&place.pool).await?;
            let stage = stage(args, place, &clock, is_read).await?;
            output::complain(&format!("bench: {}: {stage:?}", if is_read { "read" } else { "free" }));
            stages.push(stage);
        }
        let (Some(read), Some(free)) = (stages.pop(), stages.pop()) else { continue };
        rounds.push(Round { ratio: round(read.max_ms / free.max_ms), free, read });
    }
    stop.cancel();
    while let Some(ended) = relays.join_next().await {
        ended.map_err(Failure::failed)??;
    }
    Ok(Report {
        bench: "retention",
        postgres,
        messages: messages * 2 * u64::from(args.rounds),
        rate: args.rate,
        seconds: args.seconds,
        payload: args.payload,
        ratio: median(rounds.iter().map(|round| round.ratio).collect()),
        rounds,
    })
}

/// Lets the janitor loose on what is filled, while writers are at work.
async fn stage(args: &Args, place: &Place, clock: &Arc<Clock>, is_read: bool) -> Result<Stage, Failure> {
    let failed = |error: sqlx::Error| database::failed("bench", &error);
    let pool = &place.pool;
    // Connections are made, plans and caches warm up.
    write(args, pool, clock, 2).await?;
    let (_, before): (i64, i64) =
        sqlx::query_as(include_str!("sql/leaves.sql")).fetch_one(pool).await.map_err(failed)?;
    let reader = match is_read {
        false => None,
        true => {
            let mut reader = pool.begin().await.map_err(failed)?;
            sqlx::query(include_str!("sql/read.sql")).execute(&mut *reader).await.map_err(failed)?;
            Some(reader)
        }
    };
    keep(pool, 0.0).await?;
    let over = CancellationToken::new();
    let writing = async {
        let written = write(args, pool, clock, args.seconds).await;
        over.cancel();
        written
    };
    let (took, pruned) = tokio::join!(writing, janitor(pool, &over));
    let (took, (emptied, gave_way)) = (took?, pruned?);
    if let Some(reader) = reader {
        reader.rollback().await.map_err(failed)?;
    }
    let after = outbox::prune(pool).await.map_err(failed)?;
    keep(pool, LONG).await?;
    let (_, left): (i64, i64) =
        sqlx::query_as(include_str!("sql/leaves.sql")).fetch_one(pool).await.map_err(failed)?;
    Ok(Stage {
        p50_ms: round(percentile(took.clone(), 0.5)),
        p99_ms: round(percentile(took.clone(), 0.99)),
        max_ms: round(percentile(took, 1.0)),
        emptied,
        gave_way,
        emptied_after: after.emptied.len(),
        before_mb: before >> 20,
        after_mb: left >> 20,
    })
}

async fn keep(pool: &PgPool, seconds: f64) -> Result<(), Failure> {
    let kept = sqlx::query(include_str!("sql/keep.sql")).bind(seconds).execute(pool).await;
    kept.map(|_| ()).map_err(|error| database::failed("bench", &error))
}

/// Looks over the leaves again and again; answers how many it emptied, and how often it gave way.
async fn janitor(pool: &PgPool, over: &CancellationToken) -> Result<(usize, usize), Failure> {
    let (mut all_emptied, mut gave_way) = (0, 0);
    while !over.is_cancelled() {
        let Pruned { emptied, locked, .. } =
            outbox::prune(pool).await.map_err(|error| database::failed("bench", &error))?;
        all_emptied += emptied.len();
        gave_way += locked.len();
        over.run_until_cancelled(tokio::time::sleep(RESTLESS)).await;
    }
    Ok((all_emptied, gave_way))
}

/// Writes for so many seconds, each transaction at its own time; answers how long each took from then on, in milliseconds.
async fn write(args: &Args, pool: &PgPool, clock: &Arc<Clock>, seconds: u32) -> Result<Vec<f64>, Failure> {
    let load = Load {
        rate: args.rate,
        writers: args.writers,
        payload: args.payload,
        change: Change::Updates,
        since: Since::Enqueue,
        enqueues: true,
    };
    let began = Instant::now();
    let mut writers = JoinSet::new();
    for writer in 0..args.writers {
        let (pool, clock) = (pool.clone(), Arc::clone(clock));
        writers.spawn(async move {
            let mut took = Vec::new();
            for number in (writer..load.rate * seconds).step_by(load.writers as usize) {
                let due = began + Duration::from_secs_f64(f64::from(number) / f64::from(load.rate));
                tokio::time::sleep_until(due).await;
                load.transact(&pool, &clock, number).await?;
                took.push(due.elapsed().as_secs_f64() * 1000.0);
            }
            Ok::<_, sqlx::Error>(took)
        });
    }
    let mut all = Vec::new();
    while let Some(ended) = writers.join_next().await {
        all.extend(ended.map_err(Failure::failed)?.map_err(|error| database::failed("bench", &error))?);
    }
    clock.take();
    Ok(all)
}

/// Waits until the relay has recorded that everything is delivered.
async fn until_delivered(pool: &PgPool) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(600);
    while Instant::now() < deadline {
        let status = outbox::admin::status(pool).await.map_err(|error| database::failed("bench", &error))?;
        if status.iter().all(|relay| relay.pins.is_empty()) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(Failure::failed("bench: the relay does not keep up"))
}
