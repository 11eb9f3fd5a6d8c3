//! Whether one key that the broker rejects costs the others anything, and what a second process is worth.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use message::{Outcomes, Outgoing, Pipelining, PublishError, Publisher};
use outbox::{Relay, Settings};
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::place::Place;
use super::server::Spent;
use super::{median, round};
use crate::exit::{Failure, chain};
use crate::{database, output};

/// What a poison key costs the others, and what a second process gains with a slow broker
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outbox bench isolation
  outbox bench isolation --messages 50000 --rounds 3

The rounds are interleaved. `poison` rejects one key of the backlog for ever; its ratio is the rate of the others by the
rate without it. `processes` confirms each message after --confirm milliseconds, with --window messages on the wire
of each process; its ratio is the rate of two processes by that of one.")]
pub(crate) struct Args {
    /// The server, by a database on it: a URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long)]
    database: Option<String>,
    /// Messages of each backlog
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1000..=10_000_000))]
    messages: u64,
    /// Rounds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Milliseconds until the broker confirms
    #[arg(long, default_value_t = 5)]
    confirm: u64,
    /// Messages on the wire of one process to the slow broker
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    window: u16,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    postgres: String,
    messages: u64,
    poison: Compared,
    processes: Compared,
}

/// Messages a second, medians.
#[derive(Debug, Serialize)]
struct Compared {
    without: f64,
    with: f64,
    ratio: f64,
}

/// Confirms after a while; rejects one key.
#[derive(Debug)]
struct Slow {
    after: Duration,
    poison: Option<String>,
    wanted: u64,
    confirmed: AtomicU64,
    done: Notify,
}

#[async_trait::async_trait]
impl Publisher for Slow {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        tokio::time::sleep(self.after).await;
        let mut confirmed = 0;
        for (index, outgoing) in batch.iter().enumerate() {
            let poison =
                self.poison.is_some() && outgoing.message.key == self.poison.as_deref().map(Into::into);
            confirmed += u64::from(!poison);
            let rejected = || Err(PublishError::Rejected("a poison key".to_owned()));
            outcomes.report(index, if poison { rejected() } else { Ok(()) });
        }
        if self.confirmed.fetch_add(confirmed, Ordering::Relaxed) + confirmed >= self.wanted {
            self.done.notify_one();
        }
    }
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
    let (_, postgres) = Spent::now(&place.pool).await?;
    place.fill(args.messages, 256).await?;
    let (key, of_key): (String, i64) =
        sqlx::query_as(include_str!("sql/one_key.sql")).fetch_one(&place.pool).await.map_err(failed)?;
    let mut rates = [const { Vec::new() }; 4];
    for round in 0..args.rounds {
        for (kind, rates) in rates.iter_mut().enumerate() {
            let slow = kind >= 2;
            let poison = (kind == 1).then(|| key.clone());
            let wanted = args.messages - if poison.is_some() { of_key.unsigned_abs() } else { 0 };
            let after = Duration::from_millis(if slow { args.confirm } else { 0 });
            let window = if slow { usize::from(args.window) } else { Settings::default().max_on_wire };
            let processes = if kind == 3 { 2 } else { 1 };
            let publisher = Slow { after, poison, wanted, confirmed: AtomicU64::new(0), done: Notify::new() };
            let name = format!("bench-{round}-{kind}");
            let seconds = drain(place, &name, publisher, processes, window).await?;
            rates.push(wanted as f64 / seconds);
        }
    }
    let [plain, poison, one, two] = rates.map(|rates| round(median(rates)));
    let compared = |without: f64, with: f64| Compared { without, with, ratio: round(with / without) };
    Ok(Report {
        bench: "isolation",
        postgres,
        messages: args.messages,
        poison: compared(plain, poison),
        processes: compared(one, two),
    })
}

/// Seconds that so many processes of a new relay take from their start to the last confirmation.
async fn drain(
    place: &Place,
    name: &str,
    publisher: Slow,
    processes: usize,
    window: usize,
) -> Result<f64, Failure> {
    let publisher = Arc::new(publisher);
    let mut settings = Settings::default();
    settings.max_on_wire = window;
    settings.batch = settings.batch.min(window);
    let stop = CancellationToken::new();
    let mut running = JoinSet::new();
    let began = Instant::now();
    for _ in 0..processes {
        let relay =
            Relay::new(name, place.pool.clone(), Arc::clone(&publisher)).with_settings(settings.clone());
        running.spawn(relay.run(stop.clone()));
    }
    tokio::select! {
        () = publisher.done.notified() => {}
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
