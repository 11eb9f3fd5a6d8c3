//! The rules of stock, on a real database.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{answers, handle, number, started, text_of, told};
use example_services::events::{
    Line, OrderPlaced, PaymentRefused, Reason, ShipmentDispatched, ShipmentRefused, StockReserved,
};
use example_services::stock::{DEFINITION, handlers};
use sqlx::PgPool;
use uuid::Uuid;

const STATE: &str = "select state from stock.reservation where order_id = $1";
const RESERVED: &str = "select coalesce(sum(reserved), 0)::bigint from stock.article";
const ON_HAND: &str = "select coalesce(sum(on_hand), 0)::bigint from stock.article";

fn placed(lines: &[(&str, i32)]) -> OrderPlaced {
    let line = |(article, quantity): &(&str, i32)| Line { article: (*article).into(), quantity: *quantity };
    OrderPlaced {
        order: Uuid::now_v7(),
        customer: "ada".into(),
        destination: "DE".into(),
        lines: lines.iter().map(line).collect(),
    }
}

async fn reserved(pool: &PgPool) -> i64 {
    number(pool, RESERVED).await
}

#[tokio::test]
async fn an_order_reserves_every_line_and_says_what_it_costs() {
    let stock = started(DEFINITION).await;
    let order = placed(&[("lamp", 2), ("mug", 3)]);
    let message = told(&order);
    handle!(stock, handlers::reserve, &message).unwrap();
    assert_eq!(reserved(stock.pool()).await, 5);
    let payload: Vec<u8> = sqlx::query_scalar("select payload from outbox.message where key = $1")
        .bind(order.order.to_string())
        .fetch_one(stock.pool())
        .await
        .unwrap();
    let event: StockReserved = serde_json::from_slice(&payload).unwrap();
    assert_eq!(event.amount_cents, 2 * 4900 + 3 * 1200);
    assert_eq!(answers(stock.pool(), &message).await, ["stock.reserved"]);
}

#[tokio::test]
async fn one_missing_line_leaves_no_piece_reserved() {
    let stock = started(DEFINITION).await;
    for lines in [[("lamp", 2), ("unicorn", 1)], [("mug", 1), ("last-clock", 3)]] {
        let order = placed(&lines);
        let message = told(&order);
        handle!(stock, handlers::reserve, &message).unwrap();
        assert_eq!(reserved(stock.pool()).await, 0);
        assert_eq!(text_of(stock.pool(), STATE, order.order).await.as_deref(), Some("missing"));
        assert_eq!(answers(stock.pool(), &message).await, ["stock.missing"]);
    }
}

#[tokio::test]
async fn a_refusal_by_payment_or_shipping_puts_the_pieces_back_for_sale() {
    let stock = started(DEFINITION).await;
    let before = number(stock.pool(), ON_HAND).await;
    for by_payment in [true, false] {
        let order = placed(&[("lamp", 2), ("chair", 1)]);
        handle!(stock, handlers::reserve, &told(&order)).unwrap();
        assert_eq!(reserved(stock.pool()).await, 3);
        let id = order.order;
        let message = if by_payment {
            told(&PaymentRefused { order: id, reason: Reason::AboveLimit })
        } else {
            told(&ShipmentRefused { order: id, reason: Reason::Unserved })
        };
        if by_payment {
            handle!(stock, handlers::payment_refused, &message).unwrap();
        } else {
            handle!(stock, handlers::shipment_refused, &message).unwrap();
        }
        assert_eq!(reserved(stock.pool()).await, 0);
        assert_eq!(number(stock.pool(), ON_HAND).await, before);
        assert_eq!(text_of(stock.pool(), STATE, id).await.as_deref(), Some("released"));
        assert_eq!(answers(stock.pool(), &message).await, ["stock.released"]);
    }
}

#[tokio::test]
async fn dispatched_pieces_have_left_the_house() {
    let stock = started(DEFINITION).await;
    let before = number(stock.pool(), ON_HAND).await;
    let order = placed(&[("lamp", 2), ("chair", 1)]);
    handle!(stock, handlers::reserve, &told(&order)).unwrap();
    handle!(stock, handlers::dispatched, &told(&ShipmentDispatched { order: order.order, tracking: 1 }))
        .unwrap();
    assert_eq!(reserved(stock.pool()).await, 0);
    assert_eq!(number(stock.pool(), ON_HAND).await, before - 3);
}

#[tokio::test]
async fn a_reservation_ends_once() {
    let stock = started(DEFINITION).await;
    let order = placed(&[("lamp", 2)]);
    handle!(stock, handlers::reserve, &told(&order)).unwrap();
    let id = order.order;
    handle!(stock, handlers::dispatched, &told(&ShipmentDispatched { order: id, tracking: 1 })).unwrap();
    let refused = told(&PaymentRefused { order: id, reason: Reason::AboveLimit });
    assert!(handle!(stock, handlers::payment_refused, &refused).is_err());
    assert_eq!(text_of(stock.pool(), STATE, id).await.as_deref(), Some("shipped"));
    assert!(answers(stock.pool(), &refused).await.is_empty());
    let unknown = told(&PaymentRefused { order: Uuid::now_v7(), reason: Reason::AboveLimit });
    assert!(handle!(stock, handlers::payment_refused, &unknown).is_err());
}

#[tokio::test]
async fn two_orders_at_once_cannot_both_have_the_last_pieces() {
    let stock = started(DEFINITION).await;
    let one = async |order: OrderPlaced| handle!(stock, handlers::reserve, &told(&order));
    let (first, second) =
        (placed(&[("last-clock", 2), ("lamp", 1)]), placed(&[("lamp", 1), ("last-clock", 2)]));
    let (a, b) = tokio::join!(one(first), one(second));
    a.unwrap();
    b.unwrap();
    let held = number(stock.pool(), "select count(*) from stock.reservation where state = 'held'").await;
    assert_eq!(held, 1);
    assert_eq!(reserved(stock.pool()).await, 3);
}

#[tokio::test]
async fn the_table_itself_refuses_more_reserved_than_there_is() {
    let stock = started(DEFINITION).await;
    for sql in [
        "update stock.article set reserved = on_hand + 1 where code = 'lamp'",
        "update stock.article set reserved = -1 where code = 'lamp'",
        "update stock.article set on_hand = -1 where code = 'lamp'",
    ] {
        let error = sqlx::query(sql).execute(stock.pool()).await.unwrap_err();
        assert!(error.as_database_error().unwrap().is_check_violation(), "{sql}");
    }
}

#[tokio::test]
async fn a_second_start_delivers_no_goods_twice() {
    let stock = started(DEFINITION).await;
    let before = number(stock.pool(), ON_HAND).await;
    example_services::service::migrate(stock.pool(), DEFINITION.schema).await.unwrap();
    assert_eq!(number(stock.pool(), ON_HAND).await, before);
    let came_in = number(stock.pool(), "select sum(quantity)::bigint from stock.intake").await;
    assert_eq!(came_in, before);
}
