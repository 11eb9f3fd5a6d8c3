//! How fast the keys of a destination that was unavailable are published when it is back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_trait::async_trait;
use brokers::nats::{Access, NatsPublisher, StreamPolicy};
use message::{Outcomes, Outgoing, Pipelining, PublishError, Publisher};
use outbox::{Relay, Routes};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::place::Place;
use super::round;
use super::server::Spent;
use crate::exit::{Failure, chain};
use crate::{database, output};

/// How fast the keys of a destination that was unavailable are published when it is back
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outbox bench outage --nats nats://localhost:4222

A relay publishes to NATS JetStream. `normal` is its rate over a backlog of one message a key. Then as many messages go
to a subject that no stream takes, while another subject confirms, until all their keys are held; the stream is made,
and `drain` is the rate from the probe that succeeds to the last message.")]
pub(crate) struct Args {
    /// The server, by a database on it: a URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long)]
    database: Option<String>,
    /// The NATS server
    #[arg(long, env = "NATS_URL")]
    nats: String,
    /// Keys, a message each
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    keys: u32,
    /// Bytes of payload
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    payload: u32,
    /// Rounds, of a normal backlog and an outage each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    postgres: String,
    keys: u32,
    payload: u32,
    rounds: Vec<Round>,
    /// The middle one.
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Round {
    normal_per_second: f64,
    drain_per_second: f64,
    ratio: f64,
    /// From the stream's making to the probe that succeeds.
    probe_seconds: f64,
}

/// What was confirmed of a destination.
#[derive(Debug, Clone, Copy)]
struct Confirmed {
    count: u32,
    first: Instant,
    last: Instant,
}

impl Confirmed {
    /// Messages a second after the first one.
    fn rate(self) -> f64 {
        f64::from(self.count.saturating_sub(1)) / self.last.duration_since(self.first).as_secs_f64()
    }
}

/// A publisher that counts what is confirmed.
struct Counting {
    publisher: NatsPublisher,
    confirmed: Mutex<HashMap<Arc<str>, Confirmed>>,
}

impl Counting {
    fn of(&self, destination: &str) -> Option<Confirmed> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).get(destination).copied()
    }

    fn count(&self, messages: &[Outgoing]) {
        let now = Instant::now();
        let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        for outgoing in messages {
            let known = confirmed.entry(Arc::clone(&outgoing.destination)).or_insert(Confirmed {
                count: 0,
                first: now,
                last: now,
            });
            (known.count, known.last) = (known.count + 1, now);
        }
    }
}

#[async_trait]
impl Publisher for Counting {
    fn pipelining(&self) -> Pipelining {
        self.publisher.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let (sender, mut reports) = mpsc::unbounded_channel();
        let publish = self.publisher.publish(batch, Outcomes::new(0, sender));
        let forward = async {
            while let Some(report) = reports.recv().await {
                let messages = report.index.map_or(0..batch.len(), |index| index..index + 1);
                if report.result.is_ok()
                    && let Some(messages) = batch.get(messages.clone())
                {
                    self.count(messages);
                }
                for index in messages {
                    outcomes.report(index, report.result.clone());
                }
            }
        };
        tokio::join!(publish, forward);
    }

    async fn check(&self) -> Result<(), PublishError> {
        self.publisher.check().await
    }
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let nats = Access::parse(&args.nats).map_err(|error| Failure::usage(chain(&error)))?;
    let nats = nats.connect().await.map_err(|error| Failure::failed(chain(&error)))?;
    let place = Place::make(database::named(args.database.as_deref())?).await?;
    let streams = Streams { prefix: format!("bench-{}", uuid::Uuid::new_v4().simple()) };
    let measured = measure(&args, &place, &nats, &streams).await;
    streams.delete(&nats, args.rounds).await;
    let dropped = place.drop().await;
    let report = measured?;
    dropped?;
    output::print_json(&report)
}

struct Streams {
    prefix: String,
}

impl Streams {
    /// Makes the stream of a topic, which takes the subject of the same name.
    async fn make(&self, nats: &brokers::nats::Connection, topic: &str) -> Result<(), Failure> {
        let name = format!("{}-{topic}", self.prefix);
        let stream = StreamPolicy::create(&name, [format!("{}.{topic}", self.prefix)]);
        let made = NatsPublisher::new(nats.clone()).with_stream(stream).check().await;
        made.map_err(|error| Failure::failed(chain(&error)))
    }

    async fn delete(&self, nats: &brokers::nats::Connection, rounds: u32) {
        let context = jetstream::new(nats.client());
        let away = (0..rounds).map(away);
        for topic in ["here".to_owned(), "normal".to_owned()].into_iter().chain(away) {
            // One that was not made is none to delete; and the figures are known.
            let _ = context.delete_stream(format!("{}-{topic}", self.prefix)).await;
        }
    }
}

/// The topic that no stream takes in a round until its keys are held.
fn away(round: u32) -> String {
    format!("away{round}")
}

async fn measure(
    args: &Args,
    place: &Place,
    nats: &brokers::nats::Connection,
    streams: &Streams,
) -> Result<Report, Failure> {
    for topic in ["here", "normal"] {
        streams.make(nats, topic).await?;
    }
    let confirmed = Mutex::default();
    let publisher = Arc::new(Counting { publisher: NatsPublisher::new(nats.clone()), confirmed });
    let subjects = format!("{}.{{topic}}", streams.prefix);
    let routes = Routes::default().with("*", &subjects).map_err(|error| Failure::failed(chain(&error)))?;
    let stop = CancellationToken::new();
    let relay = Relay::new("bench", place.pool.clone(), Arc::clone(&publisher)).with_routes(routes);
    let relay = tokio::spawn(relay.run(stop.clone()));
    let bench = Bench { args, place, publisher: &publisher, streams };
    let mut rounds = Vec::new();
    let measured = async {
        bench.write("normal", args.keys).await?;
        bench.until(&bench.subject("normal"), args.keys).await?;
        for number in 0..args.rounds {
            let round = bench.round(nats, number).await?;
            output::complain(&format!("bench: {round:?}"));
            rounds.push(round);
        }
        Ok(())
    };
    let measured = tokio::select! {
        measured = measured => measured,
        () = relay_ended(&relay) => Err(Failure::failed("bench: the relay ended by itself")),
    };
    stop.cancel();
    relay.await.map_err(Failure::failed)?.map_err(|error| Failure::failed(chain(&error)))?;
    measured?;
    let ratio = super::median(rounds.iter().map(|round| round.ratio).collect());
    let (_, postgres) = Spent::now(&place.pool).await?;
    Ok(Report { bench: "outage", postgres, keys: args.keys, payload: args.payload, rounds, ratio })
}

async fn relay_ended<T>(relay: &tokio::task::JoinHandle<T>) {
    while !relay.is_finished() {
        tokio::time::sleep(LOOK).await;
    }
}

/// How often it is looked whether all are confirmed.
const LOOK: Duration = Duration::from_millis(20);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(300);

struct Bench<'b> {
    args: &'b Args,
    place: &'b Place,
    publisher: &'b Counting,
    streams: &'b Streams,
}

impl Bench<'_> {
    async fn round(&self, nats: &brokers::nats::Connection, number: u32) -> Result<Round, Failure> {
        let keys = self.args.keys;
        let normal = self.subject("normal");
        self.publisher.confirmed.lock().unwrap_or_else(PoisonError::into_inner).remove(&*normal);
        self.write("normal", keys).await?;
        let normal = self.until(&normal, keys).await?;
        let (topic, subject) = (away(number), self.subject(&away(number)));
        self.write(&topic, keys).await?;
        let deadline = Instant::now() + PATIENCE;
        while self.held().await? < i64::from(keys) {
            if Instant::now() > deadline {
                return Err(Failure::failed("bench: the keys are not held"));
            }
            // While nothing confirms, nothing is held.
            self.write("here", 1).await?;
            tokio::time::sleep(LOOK).await;
        }
        let made = Instant::now();
        self.streams.make(nats, &topic).await?;
        let drain = self.until(&subject, keys).await?;
        Ok(Round {
            normal_per_second: normal.rate().round(),
            drain_per_second: drain.rate().round(),
            ratio: round(drain.rate() / normal.rate()),
            probe_seconds: round(drain.first.saturating_duration_since(made).as_secs_f64()),
        })
    }

    fn subject(&self, topic: &str) -> String {
        format!("{}.{topic}", self.streams.prefix)
    }

    /// Waits until so many messages are confirmed.
    async fn until(&self, destination: &str, count: u32) -> Result<Confirmed, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.publisher.of(destination) {
                Some(confirmed) if confirmed.count >= count => return Ok(confirmed),
                _ if Instant::now() > deadline => {
                    return Err(Failure::failed("bench: the messages are not published"));
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Writes messages at once, each of another key.
    async fn write(&self, topic: &str, messages: u32) -> Result<(), Failure> {
        let write = sqlx::query(include_str!("sql/routed.sql"))
            .bind(i32::try_from(self.args.payload).unwrap_or(i32::MAX))
            .bind(i64::from(messages))
            .bind(topic);
        write.execute(&self.place.pool).await.map_err(|error| database::failed("bench", &error))?;
        Ok(())
    }

    async fn held(&self) -> Result<i64, Failure> {
        let held = sqlx::query_scalar(include_str!("sql/held_keys.sql")).fetch_one(&self.place.pool).await;
        held.map_err(|error| database::failed("bench", &error))
    }
}
