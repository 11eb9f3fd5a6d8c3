//! A life of a log in which everything is under way, and how relays go on after it.

use std::time::Duration;

use brokers::memory::Broker;
use outbox::admin;
use uuid::Uuid;

use super::{Cluster, arrived, chain, in_order, message, sorted};
use crate::relay_support::{PATIENCE, Running, settings, until, write};

pub(crate) const KEYS: [&str; 5] = ["k0", "k1", "k2", "k3", "k4"];

pub(crate) async fn kill(relay: Running) {
    relay.task.abort();
    assert!(relay.task.await.unwrap_err().is_cancelled());
}

/// How a relay ends that must not run.
pub(crate) async fn refused(cluster: &Cluster, name: &str) -> String {
    let relay = cluster.relay(name, &Broker::new(), settings());
    let ended = tokio::time::timeout(PATIENCE, relay.task).await.expect("it refuses, and does not run");
    chain(&ended.unwrap().unwrap_err())
}

/// A relay that runs until it has published so many in all and nothing is pending, and stops politely.
pub(crate) async fn deliver(cluster: &Cluster, name: &str, broker: &Broker, count: usize) {
    let relay = cluster.relay(name, broker, settings());
    let so_many = || async { broker.published().len() >= count };
    until(&format!("{name} has published {count}"), so_many).await;
    until("all recorded", || async { cluster.pending(name).await == 0 }).await;
    relay.stop().await.unwrap();
}

async fn status_of(cluster: &Cluster, name: &str) -> admin::RelayStatus {
    let status = admin::status(&cluster.pool).await.unwrap();
    status.into_iter().find(|status| status.relay == name).unwrap()
}

/// A first life of a log, in which everything is under way. Its transactions have the ids that those of a fresh cluster
/// will have, and then some that are far ahead.
///
/// `ahead` has delivered all, but for what a transaction left open has written, and holds a key. `lagging` has stopped long
/// ago. `half` was killed in the middle of a window. The open transaction commits when all three are down.
pub(crate) struct Life {
    pub(crate) cluster: Cluster,
    pub(crate) ahead: Broker,
    pub(crate) lagging: Broker,
    pub(crate) half: Broker,
}

impl Life {
    pub(crate) async fn lived() -> Self {
        let cluster = Cluster::new().await;
        let (ahead, lagging, half) = (Broker::new(), Broker::new(), Broker::new());
        cluster.write(&KEYS, 1..=60).await;
        for (name, broker) in [("lagging", &lagging), ("half", &half), ("ahead", &ahead)] {
            deliver(&cluster, name, broker, 300).await;
        }
        cluster
            .do_sql(
                "do $$ begin for i in 1..3000 loop perform pg_current_xact_id(); commit; end loop; end $$",
            )
            .await;

        let mut open = cluster.pool.begin().await.unwrap();
        outbox::enqueue_all(&mut open, &[message("late", 1)]).await.unwrap();
        let mut never = cluster.pool.begin().await.unwrap();
        outbox::enqueue_all(&mut never, &[message("never", 1)]).await.unwrap();
        cluster.write(&KEYS, 61..=62).await;
        deliver(&cluster, "half", &half, 310).await;

        // Half a window: the broker goes away, and then the process.
        let many: Vec<_> = (63..=100).flat_map(|number| KEYS.map(|key| message(key, number))).collect();
        write(&cluster.pool, &many).await;
        let mut few = settings();
        (few.batch, few.max_on_wire, few.lease) = (4, 4, Duration::from_secs(3600));
        half.delay_confirmations(Duration::from_millis(100));
        let relay = cluster.relay("half", &half, few);
        half.wait_for_published(330).await;
        half.go_down();
        let open_window =
            "select count(*) from outbox.cursor where relay = 'half' and until is not null and after > 0";
        until("half recorded", || async { cluster.number(open_window).await > 0 }).await;
        kill(relay).await;

        ahead.reject_key("bad");
        write(&cluster.pool, &[message("bad", 1), message("bad", 2), message("k0", 101)]).await;
        let relay = cluster.relay("ahead", &ahead, settings());
        ahead.wait_for_published(501).await;
        until("parked", || async { status_of(&cluster, "ahead").await.parked == 1 }).await;
        until("all recorded", || async { cluster.pending("ahead").await == 0 }).await;
        relay.stop().await.unwrap();
        outbox::commit(open).await.unwrap();
        never.rollback().await.unwrap();
        Life { cluster, ahead, lagging, half }
    }

    /// What each relay has yet to deliver, as the first life sees it.
    pub(crate) async fn owed(&self) -> [Vec<Uuid>; 3] {
        let owed = async |name| self.cluster.undelivered(name).await;
        [owed("ahead").await, owed("lagging").await, owed("half").await]
    }

    pub(crate) fn brokers(&self) -> [(&'static str, &Broker); 3] {
        [("ahead", &self.ahead), ("lagging", &self.lagging), ("half", &self.half)]
    }
}

/// Repairs a log whose relays are dead in truth, if not yet by their leases. One that is not may be renewing its own just now.
pub(crate) async fn repair(cluster: &Cluster) -> admin::Survey {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        cluster.do_sql("update outbox.process set expires_at = clock_timestamp()").await;
        match admin::repair(&cluster.pool, "ada", None).await {
            Err(admin::RepairError::Alive { .. }) if tokio::time::Instant::now() < deadline => {}
            repaired => return repaired.unwrap(),
        }
    }
}

/// Has each relay of a life deliver what it owes and what is new above a position, and holds it against both: each message
/// once, no other, and every key in order across the lives.
pub(crate) async fn settle(cluster: &Cluster, life: &Life, owed: &[Vec<Uuid>; 3], above: i64) {
    let new = cluster.ids_above(above).await;
    for ((name, before), owed) in life.brokers().into_iter().zip(owed) {
        let broker = Broker::new();
        deliver(cluster, name, &broker, owed.len() + new.len()).await;
        in_order(&[before, &broker]);
        assert_eq!(sorted(arrived(&broker)), sorted([&owed[..], &new].concat()), "{name}");
    }
}
