//! One try of a message: its handler inside the transaction that admits it, and whose fault it is when that fails.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use message::Message;
use message::sqlstate::Fault;
use sqlx::{Connection, Executor, PgConnection, PgTransaction, Row};
use tracing::{debug, warn};

use crate::consumer::Core;
use crate::handler::{Handle, HandlerError};
use crate::measure::{FAILED, PANICKED, REJECTED, SWALLOWED, TIMED_OUT};
use crate::outcome::{Blame, blame, fault, is_aborted, is_lost, is_of_session, of_sqlstate};
use crate::report::{bounded, report, sqlstate};
use crate::statement::{self, is_named};

/// However late a handler answers, its transaction has so long to say whether it stands.
const STANDS_WITHIN: Duration = Duration::from_secs(5);
/// More statements than this are not given up by one handler while they run.
const GIVEN_UP: usize = 16;

/// Why a try came to nothing.
#[derive(Debug)]
pub(crate) enum Setback {
    /// The message's fault or its handler's: counted.
    Failed(Failure),
    /// Two transactions met: tried again soon.
    Contention(String),
    /// The database's: tried again when it answers.
    Database(String),
    /// The connection was lost while the handler, or its COMMIT, was under way: the database's, unless that happens again
    /// and again.
    Lost(String),
    /// The message's: a statement of our own cannot carry what it holds. The same statement fails again.
    Unstorable(String),
}

impl Setback {
    /// A message comes from the future by one of two clocks.
    pub(crate) fn clocks() -> Self {
        Setback::Database(
            "the clocks of the database and of this process differ: the message's id is from the future by the \
             database's, and not by the other"
                .to_owned(),
        )
    }

    /// For the operator.
    pub(crate) fn error(&self) -> &str {
        match self {
            Setback::Failed(failure) => &failure.error,
            Setback::Contention(error)
            | Setback::Database(error)
            | Setback::Lost(error)
            | Setback::Unstorable(error) => error,
        }
    }
}

/// A try that counts.
#[derive(Debug)]
pub(crate) struct Failure {
    /// For the operator.
    pub(crate) error: String,
    /// Whether no further try would help, or one is only made if a person says so.
    pub(crate) parks: bool,
    /// For the metrics.
    pub(crate) result: &'static str,
}

impl Failure {
    pub(crate) fn new(result: &'static str, error: &str) -> Self {
        Failure { error: bounded(error), parks: false, result }
    }

    /// Its effect may have been made outside of the transaction: it is not made again unless a person says so.
    fn outside(self) -> Self {
        const MAY_STAY: &str = "the transaction had ended before that, so what the handler wrote later may stay: look before it is tried again";
        Failure { error: bounded(&format!("{MAY_STAY}: {}", self.error)), parks: true, ..self }
    }
}

/// An error of a statement of our own never counts as a try. Only a value that it carries can be the message's fault.
impl From<sqlx::Error> for Setback {
    fn from(error: sqlx::Error) -> Self {
        match fault(&error) {
            Fault::Contention => Setback::Contention(report(&error)),
            Fault::Outage | Fault::Statement => Setback::Database(report(&error)),
            Fault::Value => Setback::Unstorable(report(&error)),
        }
    }
}

/// What admitted the message: the transaction, and the backend it runs on.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) transaction: Option<String>,
    pub(crate) backend: i32,
    /// What a statement of ours after the handler rests on (`retry.sql`); `None`: there is none.
    pub(crate) settings: Option<Vec<String>>,
}

/// A try that came to nothing.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) setback: Setback,
    pub(crate) backend: Backend,
}

/// What is known of the connection of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// It answers, or is gone.
    Answers,
    /// It may be in the middle of a statement that could not be ended.
    Busy,
}

impl From<Setback> for Broken {
    fn from(setback: Setback) -> Self {
        Broken { setback, backend: Backend::Answers }
    }
}

/// What has become of a transaction when its handler has answered.
enum Standing {
    /// It is the one that admitted the message. Whether the handler has set what a statement of ours after it rests on.
    Ours { changed: bool },
    /// A statement failed in it; its error, if the handler had not waited for it.
    Aborted(Option<sqlx::Error>),
    /// The handler ended it, or the driver did when the handler gave up waiting for a savepoint.
    Ended,
    /// Its connection is gone.
    Lost(sqlx::Error),
    /// There is no answer.
    Silent,
}

/// Calls the handler and makes sure that its transaction still stands: it is then to be [committed](commit), else rolled
/// back. Whether what the handler has set is to be [taken back](restore) before another statement of ours.
pub(crate) async fn attempt(
    core: &Core,
    handler: &dyn Handle,
    tx: &mut PgTransaction<'static>,
    message: &Message,
    admitted: &Admitted,
) -> Result<bool, Broken> {
    let begun = Instant::now();
    let call = AssertUnwindSafe(handler.handle(tx, message)).catch_unwind();
    let answered = match tokio::time::timeout(core.handler_timeout, call).await {
        Ok(Ok(answered)) => answered,
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<&str>().copied();
            let text =
                text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
            let failure = Failure::new(PANICKED, &format!("the handler panicked: {text}"));
            return Err(cut_off(core, tx.is_in_transaction(), admitted, failure).await);
        }
        Err(_) => {
            let error = format!("the handler took longer than {:?}", core.handler_timeout);
            return Err(
                cut_off(core, tx.is_in_transaction(), admitted, Failure::new(TIMED_OUT, &error)).await
            );
        }
    };
    // A statement that the handler gave up may go on: within the handler's time, and no longer.
    let rest = core.handler_timeout.saturating_sub(begun.elapsed()).max(STANDS_WITHIN);
    let standing = tokio::time::timeout(rest, standing(tx, admitted)).await.unwrap_or(Standing::Silent);
    match (standing, answered) {
        (Standing::Ours { changed }, Ok(())) => Ok(changed),
        (Standing::Ours { .. }, Err(error)) => Err(judge(&error, true).into()),
        (Standing::Aborted(error), Ok(())) => Err(passed_over(error.as_ref()).into()),
        (Standing::Aborted(_), Err(error)) => Err(judge(&error, false).into()),
        (Standing::Lost(lost), _) => Err(Setback::Lost(report(&lost)).into()),
        (Standing::Ended, answered) => Err(ended(core, tx, admitted, answered.err()).await),
        (Standing::Silent, answered) => Err(silent(core, admitted, answered.err()).await),
    }
}

/// Asks the transaction. Before that come the answers to what the handler gave up: none of those is our statement's.
async fn standing(tx: &mut PgTransaction<'_>, admitted: &Admitted) -> Standing {
    let mut given_up = None;
    for _ in 0..GIVEN_UP {
        match touch(tx, admitted).await {
            Ok((true, changed)) => return Standing::Ours { changed },
            Ok((false, _)) => return Standing::Ended,
            Err(error) if is_aborted(&error) => break,
            Err(error) if is_lost(&error) => return Standing::Lost(error),
            Err(error) => given_up = given_up.or(Some(error)),
        }
    }
    Standing::Aborted(given_up)
}

/// Whether the transaction is the one that admitted the message, and whether the handler has changed its settings. The
/// driver's commit would not tell (it answers `Ok` for an aborted one).
async fn touch(tx: &mut PgTransaction<'_>, admitted: &Admitted) -> Result<(bool, bool), sqlx::Error> {
    let query =
        sqlx::query(include_str!("sql/touch.sql")).bind(&admitted.transaction).bind(&admitted.settings);
    let row = query.persistent(is_named(tx)).fetch_one(&mut **tx).await?;
    Ok((row.try_get("same")?, row.try_get("changed")?))
}

/// The handler says that all is well, and a statement of its transaction has failed.
fn passed_over(error: Option<&sqlx::Error>) -> Setback {
    const PASSED_OVER: &str = "the handler passed over a statement that failed";
    let Some(error) = error else { return Setback::Failed(Failure::new(SWALLOWED, PASSED_OVER)) };
    let text = format!("{PASSED_OVER}: {}", report(error));
    match blame(error) {
        Blame::Contention => Setback::Contention(text),
        Blame::Database => Setback::Database(text),
        Blame::Handler => Setback::Failed(Failure::new(SWALLOWED, &text)),
    }
}

/// A handler's error counts unless the database caused it: it says so by its SQLSTATE. While the transaction stands, an
/// error that ends a session was another server's, which is the handler's affair.
fn judge(error: &HandlerError, stands: bool) -> Setback {
    let text = report(&*error.source);
    if error.parks {
        return Setback::Failed(Failure { error: text, parks: true, result: REJECTED });
    }
    let code = sqlstate(&*error.source).filter(|code| !stands || !is_of_session(code));
    match code.map(|code| of_sqlstate(&code)) {
        Some(Blame::Contention) => Setback::Contention(text),
        Some(Blame::Database) => Setback::Database(text),
        Some(Blame::Handler) | None => Setback::Failed(Failure { error: text, parks: false, result: FAILED }),
    }
}

/// The handler has not answered, and is called no more.
async fn cut_off(core: &Core, is_open: bool, admitted: &Admitted, failure: Failure) -> Broken {
    let was = end(core, admitted).await;
    let strayed = match &was {
        Ok(was) => was.strayed(is_open),
        Err(_) => !is_open,
    };
    let failure = if strayed { failure.outside() } else { failure };
    Broken { setback: Setback::Failed(failure), backend: after(&was) }
}

/// The handler has answered, and its transaction is another one, or none.
async fn ended(
    core: &Core,
    tx: &mut PgTransaction<'_>,
    admitted: &Admitted,
    error: Option<HandlerError>,
) -> Broken {
    const ENDED: &str = "the handler ended the transaction it was given";
    let text = error.as_ref().map(|error| format!("{ENDED}: {}", report(&*error.source)));
    let failure = Failure::new(SWALLOWED, text.as_deref().unwrap_or(ENDED));
    let failure = Failure { parks: error.is_some_and(|error| error.parks), ..failure };
    let was = end(core, admitted).await;
    let failure = match &was {
        Ok(was) if !was.strayed(false) => failure,
        _ => failure.outside(),
    };
    // The driver may know of none, and would leave it open.
    let rolled_back = core.in_time(tx.execute(include_str!("sql/rollback.sql"))).await;
    let backend = if rolled_back.is_ok() { Backend::Answers } else { Backend::Busy };
    Broken { setback: Setback::Failed(failure), backend }
}

/// The handler has answered, and its connection does not.
async fn silent(core: &Core, admitted: &Admitted, error: Option<HandlerError>) -> Broken {
    const GOES_ON: &str = "the handler passed over a statement that goes on";
    let was = end(core, admitted).await;
    let setback = match (&was, error) {
        (Ok(Was { active: true, .. }), Some(error)) => judge(&error, true),
        (Ok(Was { active: true, .. }), None) => Setback::Failed(Failure::new(TIMED_OUT, GOES_ON)),
        _ => Setback::Database("a handler's connection does not answer".to_owned()),
    };
    Broken { setback, backend: after(&was) }
}

/// What a backend was at.
struct Was {
    alive: bool,
    active: bool,
    failed: bool,
    stands: Option<bool>,
    guarded: bool,
}

impl Was {
    /// Whether a statement may have been committed by itself: its backend lives, and the transaction is over without effect.
    /// One in which a statement failed is not over before its ROLLBACK; if the server does not say, the driver may know.
    fn strayed(&self, is_open: bool) -> bool {
        self.alive && self.failed && !self.stands.unwrap_or(is_open) && !self.guarded
    }
}

fn after(was: &Result<Was, sqlx::Error>) -> Backend {
    if was.is_ok() { Backend::Answers } else { Backend::Busy }
}

/// Ends the backend of a try if it is still at its transaction, so that its locks are given up now and the next try does not
/// wait for them.
async fn end(core: &Core, admitted: &Admitted) -> Result<Was, sqlx::Error> {
    // Not through the pool, which may have nothing left to give.
    let ended = async {
        let mut other = PgConnection::connect_with(&core.pool.connect_options()).await?;
        let terminate = sqlx::query(include_str!("sql/terminate.sql"));
        let terminate = terminate.bind(admitted.backend).bind(&admitted.transaction);
        let row = statement::row(&mut other, terminate).await?;
        other.close().await?;
        Ok(Was {
            alive: row.try_get("alive")?,
            active: row.try_get("active")?,
            failed: row.try_get("failed")?,
            stands: row.try_get("stands")?,
            guarded: row.try_get("guarded")?,
        })
    };
    let ended: Result<Was, sqlx::Error> = core.in_time(ended).await;
    if let Err(error) = &ended {
        let error = report(error);
        warn!(consumer = %core.name, error, "a backend goes on with a statement nobody waits for");
    }
    ended
}

/// Takes back what the handler has set in its transaction, so that our next statement does not depend on it.
pub(crate) async fn restore(
    core: &Core,
    tx: &mut PgTransaction<'_>,
    admitted: &Admitted,
) -> Result<(), Setback> {
    core.in_time(tx.execute(include_str!("sql/fire.sql"))).await.map_err(|error| at_commit(&error))?;
    let restore = sqlx::query(include_str!("sql/restore.sql")).bind(&admitted.settings);
    let restored = core.in_time(restore.persistent(is_named(tx)).execute(&mut **tx)).await;
    restored.map(|_| ()).map_err(|error| match blame(&error) {
        Blame::Handler => {
            let text = format!(
                "what the handler has set in its transaction cannot be taken back: {}",
                report(&error)
            );
            Setback::Failed(Failure::new(FAILED, &text))
        }
        Blame::Contention | Blame::Database => error.into(),
    })
}

/// Commits. A constraint or trigger that was deferred until now speaks for the handler. If the answer is lost, whether
/// it committed is unknown: the message is tried again, and admitted or a repeat.
pub(crate) async fn commit(core: &Core, tx: PgTransaction<'_>) -> Result<(), Setback> {
    core.in_time(tx.commit()).await.map_err(|error| at_commit(&error))
}

fn at_commit(error: &sqlx::Error) -> Setback {
    match blame(error) {
        Blame::Contention => Setback::Contention(report(error)),
        Blame::Database if is_lost(error) => Setback::Lost(report(error)),
        Blame::Database => Setback::Database(report(error)),
        Blame::Handler => Setback::Failed(Failure { error: report(error), parks: false, result: FAILED }),
    }
}

/// Rolls back what failed.
pub(crate) async fn abandon(core: &Core, tx: PgTransaction<'static>, backend: Backend) {
    if backend == Backend::Busy {
        // The pool's task waits for the statement's end, and rolls back then.
        return;
    }
    // A failure here means the connection is gone, and its transaction with it.
    if let Err(error) = core.in_time(tx.rollback()).await {
        debug!(consumer = %core.name, error = report(&error), "a connection was lost in a rollback");
    }
}
