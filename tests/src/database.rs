//! A database for one test: fresh, migrated, of no other test's business, and dropped when the test ends, also when it
//! panics. What a killed process leaves behind, a later one sweeps away.

use std::sync::Once;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use migrations::Schema;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use uuid::Uuid;

/// A database of its own on the server that `DATABASE_URL` names. Keep it alive as long as the test: dropping it drops
/// the database, whoever is still connected.
///
/// ```no_run
/// # async fn a_committed_message_is_in_the_log() -> anyhow::Result<()> {
/// let database = tests::Database::new("a_committed_message").await;
/// let messages: i64 = sqlx::query_scalar("select count(*) from outbox.message").fetch_one(database.pool()).await?;
/// assert_eq!(messages, 0);
/// # Ok(()) }
/// ```
// No `Debug`: the URL may carry a password.
pub struct Database {
    /// What the server calls it: when it was made, something random, and the beginning of the claim.
    pub name: String,
    url: String,
    pool: PgPool,
    admin: PgPool,
}

/// Small, because many tests share one server.
const CONNECTIONS: u32 = 5;
/// How the databases of tests are named: `prefix_seconds_random_claim`.
const PREFIX: &str = "outbox_test";
/// A database of that age in which nobody works was left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);

impl Database {
    /// A fresh database with both schemas. `claim` makes its name readable in the server's log.
    pub async fn new(claim: &str) -> Self {
        let database = Database::empty(claim).await;
        let mut connection = database.connect().await;
        for schema in [Schema::Outbox, Schema::Inbox] {
            schema.migrate(&mut connection).await.expect("the schemas of a fresh database");
        }
        // What the server made for this session is the server's affair: no need to wait for the goodbye.
        drop(connection);
        database
    }

    /// A fresh database without any schema.
    pub async fn empty(claim: &str) -> Self {
        Database::encoded(claim, "UTF8").await
    }

    /// A fresh database without any schema, in an encoding of PostgreSQL's.
    pub async fn encoded(claim: &str, encoding: &str) -> Self {
        let server = server();
        let mut admin =
            PgConnection::connect(&server).await.expect("the server that DATABASE_URL names answers");
        sweep(&mut admin).await;
        let name = name(claim);
        // From template0, which nobody can be connected to: such a connection would fail the creation.
        let locale = if encoding == "UTF8" { "" } else { " locale 'C'" };
        let create = format!("create database {name} template template0 encoding '{encoding}'{locale}");
        admin.execute(AssertSqlSafe(create)).await.expect("DATABASE_URL's role may create databases");
        let url = with_database(&server, &name);
        Database { pool: lazy(&url), admin: lazy(&server), url, name }
    }

    /// A pool of at most five connections.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// For another process: psql, the relay's binary.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A connection outside the pool.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the database of this test answers")
    }

    /// A pool of the database that `DATABASE_URL` names, for what is done from outside: end another's connection, hold a
    /// transaction open elsewhere in the cluster.
    pub fn admin(&self) -> &PgPool {
        &self.admin
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, drop) = (server(), format!("drop database if exists {} with (force)", self.name));
        // A destructor cannot wait for a future on the test's own runtime, which may be unwinding: a thread with a
        // runtime of its own can. A failure here must not hide the test's: it is swept later.
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async {
                let mut admin = PgConnection::connect(&server).await.ok()?;
                admin.execute(AssertSqlSafe(drop)).await.ok()?;
                admin.close().await.ok()
            })
        });
        let _ = thread.join();
    }
}

/// The server on which tests make their databases.
fn server() -> String {
    match std::env::var("DATABASE_URL") {
        Ok(url) if !url.is_empty() => url,
        _ => panic!("DATABASE_URL is not set: `tests/run` starts every server the tests need and runs them"),
    }
}

fn lazy(url: &str) -> PgPool {
    outbox::pool_options().max_connections(CONNECTIONS).connect_lazy(url).expect("DATABASE_URL is a URL")
}

fn name(claim: &str) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let letters = |char: char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '_' };
    let claim: String = claim.chars().map(letters).take(24).collect();
    let random = Uuid::new_v4().simple().to_string();
    format!("{PREFIX}_{seconds}_{}_{claim}", &random[..8])
}

/// The URL of another database on the same server, with the same options.
fn with_database(server: &str, name: &str) -> String {
    let (address, options) = server.split_once('?').map_or((server, None), |(a, o)| (a, Some(o)));
    let host = address.find("://").map_or(0, |scheme| scheme + 3);
    let end = address[host..].find('/').map_or(address.len(), |slash| host + slash);
    let options = options.map(|options| format!("?{options}")).unwrap_or_default();
    format!("{}/{name}{options}", &address[..end])
}

/// Removes, once a process, what killed processes have left behind. Never by force: somebody may still work there.
async fn sweep(admin: &mut PgConnection) {
    static FIRST: Once = Once::new();
    let mut first = false;
    FIRST.call_once(|| first = true);
    if !first {
        return;
    }
    let names: Vec<String> = sqlx::query_scalar(
        "select datname::text from pg_database
         where datname ~ ('^' || $1 || '_[0-9]+_') and split_part(datname, '_', 3)::bigint
             < extract(epoch from now()) - $2",
    )
    .bind(PREFIX)
    .bind(LEFT_BEHIND.as_secs() as f64)
    .fetch_all(&mut *admin)
    .await
    .unwrap_or_default();
    for name in names {
        // Another process may sweep at the same time.
        let _ = admin.execute(AssertSqlSafe(format!("drop database if exists {name}"))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_database_of_the_url_changes() {
        for (server, expected) in [
            ("postgres://u:p@h:1/postgres", "postgres://u:p@h:1/x"),
            ("postgres://h", "postgres://h/x"),
            ("postgres://h/?a=/b", "postgres://h/x?a=/b"),
            ("postgresql:///postgres?host=/run/pg", "postgresql:///x?host=/run/pg"),
        ] {
            assert_eq!(with_database(server, "x"), expected);
        }
    }

    #[tokio::test]
    async fn a_test_that_panics_leaves_no_database() {
        let name = tokio::spawn(async {
            let database = Database::empty("a test that panics").await;
            std::panic::panic_any(database.name.clone());
        })
        .await
        .expect_err("it panics")
        .into_panic()
        .downcast::<String>()
        .expect("the name");
        let mut admin = PgConnection::connect(&server()).await.expect("the server");
        let left: i64 = sqlx::query_scalar("select count(*) from pg_database where datname = $1")
            .bind(*name)
            .fetch_one(&mut admin)
            .await
            .expect("a count");
        assert_eq!(left, 0);
    }
}
