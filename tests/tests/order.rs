//! Law 3, order per key: the six ways in which outboxes lose it, each against the relay and a real PostgreSQL.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod relay_support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use brokers::memory::{Broker, Fault, MemoryPublisher};
use message::{Message, Outcomes, Outgoing, Pipelining, PublishError, Publisher, publish_all};
use outbox::Backoff;
use relay_support::{firsts, message, numbers, patient, settings, start, until, until_published, write};
use tests::Database;
use tokio::sync::{Notify, watch};

/// 1. Ids drawn before commit: neither a transaction's id nor a position says when its transaction commits.
#[tokio::test(flavor = "multi_thread")]
async fn ids_drawn_before_the_commit_decide_nothing() {
    let database = Database::new("order_ids").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut open = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut open, &[message("late", 1)]).await.unwrap();
    // The first to have an id is the second to have the key.
    let mut second = pool.begin().await.unwrap();
    sqlx::query("select pg_current_xact_id()").execute(&mut *second).await.unwrap();
    write(pool, &[message("a", 1)]).await;
    outbox::enqueue_all(&mut second, &[message("a", 2)]).await.unwrap();
    outbox::commit(second).await.unwrap();
    let relay = start(pool, broker.publisher(), settings());
    until_published(&broker, 2).await;
    // Its position is lower than what is long delivered.
    outbox::commit(open).await.unwrap();
    write(pool, &[message("late", 2)]).await;
    until_published(&broker, 4).await;
    relay.stop().await.unwrap();
    assert_eq!((numbers(&broker, "a"), numbers(&broker, "late")), (vec![1, 2], vec![1, 2]));
}

/// 1. The same at random.
#[tokio::test(flavor = "multi_thread")]
async fn writers_side_by_side_lose_nothing_and_keep_every_key_in_order() {
    let database = Database::new("order_writers").await;
    let pool = database.pool();
    sqlx::raw_sql("create table account (key text primary key, version int not null)")
        .execute(pool)
        .await
        .unwrap();
    sqlx::raw_sql("insert into account select 'k' || n, 0 from generate_series(0, 9) n")
        .execute(pool)
        .await
        .unwrap();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    let writers: Vec<_> = (0..4_usize)
        .map(|writer| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for step in 0..100_usize {
                    let key = format!("k{}", (writer * 7 + step * 3) % 10);
                    let mut tx = pool.begin().await.unwrap();
                    // An id of its own before the row lock: what an order by transaction id gets wrong.
                    sqlx::query("select pg_current_xact_id()").execute(&mut *tx).await.unwrap();
                    let update = "update account set version = version + 1 where key = $1 returning version";
                    let version: i32 =
                        sqlx::query_scalar(update).bind(&key).fetch_one(&mut *tx).await.unwrap();
                    let number = usize::try_from(version).unwrap();
                    outbox::enqueue_all(&mut tx, &[message(&key, number)]).await.unwrap();
                    outbox::commit(tx).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    until_published(&broker, 400).await;
    relay.stop().await.unwrap();
    assert_eq!(broker.published().len(), 400);
    for key in 0..10 {
        let numbers = numbers(&broker, &format!("k{key}"));
        assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());
    }
}

/// Notes which process has messages of which keys on the wire.
struct Witness {
    process: usize,
    publisher: MemoryPublisher,
    wire: Arc<Mutex<HashMap<String, usize>>>,
    crossed: Arc<AtomicBool>,
}

#[async_trait]
impl Publisher for Witness {
    fn pipelining(&self) -> Pipelining {
        self.publisher.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let keys: Vec<String> =
            batch.iter().map(|outgoing| outgoing.message.key.as_deref().unwrap().to_owned()).collect();
        for key in &keys {
            let other = self.wire.lock().unwrap().insert(key.clone(), self.process);
            self.crossed.fetch_or(other.is_some(), Ordering::Relaxed);
        }
        let results = publish_all(&self.publisher, batch).await;
        // Off the wire before the relay hears of it.
        keys.iter().for_each(|key| {
            self.wire.lock().unwrap().remove(key);
        });
        for (index, result) in results.into_iter().enumerate() {
            outcomes.report(index, result);
        }
    }
}

/// 2. Parallel relays overtaking: a key has one owner, and what he has on the wire is answered before another one sends.
#[tokio::test(flavor = "multi_thread")]
async fn processes_side_by_side_never_have_one_key_on_the_wire_together() {
    let database = Database::new("order_parallel").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.delay_confirmations(Duration::from_millis(5));
    let (wire, crossed) = (Arc::default(), Arc::new(AtomicBool::new(false)));
    let begin = |process| {
        let publisher = broker.publisher().one_per_key();
        let (wire, crossed) = (Arc::clone(&wire), Arc::clone(&crossed));
        start(pool, Witness { process, publisher, wire, crossed }, patient())
    };
    let first = begin(0);
    let all = |number| (0..20).map(move |key| message(&format!("k{key}"), number)).collect::<Vec<Message>>();
    let mut processes = Vec::new();
    for number in 1..=60 {
        write(pool, &all(number)).await;
        // Another one in the middle of the work, and another.
        if number % 20 == 10 {
            processes.push(begin(number));
        }
    }
    until_published(&broker, 60 * 20).await;
    first.stop().await.unwrap();
    for process in processes {
        process.stop().await.unwrap();
    }
    assert!(!crossed.load(Ordering::Relaxed), "a key was on the wire twice");
    for key in 0..20 {
        assert_eq!(numbers(&broker, &format!("k{key}")), (1..=60).collect::<Vec<_>>());
    }
}

/// 3. Backoff overtaking: a message that waits to be tried again holds back its key, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_waits_to_be_tried_again_is_not_overtaken() {
    let database = Database::new("order_backoff").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut settings = settings();
    settings.unavailable = Backoff { first: Duration::from_millis(800), ceiling: Duration::from_secs(1) };
    broker.fail_next(1, Fault::Unknown);
    write(pool, &[message("a", 1)]).await;
    let relay = start(pool, broker.publisher().one_per_key(), settings);
    for number in 1..=3 {
        write(pool, &[message("a", number + 1), message("b", number)]).await;
        until_published(&broker, number).await;
        assert_eq!(numbers(&broker, "b").len(), number, "the other key waits, too");
    }
    until_published(&broker, 7).await;
    relay.stop().await.unwrap();
    assert_eq!((numbers(&broker, "a"), numbers(&broker, "b")), (vec![1, 2, 3, 4], vec![1, 2, 3]));
}

/// 3, 4. Whether the answer was lost on the way there or back: what comes behind waits.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_repeats_a_message_and_never_overtakes() {
    for publisher in [Broker::publisher, |broker: &Broker| broker.publisher().one_per_key()] {
        let database = Database::new("order_unknown").await;
        let broker = Broker::new();
        broker.fail_next(7, Fault::UnknownButKept);
        let messages: Vec<Message> =
            (1..=60).map(|number| message(&format!("k{}", number % 3), number)).collect();
        write(database.pool(), &messages).await;
        let relay = start(database.pool(), publisher(&broker), settings());
        until_published(&broker, 67).await;
        relay.stop().await.unwrap();
        for key in 0..3 {
            let first = firsts(&numbers(&broker, &format!("k{key}")));
            assert!(first.is_sorted(), "{first:?}");
            assert_eq!(first.len(), 20);
        }
    }
}

/// The third message of the first batch does not get through, and takes those behind it along. The answers come backwards.
struct FailsInTheMiddle {
    publisher: MemoryPublisher,
    failed: AtomicBool,
}

#[async_trait]
impl Publisher for FailsInTheMiddle {
    fn pipelining(&self) -> Pipelining {
        Pipelining::PerBatch
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        if self.failed.swap(true, Ordering::Relaxed) {
            return self.publisher.publish(batch, outcomes).await;
        }
        let results = publish_all(&self.publisher, &batch[..2]).await;
        for index in (2..batch.len()).rev() {
            outcomes.report(index, Err(PublishError::Unknown("lost on the way".to_owned())));
        }
        for (index, result) in results.into_iter().enumerate().rev() {
            outcomes.report(index, result);
        }
    }
}

/// 4. A partly failed pipeline: it is sent again from the message that failed, before anything behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fails_in_the_middle_goes_on_where_it_failed() {
    let database = Database::new("order_pipeline").await;
    let broker = Broker::new();
    let mut settings = settings();
    settings.batch = 5;
    let messages: Vec<Message> = (1..=12).map(|number| message("a", number)).collect();
    write(database.pool(), &messages).await;
    let publisher = FailsInTheMiddle { publisher: broker.publisher(), failed: AtomicBool::new(false) };
    let relay = start(database.pool(), publisher, settings);
    until_published(&broker, 12).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a"), (1..=12).collect::<Vec<_>>());
    assert_eq!(broker.overlaps(), 0, "two batches had the key on the wire");
}

/// Lets nothing through until it is opened, as a process that stands still.
struct Gate {
    publisher: MemoryPublisher,
    arrived: Arc<Notify>,
    open: watch::Receiver<bool>,
}

#[async_trait]
impl Publisher for Gate {
    fn pipelining(&self) -> Pipelining {
        self.publisher.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        self.arrived.notify_one();
        self.open.clone().wait_for(|open| *open).await.unwrap();
        self.publisher.publish(batch, outcomes).await;
    }
}

/// 5. A zombie after its lease: it repeats, in order, what it has in hand, and takes back nothing of what its successor has
/// recorded.
#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_repeats_what_it_has_in_hand_and_overtakes_nothing() {
    let database = Database::new("order_zombie").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut settings = patient();
    settings.shards = 1;
    // With a page in hand and another before the door it does not look at the log, and so does not hear of the others.
    settings.read.page = 2;
    settings.max_unrecorded = 2;
    let messages: Vec<Message> = (1..=10).map(|number| message("a", number)).collect();
    write(pool, &messages).await;
    let (opened, open) = watch::channel(false);
    let arrived = Arc::new(Notify::new());
    let gate = Gate { publisher: broker.publisher().one_per_key(), arrived: Arc::clone(&arrived), open };
    let zombie = start(pool, gate, settings.clone());
    arrived.notified().await;
    let recorded = || async {
        let cursor = "select concat_ws(' ', epoch, seen, until, after) from outbox.cursor";
        sqlx::query_scalar::<_, String>(cursor).fetch_one(pool).await.unwrap()
    };
    let before = recorded().await;
    let owner = "select owner::text from outbox.cursor";
    let owner = || async { sqlx::query_scalar::<_, String>(owner).fetch_one(pool).await.unwrap() };
    let first = owner().await;
    let successor = start(pool, broker.publisher().one_per_key(), settings.clone());
    until("the successor has the shard", || async {
        // More than once: it may just have been about to renew its lease.
        let end = "with ended as (update outbox.process set expires_at = '-infinity' where id::text = $1)
            update outbox.relay set changes = changes + 1";
        sqlx::query(end).bind(&first).execute(pool).await.unwrap();
        owner().await != first
    })
    .await;
    until_published(&broker, 10).await;
    until("recorded", || async { recorded().await != before && numbers(&broker, "a").len() == 10 }).await;
    // It records when it is told to stop; nobody comes after the zombie and puts right what that has recorded.
    successor.stop().await.unwrap();
    opened.send(true).unwrap();
    until_published(&broker, 11).await;
    zombie.stop().await.unwrap();
    let copies = numbers(&broker, "a");
    assert_eq!(firsts(&copies), (1..=10).collect::<Vec<_>>());
    assert!(copies.len() <= 14, "more than two pages again: {copies:?}");
    assert!(copies[10..].is_sorted(), "{copies:?}");

    let relay = start(pool, broker.publisher().one_per_key(), settings);
    write(pool, &[message("a", 11)]).await;
    until("the last one came", || async { numbers(&broker, "a").contains(&11) }).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "a").len(), copies.len() + 1, "what was recorded came again");
}

/// 6. A redrive after its successors: what comes behind a held message is held behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_message_holds_its_key_and_a_redrive_delivers_it_in_order() {
    let database = Database::new("order_held").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    let relay = start(pool, broker.publisher(), settings());
    for number in 1..=5 {
        write(pool, &[message("bad", number), message("good", number)]).await;
    }
    until_published(&broker, 5).await;
    let parked = || async { !outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() };
    until("held", parked).await;
    until("parked", || async {
        outbox::admin::held_keys(pool, "default").await.unwrap().iter().all(|held| held.is_parked())
    })
    .await;
    let held = outbox::admin::held_keys(pool, "default").await.unwrap();
    assert_eq!((held.len(), held[0].attempts, held[0].key.as_deref()), (1, 3, Some("bad")));
    assert!(held[0].last_error.contains("reject"), "{}", held[0].last_error);

    // What comes later is held behind it, also by the process that takes over.
    relay.stop().await.unwrap();
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("bad", 6), message("good", 6)]).await;
    until_published(&broker, 6).await;
    assert_eq!(numbers(&broker, "bad"), Vec::<usize>::new());

    broker.accept_key("bad");
    assert!(outbox::admin::redrive(pool, "default", held[0].position, "ada", None).await.unwrap());
    until_published(&broker, 12).await;
    until("released", || async { outbox::admin::held_keys(pool, "default").await.unwrap().is_empty() }).await;
    write(pool, &[message("bad", 7)]).await;
    until_published(&broker, 13).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "bad"), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(numbers(&broker, "good"), [1, 2, 3, 4, 5, 6]);
}
