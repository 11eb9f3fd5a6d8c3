//! The outboxes of many databases, relayed by one process within a budget of connections.
//!
//! While the budget lasts, every database has its relay at work all the time. When there are more databases than that,
//! they take turns, first come first served: whoever is at work leaves when others wait and it has nothing to do, or has
//! had its turn. A database with nothing to do costs one connection and one small statement a look.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use message::limits::LONGEST;
use message::{PublishError, Publisher};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Row};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::log::Refusal;
use crate::relay::{Backoff, Relay, RelayError, Settings, chain};
use crate::statement;

/// What a relay needs at most at once.
const CONNECTIONS: usize = 4;
/// How often a relay at work looks whether somebody waits for its place.
const CONSIDER: Duration = Duration::from_millis(20);
/// How long a relay must have had nothing to do before it gives its place to somebody who waits.
const IDLE: Duration = Duration::from_millis(200);
/// How long a database may take to answer a look: so long it has a place that others wait for.
const ANSWER: Duration = Duration::from_secs(3);
/// How long a database that failed is left out.
const LEFT_OUT: Backoff = Backoff { first: Duration::from_millis(200), ceiling: Duration::from_secs(60) };
/// At least so often a database is visited though it seems to have nothing to do.
const VISIT: Duration = Duration::from_secs(600);

/// One relay over many databases, each with cursors of its own.
///
/// ```no_run
/// use tokio_util::sync::CancellationToken;
///
/// # async fn run(publisher: impl message::Publisher + 'static) -> Result<(), Box<dyn std::error::Error>> {
/// let mut fleet = outbox::Fleet::new("default", publisher).with_connections(40);
/// for tenant in ["acme", "umbrella"] {
///     fleet = fleet.with_database(tenant, format!("postgres://localhost/{tenant}").parse()?);
/// }
/// fleet.run(CancellationToken::new()).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Fleet<P> {
    relay: String,
    publisher: Arc<P>,
    settings: Settings,
    databases: Vec<Arc<Database>>,
    places: usize,
    turn: Duration,
    look: Duration,
}

struct Database {
    name: String,
    options: PgConnectOptions,
}

/// Without the options, in which the driver shows the password.
impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Places at work, and how many wait for one.
#[derive(Debug)]
struct Turnstile {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Turnstile {
    async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        let permit = Arc::clone(&self.places).acquire_owned().await.ok();
        drop(waiting);
        permit
    }

    fn somebody_waits(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Counted as long as it lives, also when the wait is cancelled.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<P: Publisher + 'static> Fleet<P> {
    /// The relay of that name in every database of the fleet, which has none yet.
    pub fn new(relay: impl Into<String>, publisher: P) -> Self {
        Fleet {
            relay: relay.into(),
            publisher: Arc::new(publisher),
            settings: Settings::default(),
            databases: Vec::new(),
            places: 10,
            turn: Duration::from_secs(2),
            look: Duration::from_secs(1),
        }
    }

    /// With one more database. `name` stands in the logs.
    pub fn with_database(mut self, name: impl Into<String>, options: PgConnectOptions) -> Self {
        self.databases.push(Arc::new(Database { name: name.into(), options }));
        self
    }

    /// With other settings of each relay. The bounds on what is in memory or on the wire are each relay's; none listens for
    /// a doorbell, which would take a connection beyond the budget.
    pub fn with_settings(mut self, settings: Settings) -> Self {
        self.settings = Settings { doorbell: false, ..settings };
        self
    }

    /// With at most so many connections to all databases together: 40 by default, and four at least.
    pub fn with_connections(mut self, connections: usize) -> Self {
        self.places = (connections / CONNECTIONS).clamp(1, 10_000);
        self
    }

    /// How long a database with a backlog may keep its place while others wait: 2 seconds by default.
    pub fn with_turn(mut self, turn: Duration) -> Self {
        self.turn = turn.min(LONGEST);
        self
    }

    /// How long a database that had nothing to do rests before the next look, when not all can be at work: 1 second by
    /// default. A message waits for it, and for the turns of the databases before it.
    pub fn with_look(mut self, look: Duration) -> Self {
        self.look = look.clamp(Duration::from_millis(1), LONGEST);
        self
    }

    /// Runs until `stop` is cancelled; then every relay at work finishes what is on the wire and hands over. A database
    /// that fails, or whose log must not be read, is logged and tried again, and delays no other.
    ///
    /// # Errors
    /// The broker is not set up so that it keeps what it confirms.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RelayError> {
        if let Err(error @ PublishError::Rejected(_)) = self.publisher.check().await {
            return Err(RelayError::Broker(error));
        }
        let turnstile =
            Turnstile { places: Arc::new(Semaphore::new(self.places)), waiting: AtomicUsize::new(0) };
        let (fleet, turnstile) = (Arc::new(self), Arc::new(turnstile));
        let mut databases = JoinSet::new();
        for database in &fleet.databases {
            let database = Arc::clone(database);
            let (fleet, turnstile, stop) = (Arc::clone(&fleet), Arc::clone(&turnstile), stop.clone());
            databases.spawn(async move { fleet.keep_serving(database, turnstile, stop).await });
        }
        while databases.join_next().await.is_some() {}
        Ok(())
    }

    /// Visits one database until it is told to stop, also after a panic, of a publisher, say.
    async fn keep_serving(
        self: Arc<Self>,
        database: Arc<Database>,
        turnstile: Arc<Turnstile>,
        stop: CancellationToken,
    ) {
        let mut failures = 0;
        loop {
            let (mut serving, began) = (JoinSet::new(), Instant::now());
            let (fleet, served) = (Arc::clone(&self), Arc::clone(&database));
            let (turnstile, told) = (Arc::clone(&turnstile), stop.clone());
            serving.spawn(async move { fleet.serve(&served, &turnstile, &told).await });
            let Some(Err(error)) = serving.join_next().await else { return };
            // One that went well for long is no part of a row.
            failures = if began.elapsed() > LEFT_OUT.ceiling { 1 } else { failures + 1 };
            let rest = LEFT_OUT.after(failures, crate::relay::chance());
            tracing::error!(relay = self.relay, database = database.name, %error, ?rest, "panicked: left out");
            if stop.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
                return;
            }
        }
    }

    /// Visits one database again and again.
    async fn serve(&self, database: &Database, turnstile: &Turnstile, stop: &CancellationToken) {
        let (mut visited, mut failures) = (None::<Instant>, 0);
        loop {
            let Some(Some(place)) = stop.run_until_cancelled(turnstile.enter()).await else { return };
            let overdue = visited.is_none_or(|visited| visited.elapsed() > VISIT);
            let visit = async {
                if !self.has_work(database).await? && !overdue {
                    return Ok(false);
                }
                visited = Some(Instant::now());
                self.visit(database, turnstile, stop).await.map(|()| true)
            };
            let outcome = visit.await;
            drop(place);
            let rest = match outcome {
                // There may be more: to the end of the queue.
                Ok(true) => Duration::ZERO,
                Ok(false) => self.look,
                Err(error) => {
                    failures += 1;
                    let rest = LEFT_OUT.after(failures, crate::relay::chance());
                    let error = chain(&error);
                    tracing::error!(relay = self.relay, database = database.name, error, ?rest, "left out");
                    if stop.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
                        return;
                    }
                    continue;
                }
            };
            failures = 0;
            if stop.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
                return;
            }
        }
    }

    /// On a connection of its own, since a pool would try again for long where nobody answers.
    async fn has_work(&self, database: &Database) -> Result<bool, RelayError> {
        let look = async {
            let mut connection = PgConnection::connect_with(&database.options).await?;
            let query = sqlx::query(include_str!("sql/has_work.sql")).bind(&self.relay);
            let has_work = match statement::read_row(&mut connection, query).await {
                Ok(row) => row.try_get(0)?,
                // Without a schema: the relay says what is amiss.
                Err(error) if is_undefined(&error) => true,
                Err(error) => return Err(error),
            };
            connection.close().await?;
            Ok(has_work)
        };
        statement::within(ANSWER, look).await.map_err(|error| RelayError::Refused(Refusal::from(error)))
    }

    /// Relays one database until it is told to stop, or has to make room for another.
    async fn visit(
        &self,
        database: &Database,
        turnstile: &Turnstile,
        stop: &CancellationToken,
    ) -> Result<(), RelayError> {
        let pool = crate::pool_options()
            .max_connections(CONNECTIONS as u32)
            .connect_lazy_with(database.options.clone());
        let leave = stop.child_token();
        let relay = Relay::new(&self.relay, pool.clone(), Arc::clone(&self.publisher))
            .with_settings(self.settings.clone());
        let busy = relay.busy();
        let began = Instant::now();
        let mut running = std::pin::pin!(relay.run(leave.clone()));
        loop {
            tokio::select! {
                ended = &mut running => {
                    pool.close().await;
                    return ended;
                }
                () = tokio::time::sleep(CONSIDER) => {
                    // A turn begins when the log is read; whoever has no shards, because others have them, need not stay.
                    let had_its_turn = match busy.seen() {
                        Some((reads, rests)) => reads >= self.turn || rests >= IDLE,
                        None => began.elapsed() >= self.turn + ANSWER,
                    };
                    if had_its_turn && turnstile.somebody_waits() {
                        leave.cancel();
                    }
                }
            }
        }
    }
}

/// Whether a table is not there.
fn is_undefined(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("42P01"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_database_holds_no_password() {
        let options = "postgres://app:m4rker@localhost/orders".parse().unwrap();
        let shown = format!("{:?}", Database { name: "acme".to_owned(), options });
        assert!(shown.contains("acme") && !shown.contains("m4rker"), "{shown}");
    }
}
