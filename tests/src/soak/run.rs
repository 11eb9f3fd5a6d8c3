//! One soak from beginning to end.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::consumer::{consume, effects};
use super::dice::Dice;
use super::disturber::{Disturbances, Disturber, Manner, Until};
use super::gate::Gate;
use super::killer::Killer;
use super::ledger::{Fact, Truth};
use super::naive_team;
use super::relay::{Relay, SHARED_LEASE, program};
use super::repeats::Warning;
use super::sharing::Sharing;
use super::transaction::{Scene, Tally};
use super::verdict::Counts;
use super::watch::watch;
use super::wire::{Follower, Wire};
use super::writers;
use super::{Plant, Verdict};

/// What is asked of a soak.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// At least so many messages.
    pub(crate) messages: u64,
    /// Of several processes: for so long, however many messages.
    pub(crate) lasts: Option<Duration>,
    /// Of all dice.
    pub(crate) seed: u64,
    /// Kills with a backlog, and with several processes so many of everything else that is done to them; planted relays
    /// are not killed, so that what they do is their own doing.
    pub(crate) kills: u64,
    /// Processes of the relay.
    pub(crate) relays: usize,
    /// A naive relay with that bug instead of the shipped one.
    pub(crate) plant: Option<Plant>,
}

impl Settings {
    /// Kills that this soak makes.
    pub(super) fn kills_wanted(&self) -> u64 {
        if self.plant.is_none() { self.kills } else { 0 }
    }

    /// Messages without which it proves nothing.
    pub(super) fn messages_wanted(&self) -> u64 {
        if self.lasts.is_none() { self.messages } else { 0 }
    }

    /// What the processes have to bear, if there are several.
    fn manner(&self) -> Option<Manner> {
        match self.plant {
            None if self.relays > 1 => Some(Manner::All),
            Some(_) if self.is_of_naive_team() => Some(Manner::Freezing),
            _ => None,
        }
    }

    /// How long one of several processes may be silent before its shards are another's.
    fn lease(&self) -> Duration {
        if self.is_of_naive_team() { naive_team::LEASE } else { SHARED_LEASE }
    }

    /// The query that says who owns the shards.
    fn owners(&self) -> &'static str {
        if self.is_of_naive_team() {
            include_str!("sql/naive_owners.sql")
        } else {
            include_str!("sql/owners.sql")
        }
    }

    fn is_of_naive_team(&self) -> bool {
        self.plant.is_some_and(Plant::is_frozen)
    }

    /// How long nothing may come before what is missing counts as lost. A planted relay has nothing to wait for.
    fn patience(&self) -> Duration {
        match self.plant {
            None | Some(Plant::Control | Plant::FencedRecord) => Duration::from_secs(30),
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
    ensure!(
        settings.plant.is_none_or(|plant| plant.is_of_several() == (settings.relays > 1)),
        "some bugs are of one relay, others of several (--relays): this one is not of {}",
        settings.relays
    );
    ensure!(settings.lasts.is_none() || settings.manner().is_some(), "one relay is soaked for --messages");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("wire.jsonl");
    say("preparing the relay's binary")?;
    let program = program(settings.plant, settings.relays, &file)?;
    let cluster = Cluster::start(settings.plant.is_some(), settings.relays > 1).await?;
    say(&format!("PostgreSQL {}, seed {}", cluster.version, settings.seed))?;
    let started = Instant::now();
    let soaked = soak(settings, &cluster, &program, &file).await;
    let (seconds, version) = (started.elapsed().as_secs(), cluster.version.clone());
    cluster.remove().await?;
    let (counts, workload) = soaked?;
    Ok(Verdict::new(settings, counts, workload, seconds, version))
}

/// Writes, kills, waits for the end of it, and counts.
async fn soak(
    settings: &Settings,
    cluster: &Cluster,
    program: &Command,
    file: &Path,
) -> Result<(Counts, Tally)> {
    let stop = CancellationToken::new();
    let wire = Arc::new(Wire::default());
    let mut consumer = JoinSet::new();
    let dice = Dice::new(settings.seed, CONSUMER);
    let (follower, pool) = (Follower::new(file), cluster.consumer.clone());
    consumer.spawn(consume(follower, Arc::clone(&wire), pool, dice, stop.clone()));

    let mut held = Some(cluster.hold_transaction().await?);
    let mut relays = Relay::start_all(program, settings.relays, &cluster.producer_url())?;
    let (settled, unwatched) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
    let mut watching = JoinSet::new();
    if settings.relays > 1 {
        watching.spawn(watch(
            cluster.producer.clone(),
            settings.owners(),
            Arc::clone(&settled),
            unwatched.clone(),
        ));
    }
    let scene = Arc::new(Scene {
        wire: Arc::clone(&wire),
        tally: Tally::default(),
        stamps: AtomicU64::new(1),
        positions_first: (settings.plant == Some(Plant::TxAfterPosition)).then_some(Duration::from_millis(4)),
    });
    let stage = Stage { settings, producer: &cluster.producer, scene: &scene, file, settled };
    let done = stage.work(&mut relays, &mut consumer).await?;

    let truth = truth(&cluster.producer).await?;
    say(&format!("{} messages committed; waiting for the rest of them", truth.len()))?;
    let mut stalled = 0;
    let missing = drain(&wire, &truth, settings.patience(), &mut relays).await?;
    if missing > 0 {
        // Lost, or only held up by the transaction elsewhere? Nobody may be held up by it either.
        drop(held.take());
        stalled = missing - drain(&wire, &truth, settings.patience(), &mut relays).await?;
    }
    unwatched.cancel();
    let watched = watching.join_next().await.transpose()?.transpose()?;
    Relay::stop_all(&mut relays);
    let warnings: Vec<Warning> = relays.iter().flat_map(Relay::warnings).collect();
    stop.cancel();
    let discarded = match consumer.join_next().await {
        Some(ended) => ended??,
        None => bail!("the consumer was never started"),
    };
    drop(held);
    let effects = effects(&cluster.consumer).await?;
    let sharing = match watched {
        Some(watched) => {
            let (relays, lease) = (settings.relays, settings.lease());
            Some(Sharing::count(relays, lease, &done, &warnings, &watched, &wire, &cluster.producer).await?)
        }
        None => None,
    };
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
            kills: done.kills.all,
            kills_with_backlog: done.kills.with_backlog,
            torn_lines: wire.torn(),
            sharing,
        }
    };
    let Some(scene) = Arc::into_inner(scene) else { bail!("a writer is still at work") };
    Ok((counts, scene.tally))
}

/// What the work is done with.
struct Stage<'a> {
    settings: &'a Settings,
    producer: &'a PgPool,
    scene: &'a Arc<Scene>,
    file: &'a Path,
    settled: Arc<AtomicBool>,
}

impl Stage<'_> {
    /// Writes and kills until both is done.
    async fn work(&self, relays: &mut [Relay], consumer: &mut JoinSet<Result<u64>>) -> Result<Disturbances> {
        let gate = Arc::new(Gate::new(self.settings.slice()));
        let mut writers = writers::start(self.settings.seed, self.producer, self.scene, &gate);
        let mut done = None;
        {
            let disturbing = self.disturb(relays, &gate);
            tokio::pin!(disturbing);
            loop {
                tokio::select! {
                    all = &mut disturbing, if done.is_none() => done = Some(all?),
                    ended = writers.join_next() => match ended {
                        Some(ended) => ended??,
                        None if done.is_some() => break,
                        None => done = Some((&mut disturbing).await?),
                    },
                    Some(ended) = consumer.join_next() => {
                        ended??;
                        bail!("the consumer has ended");
                    }
                }
            }
        }
        Ok(done.unwrap_or_default())
    }

    /// Does to the relays what is to be done to them; after it, the writers come to an end.
    async fn disturb(&self, relays: &mut [Relay], gate: &Arc<Gate>) -> Result<Disturbances> {
        let settings = self.settings;
        let dice = Dice::new(settings.seed, KILLER);
        let (wire, gate, producer) = (Arc::clone(&self.scene.wire), Arc::clone(gate), self.producer.clone());
        let Some(manner) = settings.manner() else {
            let Some(relay) = relays.first_mut() else { bail!("no relay") };
            let mut killer = Killer { relay, wire, gate: Arc::clone(&gate), producer, file: self.file, dice };
            let kills = killer.run(settings.kills_wanted(), settings.slice()).await;
            gate.finish(settings.messages);
            return Ok(Disturbances { kills: kills?, ..Disturbances::default() });
        };
        let until = match settings.lasts {
            Some(lasts) => Until::Time(Instant::now() + lasts),
            None => Until::Messages(settings.messages),
        };
        let lease = settings.lease();
        let (file, settled) = (self.file, Arc::clone(&self.settled));
        let mut disturber =
            Disturber { relays, manner, lease, wire, gate: Arc::clone(&gate), producer, file, dice, settled };
        let done = disturber.run(until).await;
        gate.finish(settings.messages_wanted());
        done
    }
}

async fn truth(producer: &PgPool) -> Result<Truth> {
    let rows: Vec<(uuid::Uuid, i32, i64)> =
        sqlx::query_as(include_str!("sql/truth.sql")).fetch_all(producer).await?;
    Ok(rows.into_iter().map(|(id, key, version)| (id, Fact { key, version })).collect())
}

/// Waits until everything is on the wire, or nothing has come for that long. Answers what is missing.
async fn drain(wire: &Wire, truth: &Truth, patience: Duration, relays: &mut [Relay]) -> Result<u64> {
    let (mut lines, mut since) = (wire.lines(), Instant::now());
    loop {
        let missing = wire.ledger().lost(truth);
        if missing == 0 || since.elapsed() > patience {
            return Ok(missing);
        }
        relays.iter_mut().try_for_each(Relay::is_alive)?;
        if wire.lines() != lines {
            (lines, since) = (wire.lines(), Instant::now());
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// What a person may want to know meanwhile.
pub(super) fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stderr(), "soak: {line}")?)
}
