//! The consumer: every line of the wire goes through the inbox, and has its effect in the same transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use inbox::{Admission, Horizon};
use message::Message;
use sqlx::{PgPool, PgTransaction};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::dice::Dice;
use super::ledger::Fact;
use super::wire::{Follower, Wire};

/// Between two looks at a file that does not grow.
const POLL: Duration = Duration::from_millis(2);

/// Follows the file and applies what it says, until it is stopped and the file is read to its end. Answers how many
/// copies the inbox has discarded.
pub(super) async fn consume(
    mut follower: Follower,
    wire: Arc<Wire>,
    pool: PgPool,
    mut dice: Dice,
    stop: CancellationToken,
) -> Result<u64> {
    let mut discarded = 0;
    loop {
        let ending = stop.is_cancelled();
        let lines = follower.read(&wire)?;
        if lines.is_empty() {
            if ending {
                return Ok(discarded);
            }
            tokio::time::sleep(POLL).await;
            continue;
        }
        if dice.happens(30) {
            // A consumer that dies before its commit: all of it is delivered again.
            let mut tx = pool.begin().await?;
            apply(&mut tx, &lines).await?;
            tx.rollback().await?;
        }
        let mut tx = pool.begin().await?;
        discarded += apply(&mut tx, &lines).await?;
        outbox::commit(tx).await?;
    }
}

/// Admits the messages and has the effect of those that are new. Answers how many were not.
async fn apply(tx: &mut PgTransaction<'_>, lines: &[(Message, Fact)]) -> Result<u64> {
    let messages: Vec<Message> = lines.iter().map(|(message, _)| message.clone()).collect();
    let admissions = inbox::admit_all(tx, "soak", &messages, Horizon::default()).await?;
    let admitted = lines.iter().zip(&admissions).filter(|(_, admission)| **admission == Admission::First);
    let (ids, facts): (Vec<Uuid>, Vec<Fact>) =
        admitted.map(|((message, fact), _)| (Uuid::from(message.id), *fact)).unzip();
    sqlx::query(include_str!("sql/effect.sql"))
        .bind(&ids)
        .bind(facts.iter().map(|fact| fact.key).collect::<Vec<i32>>())
        .bind(facts.iter().map(|fact| fact.version).collect::<Vec<i64>>())
        .execute(&mut **tx)
        .await?;
    Ok((lines.len() - ids.len()) as u64)
}

/// How often each effect has happened.
pub(super) async fn effects(pool: &PgPool) -> Result<HashMap<Uuid, i64>> {
    let effects: Vec<(Uuid, i64)> = sqlx::query_as(include_str!("sql/effects.sql")).fetch_all(pool).await?;
    Ok(effects.into_iter().collect())
}
