//! Why a broker database cannot be reached. A pool alone tries for half a minute, and then says that it timed out.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};
use sqlx::{Connection, Postgres, pool::PoolConnection};
use tokio::time::{sleep, timeout};

/// A connection that has not come by then is looked into.
const WAIT: Duration = Duration::from_secs(1);
/// How long a server may take to answer at all.
const ANSWER: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug)]
pub(super) struct Unreachable {
    /// Host, port, database and cause.
    pub(super) text: String,
    /// The next try would fail in the same way: it was reached and does not let us in, or there is no such database.
    pub(super) is_final: bool,
}

/// A connection of `pool`, or why there is none.
pub(super) async fn acquire(pool: &PgPool) -> Result<PoolConnection<Postgres>, Unreachable> {
    tokio::select! {
        biased;
        acquired = pool.acquire() => acquired.map_err(|error| unreachable(pool, &error)),
        cause = cause(pool) => Err(cause),
    }
}

/// What a connection made beside the pool fails with; never, while it does not: then the pool is busy.
async fn cause(pool: &PgPool) -> Unreachable {
    loop {
        sleep(WAIT).await;
        match timeout(ANSWER, PgConnection::connect_with(&pool.connect_options())).await {
            Ok(Ok(connection)) => drop(connection.close().await),
            Ok(Err(error)) => return unreachable(pool, &error),
            Err(_) => {
                let text =
                    format!("{}: no answer within {}s", place(&pool.connect_options()), ANSWER.as_secs());
                return Unreachable { text, is_final: false };
            }
        }
    }
}

fn unreachable(pool: &PgPool, error: &sqlx::Error) -> Unreachable {
    let text = format!("{}: {}", place(&pool.connect_options()), text(error));
    Unreachable { text, is_final: is_final(error) }
}

/// Host, port and database: no user, no password.
fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or_default();
    format!("postgres {}:{}/{database}", options.get_host(), options.get_port())
}

/// The server's message and SQLSTATE, or what the network says. Nothing that may hold a part of a password.
fn text(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => {
            format!("{} ({})", error.message(), error.code().unwrap_or_default())
        }
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::Tls(error) => format!("TLS: {error}"),
        sqlx::Error::PoolTimedOut => "no connection is free".to_owned(),
        sqlx::Error::PoolClosed => "the pool is closed".to_owned(),
        _ => "the driver cannot connect".to_owned(),
    }
}

/// Password, authorization, no such database, no right to connect; TLS that one side lacks or does not trust.
fn is_final(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("28P01" | "28000" | "3D000" | "42501"))
        }
        sqlx::Error::Tls(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_shows_neither_user_nor_password() {
        let options: PgConnectOptions =
            "postgres://m4rker:m4rker@h:5/d?application_name=m4rker".parse().unwrap();
        assert_eq!(place(&options), "postgres h:5/d");
    }
}
