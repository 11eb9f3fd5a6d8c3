//! What a consumer does with a message that its database does not take, and with a database that does not take every one.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod inbox_support;

use std::time::Duration;

use brokers::memory::Broker;
use inbox::admin::{self, HeldState};
use inbox::{Consumer, ConsumerError, HandlerError};
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, placed, start};
use message::Message;
use migrations::Schema;
use sqlx::{Executor, PgTransaction};
use tests::Database;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_consumer_refuses_a_database_that_is_not_utf8() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let database = Database::encoded("other encoding", encoding).await;
        Schema::Inbox.migrate(&mut database.connect().await).await.expect("the schema");
        let subscriber = Broker::new().subscriber(CONSUMER, ["orders"]);
        let consumer = Consumer::new(CONSUMER, database.pool().clone(), subscriber).on(KIND, effect);
        let run = consumer.run(CancellationToken::new());
        let ended = tokio::time::timeout(Duration::from_secs(30), run).await.expect("it does not run");
        let refused = ended.expect_err("another encoding");
        assert!(matches!(&refused, ConsumerError::Encoding(name) if name == encoding), "{refused:?}");
        assert!(refused.to_string().contains("UTF8"), "{refused}");
    }
}

async fn fails(_: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    Err(format!("no stock for {}", message.id).into())
}

/// Rules as a database may have them for reasons of its own: no header `card`, no emoji in a held key, one id that no row
/// may bear.
const RULES: &str = "
    alter table inbox.held_message add constraint no_card check (headers is null or not headers ? 'card');
    alter table inbox.held_key add constraint latin check (key is null or key !~ '[\\U00010000-\\U0010ffff]');
    create function refuse() returns trigger language plpgsql as $$
        begin
            if (select count(*) from public.cursed where id = new.message_id) > 0 then
                raise exception 'that one never';
            end if;
            return new;
        end
    $$;
    create table cursed (id uuid);
    create trigger refuse before insert on inbox.message_0 for each row execute function refuse();
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_the_inbox_cannot_store_is_parked_and_the_others_go_on() {
    let service = Service::new("unstorable").await;
    service.pool.execute(RULES).await.unwrap();
    for slot in 1..36 {
        let sql = format!(
            "create trigger refuse before insert on inbox.message_{slot} for each row execute function refuse()"
        );
        service.pool.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await.unwrap();
    }
    let card = placed("card", "1").with_header("card", "4111");
    let emoji = placed("\u{1f600}", "2");
    let cursed = placed("cursed", "3");
    sqlx::query("insert into cursed values ($1)")
        .bind(cursed.id.as_uuid())
        .execute(&service.pool)
        .await
        .unwrap();

    // The first two cannot be held when their handler fails, the third cannot be admitted.
    let failing = start(service.consumer().on(KIND, fails));
    service.publish(&[card.clone(), emoji.clone(), cursed.clone(), placed("card", "behind it")]).await;
    service.acknowledged().await;
    failing.stop().await;
    let running = start(service.consumer().on(KIND, effect));
    let good: Vec<Message> = (0..40).map(|n| placed(&format!("good-{n}"), "good")).collect();
    service.publish(&good).await;
    service.acknowledged().await;
    eventually("others go on", || async { (service.notes().await.len() == 40).then_some(()) }).await;

    let held = service.parked(3).await;
    assert!(held.iter().all(|held| held.state == HeldState::Parked && held.attempts <= 1), "{held:?}");
    let of = |message: &Message| {
        held.iter().find(|held| held.first_id == Some(message.id)).expect("held by its id")
    };
    // What can be stored of it is kept: its key, so that order holds.
    assert_eq!((of(&card).key.as_deref(), of(&card).messages), (Some("card"), 2));
    assert_eq!(of(&emoji).key, None);
    assert_eq!(of(&cursed).key.as_deref(), Some("cursed"));
    let mut connection = service.pool.acquire().await.unwrap();
    let stored = admin::held_messages(&mut connection, CONSUMER, of(&card).hold, 1).await.unwrap().remove(0);
    let unreadable = stored.received.expect_err("not stored as a message");
    let message = message::wire::structured::decode(&unreadable.payload, "orders").expect("whole");
    assert_eq!(
        (message.id, message.payload, message.headers.get("card")),
        (card.id, card.payload.clone(), Some("4111"))
    );

    // Another copy is the same message, and a person can give it up.
    service.publish(&[card.clone(), emoji.clone(), cursed.clone()]).await;
    service.acknowledged().await;
    assert_eq!(service.held().await.len(), held.len());
    admin::skip(&mut connection, CONSUMER, of(&card).first.unwrap(), "ada", "no such card")
        .await
        .unwrap()
        .expect("the first");
    eventually("what was behind it", || async {
        service.notes().await.iter().any(|note| note == "behind it").then_some(())
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_that_cannot_be_decoded_parks_at_once() {
    async fn decodes(_: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        let _: u64 = message.decode()?;
        Ok(())
    }
    async fn decodes_below(_: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        let number = |message: &Message| -> anyhow::Result<u64> { Ok(message.decode()?) };
        number(message)?;
        Ok(())
    }
    let service = Service::new("undecodable").await;
    let running = start(service.consumer().on(KIND, decodes).on("order.numbered", decodes_below));
    service
        .publish(&[
            placed("a", "no number"),
            Message::new("orders", "order.numbered", "no number").with_key("b"),
        ])
        .await;
    service.acknowledged().await;
    let parked = service.parked(2).await;
    running.stop().await;
    assert!(parked.iter().all(|held| held.attempts == 1), "{parked:?}");
    assert!(parked.iter().all(|held| held.last_error.contains("line 1 column 2")), "{parked:?}");
}
