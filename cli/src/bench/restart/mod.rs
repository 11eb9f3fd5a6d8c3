//! What a consumer handles after it was killed, beside what it handled before; and how fast it drains held keys.

mod child;

use std::time::Duration;

use migrations::Schema;
use serde::Serialize;
use sqlx::Executor;

use super::place::Place;
use super::round;
use super::server::Spent;
use crate::exit::{Failure, chain};
use crate::{database, output};
use child::Child;

/// What a consumer handles after kill -9, with a backlog, and how fast it drains held keys
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outbox bench consumer-restart
  outbox bench consumer-restart --messages 20000 --keys 1000 --seconds 20

PostgreSQL is the broker. A consumer is a process of its own, killed with -9 and started again at once. `before` is its
rate in the ten seconds before the first kill, `after` its rate from 5 seconds after it has taken over the shards until
--seconds after it. The killed process's row expires 15 seconds after the last kill; `died_in_span` says that it was found
dead within the span, as its log line says too.
`held` is the rate at which parked keys that are redriven together are handled, beside the rate of first tries.")]
pub(crate) struct Args {
    /// The server, by a database on it: a URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long)]
    database: Option<String>,
    /// Messages of backlog at the kill, at least
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1000..=10_000_000))]
    messages: u64,
    /// Keys of the backlog, and of those that are held
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    keys: u32,
    /// Messages handled at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=100))]
    concurrency: u16,
    /// The end of the measured span, in seconds after the takeover
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(10..=3600))]
    seconds: u32,
    /// Seconds until another process takes over a dead one's shards
    #[arg(long, default_value_t = 0.5)]
    lease: f64,
    /// Only these: once, past-expiry, within-ten-seconds, held
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Run as the consumer that is measured
    #[arg(long, hide = true)]
    child: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Once,
    PastExpiry,
    WithinTenSeconds,
    Held,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    postgres: String,
    messages: u64,
    keys: u32,
    concurrency: u16,
    /// One kill.
    #[serde(skip_serializing_if = "Option::is_none")]
    once: Option<Killed>,
    /// Five kills, each after the process killed before it was found dead.
    #[serde(skip_serializing_if = "Option::is_none")]
    past_expiry: Option<Killed>,
    /// Five kills within ten seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    within_ten_seconds: Option<Killed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<Drained>,
}

#[derive(Debug, Serialize)]
struct Killed {
    kills: u32,
    before_per_second: f64,
    after_per_second: f64,
    ratio: f64,
    /// From the last kill to the first message handled after it.
    takeover_seconds: f64,
    /// From the takeover until a process was last found dead.
    died_after_takeover_seconds: Option<f64>,
    died_in_span: bool,
    held_keys: i64,
    parked_keys: i64,
}

#[derive(Debug, Serialize)]
struct Drained {
    normal_per_second: f64,
    drain_per_second: f64,
    ratio: f64,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    if args.child {
        return child::consume(usize::from(args.concurrency), lease(&args)).await;
    }
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let mut report = Report {
        bench: "consumer-restart",
        postgres: String::new(),
        messages: args.messages,
        keys: args.keys,
        concurrency: args.concurrency,
        once: None,
        past_expiry: None,
        within_ten_seconds: None,
        held: None,
    };
    for part in [Part::Once, Part::PastExpiry, Part::WithinTenSeconds, Part::Held] {
        if !wanted(part) {
            continue;
        }
        // A database for each: a recent death in one is none in the next.
        let place = Place::make(database::named(args.database.as_deref())?).await?;
        let measured = measure(&args, &place, part, &mut report).await;
        let dropped = place.drop().await;
        measured?;
        dropped?;
    }
    output::print_json(&report)
}

fn lease(args: &Args) -> Duration {
    Duration::try_from_secs_f64(args.lease).unwrap_or(Duration::from_secs(10))
}

async fn measure(args: &Args, place: &Place, part: Part, report: &mut Report) -> Result<(), Failure> {
    let failed = |error: sqlx::Error| database::failed("bench", &error);
    let mut connection = place.pool.acquire().await.map_err(failed)?;
    Schema::Inbox.migrate(&mut connection).await.map_err(|error| Failure::failed(chain(&error)))?;
    connection.execute(include_str!("../sql/effects.sql")).await.map_err(failed)?;
    drop(connection);
    report.postgres = Spent::now(&place.pool).await?.1;
    let bench = Bench { args, place };
    match part {
        Part::Once => report.once = Some(bench.kill(&[Duration::ZERO]).await?),
        Part::PastExpiry => {
            let each = Duration::from_secs(13);
            report.past_expiry = Some(bench.kill(&[Duration::ZERO, each, each, each, each]).await?);
        }
        Part::WithinTenSeconds => {
            let each = Duration::from_millis(2400);
            report.within_ten_seconds = Some(bench.kill(&[Duration::ZERO, each, each, each, each]).await?);
        }
        Part::Held => report.held = Some(bench.drain().await?),
    }
    Ok(())
}

/// Seconds before a rate is taken, while connections are made, and plans and caches warm up.
const WARM_UP: u64 = 5;
/// Seconds of the rate before the kill.
const BEFORE: f64 = 10.0;

/// Seconds after the last kill until the killed process's row expires.
const EXPIRY: f64 = 15.0;

struct Bench<'b> {
    args: &'b Args,
    place: &'b Place,
}

impl Bench<'_> {
    /// Kills the consumer after each of the waits.
    async fn kill(&self, waits: &[Duration]) -> Result<Killed, Failure> {
        let mut filled = self.fill(0, self.args.messages).await?;
        let mut child = Child::start(self.place, self.args)?;
        let before = self.rate_before(&mut child, filled).await?;
        // So much that the backlog outlasts the span.
        let span = f64::from(self.args.seconds + 10) + waits.iter().map(Duration::as_secs_f64).sum::<f64>();
        let wanted = self.args.messages.max((before * span * 1.3) as u64);
        let backlog = filled.saturating_sub(self.handled(0.0, self.moment().await?).await?);
        if backlog < wanted {
            filled = self.fill(filled, wanted - backlog).await?;
        }
        tracing::debug!(filled, "backlog written");
        let mut killed_at = 0.0;
        for (number, wait) in waits.iter().enumerate() {
            tokio::time::sleep(*wait).await;
            killed_at = self.moment().await?;
            child.kill().await?;
            output::complain("bench: kill -9");
            if number + 1 == waits.len() {
                // So that it expires in the span, however long the next process takes to start.
                sqlx::query(include_str!("../sql/expire.sql"))
                    .bind(EXPIRY)
                    .execute(&self.place.pool)
                    .await
                    .map_err(|error| database::failed("bench", &error))?;
            }
            child = Child::start(self.place, self.args)?;
        }
        let takeover = loop {
            child.is_running()?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            let first: Option<f64> = sqlx::query_scalar(include_str!("../sql/handled_after.sql"))
                // A commit of the process that was killed may still have been under way.
                .bind(killed_at + 0.2)
                .fetch_one(&self.place.pool)
                .await
                .map_err(|error| database::failed("bench", &error))?;
            if let Some(first) = first {
                break first;
            }
        };
        let (from, to) = (takeover + 5.0, takeover + f64::from(self.args.seconds));
        let left = Duration::try_from_secs_f64(to - self.moment().await?).unwrap_or_default();
        tokio::time::sleep(left).await;
        child.is_running()?;
        let after = self.handled(from, to).await? as f64 / (to - from);
        let (died_at, held_keys, parked_keys): (Option<f64>, i64, i64) =
            sqlx::query_as(include_str!("../sql/deaths.sql"))
                .fetch_one(&self.place.pool)
                .await
                .map_err(|error| database::failed("bench", &error))?;
        self.still_had_work(filled, to).await?;
        child.stop().await?;
        Ok(Killed {
            kills: u32::try_from(waits.len()).unwrap_or(u32::MAX),
            before_per_second: before.round(),
            after_per_second: after.round(),
            ratio: round(after / before),
            takeover_seconds: round(takeover - killed_at),
            died_after_takeover_seconds: died_at.map(|died_at| round(died_at - takeover)),
            died_in_span: died_at.is_some_and(|died_at| died_at > from && died_at < to),
            held_keys,
            parked_keys,
        })
    }

    /// Redrives parked keys, a message each.
    async fn drain(&self) -> Result<Drained, Failure> {
        let failed = |error: sqlx::Error| database::failed("bench", &error);
        let filled = self.fill(0, self.args.messages).await?;
        let mut child = Child::start(self.place, self.args)?;
        let normal = self.rate_before(&mut child, filled).await?;
        while self.handled(0.0, self.moment().await?).await? < filled {
            child.is_running()?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        sqlx::query(include_str!("../sql/park.sql"))
            .bind(child::CONSUMER)
            .bind(i64::from(self.args.keys))
            .execute(&self.place.pool)
            .await
            .map_err(failed)?;
        self.place.pool.execute("checkpoint").await.map_err(failed)?;
        let mut connection = self.place.pool.acquire().await.map_err(failed)?;
        let began = self.moment().await?;
        let redriven = inbox::admin::redrive_all(&mut connection, child::CONSUMER, "bench", None).await;
        redriven.map_err(|error| database::undecided_by_inbox("bench", &error))?;
        drop(connection);
        let mut held = i64::from(self.args.keys);
        while held > 0 {
            child.is_running()?;
            tokio::time::sleep(Duration::from_millis(150)).await;
            let (_, left, _): (Option<f64>, i64, i64) = sqlx::query_as(include_str!("../sql/deaths.sql"))
                .fetch_one(&self.place.pool)
                .await
                .map_err(failed)?;
            held = left;
        }
        let drain = f64::from(self.args.keys) / (self.moment().await? - began);
        child.stop().await?;
        Ok(Drained {
            normal_per_second: normal.round(),
            drain_per_second: drain.round(),
            ratio: round(drain / normal),
        })
    }

    async fn rate_before(&self, child: &mut Child, filled: u64) -> Result<f64, Failure> {
        tokio::time::sleep(Duration::from_secs(WARM_UP)).await;
        let began = self.moment().await?;
        tokio::time::sleep(Duration::from_secs_f64(BEFORE)).await;
        child.is_running()?;
        self.still_had_work(filled, began + BEFORE).await?;
        let rate = self.handled(began, began + BEFORE).await? as f64 / BEFORE;
        output::complain(&format!("bench: {rate:.0} messages a second before"));
        Ok(rate)
    }

    /// A rate is none of a consumer that had nothing left to do.
    async fn still_had_work(&self, filled: u64, moment: f64) -> Result<(), Failure> {
        if self.handled(0.0, moment).await? < filled {
            return Ok(());
        }
        Err(Failure::failed("bench: the backlog ended within the span: ask for more --messages"))
    }

    async fn moment(&self) -> Result<f64, Failure> {
        let moment = sqlx::query_scalar(include_str!("../sql/moment.sql")).fetch_one(&self.place.pool).await;
        moment.map_err(|error| database::failed("bench", &error))
    }

    async fn handled(&self, from: f64, to: f64) -> Result<u64, Failure> {
        let query = sqlx::query_scalar(include_str!("../sql/handled.sql")).bind(from).bind(to);
        let handled: i64 =
            query.fetch_one(&self.place.pool).await.map_err(|error| database::failed("bench", &error))?;
        Ok(handled.unsigned_abs())
    }

    /// Writes messages behind those that were written; how many there are now.
    async fn fill(&self, filled: u64, messages: u64) -> Result<u64, Failure> {
        let mut filled = filled;
        for _ in 0..messages.div_ceil(1000) {
            sqlx::query(include_str!("../sql/keyed.sql"))
                .bind(256_i32)
                .bind(i64::try_from(filled).unwrap_or(i64::MAX))
                .bind(i64::from(self.args.keys))
                .execute(&self.place.pool)
                .await
                .map_err(|error| database::failed("bench", &error))?;
            filled += 1000;
        }
        Ok(filled)
    }
}
