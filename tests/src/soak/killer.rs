//! Kills the relay (`kill -9`) while there is a backlog, and starts it again at once.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sqlx::PgPool;

use super::dice::Dice;
use super::gate::Gate;
use super::relay::Relay;
use super::wire::Wire;

/// How long anything may take that is waited for: a takeover, a few thousand messages.
const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// What it kills, and what it watches meanwhile.
pub(super) struct Killer<'a> {
    pub(super) relay: &'a mut Relay,
    pub(super) wire: Arc<Wire>,
    pub(super) gate: Arc<Gate>,
    pub(super) producer: PgPool,
    pub(super) file: &'a Path,
    pub(super) dice: Dice,
}

/// How often it has killed.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Kills {
    pub(super) all: u64,
    /// With messages committed and not yet on the wire.
    pub(super) with_backlog: u64,
}

impl Killer<'_> {
    /// Kills until that many kills had a backlog, letting the writers make `slice` messages for each; gives up after
    /// three times as many.
    pub(super) async fn run(&mut self, wanted: u64, slice: u64) -> Result<Kills> {
        let mut kills = Kills::default();
        while kills.with_backlog < wanted && kills.all < 3 * wanted {
            self.wait_for_a_moment(slice).await?;
            let committed = committed(&self.producer).await?;
            self.relay.kill();
            let delivered = self.delivered_by_the_dead().await?;
            self.relay.restart()?;
            kills.all += 1;
            kills.with_backlog += u64::from(committed > delivered);
            self.gate.open(slice);
        }
        Ok(kills)
    }

    /// Mostly in the middle of the work; now and then before it has begun.
    async fn wait_for_a_moment(&mut self, slice: u64) -> Result<()> {
        let begun = self.wire.lines();
        let more = 1 + self.dice.below(slice * 3 / 5);
        let at_once = self.dice.happens(125).then(|| self.dice.up_to_ms(1500));
        let started = Instant::now();
        while self.wire.lines() < begun + more && at_once.is_none_or(|wait| started.elapsed() < wait) {
            self.relay.is_alive()?;
            ensure!(started.elapsed() < PATIENCE, "the relay has published nothing for {PATIENCE:?}");
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        Ok(())
    }

    /// The messages on the wire when all that a dead relay has written is read.
    async fn delivered_by_the_dead(&self) -> Result<u64> {
        read_to_the_end(self.file, &self.wire).await?;
        Ok(self.wire.ledger().distinct())
    }
}

/// Waits until all that the file holds now is in the ledger.
pub(super) async fn read_to_the_end(file: &Path, wire: &Wire) -> Result<()> {
    let written = file.metadata().map_or(0, |metadata| metadata.len());
    let started = Instant::now();
    while wire.bytes() < written {
        ensure!(started.elapsed() < PATIENCE, "the consumer has stopped");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    Ok(())
}

async fn committed(producer: &PgPool) -> Result<u64> {
    let committed: i64 = sqlx::query_scalar(include_str!("sql/committed.sql")).fetch_one(producer).await?;
    Ok(committed.unsigned_abs())
}
