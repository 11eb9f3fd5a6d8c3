//! The tasks of a consumer's loop, and what each answers.

use std::time::Duration;

use tracing::{debug, warn};
use uuid::Uuid;

use crate::apply::Applied;
use crate::consumer::{Core, within};
use crate::kinds;
use crate::lanes::Lane;
use crate::process::HEARTBEAT;
use crate::prune::Pruned;
use crate::report::report;
use crate::retry::{self, Claimed, Tried, claim_alone, try_first};
use crate::turn::Turn;

/// Then pruning begins again.
const PRUNE_TIMEOUT: Duration = Duration::from_secs(3_600);
/// The longest that first tries wait for a declaration that the database does not answer, before the next.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between declarations that fail.
const DECLARE_AGAIN: Duration = Duration::from_millis(200);

/// What a task works at.
pub(crate) enum Job {
    /// A delivery of that lane.
    Delivery(Lane, Option<Uuid>),
    Retry,
    Turn,
    Alone,
    Claim,
    Release,
    Declare,
    Beat,
    Refresh,
    Prune,
    Extend,
    GiveBack,
}

/// What a task answers.
pub(crate) enum Ended {
    Delivered(Applied),
    Claimed(Claimed),
    /// The key, if nothing waits in it.
    Drained(Option<i64>),
    /// The right to make a lone try; `None`: the consumer stops.
    Turn(Option<Turn>),
    /// A message in quarantine, if one was due.
    Alone(Option<Tried>),
    /// Whether it was written.
    Declared(bool),
    /// Nothing that the loop must know.
    Done,
}

/// Renews this process's heartbeat, and says if others have died.
pub(crate) async fn beat(core: &Core) -> Result<(), sqlx::Error> {
    let deaths = core.in_time(core.process.beat(&core.pool, &core.name)).await?;
    if deaths.processes > 0 {
        warn!(
            consumer = %core.name, processes = deaths.processes, quarantined = deaths.quarantined,
            "process died; what it had declared is tried alone, and first tries are declared for a while"
        );
    }
    Ok(())
}

/// The same, for a process at work.
pub(crate) async fn beat_again(core: &Core) -> Ended {
    // One that is late says as little as none.
    if let Err(error) = within(2 * HEARTBEAT, beat(core)).await {
        debug!(consumer = %core.name, error = report(&error), "no heartbeat could be written");
    }
    Ended::Done
}

/// Registers this process's kinds again, unless the consumer stops: not with the heartbeat, which must wait for no lock and for no disk.
pub(crate) async fn refresh_kinds(core: &Core) -> Ended {
    core.stop.run_until_cancelled(kinds::refresh(core)).await;
    Ended::Done
}

/// Takes held keys that are due.
pub(crate) async fn claim(core: &Core, limit: usize) -> Ended {
    Ended::Claimed(core.in_time(retry::claim(core, limit)).await.unwrap_or_else(|error| {
        debug!(consumer = %core.name, error = report(&error), "held keys could not be claimed");
        Claimed::default()
    }))
}

/// Tries a message in quarantine, if one is due.
pub(crate) async fn try_alone(core: &Core) -> Ended {
    match core.in_time(claim_alone(core)).await {
        Ok(Some(claim)) => Ended::Alone(Some(try_first(core, claim).await)),
        Ok(None) => Ended::Alone(None),
        Err(error) => {
            debug!(consumer = %core.name, error = report(&error), "no message in quarantine could be claimed");
            Ended::Alone(None)
        }
    }
}

/// Declares messages before they are tried.
pub(crate) async fn declare(core: &Core, messages: &[Uuid]) -> Ended {
    let declare = core.process.declare(&core.pool, &core.name, messages);
    if let Err(error) = within(DECLARE_TIMEOUT, declare).await {
        debug!(consumer = %core.name, error = report(&error), "messages could not be declared; trying again");
        tokio::time::sleep(DECLARE_AGAIN).await;
        return Ended::Declared(false);
    }
    Ended::Declared(true)
}

/// Removes rows past the horizon, until the consumer stops: then the transaction under way is given up.
pub(crate) async fn prune(core: &Core) -> Ended {
    let prune = within(PRUNE_TIMEOUT, crate::prune::prune(&core.pool));
    match core.stop.run_until_cancelled(prune).await {
        Some(Ok(Pruned { clock_difference: Some(difference), .. })) => {
            let ahead_by_seconds = difference.num_seconds();
            warn!(
                consumer = %core.name, ahead_by_seconds,
                "the database's clock differs from this process's; nothing is pruned until they agree"
            )
        }
        Some(Ok(pruned)) => debug!(consumer = %core.name, ?pruned, "pruned"),
        Some(Err(error)) => {
            warn!(consumer = %core.name, error = report(&error), "could not prune; rows past the horizon stay");
        }
        None => debug!(consumer = %core.name, "the consumer stops: pruning goes on at the next start"),
    }
    Ended::Done
}
