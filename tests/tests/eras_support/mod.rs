//! Clusters of their own, dumped, copied and restored, and what their relays are held against.

#![allow(dead_code, reason = "every test file uses a part")]

pub(crate) mod life;
pub(crate) mod proxy;

use std::collections::HashMap;
use std::process::{Command, Stdio};

use brokers::memory::{Broker, MemoryPublisher};
use message::Message;
use outbox::{Relay, Settings};
use servers::{Postgres, PostgresOptions};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::relay_support::{Running, write};

/// A server of its own, and its database `postgres`.
pub(crate) struct Cluster {
    pub(crate) pool: PgPool,
    pub(crate) server: Postgres,
}

impl Cluster {
    /// With an outbox.
    pub(crate) async fn new() -> Self {
        Cluster::with_options(PostgresOptions::new()).await
    }

    /// With an outbox.
    pub(crate) async fn with_options(options: PostgresOptions) -> Self {
        let cluster = Cluster::of(options.start().expect("PostgreSQL starts")).await;
        migrations::Schema::Outbox.migrate(&mut cluster.pool.acquire().await.unwrap()).await.unwrap();
        cluster
    }

    /// As it is.
    pub(crate) async fn of(server: Postgres) -> Self {
        let pool = pool(&server.url("postgres")).await;
        Cluster { pool, server }
    }

    pub(crate) fn url(&self) -> String {
        self.server.url("postgres")
    }

    /// Another life of the log: its dump, restored into a fresh cluster.
    pub(crate) async fn dumped(&self) -> Self {
        let fresh = PostgresOptions::new().start().expect("PostgreSQL starts");
        restore(&self.url(), &fresh.url("postgres"));
        Cluster::of(fresh).await
    }

    /// The same server, which was down.
    pub(crate) async fn restarted(mut self) -> Self {
        self.pool.close().await;
        self.server.restart().expect("PostgreSQL starts again");
        Cluster::of(self.server).await
    }

    pub(crate) async fn do_sql(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool).await.unwrap();
    }

    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    /// The next transaction id.
    pub(crate) async fn next_id(&self) -> i64 {
        self.number("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint").await
    }

    /// Messages `first` to `last` of these keys, each in a transaction of its own, by turns.
    pub(crate) async fn write(&self, keys: &[&str], numbers: std::ops::RangeInclusive<usize>) {
        for number in numbers {
            for key in keys {
                write(&self.pool, &[message(key, number)]).await;
            }
        }
    }

    pub(crate) fn relay(&self, name: &str, broker: &Broker, settings: Settings) -> Running {
        start_as(name, &self.pool, broker.publisher(), settings)
    }

    /// What a relay has not recorded as delivered, in order, by what its cursors say in the life that wrote them.
    pub(crate) async fn undelivered(&self, relay: &str) -> Vec<Uuid> {
        let query = "select m.id from outbox.message m
             join outbox.relay r on r.name = $1
             join outbox.cursor c on c.relay = r.name and c.shard = m.slot % r.shards
             where not pg_visible_in_snapshot(m.tx, c.seen) and not (c.until is not null
                 and pg_visible_in_snapshot(m.tx, c.until) and m.position <= c.after)
             order by m.position";
        sqlx::query_scalar(query).bind(relay).fetch_all(&self.pool).await.unwrap()
    }

    /// The ids above a position, in order.
    pub(crate) async fn ids_above(&self, position: i64) -> Vec<Uuid> {
        let query = "select id from outbox.message where position > $1 order by position";
        sqlx::query_scalar(query).bind(position).fetch_all(&self.pool).await.unwrap()
    }

    pub(crate) async fn pending(&self, relay: &str) -> usize {
        let status = outbox::admin::status(&self.pool).await.unwrap();
        let pending = status.iter().find(|status| status.relay == relay).expect("it is known").pending;
        usize::try_from(pending).unwrap()
    }
}

pub(crate) async fn pool(url: &str) -> PgPool {
    outbox::pool_options().max_connections(8).connect(url).await.unwrap()
}

pub(crate) fn start_as(name: &str, pool: &PgPool, publisher: MemoryPublisher, settings: Settings) -> Running {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    let token = CancellationToken::new();
    let relay = Relay::new(name, pool.clone(), publisher).with_settings(settings);
    Running { task: tokio::spawn(relay.run(token.clone())), token }
}

/// `pg_dump` of the outbox, into a database that has none.
pub(crate) fn restore(from: &str, to: &str) {
    let client =
        "PostgreSQL's client is installed with its server, or by `apt-get install postgresql-client`";
    let mut dump = Command::new("pg_dump")
        .args(["--schema=outbox", "--dbname", from])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("pg_dump: {error}: {client}"));
    let psql = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "--single-transaction", "--set", "ON_ERROR_STOP=1", "--dbname", to])
        .stdin(dump.stdout.take().expect("its output"))
        .output()
        .unwrap_or_else(|error| panic!("psql: {error}: {client}"));
    assert!(dump.wait().expect("pg_dump ends").success());
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
}

/// A message of a key; its number is its payload.
pub(crate) fn message(key: &str, number: usize) -> Message {
    crate::relay_support::message(key, number)
}

/// The ids that a broker keeps, in order of arrival.
pub(crate) fn arrived(broker: &Broker) -> Vec<Uuid> {
    broker.published().iter().map(|published| *published.message.id.as_uuid()).collect()
}

pub(crate) fn sorted(mut ids: Vec<Uuid>) -> Vec<Uuid> {
    ids.sort_unstable();
    ids
}

/// That the first deliveries of each key are in the order of their numbers, over these brokers one after another.
pub(crate) fn in_order(brokers: &[&Broker]) {
    let mut last: HashMap<String, usize> = HashMap::new();
    let mut seen = std::collections::HashSet::new();
    for published in brokers.iter().flat_map(|broker| broker.published()) {
        if !seen.insert(published.message.id) {
            continue;
        }
        let key = published.message.key.as_deref().unwrap_or_default().to_owned();
        let number: usize = std::str::from_utf8(&published.message.payload).unwrap().parse().unwrap();
        let before = last.insert(key.clone(), number);
        assert!(before.is_none_or(|before| before < number), "{key}: {before:?} before {number}");
    }
}

/// All causes of an error in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
