//! The messages of a held key, tried in order until the key is free: one process at a time, each try counted before it
//! begins.

use std::sync::LazyLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use sqlx::Row;
use sqlx::postgres::PgRow;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::admit::comes_from_another_source;
use crate::attempt::{Admitted, Broken, Failure, Setback, abandon, attempt, commit, restore};
use crate::consumer::{Core, IN_PLACE};
use crate::day::ByDay;
use crate::hold::milliseconds;
use crate::horizon::{Refusal, Unfit};
use crate::measure;
use crate::patience::{self, Patience};
use crate::postpone::{Postponed, lost_each_time, postpone, suspect};
use crate::report::report;
use crate::statement::{self, begin_on_pool, is_named};
use crate::stored::HeldMessage;

static RETRY: LazyLock<ByDay> = LazyLock::new(|| ByDay::new(include_str!("sql/retry.sql")));

/// A held key that this process may try, and its first message.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) hold: i64,
    /// With this try.
    pub(crate) attempts: i32,
    pub(crate) last_error: String,
    /// `None`: nothing waits.
    pub(crate) first: Option<HeldMessage>,
    /// Whether this process tries nothing else meanwhile.
    alone: bool,
}

/// What a retry's transaction came to.
enum Step {
    /// Committed; the next message of the key, counted as tried.
    Next(Box<Claim>),
    /// Committed; nothing waits in the key, and it is to be released.
    Emptied,
    /// Committed; nothing waited in the key, and it is released.
    Released,
    /// Another process has the key.
    Lost,
    /// Not to be admitted, though a person may have asked for it.
    Refused(Refusal),
}

/// What a claim found.
#[derive(Debug, Default)]
pub(crate) struct Claimed {
    pub(crate) claims: Vec<Claim>,
    /// Whether more keys may be due.
    pub(crate) more: bool,
    /// Whether a key is due that [`claim_alone`] takes.
    pub(crate) quarantined: bool,
}

/// Takes up to `limit` held keys that are due.
pub(crate) async fn claim(core: &Core, limit: usize) -> Result<Claimed, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/claim.sql"))
        .bind(&*core.name)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(milliseconds(core.try_time()))
        .bind(&core.kinds)
        .bind(core.process.id);
    // A crash of the server that forgets the claim ends its tries, too.
    let rows = statement::first_rows_without_flush(&core.pool, query).await?;
    let (mut claimed, mut suspects) = (Claimed::default(), false);
    for row in &rows {
        (claimed.more, claimed.quarantined) = (row.try_get("more")?, row.try_get("unfinished")?);
        suspects = row.try_get("suspects")?;
        if row.try_get::<Option<i64>, _>("hold")?.is_some() {
            claimed.claims.push(Claim::from_row(row)?);
        }
    }
    if suspects && !claimed.quarantined {
        let query = sqlx::query(include_str!("sql/quarantine_due.sql")).bind(&*core.name).bind(&core.kinds);
        // What was claimed is to be tried all the same; the next claim asks again.
        claimed.quarantined = match statement::row_without_flush(&core.pool, query).await {
            Ok(row) => row.try_get("due")?,
            Err(_) => false,
        };
    }
    Ok(claimed)
}

/// Takes one held key that is due and whose first message is in quarantine.
pub(crate) async fn claim_alone(core: &Core) -> Result<Option<Claim>, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/claim_alone.sql"))
        .bind(&*core.name)
        .bind(milliseconds(core.try_time()))
        .bind(&core.kinds)
        .bind(core.process.id);
    let claimed = statement::rows_without_flush(&core.pool, query).await?;
    let claimed = claimed.first().map(Claim::from_row).transpose()?;
    Ok(claimed.map(|claim| Claim { alone: true, ..claim }))
}

/// What has become of a held key after a try.
pub(crate) enum Tried {
    /// Its next message is counted as tried.
    Next(Box<Claim>),
    /// Nothing waits in it: to be released.
    Emptied(i64),
    /// It waits, or is released, or another process has it.
    Ended,
}

/// Tries the messages of a held key, one after the other, until one fails, none is left, the consumer stops, or one of
/// `yields` is for it. Answers with the key if nothing waits in it.
pub(crate) async fn drain(core: &Core, claim: Claim, yields: &AtomicUsize) -> Option<i64> {
    let mut next = claim;
    loop {
        match try_first(core, next).await {
            Tried::Next(claim) => next = *claim,
            Tried::Emptied(hold) => return Some(hold),
            Tried::Ended => return None,
        }
        if yields.fetch_update(Relaxed, Relaxed, |yields| yields.checked_sub(1)).is_ok() {
            postpone(core, &next, Postponed::Uncounted(Duration::ZERO)).await;
            return None;
        }
    }
}

/// Tries the first message of a held key.
pub(crate) async fn try_first(core: &Core, claim: Claim) -> Tried {
    let Some(first) = &claim.first else { return Tried::Emptied(claim.hold) };
    let id = first.received.as_ref().map(|message| message.id.to_string()).unwrap_or_default();
    let span = info_span!("handle", consumer = %core.name, message = id, attempt = claim.attempts);
    one(core, &claim, first).instrument(span).await
}

async fn one(core: &Core, claim: &Claim, first: &HeldMessage) -> Tried {
    let mut patience = Patience::within(IN_PLACE);
    if core.stop.is_cancelled() {
        postpone(core, claim, Postponed::Uncounted(Duration::ZERO)).await;
        return Tried::Ended;
    }
    let kind = first.received.as_ref().ok().map(|message| &*message.kind);
    if kind.is_some_and(|kind| !core.handlers.contains_key(kind)) {
        // A process that has the handler takes it now; this one claims no such key.
        postpone(core, claim, Postponed::Uncounted(Duration::ZERO)).await;
        return Tried::Ended;
    }
    // The process has ended during the last try that it was granted, or fewer are granted now.
    if u32::try_from(claim.attempts).unwrap_or(0) > core.max_attempts {
        postpone(core, claim, Postponed::UsedUp).await;
        return Tried::Ended;
    }
    loop {
        match once(core, claim, first).await {
            Ok(Step::Next(next)) => return Tried::Next(next),
            Ok(Step::Emptied) => return Tried::Emptied(claim.hold),
            Ok(Step::Released) => return Tried::Ended,
            Ok(Step::Lost) => {
                debug!(consumer = %core.name, hold = claim.hold, "another process has the held key");
                return Tried::Ended;
            }
            Ok(Step::Refused(Refusal::AnotherSource)) if set_aside(core, claim, first).await => {
                return Tried::Ended;
            }
            Ok(Step::Refused(refusal)) => {
                let failure = Failure::new(measure::REFUSED, &refusal.to_string());
                postpone(core, claim, Postponed::Refused(&failure)).await;
                return Tried::Ended;
            }
            Err(Setback::Failed(failure)) => {
                let parks = failure.parks || u32::try_from(claim.attempts).unwrap_or(0) >= core.max_attempts;
                let next = if parks { Postponed::Parked(&failure) } else { Postponed::Retrying(&failure) };
                postpone(core, claim, next).await;
                return Tried::Ended;
            }
            Err(Setback::Unstorable(error)) => {
                let failure = Failure::new(measure::UNSTORABLE, &error);
                postpone(core, claim, Postponed::Parked(&failure)).await;
                return Tried::Ended;
            }
            Err(setback @ Setback::Lost(_)) if claim.alone => {
                patience::count(core, &setback);
                let error =
                    format!("the connection was lost while nothing else was tried: {}", setback.error());
                let failure = Failure::new(measure::LOST, &error);
                let parks = u32::try_from(claim.attempts).unwrap_or(0) >= core.max_attempts;
                let next = if parks { Postponed::Parked(&failure) } else { Postponed::Retrying(&failure) };
                postpone(core, claim, next).await;
                return Tried::Ended;
            }
            Err(setback) => {
                patience::count(core, &setback);
                let message = first.received.as_ref().ok().map(|message| message.id);
                if patience.is_suspicious(&setback)
                    && let Some(message) = message
                    && suspect(core, message).await
                {
                    postpone(core, claim, Postponed::Suspected(&lost_each_time(&setback))).await;
                    return Tried::Ended;
                }
                if patience.is_over(&setback) {
                    postpone(core, claim, Postponed::Again(&setback, first.received_at)).await;
                    return Tried::Ended;
                }
                if !patience.wait(core, &setback).await {
                    postpone(core, claim, Postponed::Uncounted(Duration::ZERO)).await;
                    return Tried::Ended;
                }
            }
        }
    }
}

/// One transaction: the key's lock, the message's admission, its handler, the step to the next one, the commit.
async fn once(core: &Core, claim: &Claim, first: &HeldMessage) -> Result<Step, Setback> {
    let Ok(message) = &first.received else {
        let reason = &claim.last_error;
        return Err(Setback::Failed(Failure { parks: true, ..Failure::new(measure::MALFORMED, reason) }));
    };
    let Some(handler) = core.handlers.get(&*message.kind) else {
        return Ok(Step::Lost);
    };
    match core.horizon.not_ahead(message.id, core.process.clocks()) {
        Ok(()) => {}
        Err(Unfit::Refused(refusal)) => return Ok(Step::Refused(refusal)),
        Err(Unfit::Clocks) => return Err(Setback::clocks()),
    }
    let made_at = message.id.made_at();
    let begun = Instant::now();
    // A handler may be silent for as long as it may take; a process that stands still, not longer.
    let mut tx = core.in_time(begin_on_pool(core.pool.clone(), core.try_time(), core.isolation)).await?;
    let retry = sqlx::query(RETRY.of(made_at))
        .bind(&*core.name)
        .bind(claim.hold)
        .bind(claim.attempts)
        .bind(first.arrival)
        .bind(message.id.as_uuid())
        .bind(made_at)
        .bind(first.late)
        .bind(message.source.as_deref())
        .bind(core.process.id)
        .persistent(is_named(&tx));
    let Some(row) = core.in_time(retry.fetch_optional(&mut *tx)).await? else {
        core.in_time(tx.rollback()).await?;
        return Ok(Step::Lost);
    };
    let first_copy: bool = row.try_get("first")?;
    let refusal = if row.try_get("another_source")? {
        Some(Refusal::AnotherSource)
    } else if row.try_get("too_old")? {
        Some(Refusal::TooOld)
    } else if !first_copy && core.in_time(comes_from_another_source(&mut tx, &core.name, message)).await? {
        Some(Refusal::AnotherSource)
    } else {
        None
    };
    if let Some(refusal) = refusal {
        core.in_time(tx.rollback()).await?;
        return Ok(Step::Refused(refusal));
    }
    if first_copy {
        let (transaction, backend) = (row.try_get("transaction")?, row.try_get("backend")?);
        let admitted = Admitted { transaction, backend, settings: Some(row.try_get("settings")?) };
        let handled = match attempt(core, &**handler, &mut tx, message, &admitted).await {
            Ok(true) => restore(core, &mut tx, &admitted).await.map_err(Broken::from),
            Ok(false) => Ok(()),
            Err(broken) => Err(broken),
        };
        if let Err(broken) = handled {
            abandon(core, tx, broken.backend).await;
            return Err(broken.setback);
        }
    }
    let advance = sqlx::query(include_str!("sql/advance.sql"))
        .bind(&*core.name)
        .bind(claim.hold)
        .bind(first.arrival)
        .bind(milliseconds(core.try_time()))
        .persistent(is_named(&tx));
    let row =
        core.in_time(advance.fetch_one(&mut *tx)).await.map_err(|error| match is_appended_to(&error) {
            true => Setback::Contention(report(&error)),
            false => error.into(),
        })?;
    let next = Claim::from_row(&row)?;
    let step = match (row.try_get("released")?, &next.first) {
        (true, _) => Step::Released,
        (false, Some(_)) => Step::Next(Box::new(next)),
        (false, None) => Step::Emptied,
    };
    commit(core, tx).await?;
    if first_copy {
        measure::handled(&core.name, begun.elapsed());
    } else {
        measure::count(&core.name, measure::REPEAT);
    }
    Ok(step)
}

/// Whether a key could not be released because a message has been appended to it meanwhile.
fn is_appended_to(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.is_foreign_key_violation())
}

/// Releases held keys in which nothing waits. Those to which something has been appended meanwhile are due at once.
pub(crate) async fn release(core: &Core, holds: &[i64]) {
    let release = async {
        // Not in a try's transaction: appenders would wait for its handler.
        let mut tx = statement::begin_without_flush(&core.pool).await?;
        let lock = sqlx::query_scalar(include_str!("sql/release_lock_all.sql")).bind(&*core.name).bind(holds);
        let locked: Vec<i64> = lock.persistent(is_named(&tx)).fetch_all(&mut *tx).await?;
        let release = sqlx::query_scalar(include_str!("sql/release_all.sql"))
            .bind(&*core.name)
            .bind(locked)
            .bind(core.process.id);
        let released: i64 = release.persistent(is_named(&tx)).fetch_one(&mut *tx).await?;
        // What a crash of the server forgets is found due, and released then.
        tx.commit().await?;
        Ok::<i64, sqlx::Error>(released)
    };
    match core.in_time(release).await {
        Ok(released) => info!(consumer = %core.name, keys = holds.len(), released, "held keys are done with"),
        Err(error) => debug!(consumer = %core.name, error = report(&error), "held keys are released later"),
    }
}

/// Parks a message alone whose id is known from another source, so that its key goes on. Whether that was done.
async fn set_aside(core: &Core, claim: &Claim, first: &HeldMessage) -> bool {
    let refusal = Refusal::AnotherSource.to_string();
    let query = sqlx::query(include_str!("sql/set_aside.sql"))
        .bind(&*core.name)
        .bind(claim.hold)
        .bind(claim.attempts)
        .bind(first.arrival)
        .bind(&refusal)
        .bind(core.process.id);
    // Otherwise its key is parked with it, and a person's redrive sets it aside.
    let done = match core.in_time(statement::row(&core.pool, query)).await {
        Ok(row) => row.try_get("done").unwrap_or(false),
        Err(error) => {
            debug!(consumer = %core.name, hold = claim.hold, error = report(&error), "a message could not be parked alone");
            false
        }
    };
    if done {
        warn!(consumer = %core.name, hold = claim.hold, refusal, "message refused and parked");
        measure::count(&core.name, measure::REFUSED);
    }
    done
}

impl Claim {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let arrival: Option<i64> = row.try_get("arrival")?;
        Ok(Claim {
            hold: row.try_get("hold")?,
            attempts: row.try_get("attempts")?,
            last_error: row.try_get("last_error")?,
            first: arrival.map(|_| HeldMessage::from_row(row)).transpose()?,
            alone: false,
        })
    }
}
