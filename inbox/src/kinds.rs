//! Which kinds some process of a consumer handles, and what becomes of a message whose kind this process does not.
//!
//! While a new build is rolled out, old processes receive what only new ones handle. Every process registers its kinds, so
//! an old one can tell: what another process has registered is held for it, in order for its key, and counts as no attempt;
//! only what none has registered is acknowledged and counted.
//!
//! "None" is believed for [`BELIEVED`]. A process that registers a new kind is [ready](crate::Ready) that much later at the
//! soonest: by then no process believes that the kind is unknown.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use message::Message;
use sqlx::Row;
use tokio::sync::{oneshot, watch};
use tracing::{debug, info, warn};

use crate::apply::{Applied, insist, park_refused};
use crate::attempt::Setback;
use crate::consumer::Core;
use crate::hold::{Hold, milliseconds};
use crate::horizon::Unfit;
use crate::measure;
use crate::patience::{self, Patience};
use crate::report::report;
use crate::statement;
use crate::stored::Body;

/// How long an answer about registered kinds is used before the database is asked again.
pub(crate) const BELIEVED: Duration = Duration::from_secs(5);
/// No held key is due later than that, unless a consumer's longest wait is as long.
const LATEST: Duration = Duration::from_secs(3_600);
/// Kinds that are named in the log when a message of them is dropped. A bound on memory: kinds come from outside.
const NAMED: usize = 1_000;

/// What a process knows about kinds that it does not handle.
#[derive(Debug, Default)]
pub(crate) struct Kinds {
    registered: tokio::sync::Mutex<Option<Registered>>,
    named: std::sync::Mutex<HashSet<Arc<str>>>,
}

#[derive(Debug)]
struct Registered {
    kinds: HashSet<String>,
    /// Before the statement was sent: what was committed by then is in `kinds`.
    asked: Instant,
}

impl Kinds {
    /// Whether a process of this consumer has registered the kind. One statement every [`BELIEVED`] at most, whatever the
    /// number of kinds and of messages.
    async fn is_registered(&self, core: &Core, kind: &str) -> Result<bool, sqlx::Error> {
        // Held across the statement: tasks that ask at the same time use one answer.
        let mut registered = self.registered.lock().await;
        if let Some(known) = registered.as_ref().filter(|known| known.asked.elapsed() < BELIEVED) {
            return Ok(known.kinds.contains(kind));
        }
        let asked = Instant::now();
        let query = sqlx::query(include_str!("sql/registered_kinds.sql")).bind(&*core.name);
        let rows = statement::rows(&core.pool, query).await?;
        let kinds = rows.iter().map(|row| row.try_get("kind")).collect::<Result<HashSet<String>, _>>()?;
        let found = kinds.contains(kind);
        *registered = Some(Registered { kinds, asked });
        Ok(found)
    }

    #[cfg(test)]
    pub(crate) async fn believe_that_none_is_registered(&self) {
        *self.registered.lock().await = Some(Registered { kinds: HashSet::new(), asked: Instant::now() });
    }

    /// Whether this is the first message of that kind that is dropped.
    fn is_news(&self, kind: &Arc<str>) -> bool {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.len() < NAMED && named.insert(kind.clone())
    }
}

/// Registers the kinds of this process, and that it still handles them. Whether another process may believe that one of
/// them is unknown.
pub(crate) async fn register(core: &Core) -> Result<bool, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/register_kinds.sql")).bind(&*core.name).bind(&core.kinds);
    statement::row(&core.pool, query).await?.try_get("is_new")
}

/// From time to time.
pub(crate) async fn refresh(core: &Core) {
    if let Err(error) = core.in_time(register(core)).await {
        debug!(consumer = %core.name, error = report(&error), "kinds could not be registered again");
    }
    // Another process may wait longer.
    let longest = core.backoff.longest().saturating_mul(2).max(LATEST);
    let recall = sqlx::query(include_str!("sql/recall.sql")).bind(&*core.name).bind(milliseconds(longest));
    match core.in_time(statement::run(&core.pool, recall)).await {
        Ok(0) => {}
        Ok(keys) => warn!(
            consumer = %core.name, keys,
            "held keys were due later than any can be: the database's clock was ahead; they are due now"
        ),
        Err(error) => {
            debug!(consumer = %core.name, error = report(&error), "held keys could not be looked at")
        }
    }
}

/// Reports that the consumer is ready, once every process knows its kinds and its group has its place at the broker.
pub(crate) async fn report_ready(
    ready: watch::Sender<bool>,
    consumer: Arc<str>,
    is_new: bool,
    subscribed: oneshot::Receiver<()>,
) {
    if is_new {
        tokio::time::sleep(BELIEVED).await;
    }
    if subscribed.await.is_err() {
        return;
    }
    info!(%consumer, "consumer ready");
    ready.send_replace(true);
}

/// What becomes of a message whose kind this process does not handle.
pub(crate) async fn unhandled(core: &Core, message: &Message, received: Instant) -> Applied {
    let mut patience = Patience::default();
    let is_registered = loop {
        match core.in_time(core.other_kinds.is_registered(core, &message.kind)).await {
            Ok(is_registered) => break is_registered,
            Err(error) => {
                let setback = Setback::from(error);
                patience::count(core, &setback);
                if !patience.wait(core, &setback).await {
                    return Applied::GivenUp;
                }
            }
        }
    };
    if !is_registered {
        measure::count(&core.name, measure::UNHANDLED);
        if core.other_kinds.is_news(&message.kind) {
            info!(
                consumer = %core.name, kind = %message.kind,
                "no process of the consumer handles this kind; its messages are acknowledged and counted as unhandled"
            );
        }
        return Applied::Done;
    }
    // As before a first try: the process that takes it over from the database relies on it, but asks its clocks again.
    if let Err(Unfit::Refused(refusal)) = core.horizon.date_by(message.id, core.process.clocks()) {
        return park_refused(core, message, refusal, received).await;
    }
    measure::count(&core.name, measure::HELD);
    debug!(consumer = %core.name, message = %message.id, kind = %message.kind, "held for a process that handles its kind");
    let error = "held for another process of this consumer, which handles its kind";
    let held = Hold { delay: Some(Duration::ZERO), ..Hold::parked(message.key.as_deref(), error) };
    insist(core, &held, Body::Message(message), received).await
}
