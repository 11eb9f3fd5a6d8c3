//! Which database, and a connection to it. A password never comes from the command line, where every process of the
//! machine can read it, and never leaves through an error.

use std::time::Duration;

use inbox::admin::DecisionError;
use outbox::admin::AdminError;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};
use sqlx::{ConnectOptions, Connection};

use crate::exit::{Failure, chain};
use crate::secret::SecretUrl;
use crate::suggest;

/// The variable that names the database when nothing else does.
pub(crate) const VARIABLE: &str = "DATABASE_URL";

/// Begins what only reads, on one server connection also behind a pooler, whatever isolation level a role has by default.
pub(crate) const BEGIN_READING: &str = include_str!("sql/begin_reading.sql");

/// How long a server may take to answer at all.
const CONNECT: Duration = Duration::from_secs(10);

/// Longest file that is taken for one that holds a URL.
const URL_BYTES: usize = 16_384;

/// The parameters the driver knows. It would log the value of any other, which may be a misspelt password.
const PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// The database that `--database` or else the environment names.
pub(crate) fn named(flag: Option<&str>) -> Result<SecretUrl, Failure> {
    match flag {
        Some(argument) => from_argument("--database", argument),
        None => match variable(VARIABLE)? {
            Some(url) => Ok(SecretUrl::new(url)),
            None => Err(Failure::usage(format!(
                "no database: set {VARIABLE}, or give --database a URL without a password or @FILE"
            ))),
        },
    }
}

/// What an argument names: `@FILE`, `env:NAME`, or a URL without a secret.
pub(crate) fn from_argument(flag: &str, argument: &str) -> Result<SecretUrl, Failure> {
    if let Some(path) = argument.strip_prefix('@') {
        return from_file(path).map_err(|failure| failure.within(flag));
    }
    if let Some(name) = argument.strip_prefix("env:") {
        return variable(name)?
            .map(SecretUrl::new)
            .ok_or_else(|| Failure::usage(format!("{flag}: the environment holds no {name}")));
    }
    let url = SecretUrl::new(argument);
    if url.holds_secret() {
        let variable = if flag == "--database" { format!("{VARIABLE} or ") } else { String::new() };
        return Err(Failure::usage(format!(
            "{flag}: the URL holds a password, and every process of this machine can read a command line; put it into \
             {variable}a file ({flag} @FILE), or a variable ({flag} env:NAME)"
        )));
    }
    Ok(url)
}

/// A variable of the environment; empty counts as absent.
pub(crate) fn variable(name: &str) -> Result<Option<String>, Failure> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(Failure::usage(format!("{name}: not UTF-8"))),
    }
}

fn from_file(path: &str) -> Result<SecretUrl, Failure> {
    let text = crate::text_file::read(path.as_ref(), URL_BYTES)?;
    let url = text.trim_end_matches(['\r', '\n']);
    if url.lines().count() != 1 {
        return Err(Failure::usage(format!("{path}: must hold one line, the URL")));
    }
    Ok(SecretUrl::new(url))
}

/// The driver's options for a URL.
pub(crate) fn options(url: &SecretUrl, purpose: &str) -> Result<PgConnectOptions, Failure> {
    let text = url.expose();
    if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
        return Err(Failure::usage(format!("database {url}: must begin with postgres:// or postgresql://")));
    }
    for parameter in url.parameters() {
        if !PARAMETERS.contains(&parameter.as_str()) && !parameter.starts_with("options[") {
            let hint = suggest::hint(&parameter, PARAMETERS);
            return Err(Failure::usage(format!("database {url}: unknown parameter {parameter}{hint}")));
        }
    }
    let options = outbox::connect_options(text)
        .map_err(|error| Failure::usage(format!("database {url}: {}", chain(&error))))?;
    // Statements are logged by whoever asked for them, not by the driver at every level.
    Ok(options.application_name(&format!("outbox {purpose}")).disable_statement_logging())
}

/// A connection, or why there is none.
pub(crate) async fn connect(url: &SecretUrl, purpose: &str) -> Result<PgConnection, Failure> {
    let options = options(url, purpose)?;
    match tokio::time::timeout(CONNECT, PgConnection::connect_with(&options)).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(Failure::unreachable(format!("database {url}: {}", reason(&error)))),
        Err(_) => {
            Err(Failure::unreachable(format!("database {url}: no answer within {}s", CONNECT.as_secs())))
        }
    }
}

/// A first try at a database that may be down: that is logged, and whoever uses it waits for it.
///
/// # Errors
/// What no further try mends: it was reached and does not let us in, or there is no such database.
pub(crate) async fn first_try(url: &SecretUrl, purpose: &str) -> Result<(), Failure> {
    let options = options(url, purpose)?;
    let cause = match tokio::time::timeout(CONNECT, PgConnection::connect_with(&options)).await {
        Ok(Ok(connection)) => {
            let _ = connection.close().await;
            return Ok(());
        }
        Ok(Err(error)) if is_final(&error) => {
            return Err(Failure::unreachable(format!("database {url}: {}", reason(&error))));
        }
        Ok(Err(error)) => reason(&error),
        Err(_) => format!("no answer within {}s", CONNECT.as_secs()),
    };
    let at = format!("{}:{}", options.get_host(), options.get_port());
    tracing::warn!(
        server = at,
        error = crate::output::plain(&cause),
        "broker {url} cannot be reached, trying again"
    );
    Ok(())
}

/// Whether the next try would fail in the same way.
fn is_final(error: &sqlx::Error) -> bool {
    match error {
        // Password, authorization, no such database, no right to connect.
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("28P01" | "28000" | "3D000" | "42501"))
        }
        // The server has no TLS, or a certificate that is not trusted.
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => true,
        _ => false,
    }
}

/// A pool for the functions that ask for one. Connects once first, so that a wrong password is told as one.
pub(crate) async fn pool(url: &SecretUrl, purpose: &str) -> Result<PgPool, Failure> {
    let connection = connect(url, purpose).await?;
    let _ = connection.close().await;
    Ok(outbox::pool_options().max_connections(2).connect_lazy_with(options(url, purpose)?))
}

/// A statement failed that should not have: the connection's fault, or the server's answer.
pub(crate) fn failed(doing: &str, error: &sqlx::Error) -> Failure {
    let text = format!("{doing}: {}", reason(error));
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut => Failure::unreachable(text),
        _ => Failure::failed(text),
    }
}

/// The same for what a person decides about a relay.
pub(crate) fn undecided(doing: &str, error: &AdminError) -> Failure {
    match error {
        AdminError::Database(error) => failed(doing, error),
        AdminError::Unanswered => Failure::unreachable(format!("{doing}: {error}")),
        error => Failure::failed(format!("{doing}: {error}")),
    }
}

/// The same for what a person decides about a consumer.
pub(crate) fn undecided_by_inbox(doing: &str, error: &DecisionError) -> Failure {
    match error {
        DecisionError::Database(error) => failed(doing, error),
        error => Failure::failed(format!("{doing}: {error}")),
    }
}

/// Whether the role lacks a right.
pub(crate) fn is_denied(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("42501"))
}

/// As [`failed`], for what takes the rights of `role`, which is said if this role lacks one.
pub(crate) fn failed_for(role: &str, doing: &str, error: &sqlx::Error) -> Failure {
    if is_denied(error) {
        return Failure::failed(format!(
            "{doing}: {}; {role} has the rights that this takes (outbox migrate --roles)",
            reason(error)
        ));
    }
    failed(doing, error)
}

/// The server's message and SQLSTATE, without the detail, which may hold a row; else what the driver says.
fn reason(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => match error.code() {
            Some(code) => format!("{} ({code})", error.message()),
            None => error.message().to_owned(),
        },
        error => chain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_on_the_command_line_is_refused_and_not_repeated() {
        for argument in ["postgres://app:m4rker@host/db", "postgres://app@host/db?password=m4rker"] {
            let failure = from_argument("--database", argument).unwrap_err().to_string();
            assert!(failure.contains("DATABASE_URL") && failure.contains("@FILE"), "{failure}");
            assert!(!failure.contains("m4rker"), "{failure}");
        }
        assert!(from_argument("--database", "postgres://app@host/db").is_ok());
    }

    #[test]
    fn an_unusable_url_is_refused_without_being_repeated() {
        for (url, reason) in [
            ("m4rker", "must begin with postgres://"),
            ("mysql://app:m4rker@host/db", "must begin with postgres://"),
            ("postgres://app:m4rker@host:port/db", "invalid port number"),
            ("postgres://app:m/4rker@host/db", "invalid port number"),
            ("postgres://app@host/db?pasword=m4rker", "unknown parameter pasword; did you mean password?"),
            (
                "postgres://app:m4rker@host/db?sslmod=require",
                "unknown parameter sslmod; did you mean sslmode?",
            ),
        ] {
            let failure = options(&SecretUrl::new(url), "test").unwrap_err().to_string();
            assert!(failure.contains(reason), "{failure}");
            assert!(!failure.contains("m4rker") && !failure.contains("4rker"), "{failure}");
        }
    }
}
