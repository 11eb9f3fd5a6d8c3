//! One try of a message: its handler inside the transaction that admits it, and whose fault it is when that fails.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use message::Message;
use message::sqlstate::Fault;
use sqlx::{Connection, PgConnection, PgTransaction};
use tracing::{debug, warn};

use crate::consumer::Core;
use crate::handler::{Handle, HandlerError};
use crate::measure::{FAILED, PANICKED, REJECTED, SWALLOWED, TIMED_OUT};
use crate::outcome::{Blame, blame, fault, is_aborted, of_sqlstate};
use crate::report::{bounded, report, sqlstate};
use crate::statement::{self, is_named};

/// Why a try came to nothing.
#[derive(Debug)]
pub(crate) enum Setback {
    /// The message's fault or its handler's: counted.
    Failed(Failure),
    /// Two transactions met: tried again soon.
    Contention(String),
    /// The database's: tried again when it answers.
    Database(String),
    /// The message's: a statement of our own cannot carry what it holds. The same statement fails again.
    Unstorable(String),
}

impl Setback {
    /// For the operator.
    pub(crate) fn error(&self) -> &str {
        match self {
            Setback::Failed(failure) => &failure.error,
            Setback::Contention(error) | Setback::Database(error) | Setback::Unstorable(error) => error,
        }
    }
}

/// A try that counts.
#[derive(Debug)]
pub(crate) struct Failure {
    /// For the operator.
    pub(crate) error: String,
    /// Whether no further try would help.
    pub(crate) parks: bool,
    /// For the metrics.
    pub(crate) result: &'static str,
}

impl Failure {
    pub(crate) fn new(result: &'static str, error: &str) -> Self {
        Failure { error: bounded(error), parks: false, result }
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
}

/// A try that came to nothing.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) setback: Setback,
    /// Its connection may be in the middle of a statement, and to be ended.
    pub(crate) cut: bool,
}

impl From<Setback> for Broken {
    fn from(setback: Setback) -> Self {
        Broken { setback, cut: false }
    }
}

/// Calls the handler and makes sure that its transaction still stands: it is then to be [committed](commit), else rolled
/// back.
pub(crate) async fn attempt(
    core: &Core,
    handler: &dyn Handle,
    tx: &mut PgTransaction<'static>,
    message: &Message,
    admitted: &Admitted,
) -> Result<(), Broken> {
    let call = AssertUnwindSafe(handler.handle(tx, message)).catch_unwind();
    let broken = |failure| Broken { setback: Setback::Failed(failure), cut: true };
    match tokio::time::timeout(core.handler_timeout, call).await {
        Ok(Ok(Ok(()))) => match core.in_time(touch(tx, admitted)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(failed(SWALLOWED, "the handler ended the transaction it was given")),
            Err(error) if is_aborted(&error) => {
                Err(failed(SWALLOWED, "the handler passed over a statement that failed"))
            }
            Err(error) => Err(Setback::from(error).into()),
        },
        Ok(Ok(Err(error))) => Err(judge(&error, core.in_time(touch(tx, admitted)).await).into()),
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<&str>().copied();
            let text =
                text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
            Err(broken(Failure::new(PANICKED, &format!("the handler panicked: {text}"))))
        }
        Err(_) => {
            let error = format!("the handler took longer than {:?}", core.handler_timeout);
            Err(broken(Failure::new(TIMED_OUT, &error)))
        }
    }
}

fn failed(result: &'static str, error: &str) -> Broken {
    Setback::Failed(Failure::new(result, error)).into()
}

/// Whether the transaction is the one that admitted the message. The driver's commit would not tell (it answers `Ok` for
/// an aborted one).
async fn touch(tx: &mut PgTransaction<'_>, admitted: &Admitted) -> Result<bool, sqlx::Error> {
    let query = sqlx::query_scalar(include_str!("sql/touch.sql")).bind(&admitted.transaction);
    query.persistent(is_named(tx)).fetch_one(&mut **tx).await
}

/// A handler's error counts unless the database caused it: then the transaction's connection is lost too, or the error
/// says so by its SQLSTATE. That another server does not answer is the handler's affair.
fn judge(error: &HandlerError, standing: Result<bool, sqlx::Error>) -> Setback {
    match standing {
        Err(lost) if !is_aborted(&lost) => return lost.into(),
        _ => {}
    }
    let text = report(&*error.source);
    if error.parks {
        return Setback::Failed(Failure { error: text, parks: true, result: REJECTED });
    }
    match sqlstate(&*error.source).map(|code| of_sqlstate(&code)) {
        Some(Blame::Contention) => Setback::Contention(text),
        Some(Blame::Database) => Setback::Database(text),
        Some(Blame::Handler) | None => Setback::Failed(Failure { error: text, parks: false, result: FAILED }),
    }
}

/// Commits. A constraint or trigger that was deferred until now speaks for the handler. If the answer is lost, whether
/// it committed is unknown: the message is tried again, and admitted or a repeat.
pub(crate) async fn commit(core: &Core, tx: PgTransaction<'_>) -> Result<(), Setback> {
    core.in_time(tx.commit()).await.map_err(|error| match blame(&error) {
        Blame::Contention => Setback::Contention(report(&error)),
        Blame::Database => Setback::Database(report(&error)),
        Blame::Handler => Setback::Failed(Failure { error: report(&error), parks: false, result: FAILED }),
    })
}

/// Rolls back what failed. A `cut` backend is ended first, so that its locks are given up now and the next try does not
/// wait for them.
pub(crate) async fn abandon(core: &Core, tx: PgTransaction<'static>, cut: Option<i32>) {
    if let Some(backend) = cut {
        // While we hold its connection, no other backend can get its number. Not through the pool, which may have nothing
        // left to give.
        let ended = async {
            let mut other = PgConnection::connect_with(&core.pool.connect_options()).await?;
            let terminate = sqlx::query(include_str!("sql/terminate.sql")).bind(backend);
            statement::run(&mut other, terminate).await?;
            other.close().await
        };
        if let Err(error) = core.in_time(ended).await {
            let error = report(&error);
            warn!(consumer = %core.name, error, "a backend goes on with a statement nobody waits for");
            // The pool's task waits for the statement's end, and rolls back then.
            return;
        }
    }
    // A failure here means the connection is gone, and its transaction with it.
    if let Err(error) = core.in_time(tx.rollback()).await {
        debug!(consumer = %core.name, error = report(&error), "a connection was lost in a rollback");
    }
}
