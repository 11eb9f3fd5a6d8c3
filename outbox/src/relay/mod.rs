//! The relay: reads the log, publishes, records. One process of it; any number may run.

mod availability;
mod backoff;
mod busy;
mod claim;
mod destination;
mod hearing;
mod holds;
mod lanes;
#[cfg(test)]
mod model;
mod policies;
mod routes;
mod session;
mod settings;
mod settled;
mod waiting;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use message::{PublishError, Publisher};
use sqlx::postgres::PgPool;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) use availability::{Availability, Outage};
pub use backoff::Backoff;
pub(crate) use backoff::chance;
use busy::Busy;
pub(crate) use holds::shorten;
pub use policies::{Policies, Policy};
pub(crate) use routes::Router;
pub use routes::{InvalidRoute, Pattern, Routes};
pub use settings::Settings;

use crate::doorbell;
use crate::log::{Refusal, Start};
use crate::upkeep::Upkeep;
use session::{Ended, Session};
use waiting::Waiting;

/// How long a broker may take to say whether it is ready before that is worth a line.
const SLOW_BROKER: Duration = Duration::from_secs(10);
/// How often a paused relay looks whether it is resumed.
const PAUSED: Duration = Duration::from_secs(1);

/// Why a relay ended without being asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The operator's: the log must not be read as it is, or could not be read at the start.
    #[error("relay refuses to run")]
    Refused(#[from] Refusal),
    /// The operator's: the broker is not set up so that it keeps what it confirms.
    #[error("broker refused")]
    Broker(#[source] PublishError),
}

/// Publishes what is committed to the outbox of one database, to one broker.
///
/// A relay is known by its name, which has cursors of its own in the database; several relays read one log
/// independently, and several processes of one relay share its shards. It publishes at least once, in order per key.
///
/// ```no_run
/// use tokio_util::sync::CancellationToken;
///
/// # async fn run(publisher: impl message::Publisher + 'static) -> Result<(), Box<dyn std::error::Error>> {
/// let pool = outbox::pool_options().connect("postgres://localhost/orders").await?;
/// let stop = CancellationToken::new();
/// outbox::Relay::new("default", pool, publisher).run(stop.clone()).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Relay<P> {
    name: String,
    pool: PgPool,
    publisher: Arc<P>,
    settings: Settings,
    busy: Arc<Busy>,
    /// Changes at each ring, and is true while rings are heard.
    doorbell: watch::Sender<bool>,
    warned: destination::Warned,
}

/// What the broker has said of itself.
struct Broker {
    /// The name of the log that it is, if it is one.
    log: Option<String>,
}

impl<P: Publisher + 'static> Relay<P> {
    /// The relay `name` of the database behind `pool`, which needs four connections for it, beside whoever else takes some,
    /// and guards them as [`pool_options`](crate::pool_options) do. A connection that it cannot have in time is to it a
    /// database that does not answer: it starts over, and repeats what was not recorded.
    pub fn new(name: impl Into<String>, pool: PgPool, publisher: P) -> Self {
        let (publisher, busy) = (Arc::new(publisher), Arc::new(Busy::default()));
        let doorbell = watch::Sender::new(false);
        let (settings, warned) = (Settings::default(), destination::Warned::default());
        Relay { name: name.into(), pool, publisher, settings, busy, doorbell, warned }
    }

    /// With other settings altogether.
    pub fn with_settings(mut self, settings: Settings) -> Self {
        self.settings = settings.clamped();
        self
    }

    /// With routes of topics to destinations; without, a topic goes to the destination of its name.
    pub fn with_routes(mut self, routes: Routes) -> Self {
        self.settings.routes = routes;
        self
    }

    /// Where it begins if it is new: at the beginning of the log, by default.
    pub fn with_start(mut self, start: Start) -> Self {
        self.settings.start = start;
        self
    }

    /// Whether it has something to do, for whoever runs it.
    pub(crate) fn busy(&self) -> Arc<Busy> {
        Arc::clone(&self.busy)
    }

    /// Runs until `stop` is cancelled, or the pool is closed; then finishes what is on the wire, records it, and hands over.
    /// Goes on through failures of the database and the broker. One that is paused waits until it is resumed.
    ///
    /// # Errors
    /// See [`RelayError`]. A database that cannot be reached is an error only at the start.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RelayError> {
        let Settings { retention, lease, drain, .. } = self.settings;
        let stop = stop.child_token();
        let over = stop.child_token();
        let mut upkeep = Upkeep::new(self.pool.clone(), &self.name, retention, lease).spawn(over.clone());
        // Aborted when this ends.
        let mut listening = JoinSet::new();
        let (closed, closing) = (self.pool.close_event(), stop.clone());
        listening.spawn(async move {
            closed.await;
            closing.cancel();
        });
        if self.settings.doorbell {
            listening.spawn(doorbell::listen(self.pool.clone(), self.name.clone(), self.doorbell.clone()));
        }
        let ended = self.deliver(&stop).await;
        drop(listening);
        over.cancel();
        // Bounded as all of a stop: the upkeep is free when its lease ends.
        let _ = tokio::time::timeout(drain, upkeep.join_next()).await;
        ended
    }

    async fn deliver(&self, stop: &CancellationToken) -> Result<(), RelayError> {
        let process = Uuid::now_v7();
        let Some(mut broker) = self.broker(stop, process).await? else { return Ok(()) };
        let (mut begun, mut paused, mut failures) = (false, false, 0);
        loop {
            let opened = tokio::select! {
                opened = Session::open(self, &broker, process, stop, &mut begun) => opened,
                () = self.stopped_long_since(stop) => {
                    tracing::warn!(relay = self.name, "stopped without an answer from the database");
                    return Ok(());
                }
            };
            let failed: Refusal = match opened {
                Ok(None) => return Ok(()),
                Ok(Some(session)) => {
                    (paused, failures) = (false, 0);
                    match session.run(stop).await {
                        Ok(Ended::Stopped) => return Ok(()),
                        Ok(Ended::Shared) => continue,
                        Ok(Ended::LeaseLost) => {
                            tracing::warn!(
                                relay = self.name,
                                "thought dead: other processes have the shards"
                            );
                            continue;
                        }
                        Err(error) => error.into(),
                    }
                }
                Err(Refusal::Paused) => {
                    begun = true;
                    if !std::mem::replace(&mut paused, true) {
                        tracing::info!(relay = self.name, "paused: it goes on when it is resumed");
                    }
                    if self.rests(PAUSED, stop).await {
                        return Ok(());
                    }
                    continue;
                }
                Err(refusal) if refusal.is_hung_up() => refusal,
                // A server that comes back as a replica may be promoted yet.
                Err(refusal) if begun && (refusal.is_passing() || matches!(refusal, Refusal::Replica)) => {
                    refusal
                }
                Err(refusal) => return Err(refusal.into()),
            };
            failures += 1;
            let pause = self.settings.unavailable.after(failures, backoff::chance());
            // More and more seldom.
            if u32::is_power_of_two(failures) {
                let options = self.pool.connect_options();
                tracing::warn!(
                    relay = self.name,
                    host = options.get_host(),
                    port = options.get_port(),
                    error = chain(&failed),
                    ?pause,
                    failures,
                    "the database failed: starting over"
                );
            }
            if self.rests(pause, stop).await {
                return Ok(());
            }
            if !begun {
                // A server that was started again calls its logs otherwise.
                let Some(again) = self.broker(stop, process).await? else { return Ok(()) };
                broker = again;
            }
        }
    }

    /// The broker, once it is ready. `None`: stopped while waiting for it.
    async fn broker(&self, stop: &CancellationToken, process: Uuid) -> Result<Option<Broker>, RelayError> {
        let waiting = Waiting::new(&self.pool, &self.name, process, self.settings.lease);
        let answer = tokio::select! {
            answer = self.ask_broker(stop, &waiting) => answer,
            never = waiting.say() => match never {},
        };
        waiting.over().await;
        answer
    }

    async fn ask_broker(
        &self,
        stop: &CancellationToken,
        waiting: &Waiting<'_>,
    ) -> Result<Option<Broker>, RelayError> {
        let mut failures = 0;
        loop {
            let asked = async {
                self.publisher.check().await?;
                self.publisher.log().await
            };
            let slow = async {
                tokio::time::sleep(SLOW_BROKER).await;
                tracing::warn!(relay = self.name, "the broker has not answered for 10s whether it is ready");
                waiting.because("it does not answer");
                std::future::pending::<Infallible>().await
            };
            let asked = async {
                tokio::select! {
                    answer = asked => answer,
                    never = slow => match never {},
                }
            };
            let Some(answer) = stop.run_until_cancelled(asked).await else { return Ok(None) };
            match answer {
                Ok(log) => return Ok(Some(Broker { log })),
                Err(error @ PublishError::Rejected(_)) => return Err(RelayError::Broker(error)),
                Err(error) => {
                    failures += 1;
                    let pause = self.settings.unavailable.after(failures, backoff::chance());
                    // More and more seldom.
                    if u32::is_power_of_two(failures) {
                        tracing::warn!(
                            relay = self.name,
                            error = chain(&error),
                            failures,
                            "the broker is not ready, trying again"
                        );
                    }
                    waiting.because(&chain(&error));
                    if self.rests(pause, stop).await {
                        return Ok(None);
                    }
                }
            }
        }
    }

    async fn stopped_long_since(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        tokio::time::sleep(self.settings.drain).await;
    }

    /// Whether it was stopped meanwhile.
    async fn rests(&self, pause: Duration, stop: &CancellationToken) -> bool {
        tokio::select! {
            () = stop.cancelled() => true,
            () = tokio::time::sleep(pause) => false,
        }
    }
}

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    message::error_chain(error)
}
