//! A workflow of two services with one of everything, for the tests of the tree and of its three forms.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::rows::{Found, HandledRow, HeldRow, Holder, Logged, Said};
use super::tree::Trace;

/// The id of the `n`th message.
pub(super) fn id(n: u128) -> Uuid {
    Uuid::from_u128(0x0193_b5a0_0000_7000_8000_0000_0000_0000 + n)
}

/// So many milliseconds after the workflow began.
pub(super) fn at(milliseconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000, 0).unwrap() + TimeDelta::milliseconds(milliseconds)
}

/// The `n`th message of the workflow, enqueued then.
pub(super) fn said(n: u128, cause: Option<u128>, kind: &str, milliseconds: i64) -> Said {
    Said {
        id: id(n),
        correlation: Some(id(1)),
        causation: cause.map(id),
        source: Some("/orders".to_owned()),
        topic: Some("orders".to_owned()),
        kind: Some(kind.to_owned()),
        key: Some("order-7".to_owned()),
        occurred_at: Some(at(milliseconds)),
        enqueued_at: Some(at(milliseconds)),
    }
}

/// Its row in a log, which relay `default` has passed.
pub(super) fn logged(said: Said, position: i64) -> Logged {
    Logged { said, position, passed: vec!["default".to_owned()], pending: Vec::new() }
}

pub(super) fn handled(n: u128, consumer: &str, milliseconds: i64, attempts: i32) -> HandledRow {
    let handled_at = at(milliseconds);
    HandledRow { id: id(n), consumer: consumer.to_owned(), received_at: handled_at, handled_at, attempts }
}

pub(super) fn held(said: Said, by: Holder, name: &str, attempts: i32, error: &str) -> HeldRow {
    HeldRow {
        said,
        by,
        name: name.to_owned(),
        parked: true,
        behind: false,
        attempts,
        next_attempt_at: None,
        last_error: error.to_owned(),
        held_at: at(2_000),
    }
}

/// Two databases: an order whose payment is refused, stock that is released, and what went wrong beside it.
pub(super) fn found() -> Vec<Found> {
    let mut refused = logged(said(3, Some(2), "payment.refused", 40), 2);
    refused.passed.clear();
    refused.pending.push("default".to_owned());
    let retried = HeldRow {
        parked: false,
        next_attempt_at: Some(at(9_000)),
        ..held(
            said(3, Some(2), "payment.refused", 40),
            Holder::Relay,
            "partners",
            2,
            "broker unavailable: connection refused",
        )
    };
    let waiting = HeldRow {
        behind: true,
        ..held(said(6, Some(3), "order.cancelled", 60), Holder::Relay, "partners", 2, "broker unavailable")
    };
    let parked = held(
        said(5, Some(1), "invoice.wanted", 30),
        Holder::Consumer,
        "invoices",
        5,
        "no address\u{1b}[2J for customer \"7\"; the handler gave up after the last of its attempts",
    );
    let orders = Found {
        database: "orders".to_owned(),
        outbox: true,
        inbox: true,
        logged: vec![
            logged(said(1, None, "order.placed", 0), 1),
            refused,
            logged(said(6, Some(3), "order.cancelled", 60), 3),
            logged(said(6, Some(3), "order.cancelled", 61), 4),
            logged(said(5, Some(1), "invoice.wanted", 30), 5),
            logged(said(8, Some(7), "parcel.returned", 90_000), 6),
        ],
        held: vec![retried, waiting, parked],
        handled: vec![handled(2, "payment", 35, 3)],
        ..Found::default()
    };
    let stock = Found {
        database: "stock".to_owned(),
        outbox: true,
        inbox: true,
        logged: vec![
            logged(said(2, Some(1), "stock.reserved", 12), 1),
            logged(said(1, None, "order.placed", 5), 2),
        ],
        handled: vec![handled(1, "stock", 12, 1), handled(7, "stock", 80_000, 1)],
        ..Found::default()
    };
    vec![orders, stock]
}

/// The tree of [`found`], asked for by its second message.
pub(super) fn trace() -> Trace {
    Trace::new(id(2), vec![id(1)], found()).unwrap()
}
