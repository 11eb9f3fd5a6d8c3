//! A standby is promoted under a relay and its writers. Nothing that was acknowledged is lost, and the relay goes on by
//! the same address.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod eras_support;
mod relay_support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use brokers::memory::Broker;
use eras_support::proxy::Proxy;
use eras_support::{Cluster, arrived, in_order, message, start_as};
use message::Message;
use outbox::commit;
use relay_support::{settings, until};
use servers::PostgresOptions;
use sqlx::PgPool;
use tokio::task::JoinSet;
use uuid::Uuid;

const WRITERS: usize = 4;
/// What each writer has acknowledged before the failover, and after it.
const BEFORE: usize = 40;
const AFTER: usize = 40;

/// Writes until so much is acknowledged. Who gets no answer looks whether the message is there, and else tries again.
async fn writer(pool: PgPool, number: usize, acknowledged: Arc<AtomicUsize>) -> Vec<Uuid> {
    let mut written = Vec::new();
    for step in 1..=BEFORE + AFTER {
        let message = message(&format!("w{number}"), step);
        while !is_written(&pool, &message).await {
            tokio::task::yield_now().await;
        }
        acknowledged.fetch_add(1, Ordering::SeqCst);
        written.push(*message.id.as_uuid());
    }
    written
}

async fn is_written(pool: &PgPool, message: &Message) -> bool {
    let write = async {
        let mut tx = pool.begin().await.ok()?;
        let known = "select count(*) from outbox.message where id = $1";
        let known: i64 =
            sqlx::query_scalar(known).bind(message.id.as_uuid()).fetch_one(&mut *tx).await.ok()?;
        if known == 0 {
            outbox::enqueue_all(&mut tx, std::slice::from_ref(message)).await.ok()?;
        }
        commit(tx).await.ok()
    };
    write.await.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_goes_on_when_the_standby_is_promoted_and_nothing_acknowledged_is_lost() {
    let primary = Cluster::new().await;
    let mut standby = PostgresOptions::new().standby_of(&primary.server).expect("a base backup");
    standby.restart().expect("it follows");
    primary.do_sql("alter system set synchronous_standby_names = '*'").await;
    primary.do_sql("select pg_reload_conf()").await;
    let following = "select count(*) from pg_stat_replication where sync_state = 'sync'";
    until("it follows", || async { primary.number(following).await == 1 }).await;

    let proxy = Proxy::to(primary.server.port().unwrap()).await;
    let secret = primary.url().split('@').next().unwrap().to_owned();
    let url = format!("{secret}@127.0.0.1:{}/postgres", proxy.port);
    let (pool, broker) = (eras_support::pool(&url).await, Broker::new());
    let relay = start_as("default", &pool, broker.publisher(), settings());
    let (acknowledged, mut writers) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    let writers_pool = eras_support::pool(&url).await;
    for number in 0..WRITERS {
        writers.spawn(writer(writers_pool.clone(), number, Arc::clone(&acknowledged)));
    }
    until("half of it is written", || async { acknowledged.load(Ordering::SeqCst) >= WRITERS * BEFORE / 2 })
        .await;

    // The relay meets the standby before it is one no longer.
    let mut primary = primary;
    primary.server.kill().unwrap();
    proxy.lead_to(standby.port());
    let promoted = Cluster::of(standby).await;
    let tried = "select count(*) from pg_stat_activity where query like '-- What makes it unsafe%'";
    until("the relay has looked at the standby", || async { promoted.number(tried).await > 0 }).await;
    assert_eq!(promoted.number("select pg_is_in_recovery()::int::bigint").await, 1);
    promoted.do_sql("select pg_promote()").await;

    let mut written: Vec<Uuid> = Vec::new();
    while let Some(one) = writers.join_next().await {
        written.extend(one.unwrap());
    }
    assert_eq!(written.len(), WRITERS * (BEFORE + AFTER));
    until("all arrived", || async {
        let arrived: BTreeSet<Uuid> = arrived(&broker).into_iter().collect();
        written.iter().all(|id| arrived.contains(id))
    })
    .await;
    relay.stop().await.unwrap();
    in_order(&[&broker]);
    let survey = outbox::admin::survey(&promoted.pool).await.unwrap();
    assert!(!survey.needs_repair(), "{survey:?}");
    let log: BTreeSet<Uuid> = promoted.ids_above(0).await.into_iter().collect();
    let phantoms = arrived(&broker).iter().filter(|id| !log.contains(id)).count();
    assert_eq!(phantoms, 0, "the standby had all that the relay could see");
}
