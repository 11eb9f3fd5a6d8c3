//! One workflow over the real tables of two databases, written by the libraries that services use.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{MARKER, Ran, run};
use message::{Message, MessageId};
use serde_json::Value;
use sqlx::Executor;
use tests::Database;

/// Two services' databases and one workflow: an order, its stock, its payment that is refused.
struct Shop {
    orders: Database,
    stock: Database,
    placed: Message,
    reserved: Message,
    refused: Message,
    cancelled: Message,
}

async fn enqueue(database: &Database, messages: &[Message]) {
    let mut tx = database.pool().begin().await.unwrap();
    outbox::enqueue_all(&mut tx, messages).await.unwrap();
    tx.commit().await.unwrap();
}

async fn handle(database: &Database, consumer: &str, message: &Message) {
    let mut tx = database.pool().begin().await.unwrap();
    assert_eq!(inbox::admit(&mut tx, consumer, message).await.unwrap(), inbox::Admission::First);
    tx.commit().await.unwrap();
}

fn message(kind: &str) -> Message {
    // What must not be read must not be printed.
    Message::new("shop", kind, MARKER).with_key("order-7").with_header("card", MARKER)
}

impl Shop {
    async fn open() -> Self {
        let orders = Database::new("trace_orders").await;
        let stock = Database::new("trace_stock").await;
        let placed = message("order.placed").with_source("/orders");
        let reserved = message("stock.reserved").with_source("/stock").caused_by(&placed);
        let refused = message("payment.refused").with_source("/orders").caused_by(&reserved);
        let cancelled = message("order.cancelled").with_source("/orders").caused_by(&refused);
        let shop = Shop { orders, stock, placed, reserved, refused, cancelled };

        let Shop { orders, stock, .. } = &shop;
        enqueue(orders, &[shop.placed.clone(), Message::new("noise", "another.workflow", "{}")]).await;
        handle(stock, "stock", &shop.placed).await;
        enqueue(stock, std::slice::from_ref(&shop.reserved)).await;
        handle(orders, "payment", &shop.reserved).await;
        // The same id twice: a log does not promise that there is one row.
        enqueue(orders, &[shop.refused.clone(), shop.refused.clone(), shop.cancelled.clone()]).await;
        shop
    }

    /// Consumer `stock` has parked the refusal, and holds what follows it behind it.
    async fn park(&self) {
        let park = "with hold as (
                insert into inbox.held_key (consumer, key, state, attempts, last_error)
                values ('stock', 'order-7', 'parked', 5, E'no such\\x1b[2J row') returning hold)
            insert into inbox.held_message
                (consumer, hold, message_id, correlation, causation, occurred_at, source, topic, kind, key, payload)
            select 'stock', hold, m.id, m.correlation, m.causation, m.occurred_at, '/orders', 'shop', m.kind, 'order-7', m.payload
            from hold, unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[], $5::text[], $6::bytea[])
                with ordinality as m (id, correlation, causation, occurred_at, kind, payload, n) order by m.n";
        let messages = [&self.refused, &self.cancelled];
        sqlx::query(park)
            .bind(messages.map(|message| *message.id.as_uuid()).to_vec())
            .bind(messages.map(|message| *message.correlation.as_uuid()).to_vec())
            .bind(messages.map(|message| message.causation.map(|id| *id.as_uuid())).to_vec())
            .bind(messages.map(|message| message.occurred_at).to_vec())
            .bind(messages.map(|message| message.kind.to_string()).to_vec())
            .bind(messages.map(|message| message.payload.to_vec()).to_vec())
            .execute(self.stock.pool())
            .await
            .unwrap();
    }

    fn trace(&self, id: MessageId, more: &[&str]) -> Ran {
        let id = id.to_string();
        let arguments =
            [&["trace", &id, "--database", "env:ORDERS", "--database", "env:STOCK"], more].concat();
        run(&arguments, &[("ORDERS", self.orders.url()), ("STOCK", self.stock.url())])
    }
}

/// Kind and depth of each message, in order.
fn tree(trace: &Value) -> Vec<(&str, u64)> {
    let messages = trace["messages"].as_array().unwrap().iter();
    messages.map(|node| (node["kind"].as_str().unwrap_or("?"), node["depth"].as_u64().unwrap())).collect()
}

#[tokio::test]
async fn any_message_of_a_workflow_leads_to_the_whole_of_it() {
    let shop = Shop::open().await;
    let expected =
        [("order.placed", 0), ("stock.reserved", 1), ("payment.refused", 2), ("order.cancelled", 3)];
    for message in [&shop.placed, &shop.reserved, &shop.refused, &shop.cancelled] {
        let trace = shop.trace(message.id, &["--output", "json"]).json();
        assert_eq!(tree(&trace), expected);
        assert_eq!(trace["workflows"][0], shop.placed.id.to_string());
    }
    let trace = shop.trace(shop.placed.id, &["--output", "json"]).json();
    let messages = &trace["messages"];
    assert_eq!(messages[0]["handled"][0]["consumer"], "stock");
    assert_eq!(messages[0]["handled"][0]["database"], shop.stock.name);
    assert_eq!(messages[0]["logged"][0]["database"], shop.orders.name);
    assert_eq!(messages[1]["handled"][0]["consumer"], "payment");
    assert_eq!(messages[2]["logged"].as_array().unwrap().len(), 2);
    assert_eq!(messages[2]["handled"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn parked_messages_and_those_behind_them_are_shown_in_all_three_forms() {
    let shop = Shop::open().await;
    shop.park().await;
    let json = shop.trace(shop.placed.id, &["--output", "json"]).json();
    let held = |n: usize| &json["messages"][n]["held"][0];
    assert_eq!((&held(2)["by"], &held(2)["state"]), (&"consumer".into(), &"parked".into()));
    assert_eq!((&held(2)["attempts"], &held(3)["state"]), (&5.into(), &"waiting".into()));

    let ran = shop.trace(shop.placed.id, &[]);
    let text = ran.succeeded();
    for part in [
        &format!("workflow {}\n", shop.placed.id),
        "\norder.placed  key order-7  from /orders\n",
        "└─ stock.reserved  key order-7  from /stock\n",
        "✓ handled by stock in",
        "✗ parked by consumer stock in",
        r"no such\u{1b}[2J row",
        "waits in consumer stock",
        "the log does not store it",
    ] {
        // The names of test databases are long, so that lines break anywhere.
        let joined = text.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
        let part_joined = part.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(joined.contains(&part_joined), "no {part:?} in\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");

    let ran = shop.trace(shop.placed.id, &["--output", "mermaid"]);
    let chart = ran.succeeded();
    assert!(
        chart.starts_with("flowchart TD\n  m0[\"order.placed<br/>key order-7<br/>from /orders\"]\n"),
        "{chart}"
    );
    assert!(chart.contains("  h0_0 --> m1\n") && chart.contains("parked by consumer stock"), "{chart}");
}

#[tokio::test]
async fn what_is_missing_is_said_and_not_left_out() {
    let shop = Shop::open().await;
    // Only the orders' database: the reservation is a cause that nobody here holds, and its handling is known.
    let id = shop.placed.id.to_string();
    let ran = run(&["trace", &id, "--output", "json"], &[("DATABASE_URL", shop.orders.url())]);
    let trace = ran.json();
    assert_eq!(tree(&trace), [("order.placed", 0), ("?", 0), ("payment.refused", 1), ("order.cancelled", 2)]);
    let absent = &trace["messages"][1];
    assert_eq!((&absent["link"], &absent["id"]), (&"absent".into(), &shop.reserved.id.to_string().into()));
    assert_eq!(absent["handled"][0]["consumer"], "payment");
    let unknown = trace["unknown"].to_string();
    assert!(
        unknown.contains("1 message said") && unknown.contains("3 messages without an inbox row"),
        "{unknown}"
    );

    let nobody = MessageId::new();
    shop.trace(nobody, &[]).failed(1, &["no message and no workflow", "in 2 databases"]);
    run(&["trace", "order-7"], &[]).failed(2, &["the id: not a UUID"]);
    let limited = shop.trace(shop.placed.id, &["--output", "json", "--limit", "1"]).json();
    assert!(limited["unknown"].to_string().contains("--limit"), "{limited}");
}

#[tokio::test]
async fn what_relays_have_recorded_and_hold_is_shown() {
    let shop = Shop::open().await;
    // A cursor of each shard that has seen everything but the last position of the orders' log.
    let cursors = "
        insert into outbox.relay (name, shards) values ('default', 2), ('late', 1), ('gone', 1);
        update outbox.relay set state = 'retired' where name = 'gone';
        insert into outbox.cursor (relay, shard, era, seen, seen_l, until, until_l, after)
        select r.name, s, 1, '1:1:', 0, case r.name when 'default' then pg_current_snapshot() end,
            case r.name when 'default' then 0 end,
            case r.name when 'default' then (select max(position) - 1 from outbox.message) else 0 end
        from outbox.relay r, generate_series(0, r.shards - 1) s";
    shop.orders.pool().execute(cursors).await.unwrap();
    let held = "
        insert into outbox.held_key (relay, position, slot, key, state, attempts, next_attempt_at, last_error)
        select 'default', position, slot, key, 'retrying', 2, now() + interval '1 minute', 'rejected: too large'
        from outbox.message where kind = 'order.placed'";
    shop.orders.pool().execute(held).await.unwrap();
    let copies = "
        insert into outbox.held_message (relay, position, held, id, correlation, causation, occurred_at, enqueued_at,
            source, topic, kind, key, headers, payload)
        select 'default', position, (select position from outbox.held_key), id, correlation, causation, occurred_at,
            enqueued_at, source, topic, kind, key, headers, payload
        from outbox.message where kind = 'order.placed'";
    shop.orders.pool().execute(copies).await.unwrap();

    let trace = shop.trace(shop.placed.id, &["--output", "json"]).json();
    let copy = |n: usize| {
        (&trace["messages"][n]["logged"][0]["passed"], &trace["messages"][n]["logged"][0]["pending"])
    };
    assert_eq!(copy(0), (&serde_json::json!(["default"]), &serde_json::json!(["late"])));
    assert_eq!(copy(3), (&serde_json::json!([]), &serde_json::json!(["default", "late"])));
    assert_eq!(copy(1), (&serde_json::json!([]), &serde_json::json!([])));
    let held = &trace["messages"][0]["held"][0];
    assert_eq!(
        (&held["by"], &held["state"], &held["attempts"]),
        (&"relay".into(), &"retrying".into(), &2.into())
    );
}

#[tokio::test]
async fn the_monitor_may_trace_without_seeing_a_payload() {
    let shop = Shop::open().await;
    shop.park().await;
    for database in [&shop.orders, &shop.stock] {
        database.pool().execute(migrations::roles()).await.unwrap();
    }
    let as_monitor = |database: &Database| {
        let separator = if database.url().contains('?') { '&' } else { '?' };
        format!("{}{separator}options=-c%20role%3Doutbox_monitor", database.url())
    };
    let id = shop.placed.id.to_string();
    let arguments = ["trace", &id, "--database", "env:ORDERS", "--database", "env:STOCK", "--output", "json"];
    let ran = run(&arguments, &[("ORDERS", &as_monitor(&shop.orders)), ("STOCK", &as_monitor(&shop.stock))]);
    assert_eq!(tree(&ran.json()).len(), 4);
}

#[tokio::test]
async fn a_database_given_twice_is_read_once() {
    let shop = Shop::open().await;
    let id = shop.placed.id.to_string();
    let twice = ["trace", &id, "--database", "env:ORDERS", "--database", "env:ORDERS", "--output", "json"];
    let trace = run(&twice, &[("ORDERS", shop.orders.url())]).json();
    assert_eq!(trace["databases"].as_array().unwrap().len(), 1);
    assert_eq!(trace["messages"][0]["logged"].as_array().unwrap().len(), 1);
}
