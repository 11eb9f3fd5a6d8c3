//! PostgreSQL as the broker: the conformance claims, and what is its own: shards shared by a group's processes, cursors
//! that outlive them, a log that refuses one message and takes the others.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use brokers::postgres::{PostgresPublisher, PostgresSubscriber, Start};
use message::{
    Delivery, Message, Outcomes, Outgoing, Pipelining, PublishError, Publisher, SubscribeError, Subscriber,
    publish_all,
};
use outbox::admin::RelayStatus;
use sqlx::{Executor, PgPool};
use tests::Database;
use tests::conformance::{PATIENCE, Setup, assert_in_order, keyed, publish_in_order, receive_all};
use tokio::time::{Instant, timeout};

const ANSWER_WAIT: Duration = Duration::from_millis(300);
const LEASE: Duration = Duration::from_secs(1);

/// A broker database of its own.
struct Postgres {
    database: Database,
    pool: PgPool,
}

async fn postgres() -> Postgres {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    let database = Database::new("broker_postgres").await;
    let pool = outbox::pool_options().max_connections(12).connect_lazy(database.url()).expect("a URL");
    Postgres { database, pool }
}

impl Postgres {
    fn publisher(&self) -> PostgresPublisher {
        PostgresPublisher::new(self.pool.clone())
    }

    fn subscriber(&self, group: &str) -> PostgresSubscriber {
        subscriber(self.pool.clone(), group)
    }

    async fn publish(&self, messages: &[Message]) {
        publish_in_order(&self.publisher(), "orders", messages).await;
    }

    async fn status(&self, group: &str) -> RelayStatus {
        let status = outbox::admin::status(&self.pool).await.expect("the log stays readable");
        status.into_iter().find(|status| status.relay == group).expect("the group is known")
    }

    async fn execute(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool).await.expect(sql);
    }

    /// How many shards each living process of a group owns, fewest first.
    async fn owned(&self, group: &str) -> Vec<i64> {
        let sql = "select count(*) from outbox.cursor where relay = $1 and owner is not null group by owner order by 1";
        sqlx::query_scalar(sql).bind(group).fetch_all(&self.pool).await.expect("the cursors")
    }

    async fn until_owned(&self, group: &str, expected: &[i64]) {
        let deadline = Instant::now() + PATIENCE;
        while self.owned(group).await != expected {
            assert!(Instant::now() < deadline, "owned: {:?}", self.owned(group).await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn subscriber(pool: PgPool, group: &str) -> PostgresSubscriber {
    let group = group.parse().expect("the name of a group");
    PostgresSubscriber::new(pool, group).with_lease(LEASE).with_redelivery_after(ANSWER_WAIT)
}

/// Sends a message to its own topic, as a relay without routes does.
struct Unrouted(PostgresPublisher);

#[async_trait]
impl Publisher for Unrouted {
    fn pipelining(&self) -> Pipelining {
        self.0.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let own = |outgoing: &Outgoing| Outgoing {
            destination: outgoing.message.topic.clone(),
            message: outgoing.message.clone(),
        };
        self.0.publish(&batch.iter().map(own).collect::<Vec<_>>(), outcomes).await;
    }

    fn describe(&self) -> Option<String> {
        self.0.describe()
    }
}

#[async_trait]
impl Setup for Postgres {
    fn destination(&self) -> String {
        "orders".to_owned()
    }

    async fn publisher(&self) -> Box<dyn Publisher> {
        Box::new(Unrouted(self.publisher()))
    }

    async fn subscriber(&self, group: &str) -> Box<dyn Subscriber> {
        Box::new(self.subscriber(group))
    }

    fn answer_wait(&self) -> Duration {
        ANSWER_WAIT
    }

    async fn closed_destination(&self) -> Option<String> {
        // All destinations are topics of one log.
        None
    }

    async fn unreachable(&self) -> Box<dyn Publisher> {
        let pool = outbox::pool_options().acquire_timeout(Duration::from_secs(5));
        let pool = pool.connect_lazy("postgres://nobody@127.0.0.1:9/none").expect("a URL");
        Box::new(PostgresPublisher::new(pool))
    }

    async fn put_foreign(&self, _: &[(&str, &str)], _: &'static [u8]) -> bool {
        false
    }
}

#[path = "broker_postgres/publishing.rs"]
mod publishing;
#[path = "broker_postgres/reading.rs"]
mod reading;
#[path = "broker_postgres/sharing.rs"]
mod sharing;

mod conformance {
    tests::conformance_tests!(super::postgres);
}

fn outgoing(destination: &str, message: Message) -> Outgoing {
    Outgoing { destination: destination.into(), message: Arc::new(message) }
}

fn message(delivery: &Delivery) -> &Message {
    delivery.received.as_ref().expect("what we published is a message")
}

async fn receive(subscriber: &mut PostgresSubscriber, max: usize) -> Vec<Delivery> {
    timeout(PATIENCE, subscriber.receive(max)).await.expect("something arrives").expect("the broker delivers")
}

/// Exactly `count`, not answered.
async fn receive_unanswered(subscriber: &mut PostgresSubscriber, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        deliveries.extend(receive(subscriber, count - deliveries.len()).await);
    }
    deliveries
}

async fn acknowledge(deliveries: impl IntoIterator<Item = Delivery>) {
    for delivery in deliveries {
        delivery.acknowledge().await.expect("the broker takes an acknowledgement");
    }
}

async fn assert_nothing_more(subscriber: &mut PostgresSubscriber) {
    let more = timeout(ANSWER_WAIT * 3, subscriber.receive(10)).await;
    assert!(more.is_err(), "delivered: {:?}", more);
}
