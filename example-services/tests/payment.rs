//! The rules of payment, and shipping's one, on a real database.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{answers, handle, number, started, text_of, told};
use example_services::events::{PaymentTaken, Reason, ShipmentRefused, StockReserved};
use example_services::payment::{DEFINITION, handlers};
use example_services::shipping;
use uuid::Uuid;

const STATE: &str = "select coalesce(reason, state) from payments.payment where order_id = $1";
const LEDGER: &str = "select coalesce(sum(amount_cents), 0)::bigint from payments.ledger";
const ENTRIES: &str = "select count(*) from payments.ledger";
const BALANCES: &str = "select sum(balance_cents)::bigint from payments.account";

fn reserved(customer: &str, amount_cents: i64) -> StockReserved {
    StockReserved { order: Uuid::now_v7(), customer: customer.into(), destination: "DE".into(), amount_cents }
}

#[tokio::test]
async fn a_charge_stands_in_the_ledger_and_in_the_balance() {
    let payment = started(DEFINITION).await;
    for amount in [200_000, 5] {
        let message = told(&reserved("ada", amount));
        handle!(payment, handlers::take, &message).unwrap();
        assert_eq!(answers(payment.pool(), &message).await, ["payment.taken"]);
    }
    assert_eq!(number(payment.pool(), LEDGER).await, 200_005);
    assert_eq!(number(payment.pool(), BALANCES).await, 200_005);
}

#[tokio::test]
async fn a_refused_payment_moves_no_money() {
    let payment = started(DEFINITION).await;
    for (customer, amount, reason) in
        [("ada", 200_001, "above_limit"), ("student", 20_001, "above_limit"), ("nemo", 1, "unknown_customer")]
    {
        let event = reserved(customer, amount);
        let message = told(&event);
        handle!(payment, handlers::take, &message).unwrap();
        assert_eq!(answers(payment.pool(), &message).await, ["payment.refused"]);
        assert_eq!(text_of(payment.pool(), STATE, event.order).await.as_deref(), Some(reason));
    }
    assert_eq!(number(payment.pool(), ENTRIES).await, 0);
    assert_eq!(number(payment.pool(), BALANCES).await, 0);
}

#[tokio::test]
async fn a_refund_restores_the_balance_and_leaves_both_entries() {
    let payment = started(DEFINITION).await;
    let event = reserved("ada", 700);
    handle!(payment, handlers::take, &told(&event)).unwrap();
    let message = told(&ShipmentRefused { order: event.order, reason: Reason::Unserved });
    handle!(payment, handlers::refund, &message).unwrap();
    assert_eq!(number(payment.pool(), BALANCES).await, 0);
    assert_eq!(number(payment.pool(), LEDGER).await, 0);
    assert_eq!(number(payment.pool(), ENTRIES).await, 2);
    assert_eq!(answers(payment.pool(), &message).await, ["payment.refunded"]);
}

#[tokio::test]
async fn nothing_is_refunded_twice_or_that_was_never_taken() {
    let payment = started(DEFINITION).await;
    let (taken, refused) = (reserved("ada", 700), reserved("ada", 200_001));
    handle!(payment, handlers::take, &told(&taken)).unwrap();
    handle!(payment, handlers::take, &told(&refused)).unwrap();
    let back = |order| told(&ShipmentRefused { order, reason: Reason::Unserved });
    handle!(payment, handlers::refund, &back(taken.order)).unwrap();
    for order in [taken.order, refused.order, Uuid::now_v7()] {
        assert!(handle!(payment, handlers::refund, &back(order)).is_err());
    }
    assert_eq!(number(payment.pool(), ENTRIES).await, 2);
    assert_eq!(number(payment.pool(), BALANCES).await, 0);
}

#[tokio::test]
async fn a_ledger_entry_can_be_neither_changed_nor_removed() {
    let payment = started(DEFINITION).await;
    handle!(payment, handlers::take, &told(&reserved("ada", 700))).unwrap();
    for sql in [
        "update payments.ledger set amount_cents = 1",
        "delete from payments.ledger",
        "truncate payments.ledger",
    ] {
        let error = sqlx::query(sql).execute(payment.pool()).await.unwrap_err();
        assert!(error.to_string().contains("append-only"), "{sql}: {error}");
    }
    assert_eq!(number(payment.pool(), LEDGER).await, 700);
}

#[tokio::test]
async fn goods_are_dispatched_only_to_where_somebody_carries_them() {
    let shipping = started(shipping::DEFINITION).await;
    for (destination, answer, reason) in [
        ("DE", "shipment.dispatched", None),
        ("AQ", "shipment.refused", Some("unserved")),
        ("XX", "shipment.refused", Some("unknown_destination")),
    ] {
        let event = PaymentTaken { order: Uuid::now_v7(), destination: destination.into(), amount_cents: 5 };
        let message = told(&event);
        handle!(shipping, shipping::handlers::ship, &message).unwrap();
        assert_eq!(answers(shipping.pool(), &message).await, [answer]);
        let sql = "select reason from shipping.shipment where order_id = $1";
        assert_eq!(text_of(shipping.pool(), sql, event.order).await.as_deref(), reason);
    }
}
