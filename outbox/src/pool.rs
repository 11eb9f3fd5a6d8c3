//! A pool whose connections never carry somebody else's transaction.

use std::io;
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, Row};

const OUTSIDE_TRANSACTION: &str = include_str!("sql/outside_transaction.sql");

/// A connection that has not answered by then, after nobody uses it any more, will hardly do so.
const ANSWER: Duration = Duration::from_secs(5);

/// Options for the pool through which a service enqueues, a consumer handles and a relay reads.
///
/// In sqlx 0.9.0 a cancelled `pool.begin()` can leave a connection inside a transaction nobody owns
/// ([#4393](https://github.com/transact-rs/sqlx/issues/4393)); a later insert on it answers `Ok` and is lost. Here a
/// connection is asked whether it is outside any transaction when it comes back, and closed if not: one round trip
/// after the caller is done. One that does not answer in five seconds is closed, too, and does not stay the pool's for
/// ever. Set your own `after_release` only if it does the same.
///
/// ```no_run
/// # async fn connect() -> Result<(), sqlx::Error> {
/// let pool = outbox::pool_options().max_connections(10).connect("postgres://localhost/orders").await?;
/// # Ok(()) }
/// ```
pub fn pool_options() -> PgPoolOptions {
    PgPoolOptions::new().after_release(|connection, _| {
        Box::pin(async move {
            // The simple protocol: an extended one would itself be a transaction of two messages, with two times.
            let row = connection.fetch_one(sqlx::raw_sql(OUTSIDE_TRANSACTION));
            let late = |_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()));
            let row = tokio::time::timeout(ANSWER, row).await.unwrap_or_else(late)?;
            row.try_get(0)
        })
    })
}
