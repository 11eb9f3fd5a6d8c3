//! The order service, from its HTTP side and from the events that reach it, on a real database.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{answers, handle, number, number_of, started, text_of, told};
use example_services::events::{PaymentRefused, PaymentTaken, Reason, ShipmentDispatched, StockReserved};
use example_services::order::{DEFINITION, handlers};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tests::Database;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use uuid::Uuid;

const STATE: &str = "select coalesce(reason, state) from orders.orders where id = $1";

/// The service's HTTP side, without its consumer.
struct Shop {
    database: Database,
    url: String,
    _server: JoinSet<std::io::Result<()>>,
}

impl Shop {
    async fn open() -> Shop {
        let database = started(DEFINITION).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = (DEFINITION.routes)().with_state(database.pool().clone());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await });
        Shop { database, url, _server: server }
    }

    async fn post(&self, body: String) -> (StatusCode, Value) {
        let answer =
            reqwest::Client::new().post(format!("{}/orders", self.url)).body(body).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    async fn look(&self, path: &str) -> (StatusCode, Value) {
        let answer = reqwest::get(format!("{}{path}", self.url)).await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    async fn placed(&self, key: &str) -> Uuid {
        let (status, answer) = self.post(order(key, 2)).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        answer["id"].as_str().unwrap().parse().unwrap()
    }
}

fn order(key: &str, quantity: i32) -> String {
    json!({
        "idempotency_key": key, "customer": "ada", "destination": "DE",
        "lines": [{ "article": "lamp", "quantity": quantity }],
    })
    .to_string()
}

#[tokio::test]
async fn an_order_and_its_event_are_written_together_under_the_orders_key() {
    let shop = Shop::open().await;
    let id = shop.placed("a").await;
    let keys: Vec<String> = sqlx::query_scalar("select key from outbox.message where kind = 'order.placed'")
        .fetch_all(shop.database.pool())
        .await
        .unwrap();
    assert_eq!(keys, [id.to_string()]);
    let (_, seen) = shop.look(&format!("/orders/{id}")).await;
    assert_eq!(seen["state"], "placed");
    assert_eq!(seen["lines"], json!([{ "article": "lamp", "quantity": 2 }]));
    assert_eq!(seen["history"][0]["kind"], "order.placed");
}

#[tokio::test]
async fn the_same_request_again_is_the_same_order_and_another_one_is_refused() {
    let shop = Shop::open().await;
    let id = shop.placed("a").await;
    let (status, again) = shop.post(order("a", 2)).await;
    assert_eq!((status, again["id"].as_str()), (StatusCode::OK, Some(id.to_string().as_str())));
    let (status, other) = shop.post(order("a", 3)).await;
    assert_eq!((status, &other["error"]), (StatusCode::CONFLICT, &json!("conflict")));
    assert_eq!(number(shop.database.pool(), "select count(*) from orders.orders").await, 1);
    assert_eq!(number(shop.database.pool(), "select count(*) from outbox.message").await, 1);
}

#[tokio::test]
async fn a_bad_request_is_told_its_field_and_writes_nothing() {
    let shop = Shop::open().await;
    let (status, answer) = shop.post(order("a", 0)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer["fields"], json!([{ "field": "lines[0].quantity", "must": "be 1 to 1000" }]));
    for body in ["", "{", "[]", r#"{"idempotency_key": 7}"#, r#"{"customer": "s3cret"}"#] {
        let (status, answer) = shop.post(body.to_owned()).await;
        assert_eq!((status, &answer["error"]), (StatusCode::BAD_REQUEST, &json!("malformed")), "{body}");
        assert!(!answer.to_string().contains("s3cret"));
    }
    let (status, _) = shop.look("/orders?state=lost").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let (status, _) = shop.look("/orders?limit=0").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let (status, answer) = shop.look(&format!("/orders/{}", Uuid::nil())).await;
    assert_eq!((status, &answer["error"]), (StatusCode::NOT_FOUND, &json!("not_found")));
    assert_eq!(number(shop.database.pool(), "select count(*) from outbox.message").await, 0);
}

#[tokio::test]
async fn news_in_the_wrong_order_still_ends_the_order_once() {
    let shop = Shop::open().await;
    let order = shop.placed("a").await;
    let dispatched = told(&ShipmentDispatched { order, tracking: 1 });
    let taken = told(&PaymentTaken { order, destination: "DE".into(), amount_cents: 9800 });
    let reserved =
        told(&StockReserved { order, customer: "ada".into(), destination: "DE".into(), amount_cents: 9800 });
    handle!(shop.database, handlers::dispatched, &dispatched).unwrap();
    handle!(shop.database, handlers::taken, &taken).unwrap();
    handle!(shop.database, handlers::reserved, &reserved).unwrap();
    let pool = shop.database.pool();
    assert_eq!(text_of(pool, STATE, order).await.as_deref(), Some("completed"));
    assert_eq!(number_of(pool, "select amount_cents from orders.orders where id = $1", order).await, 9800);
    assert_eq!(answers(pool, &dispatched).await, ["order.completed"]);
    assert!(answers(pool, &taken).await.is_empty() && answers(pool, &reserved).await.is_empty());
}

#[tokio::test]
async fn a_refusal_cancels_with_its_reason() {
    let shop = Shop::open().await;
    let order = shop.placed("a").await;
    let refused = told(&PaymentRefused { order, reason: Reason::AboveLimit });
    handle!(shop.database, handlers::refused, &refused).unwrap();
    assert_eq!(text_of(shop.database.pool(), STATE, order).await.as_deref(), Some("above_limit"));
    assert_eq!(answers(shop.database.pool(), &refused).await, ["order.cancelled"]);
}

#[tokio::test]
async fn news_of_an_order_that_nobody_placed_is_refused() {
    let shop = Shop::open().await;
    let refused = told(&PaymentRefused { order: Uuid::now_v7(), reason: Reason::AboveLimit });
    assert!(handle!(shop.database, handlers::refused, &refused).is_err());
}
