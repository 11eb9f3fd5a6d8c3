//! A pool whose connections never carry somebody else's transaction.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, Executor, Row};

use crate::statement::within;

const OUTSIDE_TRANSACTION: &str = include_str!("sql/outside_transaction.sql");

/// A connection that has not answered by then, before somebody uses it, will hardly do so: another is taken.
const ANSWER_BEFORE: Duration = Duration::from_secs(2);
/// The same, after nobody uses it any more: nobody waits for it.
const ANSWER_AFTER: Duration = Duration::from_secs(5);

/// The driver's options for a URL. Use these, and not the driver's own parser, where an address may be one of IPv6: sqlx 0.9.0 looks
/// for a host of the name `[::1]`, brackets and all.
///
/// # Errors
/// The URL is none, or the driver does not know one of its values. What it says of that may hold a part of a password: show it
/// to a person by [`error_chain`](message::error_chain) alone.
pub fn connect_options(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    let options: PgConnectOptions = url.parse()?;
    let host = options.get_host();
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).map(str::to_owned) {
        Some(address) => Ok(options.host(&address)),
        None => Ok(options),
    }
}

/// Options for the pool through which a service enqueues, a consumer handles and a relay reads.
///
/// In sqlx 0.9.0 a cancelled `pool.begin()` can leave a connection inside a transaction nobody owns
/// ([#4393](https://github.com/transact-rs/sqlx/issues/4393)); a later insert on it answers `Ok` and is lost. Here a
/// connection is asked whether it is outside any transaction when it comes back, and closed if not: one round trip
/// after the caller is done. One that does not answer in five seconds is closed, too, and does not stay the pool's for
/// ever.
///
/// An idle connection is asked whether it is alive before it is used, as sqlx does, but for two seconds at most: sqlx asks
/// for as long as [`acquire_timeout`](PgPoolOptions::acquire_timeout) lasts, so that a network that swallowed some
/// connections keeps others from being opened for half a minute each. A server that takes longer than that for nothing is
/// asked on a new connection.
///
/// Set your own `after_release` and `before_acquire` only if they do the same.
///
/// ```no_run
/// # async fn connect() -> Result<(), sqlx::Error> {
/// let pool = outbox::pool_options().max_connections(10).connect("postgres://localhost/orders").await?;
/// # Ok(()) }
/// ```
#[expect(clippy::disallowed_methods, reason = "here the guard is put in")]
pub fn pool_options() -> PgPoolOptions {
    PgPoolOptions::new()
        .test_before_acquire(false)
        .before_acquire(|connection, _| {
            Box::pin(async move {
                let answered = within(ANSWER_BEFORE, connection.ping()).await;
                if let Err(error) = &answered {
                    tracing::info!(
                        error = message::error_chain(error),
                        "an idle connection does not answer: another is taken"
                    );
                }
                Ok(answered.is_ok())
            })
        })
        .after_release(|connection, _| {
            Box::pin(async move {
                // The simple protocol: an extended one would itself be a transaction of two messages, with two times.
                let row = connection.fetch_one(sqlx::raw_sql(OUTSIDE_TRANSACTION));
                within(ANSWER_AFTER, row).await?.try_get(0)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ipv6_is_told_without_its_brackets() {
        let options = connect_options("postgres://app:secret@[::1]:7/orders").unwrap();
        assert_eq!((options.get_host(), options.get_port()), ("::1", 7));
        assert_eq!(connect_options("postgres://db/orders").unwrap().get_host(), "db");
    }
}
