//! One soak from beginning to end.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::consumer::{consume, effects};
use super::dice::Dice;
use super::gate::Gate;
use super::killer::{Killer, Kills};
use super::ledger::{Fact, Truth};
use super::relay::{Relay, program};
use super::transaction::{Scene, Tally};
use super::verdict::Counts;
use super::wire::{Follower, Wire};
use super::writers;
use super::{Plant, Verdict};

/// What is asked of a soak.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// At least so many messages.
    pub(crate) messages: u64,
    /// Of all dice.
    pub(crate) seed: u64,
    /// Kills with a backlog; planted relays are not killed, so that what they do is their own doing.
    pub(crate) kills: u64,
    /// A naive relay with that bug instead of the shipped one.
    pub(crate) plant: Option<Plant>,
}

impl Settings {
    /// Kills that this soak makes.
    pub(super) fn kills_wanted(&self) -> u64 {
        if self.plant.is_none() { self.kills } else { 0 }
    }

    /// How long nothing may come before what is missing counts as lost. A planted relay has nothing to wait for.
    fn patience(&self) -> Duration {
        match self.plant {
            None | Some(Plant::Control) => Duration::from_secs(30),
            Some(_) => Duration::from_secs(3),
        }
    }

    /// Part of the messages that is written for each kill.
    fn slice(&self) -> u64 {
        self.messages / (self.kills_wanted() + 1) + 1
    }
}

/// The streams of the seed, beside the writers'.
const KILLER: u64 = 1000;
const CONSUMER: u64 = 1001;

const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// Runs a soak and judges it.
pub(crate) async fn run(settings: &Settings) -> Result<Verdict> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("wire.jsonl");
    say("preparing the relay's binary")?;
    let program = program(settings.plant, &file)?;
    let cluster = Cluster::start(settings.plant.is_some()).await?;
    say(&format!("PostgreSQL {}, seed {}", cluster.version, settings.seed))?;
    let started = Instant::now();
    let soaked = soak(settings, &cluster, program, &file).await;
    let (seconds, version) = (started.elapsed().as_secs(), cluster.version.clone());
    cluster.remove().await?;
    let (counts, workload) = soaked?;
    Ok(Verdict::new(settings, counts, workload, seconds, version))
}

/// Writes, kills, waits for the end of it, and counts.
async fn soak(
    settings: &Settings,
    cluster: &Cluster,
    program: Command,
    file: &Path,
) -> Result<(Counts, Tally)> {
    let stop = CancellationToken::new();
    let wire = Arc::new(Wire::default());
    let mut consumer = JoinSet::new();
    let dice = Dice::new(settings.seed, CONSUMER);
    let (follower, pool) = (Follower::new(file), cluster.consumer.clone());
    consumer.spawn(consume(follower, Arc::clone(&wire), pool, dice, stop.clone()));

    let mut held = Some(cluster.hold_transaction().await?);
    let mut relay = Relay::start(program, &cluster.producer_url())?;
    let scene = Arc::new(Scene {
        wire: Arc::clone(&wire),
        tally: Tally::default(),
        stamps: AtomicU64::new(1),
        positions_first: (settings.plant == Some(Plant::TxAfterPosition)).then_some(Duration::from_millis(4)),
    });
    let kills = work(settings, &cluster.producer, &scene, &mut relay, &mut consumer, file).await?;

    let truth = truth(&cluster.producer).await?;
    say(&format!("{} messages committed; waiting for the rest of them", truth.len()))?;
    let mut stalled = 0;
    let missing = drain(&wire, &truth, settings.patience(), &mut relay).await?;
    if missing > 0 {
        // Lost, or only held up by the transaction elsewhere? Nobody may be held up by it either.
        drop(held.take());
        stalled = missing - drain(&wire, &truth, settings.patience(), &mut relay).await?;
    }
    relay.stop();
    stop.cancel();
    let discarded = match consumer.join_next().await {
        Some(ended) => ended??,
        None => bail!("the consumer was never started"),
    };
    drop(held);
    let effects = effects(&cluster.consumer).await?;
    let counts = {
        let ledger = wire.ledger();
        Counts {
            messages: truth.len() as u64,
            delivered: ledger.distinct(),
            lost: ledger.lost(&truth),
            stalled,
            phantoms: ledger.phantoms(&truth),
            altered: ledger.altered(&truth),
            inversions: ledger.inversions(&truth),
            duplicates_on_wire: ledger.duplicates(),
            duplicates_discarded: discarded,
            effects_not_exactly_one: ledger.wrong_effects(&effects),
            kills: kills.all,
            kills_with_backlog: kills.with_backlog,
            torn_lines: wire.torn(),
        }
    };
    let Some(scene) = Arc::into_inner(scene) else { bail!("a writer is still at work") };
    Ok((counts, scene.tally))
}

/// Writes and kills until both is done.
async fn work(
    settings: &Settings,
    producer: &PgPool,
    scene: &Arc<Scene>,
    relay: &mut Relay,
    consumer: &mut JoinSet<Result<u64>>,
    file: &Path,
) -> Result<Kills> {
    let gate = Arc::new(Gate::new(settings.slice()));
    let mut writers = writers::start(settings.seed, producer, scene, &gate);
    let mut killer = Killer {
        relay,
        wire: Arc::clone(&scene.wire),
        gate: Arc::clone(&gate),
        producer: producer.clone(),
        file,
        dice: Dice::new(settings.seed, KILLER),
    };
    let mut kills = None;
    {
        let killing = async {
            let kills = killer.run(settings.kills_wanted(), settings.slice()).await;
            gate.finish(settings.messages);
            kills
        };
        tokio::pin!(killing);
        loop {
            tokio::select! {
                done = &mut killing, if kills.is_none() => kills = Some(done?),
                ended = writers.join_next() => match ended {
                    Some(ended) => ended??,
                    None => break,
                },
                Some(ended) = consumer.join_next() => {
                    ended??;
                    bail!("the consumer has ended");
                }
            }
        }
    }
    Ok(kills.unwrap_or_default())
}

async fn truth(producer: &PgPool) -> Result<Truth> {
    let rows: Vec<(uuid::Uuid, i32, i64)> =
        sqlx::query_as(include_str!("sql/truth.sql")).fetch_all(producer).await?;
    Ok(rows.into_iter().map(|(id, key, version)| (id, Fact { key, version })).collect())
}

/// Waits until everything is on the wire, or nothing has come for that long. Answers what is missing.
async fn drain(wire: &Wire, truth: &Truth, patience: Duration, relay: &mut Relay) -> Result<u64> {
    let (mut lines, mut since) = (wire.lines(), Instant::now());
    loop {
        let missing = wire.ledger().lost(truth);
        if missing == 0 || since.elapsed() > patience {
            return Ok(missing);
        }
        relay.is_alive()?;
        if wire.lines() != lines {
            (lines, since) = (wire.lines(), Instant::now());
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stderr(), "soak: {line}")?)
}
