//! A consumer's start: it is registered, and so are its process and its kinds, or it says why not.

use std::time::Duration;

use migrations::Schema;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;

use crate::attempt::Setback;
use crate::consumer::{ConsumerError, Core, within};
use crate::encoding::check_encoding;
use crate::jobs::beat;
use crate::kinds;
use crate::outcome::{Blame, blame};
use crate::patience::Patience;
use crate::report::report;
use crate::statement::{self, is_locked};

/// How long a start waits for an answer that waits for no lock.
const CHECK_TIMEOUT: Duration = Duration::from_secs(15);
/// How long it waits for the others: for a lock as long as any statement of ours, and then some.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(150);
/// How long a start that meets others is made again.
const REGISTER_AGAIN: Duration = Duration::from_secs(60);

/// Registers the consumer, this process and its kinds; whether one of the kinds is new. Tried again when it meets another
/// transaction, which says nothing of the set-up, but not for much longer than a minute.
pub(crate) async fn registered(core: &Core) -> Result<bool, ConsumerError> {
    let mut patience = Patience::within(REGISTER_AGAIN);
    loop {
        let met = match within(REGISTER_TIMEOUT, register(core)).await {
            Err(ConsumerError::Database(met)) => met,
            done => return done,
        };
        let setback = match blame(&met) {
            Blame::Contention => Setback::Contention(report(&met)),
            _ => return Err(met.into()),
        };
        if patience.is_over(&setback) || !patience.wait(core, &setback).await {
            return Err(if is_locked(&met) { ConsumerError::Locked(met) } else { met.into() });
        }
    }
}

async fn register(core: &Core) -> Result<bool, ConsumerError> {
    let mut connection = within(CHECK_TIMEOUT, checked(core)).await?;
    let register =
        sqlx::query(include_str!("sql/register.sql")).bind(&*core.name).bind(core.horizon.seconds());
    statement::run(&mut *connection, register).await?;
    drop(connection);
    let is_new = kinds::register(core).await?;
    // Last: a process that waits for a lock renews no heartbeat, and would be taken for dead.
    beat(core).await?;
    Ok(is_new)
}

/// A connection to a database of which a consumer can make use.
async fn checked(core: &Core) -> Result<PoolConnection<Postgres>, ConsumerError> {
    let mut connection = core.pool.acquire().await?;
    Schema::Inbox.check(&mut connection).await?;
    check_encoding(&mut connection).await?;
    Ok(connection)
}
