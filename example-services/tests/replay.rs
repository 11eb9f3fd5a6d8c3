//! A message that comes again changes nothing: each service's consumer, on a real database, behind a broker that
//! delivers everything several times.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use brokers::memory::Broker;
use common::{answers, number, started, told};
use example_services::events::{Line, OrderPlaced, StockReserved};
use example_services::service::Definition;
use example_services::{payment, stock};
use inbox::Consumer;
use message::{Message, Outgoing, publish_all};
use tests::Database;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

/// Has `message` consumed as often as it is published and delivered.
async fn consume(definition: Definition, database: &Database, message: &Message, times: usize) {
    let broker = Broker::new();
    broker.duplicate_deliveries(times);
    let message = Arc::new(message.clone());
    let outgoing = Outgoing { destination: message.topic.clone(), message };
    for _ in 0..times {
        assert_eq!(publish_all(&broker.publisher(), std::slice::from_ref(&outgoing)).await, [Ok(())]);
    }
    let stop = CancellationToken::new();
    let subscriber = broker.subscriber(definition.name, definition.topics.iter().copied());
    let consumer = Consumer::new(definition.name, database.pool().clone(), subscriber);
    let running = tokio::spawn((definition.react)(consumer).run(stop.clone()));
    let started = Instant::now();
    while broker.unacknowledged(definition.name) > 0 {
        assert!(started.elapsed() < PATIENCE, "not everything is acknowledged");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_replayed_charge_is_charged_once() {
    let database = started(payment::DEFINITION).await;
    let event = StockReserved {
        order: Uuid::now_v7(),
        customer: "ada".into(),
        destination: "DE".into(),
        amount_cents: 700,
    };
    let message = told(&event);
    consume(payment::DEFINITION, &database, &message, 3).await;
    // A service that was started anew has forgotten nothing either.
    consume(payment::DEFINITION, &database, &message, 2).await;
    assert_eq!(number(database.pool(), "select sum(balance_cents)::bigint from payments.account").await, 700);
    assert_eq!(answers(database.pool(), &message).await, ["payment.taken"]);
    assert_eq!(number(database.pool(), "select count(*) from inbox.message").await, 1);
    assert_eq!(number(database.pool(), "select count(*) from inbox.held_key").await, 0);
}

#[tokio::test]
async fn a_replayed_order_is_reserved_once() {
    let database = started(stock::DEFINITION).await;
    let lines = vec![Line { article: "lamp".into(), quantity: 2 }];
    let event =
        OrderPlaced { order: Uuid::now_v7(), customer: "ada".into(), destination: "DE".into(), lines };
    let message = told(&event);
    consume(stock::DEFINITION, &database, &message, 3).await;
    assert_eq!(number(database.pool(), "select sum(reserved)::bigint from stock.article").await, 2);
    assert_eq!(answers(database.pool(), &message).await, ["stock.reserved"]);
    assert_eq!(number(database.pool(), "select count(*) from inbox.held_key").await, 0);
}

#[tokio::test]
async fn an_event_that_breaks_the_contract_is_parked_and_changes_nothing() {
    let database = started(stock::DEFINITION).await;
    let message = Message::new("orders", "order.placed", r#"{"order": 7}"#).with_key("7");
    consume(stock::DEFINITION, &database, &message, 1).await;
    assert_eq!(
        number(database.pool(), "select count(*) from inbox.held_key where state = 'parked'").await,
        1
    );
    assert_eq!(number(database.pool(), "select count(*) from stock.reservation").await, 0);
}
