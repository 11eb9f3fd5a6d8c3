//! What a replay needs before it works and while it does: what it is to publish and where to, a log that is not its own
//! destination, and the lease.

use message::Publisher;

use super::job::{self, Job};
use super::{Filter, Replay, ReplayError, Replayed};
use crate::Routes;
use crate::admin::ANSWER as ANSWERED;
use crate::log::{Refusal, preflight};
use crate::relay::chain;
use crate::statement::within;

/// What there is to do.
pub(super) enum Begun {
    /// To publish this, to there.
    Running(Filter, Routes),
    /// Nothing: it is done.
    Finished(Replayed),
}

/// What the replay is to publish, and where to: as it began, be that now.
pub(super) async fn begin<P: Publisher>(replay: &Replay<P>) -> Result<Begun, ReplayError> {
    let checked = async {
        let mut connection = replay.pool.acquire().await?;
        preflight(&mut connection).await
    };
    within(ANSWERED, checked).await.map_err(ReplayError::Refused)?;
    let Replay { name, pool, who, .. } = replay;
    let recorded = match job::load(pool, name).await? {
        Some(recorded) => recorded,
        None => {
            let filter = replay.filter.as_ref().ok_or(ReplayError::NotBegun)?;
            // Before anything is written, if the broker answers; otherwise once it does.
            is_itself(replay).await?;
            let (destination, reason) = (replay.destination.as_deref(), replay.reason.as_deref());
            job::begin(pool, name, filter, destination, who, reason).await?;
            job::load(pool, name).await?.ok_or(ReplayError::NotBegun)?
        }
    };
    let other = replay.filter.as_ref().is_some_and(|filter| *filter != recorded.filter)
        || replay.destination.is_some() && replay.destination != recorded.destination;
    match recorded.state.as_str() {
        _ if other => return Err(ReplayError::OtherFilter),
        "cancelled" => return Err(ReplayError::Cancelled),
        "finished" => return Ok(Begun::Finished(recorded.replayed)),
        _ => {}
    }
    let routes = match &recorded.destination {
        Some(template) => everything_to(template).map_err(|error| sqlx::Error::Decode(error.into()))?,
        None => replay.settings.routes.clone(),
    };
    Ok(Begun::Running(recorded.filter, routes))
}

/// Refuses to publish a log into itself: every message would stand there twice, and every other reader would publish the
/// copies. A broker that does not answer is asked again.
async fn is_itself<P: Publisher>(replay: &Replay<P>) -> Result<(), ReplayError> {
    match replay.publisher.log().await {
        Ok(log) => refuse_itself(replay, log).await,
        Err(_) => Ok(()),
    }
}

pub(super) async fn refuse_itself<P>(replay: &Replay<P>, log: Option<String>) -> Result<(), ReplayError> {
    let Some(destination) = log else { return Ok(()) };
    let name = async {
        let mut connection = replay.pool.acquire().await?;
        crate::log::name(&mut connection).await
    };
    if destination == within(ANSWERED, name).await? {
        return Err(ReplayError::Refused(Refusal::Itself));
    }
    Ok(())
}

/// Every topic goes to one destination.
pub(super) fn everything_to(template: &str) -> Result<Routes, crate::InvalidRoute> {
    Routes::default().with(">", template)
}

/// Renews the lease for as long as it is this process's.
pub(super) async fn keep<P>(replay: &Replay<P>, epoch: i64) {
    let lease = replay.settings.lease;
    loop {
        tokio::time::sleep(lease / 4).await;
        match Job::renew(&replay.pool, &replay.name, epoch, lease).await {
            Ok(true) => {}
            Ok(false) => return,
            // The record says whether it is still ours: safety does not depend on the lease.
            Err(error) => {
                tracing::warn!(replay = replay.name, error = chain(&error), "the lease was not renewed");
            }
        }
    }
}

/// Why the replay is no longer this process's.
pub(super) async fn lost<P>(replay: &Replay<P>) -> ReplayError {
    match job::load(&replay.pool, &replay.name).await {
        Ok(Some(recorded)) if recorded.state == "cancelled" => ReplayError::Cancelled,
        Ok(_) => ReplayError::Busy,
        Err(error) => error.into(),
    }
}
