//! Starts, stops, kills and freezes the processes of a relay at random, under load, for the whole time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::dice::Dice;
use super::gate::Gate;
use super::killer::{Kills, read_to_the_end};
use super::relay::Relay;
use super::repeats::Blow;
use super::roster::{Roster, State};
use super::run::say;
use super::wire::Wire;

/// How many messages the writers may be ahead of the wire.
const AHEAD: u64 = 2000;
const TICK: Duration = Duration::from_millis(10);
/// Every so long the processes are left in peace until all of them have their places, and a moment longer.
const STORM: Duration = Duration::from_secs(12);
const PEACE: Duration = Duration::from_secs(1);
/// How long a process may take to stop when asked: longer than it may drain.
const STOPS_WITHIN: Duration = Duration::from_secs(30);

/// What is done to the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Everything.
    All,
    /// They are frozen and nothing else, so that what else they do is their own doing.
    Freezing,
}

/// When it is over.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// So many messages have committed.
    Messages(u64),
    /// Then.
    Time(Instant),
}

/// What it disturbs, and what it watches meanwhile.
pub(super) struct Disturber<'a> {
    pub(super) relays: &'a mut [Relay],
    pub(super) manner: Manner,
    pub(super) lease: Duration,
    pub(super) wire: Arc<Wire>,
    pub(super) gate: Arc<Gate>,
    pub(super) producer: PgPool,
    pub(super) file: &'a Path,
    pub(super) dice: Dice,
    /// Told whether all processes are at work and in their places.
    pub(super) settled: Arc<AtomicBool>,
}

/// What it has done.
#[derive(Debug, Default, Clone)]
pub(super) struct Disturbances {
    pub(super) starts: u64,
    pub(super) polite_stops: u64,
    pub(super) kills: Kills,
    pub(super) freezes: u64,
    /// That ended with the process thought dead.
    pub(super) freezes_outliving_the_lease: u64,
    /// Kills and freezes, of processes that had joined.
    pub(super) blows: Vec<Blow>,
}

/// What the database says of a process that has joined.
struct Known {
    id: Uuid,
    alive: bool,
    now: f64,
}

impl Disturber<'_> {
    /// How long a process is at work before it must have found its place: what it takes to notice that the one before it is
    /// dead, and a second.
    fn seasoning(&self) -> Duration {
        self.lease + Duration::from_secs(1)
    }

    /// Disturbs until it is over, then brings all processes back to work.
    pub(super) async fn run(&mut self, until: Until) -> Result<Disturbances> {
        let mut done = Disturbances { starts: self.relays.len() as u64, ..Disturbances::default() };
        let mut roster = Roster::new(self.relays.len(), self.seasoning(), Instant::now());
        let (mut next, mut peace) = (Instant::now(), None);
        let mut storm_ends = match self.manner {
            // First all find their places.
            Manner::All => Instant::now(),
            Manner::Freezing => Instant::now() + Duration::from_secs(3600),
        };
        while !self.is_over(until) {
            self.let_writers_go_on(until);
            self.go_on(&mut roster, &mut done).await?;
            let now = Instant::now();
            let settled = roster.is_settled(now);
            self.settled.store(settled, SeqCst);
            if now >= storm_ends {
                if !settled {
                    peace = None;
                } else if *peace.get_or_insert(now + PEACE) <= now {
                    storm_ends = now + STORM;
                }
            } else if now >= next {
                self.disturb(&mut roster, &mut done).await?;
                next = Instant::now() + self.pause();
                peace = None;
            }
            tokio::time::sleep(TICK).await;
        }
        self.restore(&mut roster, &mut done).await?;
        Ok(done)
    }

    fn is_over(&self, until: Until) -> bool {
        match until {
            Until::Messages(messages) => self.gate.committed() >= messages,
            Until::Time(end) => Instant::now() >= end,
        }
    }

    fn let_writers_go_on(&self, until: Until) {
        let ahead = self.wire.ledger().distinct() + AHEAD;
        self.gate.reach(match until {
            Until::Messages(messages) => ahead.min(messages),
            Until::Time(_) => ahead,
        });
    }

    /// So long that about half of the processes are at work.
    fn pause(&mut self) -> Duration {
        let processes = self.relays.len() as u64;
        self.dice.up_to_ms(2 * 2 * self.lease.as_millis() as u64 / processes.max(1))
    }

    /// Does what is due of each process, and sees that those at work run.
    async fn go_on(&mut self, roster: &mut Roster, done: &mut Disturbances) -> Result<()> {
        for process in roster.all() {
            let now = Instant::now();
            match roster.state(process) {
                State::AtWork { .. } => self.relays[process].is_alive()?,
                State::Frozen { until, joined } if until <= now => {
                    // Forgotten already, if it is dead and others have its shards.
                    let dead = joined && self.known_process(process).await?.is_none_or(|known| !known.alive);
                    done.freezes_outliving_the_lease += u64::from(dead);
                    self.thaw(process, roster, done).await?;
                }
                State::Stopping { since } => {
                    if self.relays[process].has_stopped()? {
                        let rest = self.rest();
                        roster.set(process, State::Down { until: now + rest });
                    }
                    ensure!(since.elapsed() < STOPS_WITHIN, "a relay does not stop within {STOPS_WITHIN:?}");
                }
                State::Down { until } if until <= now => {
                    self.relays[process].restart()?;
                    self.tell(process, "is started")?;
                    roster.set(process, State::AtWork { since: Instant::now() });
                    done.starts += 1;
                }
                State::Frozen { .. } | State::Down { .. } => {}
            }
        }
        Ok(())
    }

    /// How long a process that has ended stays away.
    fn rest(&mut self) -> Duration {
        if self.dice.happens(300) { Duration::ZERO } else { self.dice.up_to_ms(2000) }
    }

    async fn disturb(&mut self, roster: &mut Roster, done: &mut Disturbances) -> Result<()> {
        let dispensable = roster.dispensable(Instant::now());
        if dispensable.is_empty() {
            return Ok(());
        }
        let process = dispensable[self.dice.below(dispensable.len() as u64) as usize];
        // Before it: nobody shall think them settled meanwhile.
        self.settled.store(false, SeqCst);
        match (self.manner, self.dice.below(10)) {
            // One that has not joined has nothing to finish, and may not have asked to be told of a stop yet.
            (Manner::All, 0..3) if self.known_process(process).await?.is_some() => {
                self.tell(process, "is asked to stop")?;
                self.relays[process].ask_to_stop();
                roster.set(process, State::Stopping { since: Instant::now() });
                done.polite_stops += 1;
            }
            (Manner::All, 0..6) => self.kill(process, roster, done).await?,
            _ => self.freeze(process, roster, done).await?,
        }
        Ok(())
    }

    async fn kill(&mut self, process: usize, roster: &mut Roster, done: &mut Disturbances) -> Result<()> {
        self.tell(process, "is killed")?;
        let label = self.relays[process].label();
        self.relays[process].kill();
        let rest = self.rest();
        roster.set(process, State::Down { until: Instant::now() + rest });
        done.kills.all += 1;
        let Some(label) = label else { return Ok(()) };
        let known = self.known(&label).await?;
        done.blows.extend(known.map(|known| Blow { process: known.id, at: known.now }));
        // Its shards are nobody else's before its lease ends.
        let backlog: Vec<Uuid> = sqlx::query_scalar(include_str!("sql/backlog_of.sql"))
            .bind(&label)
            .fetch_all(&self.producer)
            .await?;
        read_to_the_end(self.file, &self.wire).await?;
        let ledger = self.wire.ledger();
        done.kills.with_backlog += u64::from(backlog.iter().any(|id| !ledger.has(*id)));
        Ok(())
    }

    async fn freeze(&mut self, process: usize, roster: &mut Roster, done: &mut Disturbances) -> Result<()> {
        if !self.relays[process].freeze(self.file)? {
            return Ok(());
        }
        let lease = self.lease.as_millis() as u64;
        // Mostly so long that others must think it dead; where leases are short, now and then so long that a shard which
        // nobody takes over meanwhile is missed.
        let beyond = match self.manner {
            Manner::All => lease * 3 / 2,
            Manner::Freezing => lease * 7,
        };
        let (least, more) = if self.dice.happens(200) { (0, lease) } else { (lease + lease / 10, beyond) };
        let freeze = Duration::from_millis(least) + self.dice.up_to_ms(more);
        self.tell(process, &format!("is frozen for {} ms", freeze.as_millis()))?;
        let until = Instant::now() + freeze;
        let known = self.known_process(process).await?;
        roster.set(process, State::Frozen { until, joined: known.is_some() });
        done.freezes += 1;
        done.blows.extend(known.map(|known| Blow { process: known.id, at: known.now }));
        Ok(())
    }

    /// Ends a freeze, now and then for good.
    async fn thaw(&mut self, process: usize, roster: &mut Roster, done: &mut Disturbances) -> Result<()> {
        if self.manner == Manner::All && self.dice.happens(150) {
            return self.kill(process, roster, done).await;
        }
        self.tell(process, "goes on")?;
        self.relays[process].thaw();
        roster.set(process, State::AtWork { since: Instant::now() });
        Ok(())
    }

    /// For whoever wants to know how it came to what the verdict says.
    fn tell(&self, process: usize, what: &str) -> Result<()> {
        let label = self.relays[process].label().unwrap_or_default();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        say(&format!("{:.3} {label} {what}", now.as_secs_f64()))
    }

    async fn known_process(&self, process: usize) -> Result<Option<Known>> {
        match self.relays[process].label() {
            Some(label) => self.known(&label).await,
            None => Ok(None),
        }
    }

    async fn known(&self, label: &str) -> Result<Option<Known>> {
        let query = sqlx::query(include_str!("sql/process.sql")).bind(label);
        let Some(row) = query.fetch_optional(&self.producer).await? else { return Ok(None) };
        Ok(Some(Known { id: row.try_get("id")?, alive: row.try_get("alive")?, now: row.try_get("now")? }))
    }

    /// Everybody is at work again.
    async fn restore(&mut self, roster: &mut Roster, done: &mut Disturbances) -> Result<()> {
        loop {
            let now = Instant::now();
            for process in roster.all() {
                match roster.state(process) {
                    State::Frozen { joined, .. } => roster.set(process, State::Frozen { until: now, joined }),
                    State::Down { .. } => roster.set(process, State::Down { until: now }),
                    State::AtWork { .. } | State::Stopping { .. } => {}
                }
            }
            self.go_on(roster, done).await?;
            if roster.all().all(|process| matches!(roster.state(process), State::AtWork { .. })) {
                return Ok(());
            }
            tokio::time::sleep(TICK).await;
        }
    }
}
