//! The writers: sixteen of them, each with dice of its own, until the gate says that it is enough.

use std::sync::Arc;

use anyhow::Result;
use sqlx::PgPool;
use tokio::task::JoinSet;

use super::dice::Dice;
use super::gate::Gate;
use super::shape::{Shape, Weather};
use super::transaction::Scene;

/// How many write at once.
pub(super) const WRITERS: u32 = 16;

/// Starts them; each ends when the gate is closed, or at once when a statement fails.
pub(super) fn start(seed: u64, pool: &PgPool, scene: &Arc<Scene>, gate: &Arc<Gate>) -> JoinSet<Result<()>> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let dice = Dice::new(seed, u64::from(writer));
        writers.spawn(write(dice, pool.clone(), Arc::clone(scene), Arc::clone(gate)));
    }
    writers
}

async fn write(mut dice: Dice, pool: PgPool, scene: Arc<Scene>, gate: Arc<Gate>) -> Result<()> {
    while gate.passes().await {
        let shape = Shape::roll(&mut dice, Weather::at(gate.committed()));
        let messages = scene.play(pool.begin().await?, &shape).await?;
        gate.count(messages);
    }
    Ok(())
}
