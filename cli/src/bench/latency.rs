//! How soon a message is delivered while business transactions go on: from just before the enqueue to the delivery.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use message::wire::structured;
use message::{Message, MessageId, Outcomes, Outgoing, Pipelining, Publisher};
use outbox::Relay;
use serde::Serialize;
use sqlx::postgres::PgPool;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

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

/// When each message was about to be enqueued, and how long it then took.
#[derive(Debug, Default)]
struct Clock {
    written: Mutex<HashMap<MessageId, Instant>>,
    took: Mutex<Vec<f64>>,
}

impl Clock {
    fn start(&self, id: MessageId) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Instant::now());
    }

    /// The first delivery of a message counts.
    fn stop(&self, id: MessageId) {
        let began = self.written.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(began) = began {
            let took = began.elapsed().as_secs_f64() * 1000.0;
            self.took.lock().unwrap_or_else(PoisonError::into_inner).push(took);
        }
    }

    fn count(&self) -> usize {
        self.took.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[async_trait::async_trait]
impl Publisher for Clock {
    fn pipelining(&self) -> Pipelining {
        Pipelining::PerBatch
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        batch.iter().for_each(|outgoing| self.stop(outgoing.message.id));
        outcomes.confirm_all();
    }
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
    let accounts = 10_000;
    sqlx::query(include_str!("sql/account.sql")).execute(&place.pool).await.map_err(failed)?;
    sqlx::query(include_str!("sql/accounts.sql"))
        .bind(accounts)
        .execute(&place.pool)
        .await
        .map_err(failed)?;
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
            relays.spawn(separate(place.url(), Arc::clone(&clock), stop.clone()));
        }
    }
    // A first second that does not count: connections are made, plans and caches warm up.
    write(args, &place.pool, &clock, delivery, 1).await?;
    until_delivered(&clock, args.rate as usize, &mut relays).await?;
    clock.took.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let (before, version) = Spent::now(&place.pool).await?;
    write(args, &place.pool, &clock, delivery, args.seconds).await?;
    let wanted = args.rate as usize * args.seconds as usize;
    until_delivered(&clock, wanted, &mut relays).await?;
    let (after, _) = Spent::now(&place.pool).await?;
    stop.cancel();
    while let Some(ended) = relays.join_next().await {
        ended.map_err(Failure::failed)??;
    }
    let took = std::mem::take(&mut *clock.took.lock().unwrap_or_else(PoisonError::into_inner));
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

/// Writes at the rate for so many seconds: each transaction at its own time, however long the one before it took.
async fn write(
    args: &Args,
    pool: &PgPool,
    clock: &Arc<Clock>,
    delivery: Delivery,
    seconds: u32,
) -> Result<(), Failure> {
    let began = tokio::time::Instant::now();
    let mut writers = JoinSet::new();
    for writer in 0..args.writers {
        let (pool, clock, args) = (pool.clone(), Arc::clone(clock), (args.rate, args.writers, args.payload));
        writers.spawn(async move {
            let (rate, writers, payload) = args;
            for number in (writer..rate * seconds).step_by(writers as usize) {
                let due = began + Duration::from_secs_f64(f64::from(number) / f64::from(rate));
                tokio::time::sleep_until(due).await;
                transact(&pool, &clock, delivery, number, payload).await?;
            }
            Ok::<(), sqlx::Error>(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.map_err(Failure::failed)?.map_err(|error| database::failed("bench", &error))?;
    }
    Ok(())
}

async fn transact(
    pool: &PgPool,
    clock: &Clock,
    delivery: Delivery,
    number: u32,
    payload: u32,
) -> Result<(), sqlx::Error> {
    let account = i32::try_from(number * 7919 % 10_000).unwrap_or_default();
    let mut tx = pool.begin().await?;
    sqlx::query(include_str!("sql/business.sql")).bind(account).execute(&mut *tx).await?;
    let message = Message::new("bench", "bench.done", vec![b'x'; payload as usize])
        .with_key(format!("account-{account}"));
    clock.start(message.id);
    if delivery != Delivery::None {
        let enqueued = outbox::enqueue_all(&mut tx, std::slice::from_ref(&message)).await;
        enqueued.map_err(|error| sqlx::Error::Protocol(chain(&error)))?;
    }
    tx.commit().await?;
    if delivery == Delivery::None {
        clock.stop(message.id);
    }
    Ok(())
}

/// Waits for the last delivery, as long as there are any.
async fn until_delivered(
    clock: &Clock,
    wanted: usize,
    relays: &mut JoinSet<Result<(), Failure>>,
) -> Result<(), Failure> {
    let mut last = (clock.count(), Instant::now());
    while clock.count() < wanted {
        if let Some(ended) = relays.try_join_next() {
            ended.map_err(Failure::failed)??;
            return Err(Failure::failed("bench: the relay ended by itself"));
        }
        if clock.count() > last.0 {
            last = (clock.count(), Instant::now());
        } else if last.1.elapsed() > Duration::from_secs(30) {
            return Err(Failure::failed(format!(
                "bench: {} of {wanted} messages were delivered",
                clock.count()
            )));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// `outbox relay` as a process of its own, whose standard output is the broker.
async fn separate(url: String, clock: Arc<Clock>, stop: CancellationToken) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(Failure::failed)?;
    let mut relay = Command::new(program)
        .args(["relay", "--relay", "bench", "--broker", "file:-"])
        .env(database::VARIABLE, url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Failure::failed(format!("bench: cannot start the relay: {error}")))?;
    let Some(output) = relay.stdout.take() else {
        return Err(Failure::failed("bench: the relay has no output"));
    };
    let mut lines = BufReader::new(output).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => match line {
                Ok(Some(line)) => {
                    if let Ok(message) = structured::decode(line.as_bytes(), "bench") {
                        clock.stop(message.id);
                    }
                }
                _ => return Err(Failure::failed("bench: the relay ended by itself")),
            },
            () = stop.cancelled() => break,
        }
    }
    relay.kill().await.map_err(|error| Failure::failed(format!("bench: cannot stop the relay: {error}")))
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
