//! What a relay holds back: tried again, parked, skipped, and never in the way of others.

use std::time::Duration;

use brokers::memory::{Broker, Fault, MemoryPublisher};
use message::{Message, MessageId, Outcomes, Outgoing, Pipelining, PublishError, Publisher};
use outbox::{Backoff, Policies, Policy};
use sqlx::Executor;
use tests::Database;
use tokio::sync::Notify;

use super::relay_support::{self, firsts, message, numbers, patient, settings, start, until, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_gives_up_the_first_message_and_no_other() {
    let database = Database::new("relay_skip").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("bad", 1), message("bad", 2), message("bad", 3)]).await;
    until("parked", || async {
        let held = outbox::admin::held_keys(pool, "default").await.unwrap();
        held.first().is_some_and(|held| held.is_parked() && held.messages == 3)
    })
    .await;
    let held = outbox::admin::held_keys(pool, "default").await.unwrap();
    // It holds more, but what is not the first is not skipped.
    let second = held[0].position + 1;
    assert!(!outbox::admin::skip(pool, "default", second, "ada", "lost").await.unwrap());
    broker.accept_key("bad");
    assert!(
        outbox::admin::skip(pool, "default", held[0].first_position.unwrap(), "ada", "lost").await.unwrap()
    );
    broker.wait_for_published(2).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "bad"), [2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_held_alone_is_not_published_from_the_log_again_after_a_crash() {
    let database = Database::new("relay_alone").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut settings = settings();
    settings.shards = 1;
    settings.unavailable = Backoff { first: Duration::from_secs(600), ceiling: Duration::from_secs(600) };
    settings.retry = settings.unavailable;
    // The first message rests, unconfirmed, so the cursor stays before the second, which is held.
    broker.fail_next(1, Fault::Unknown);
    broker.fail_next(1, Fault::Rejected);
    let alone = Message::new("orders", "order.changed", "2");
    write(pool, &[message("a", 1), alone.clone()]).await;
    let relay = start(pool, broker.publisher(), settings.clone());
    until("held", || async { !outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    relay.task.abort();
    let _ = relay.task.await;

    let relay = start(pool, broker.publisher(), settings);
    broker.wait_for_published(1).await;
    write(pool, &[message("a", 2)]).await;
    broker.wait_for_published(2).await;
    let held = outbox::admin::held_keys(pool, "default").await.unwrap();
    assert_eq!((held.len(), held[0].first), (1, Some(alone.id)));
    assert!(outbox::admin::redrive(pool, "default", held[0].position, "ada", None).await.unwrap());
    broker.wait_for_published(3).await;
    relay.stop().await.unwrap();
    let ids: Vec<MessageId> = broker.published().iter().map(|published| published.message.id).collect();
    assert_eq!((ids.len(), ids[2]), (3, alone.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_never_answered_is_held_and_others_go_on() {
    let database = Database::new("relay_unanswered").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.fail_next(6, Fault::Unknown);
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("a", 1), message("a", 2)]).await;
    until("held", || async { !outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    write(pool, &[message("b", 1), message("a", 3)]).await;
    broker.wait_for_published(4).await;
    until("released", || async { outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    relay.stop().await.unwrap();
    assert_eq!((numbers(&broker, "a"), numbers(&broker, "b")), (vec![1, 2, 3], vec![1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_do_not_come_park_no_message_and_give_none_up() {
    let database = Database::new("relay_never_answered").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut settings = settings();
    // More often than a message is sent before it is held, and than it may be rejected.
    broker.fail_next(5 + 4 * usize::try_from(settings.max_attempts).unwrap(), Fault::Unknown);
    settings.policies = Policies::default().with("orders".parse().unwrap(), Policy::Skip);
    let relay = start(pool, broker.publisher(), settings);
    write(pool, &[message("a", 1)]).await;
    broker.wait_for_published(1).await;
    until("released", || async { outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    relay.stop().await.unwrap();
    let given_up = "select count(*) from outbox.audit";
    assert_eq!(sqlx::query_scalar::<_, i64>(given_up).fetch_one(pool).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_a_held_message_is_being_published_makes_no_duplicate() {
    let database = Database::new("relay_stop_held").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("a");
    let mut relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("a", 1), message("a", 2)]).await;
    until("held", || async { !outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    broker.hold_confirmations();
    broker.accept_key("a");
    broker.wait_for_published(1).await;
    relay.token.cancel();
    // It must still be there for the confirmation; one that lets go is gone at once.
    let gone = tokio::time::timeout(Duration::from_secs(1), &mut relay.task).await;
    assert!(gone.is_err(), "the relay left while a held message was on the wire");
    broker.release_confirmations();
    relay.stop().await.unwrap();
    let relay = start(pool, broker.publisher(), settings());
    broker.wait_for_published(2).await;
    until("released", || async { outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_message_whose_delivery_cannot_be_recorded_at_once_is_published_once() {
    let database = Database::new("relay_unrecorded_held").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("a");
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("a", 1), message("a", 2)]).await;
    until("held", || async { !outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    pool.execute(
        "create sequence public.deletion;
         create function public.refuse() returns trigger language plpgsql as $$
         begin
             if nextval('public.deletion') <= 3 then raise exception 'not now'; end if;
             return old;
         end $$;
         create trigger refuse before delete on outbox.held_message for each row execute function public.refuse()",
    )
    .await
    .unwrap();
    broker.accept_key("a");
    until("released", || async { outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), [1, 2]);
    let deletions: i64 =
        sqlx::query_scalar("select last_value from public.deletion").fetch_one(pool).await.unwrap();
    assert_eq!(deletions, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_closed_is_let_go_also_while_a_held_message_is_on_the_wire() {
    let database = Database::new("relay_closed").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("a");
    let own = outbox::pool_options().connect(database.url()).await.unwrap();
    let relay = start(&own, broker.publisher(), patient());
    write(pool, &[message("a", 1)]).await;
    until("held", || async { !outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    broker.hold_confirmations();
    broker.accept_key("a");
    write(pool, &[message("b", 1)]).await;
    broker.wait_for_published(2).await;
    let closed = own.clone();
    let closing = tokio::spawn(async move { own.close().await });
    until("the pool is closed", || async { closed.is_closed() }).await;
    // It can renew its lease no more.
    end_leases(pool).await;
    broker.release_confirmations();
    tokio::time::timeout(relay_support::PATIENCE, closing)
        .await
        .expect("its connections are given back")
        .unwrap();
    relay.stop().await.unwrap();
    let relay = start(pool, broker.publisher(), patient());
    until("released", || async { outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    relay.stop().await.unwrap();
    assert_eq!((firsts(&numbers(&broker, "a")), numbers(&broker, "b")), (vec![1], vec![1]));
}

/// As when the leases of all processes are over.
async fn end_leases(pool: &sqlx::PgPool) {
    pool.execute("update outbox.process set expires_at = clock_timestamp() - interval '1 second'")
        .await
        .unwrap();
}

/// Ends the process, as far as it can be ended in a test, when it is asked to publish one key.
struct Deadly {
    publisher: MemoryPublisher,
    died: std::sync::Arc<Notify>,
}

#[async_trait::async_trait]
impl Publisher for Deadly {
    fn pipelining(&self) -> Pipelining {
        self.publisher.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        if batch.iter().any(|outgoing| outgoing.message.key.as_deref() == Some("deadly")) {
            self.died.notify_one();
            return std::future::pending().await;
        }
        self.publisher.publish(batch, outcomes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_kills_its_process_parks_and_the_others_of_its_shard_are_published() {
    let database = Database::new("relay_deadly").await;
    let pool = database.pool();
    let broker = Broker::new();
    // No process is taken for dead that lives, however slow this machine is.
    let mut settings = patient();
    settings.shards = 1;
    settings.max_attempts = 4;
    let mut messages: Vec<Message> = (0..30).map(|key| message(&format!("k{key}"), 1)).collect();
    messages.insert(10, message("deadly", 1));
    messages.insert(20, Message::new("orders", "order.changed", "0"));
    messages.push(message("deadly", 2));
    messages.push(message("k5", 2));
    write(pool, &messages).await;
    let parked = || async {
        let held = outbox::admin::held_keys(pool, "default").await.unwrap();
        held.first().is_some_and(|held| held.is_parked() && held.key.as_deref() == Some("deadly"))
    };
    let mut deaths = 0;
    loop {
        let died = std::sync::Arc::new(Notify::new());
        let deadly = Deadly { publisher: broker.publisher(), died: std::sync::Arc::clone(&died) };
        let relay = start(pool, deadly, settings.clone());
        tokio::select! {
            () = died.notified() => deaths += 1,
            () = until("parked", parked) => {
                write(pool, &[message("k5", 3)]).await;
                broker.wait_for_published(33).await;
                let one_held = || async { outbox::admin::held_keys(pool, "default").await.unwrap().len() == 1 };
                until("all others are released", one_held).await;
                relay.stop().await.unwrap();
                break;
            }
        }
        assert!(deaths < 10, "the message kills one process after another");
        relay.task.abort();
        let _ = relay.task.await;
        end_leases(pool).await;
    }
    // Two before it is suspected, and those that its attempts allow.
    assert_eq!(deaths, 4);
    let held = outbox::admin::held_keys(pool, "default").await.unwrap();
    assert_eq!((held.len(), held[0].attempts, held[0].messages), (1, 4, 2), "{held:?}");
    assert_eq!(numbers(&broker, "k5"), [1, 2, 3]);
    assert_eq!(broker.published().len(), 33);
}

/// Says of every message of a key, in words that no column of text holds, that it is not wanted.
struct Refusing(MemoryPublisher);

#[async_trait::async_trait]
impl Publisher for Refusing {
    fn pipelining(&self) -> Pipelining {
        self.0.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        if batch.iter().any(|outgoing| outgoing.message.key.as_deref() == Some("bad")) {
            return outcomes.fail_all(PublishError::Rejected("answer: \0\u{1f600}".to_owned()));
        }
        self.0.publish(batch, outcomes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_in_words_that_no_column_holds_parks_its_message_and_stops_no_other() {
    let database = Database::new("relay_words").await;
    let broker = Broker::new();
    let mut settings = settings();
    settings.batch = 1;
    write(database.pool(), &[message("bad", 1), message("good", 1)]).await;
    let relay = start(database.pool(), Refusing(broker.publisher()), settings);
    until("the bad one is parked, the good one published", || async {
        let held = outbox::admin::held_keys(database.pool(), "default").await.unwrap();
        held.iter().any(|held| held.is_parked()) && numbers(&broker, "good") == [1]
    })
    .await;
    relay.stop().await.unwrap();
}
