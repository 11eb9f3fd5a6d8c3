//! What a hostile reader of the relay found: each test says what is right, and fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod relay_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use brokers::memory::{Broker, MemoryPublisher};
use message::{Message, Outcomes, Outgoing, Pipelining, PublishError, Publisher};
use outbox::admin::{self, HeldKey};
use outbox::{Routes, Settings};
use relay_support::{numbers, patient, settings, start, until, write};
use sqlx::PgPool;
use tests::Database;
use tokio::sync::watch;
use tokio::time::Instant;

async fn held(pool: &PgPool) -> Vec<HeldKey> {
    admin::held_keys(pool, "default").await.unwrap()
}

async fn until_free(pool: &PgPool) {
    until("no key is held", || async { held(pool).await.is_empty() }).await;
}

fn to(topic: &str, key: &str, number: usize) -> Message {
    Message::new(topic, "order.changed", number.to_string()).with_key(key)
}

fn at(broker: &Broker, destination: &str) -> usize {
    broker.published().iter().filter(|published| &*published.destination == destination).count()
}

/// Right: a key that waited for a destination is tried again when one statement about it has failed (a connection that is
/// killed, a `lock_timeout`), as after any failure of the database. It is: never again in this session, because the
/// destination was struck from the list of those that are waited for while the key was in hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_waited_for_a_destination_is_tried_again_after_a_statement_about_it_failed() {
    let database = Database::new("hostile_waited").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.close_destination("away");
    let relay = start(pool, broker.publisher(), patient());
    let mut number = 0;
    write(pool, &[to("away", "w1", 1), to("away", "w2", 1)]).await;
    until("two keys are held", || {
        number += 1;
        async move {
            write(pool, &[to("here", "h", number)]).await;
            held(pool).await.iter().filter(|held| held.destination.is_some()).count() == 2
        }
    })
    .await;
    // Whoever holds this lock stands for anything that makes the statement fail.
    let mut person = pool.begin().await.unwrap();
    sqlx::raw_sql("select from outbox.held_key where key = 'w2' for update")
        .execute(&mut *person)
        .await
        .unwrap();
    broker.open_destination("away");
    until("the first is published", || async { numbers(&broker, "w1") == [1] }).await;
    let waits =
        "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()
        and query like '%Counts an attempt%'";
    until("the second is being claimed", || async {
        sqlx::query_scalar::<_, i32>(waits).fetch_optional(pool).await.unwrap().is_some()
    })
    .await;
    // Long enough for the relay to look once more what waits.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let pid: i32 = sqlx::query_scalar(waits).fetch_one(pool).await.unwrap();
    sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(pool).await.unwrap();
    person.rollback().await.unwrap();
    until("the second is published", || async { numbers(&broker, "w2") == [1] }).await;
    until_free(pool).await;
    relay.stop().await.unwrap();
}

/// Right: one destination that is down hides no other, however many topics go there. It does from 200 topics on
/// (session/beyond.rs: `TOPICS`): the look beyond the look-ahead then answers that there is nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_many_topics_to_one_destination_that_is_down_hides_no_other() {
    let database = Database::new("hostile_topics").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.close_destination("away");
    let away = |number: usize| to(&format!("a.t{number}"), &format!("w{number}"), 1);
    write(pool, &(0..600).map(away).collect::<Vec<_>>()).await;
    write(pool, &(0..20).map(|number| to("here", "h", number)).collect::<Vec<_>>()).await;
    let mut settings = settings();
    settings.routes = Routes::default().with("a.>", "away").unwrap();
    (settings.max_unrecorded, settings.read.page) = (400, 100);
    let relay = start(pool, broker.publisher(), settings);
    until("the other topic's are published", || async { at(&broker, "here") == 20 }).await;
    relay.stop().await.unwrap();
}

/// The same where each topic is a destination (no route, as with NATS and one subject an entity).
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_to_many_destinations_that_are_down_hides_no_other() {
    let database = Database::new("hostile_subjects").await;
    let pool = database.pool();
    let broker = Broker::new();
    (0..400).for_each(|number| broker.close_destination(&format!("a.t{number}")));
    let away = |number: usize| to(&format!("a.t{number}"), &format!("w{number}"), 1);
    let mut settings = settings();
    (settings.max_unrecorded, settings.read.page) = (400, 100);
    // As after a few probes by default: most of them wait at any time.
    let pause = Duration::from_secs(5);
    settings.unavailable = outbox::Backoff { first: pause, ceiling: pause };
    let relay = start(pool, broker.publisher(), settings);
    // The look-ahead is full of them, and each is known to be down.
    write(pool, &(0..400).map(away).collect::<Vec<_>>()).await;
    until("all are refused", || async { broker.refused_by_destinations() >= 400 }).await;
    write(pool, &(0..20).map(|number| to("here", "h", number)).collect::<Vec<_>>()).await;
    until("the other topic's are published", || async { at(&broker, "here") == 20 }).await;
    relay.stop().await.unwrap();
}

/// Holds messages to one destination until it is told what to answer, and passes on the others.
struct Gated {
    publisher: MemoryPublisher,
    gate: watch::Receiver<bool>,
    refused: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl Publisher for Gated {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let away = |outgoing: &Outgoing| &*outgoing.destination == "away";
        for (index, outgoing) in batch.iter().enumerate().filter(|(_, outgoing)| !away(outgoing)) {
            let results = message::publish_all(&self.publisher, std::slice::from_ref(outgoing)).await;
            outcomes.report(index, results[0].clone());
        }
        for (index, _) in batch.iter().enumerate().filter(|(_, outgoing)| away(outgoing)) {
            let _ = self.gate.clone().wait_for(|open| *open).await;
            self.refused.store(true, Ordering::SeqCst);
            outcomes.report(index, Err(PublishError::DestinationUnavailable("full".to_owned())));
        }
    }
}

/// Right (law 8): all that is on the wire was answered, so a stop makes no duplicate. It does, and takes the whole `drain`,
/// if the others were confirmed before the destination was known to be down: the cursor stands before the message that
/// waits, which is neither held nor sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_a_destination_is_down_makes_no_duplicate() {
    let database = Database::new("hostile_stop").await;
    let pool = database.pool();
    let broker = Broker::new();
    let (open, gate) = watch::channel(false);
    let refused = Arc::new(AtomicBool::new(false));
    let publisher = Gated { publisher: broker.publisher(), gate, refused: Arc::clone(&refused) };
    let mut settings = settings();
    settings.shards = 1;
    settings.drain = Duration::from_secs(5);
    let relay = start(pool, publisher, settings.clone());
    write(pool, &[to("away", "w", 1)]).await;
    write(pool, &(1..=20).map(|number| to("here", &format!("h{number}"), number)).collect::<Vec<_>>()).await;
    until("the others are published", || async { at(&broker, "here") == 20 }).await;
    open.send_replace(true);
    until("it was refused", || async { refused.load(Ordering::SeqCst) }).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    relay.stop().await.unwrap();
    println!("the stop took {:?}", began.elapsed());
    // As in a rolling restart: nothing else is written, each process stops politely.
    for restart in 1..=3 {
        let gate = watch::channel(true).1;
        let refused = Arc::new(AtomicBool::new(false));
        let publisher = Gated { publisher: broker.publisher(), gate, refused: Arc::clone(&refused) };
        let relay = start(pool, publisher, settings.clone());
        until("it was refused", || async { refused.load(Ordering::SeqCst) }).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        relay.stop().await.unwrap();
        println!("restart {restart}: {} published, the stop took {:?}", at(&broker, "here"), began.elapsed());
    }
    assert_eq!(at(&broker, "here"), 20, "copies");
}

/// Answers nothing for one key, ever, and passes on the others.
struct Mute {
    publisher: MemoryPublisher,
}

#[async_trait::async_trait]
impl Publisher for Mute {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let mute = |outgoing: &Outgoing| outgoing.message.key.as_deref() == Some("mute");
        for (index, outgoing) in batch.iter().enumerate().filter(|(_, outgoing)| !mute(outgoing)) {
            let results = message::publish_all(&self.publisher, std::slice::from_ref(outgoing)).await;
            outcomes.report(index, results[0].clone());
        }
        if batch.iter().any(mute) {
            std::future::pending::<()>().await;
        }
    }
}

/// Right: a stop records what was confirmed before it ends, whether or not a held message of another key is answered in
/// time. It waits for that one first, then gives up (and says that the database did not answer), and records nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_a_held_message_is_not_answered_repeats_nothing_that_was_confirmed() {
    let database = Database::new("hostile_mute").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut settings: Settings = settings();
    settings.lease = Duration::from_secs(5);
    settings.drain = Duration::from_secs(1);
    settings.publish_timeout = Duration::from_millis(200);
    let first = start(pool, Mute { publisher: broker.publisher() }, settings.clone());
    write(pool, &[to("here", "mute", 1)]).await;
    until("it is held", || async { held(pool).await.len() == 1 }).await;
    first.stop().await.unwrap();
    // From now on each try takes long.
    settings.publish_timeout = Duration::from_secs(30);
    settings.record_interval = Duration::from_secs(3);
    let first = start(pool, Mute { publisher: broker.publisher() }, settings.clone());
    until("it is being tried", || async { held(pool).await[0].attempts > 0 }).await;
    write(pool, &(0..64).map(|key| to("here", &format!("k{key}"), 1)).collect::<Vec<_>>()).await;
    until("others are published", || async { broker.published().len() == 64 }).await;
    first.stop().await.unwrap();
    let second = start(pool, Mute { publisher: broker.publisher() }, settings.clone());
    write(pool, &[to("here", "last", 1)]).await;
    until("all is read", || async { numbers(&broker, "last") == [1] }).await;
    second.stop().await.unwrap();
    assert_eq!(broker.published().len(), 65, "copies");
}

/// Right ("what a person decides"): a skip that says it is done is the end of it. Of a relay that was just retired, a
/// message is given up though a process is publishing it now.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_skipped_of_a_retired_relay_is_not_published_afterwards() {
    let database = Database::new("hostile_retired").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    let relay = start(pool, broker.publisher(), patient());
    write(pool, &[to("here", "bad", 1)]).await;
    until("parked", || async { held(pool).await.first().is_some_and(HeldKey::is_parked) }).await;
    relay.stop().await.unwrap();
    broker.accept_key("bad");
    let (open, gate) = watch::channel(false);
    let relay = start(pool, Slow { publisher: broker.publisher(), gate }, patient());
    let position = held(pool).await[0].position;
    assert!(admin::redrive(pool, "default", position, "ada", None).await.unwrap());
    until("it is being tried", || async { held(pool).await[0].attempts == 1 }).await;
    assert!(admin::retire(pool, "default", "ada", "over").await.unwrap());
    let skipped = admin::skip(pool, "default", position, "ada", "lost").await.unwrap();
    assert_eq!(broker.published().len(), 0);
    open.send_replace(true);
    let _ = relay.task.await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(skipped.is_none() || broker.published().is_empty(), "published after it was skipped");
}

/// Keeps everything back until it is let go.
struct Slow {
    publisher: MemoryPublisher,
    gate: watch::Receiver<bool>,
}

#[async_trait::async_trait]
impl Publisher for Slow {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let _ = self.gate.clone().wait_for(|open| *open).await;
        self.publisher.publish(batch, outcomes).await;
    }
}

/// Right (docs/operations.md: "While nothing confirms, nothing is copied"): it may be the broker that is down. It copies
/// where topics are many and each is a destination: the look beyond finds a topic that was never tried, takes its
/// destination for one that works, and has everything held.
#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_confirms_nothing_is_copied_however_many_the_destinations() {
    let database = Database::new("hostile_copies").await;
    let pool = database.pool();
    let broker = Broker::new();
    (0..3000).for_each(|number| broker.close_destination(&format!("order.{number}")));
    let away = |number: usize| to(&format!("order.{number}"), &format!("w{number}"), 1);
    write(pool, &(0..3000).map(away).collect::<Vec<_>>()).await;
    let mut settings = settings();
    (settings.max_unrecorded, settings.read.page) = (150, 50);
    let relay = start(pool, broker.publisher(), settings);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let copies = held(pool).await.len();
    relay.stop().await.unwrap();
    assert_eq!(copies, 0, "copies though nothing was confirmed");
}

/// A process of its own that runs a relay until it is killed; started by
/// [`a_process_that_stands_still_while_it_counts_an_attempt_keeps_its_locks_for_a_second`].
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by another test"]
async fn child() {
    let Ok(url) = std::env::var("HOSTILE_CHILD") else { return };
    let pool = outbox::pool_options().max_connections(8).connect(&url).await.unwrap();
    let mut settings = settings();
    settings.lease = Duration::from_secs(2);
    settings.shards = 1;
    let _ = match std::env::var("HOSTILE_FILES") {
        Ok(files) => start(&pool, Files(files.into()), settings).task.await,
        Err(_) => start(&pool, Broker::new().publisher(), settings).task.await,
    };
}

/// Writes what it publishes to a file; the first message it keeps on the wire until another file is there.
struct Files(std::path::PathBuf);

#[async_trait::async_trait]
impl Publisher for Files {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        use std::io::Write;
        for outgoing in batch {
            if &*outgoing.message.payload == b"1" {
                std::fs::write(self.0.join("on_wire"), "").unwrap();
                while !self.0.join("go").exists() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            let path = self.0.join("out");
            let mut out = std::fs::File::options().create(true).append(true).open(path).unwrap();
            out.write_all(&[&outgoing.message.payload[..], b"\n"].concat()).unwrap();
        }
        outcomes.confirm_all();
    }
}

/// Rejects one message, and passes on the others.
struct Picky {
    publisher: MemoryPublisher,
}

#[async_trait::async_trait]
impl Publisher for Picky {
    fn pipelining(&self) -> Pipelining {
        Pipelining::OnePerKey
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        for (index, outgoing) in batch.iter().enumerate() {
            let result = match &*outgoing.message.payload {
                b"2" => Err(PublishError::Rejected("two".to_owned())),
                _ => message::publish_all(&self.publisher, std::slice::from_ref(outgoing)).await[0].clone(),
            };
            outcomes.report(index, result);
        }
    }
}

/// Right ("what a person decides"): a skipped message is not published, whatever takes over afterwards. A process that stood
/// still while it tried a held key goes on with the key's next messages when it wakes, before it looks whether they are
/// its still (the session does look: `lease_holds`; holds/drain.rs does not).
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stood_still_publishes_no_held_message_that_was_skipped_meanwhile() {
    let database = Database::new("hostile_thawed").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("a");
    let mut first = settings();
    (first.max_attempts, first.shards) = (1, 1);
    let relay = start(pool, broker.publisher(), first.clone());
    write(pool, &(1..=20).map(|number| to("here", "a", number)).collect::<Vec<_>>()).await;
    until("held", || async { held(pool).await.first().is_some_and(|held| held.messages == 20) }).await;
    relay.stop().await.unwrap();
    broker.accept_key("a");
    let position = held(pool).await[0].position;
    admin::redrive(pool, "default", position, "ada", None).await.unwrap();
    let files = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("HOSTILE_CHILD", database.url())
        .env("HOSTILE_FILES", files.path())
        .spawn()
        .unwrap();
    until("the first is on the wire", || async { files.path().join("on_wire").exists() }).await;
    let signal = |signal: &str| {
        std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    };
    signal("-STOP");
    (first.lease, first.max_attempts) = (Duration::from_secs(2), 3);
    let relay = start(pool, Picky { publisher: broker.publisher() }, first);
    until("the second is parked", || async {
        numbers(&broker, "a") == [1] && held(pool).await.first().is_some_and(HeldKey::is_parked)
    })
    .await;
    assert!(admin::skip(pool, "default", position, "ada", "lost").await.unwrap().is_some());
    until_free(pool).await;
    assert_eq!(numbers(&broker, "a"), [vec![1], (3..=20).collect()].concat());
    std::fs::write(files.path().join("go"), "").unwrap();
    signal("-CONT");
    tokio::time::sleep(Duration::from_secs(3)).await;
    child.kill().unwrap();
    child.wait().unwrap();
    relay.stop().await.unwrap();
    let out = std::fs::read_to_string(files.path().join("out")).unwrap_or_default();
    let out: Vec<&str> = out.lines().collect();
    println!("it published {out:?}");
    assert!(!out.contains(&"2"), "the skipped message: {out:?}");
}

/// Right: the doctor says how many messages wait for a person: those of keys that are parked.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_counts_what_waits_for_a_person() {
    let database = Database::new("hostile_doctor").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.close_destination("away");
    broker.reject_key("bad");
    let relay = start(pool, broker.publisher(), patient());
    write(pool, &[to("here", "bad", 1)]).await;
    write(pool, &(0..30).map(|number| to("away", &format!("w{number}"), 1)).collect::<Vec<_>>()).await;
    let mut number = 0;
    until("all are held", || {
        number += 1;
        async move {
            write(pool, &[to("here", "h", number)]).await;
            let held = held(pool).await;
            held.len() == 31 && held[0].is_parked()
        }
    })
    .await;
    relay.stop().await.unwrap();
    let found = admin::examine(pool, admin_ages(), admin_ages()).await.unwrap();
    let parked = found.iter().find(|finding| finding.name == "parked_keys").unwrap();
    assert!(parked.what.contains(" 1 message"), "{}", parked.what);
}

fn admin_ages() -> Duration {
    Duration::from_secs(86_400)
}

/// Right (docs/operations.md: "one that stands still in the middle of a transaction keeps its locks for a second: then the
/// server ends its connection"). A process that stands still while it counts attempts at held keys keeps their rows
/// locked for five minutes (claim.rs: SPEECH is never taken back): so long the next owner cannot try them, and cannot
/// record a copy to any of them, nor, with it, any cursor.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stands_still_while_it_counts_an_attempt_keeps_its_locks_for_a_second() {
    let database = Database::new("hostile_frozen").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("a");
    let mut first = patient();
    first.retry = outbox::Backoff { first: Duration::from_secs(600), ceiling: Duration::from_secs(600) };
    let relay = start(pool, broker.publisher(), first);
    write(pool, &[to("here", "a", 1)]).await;
    until("held", || async { held(pool).await.len() == 1 }).await;
    relay.stop().await.unwrap();
    broker.accept_key("a");

    sqlx::raw_sql("update outbox.held_key set next_attempt_at = clock_timestamp()")
        .execute(pool)
        .await
        .unwrap();
    let mut lock = pool.begin().await.unwrap();
    sqlx::raw_sql("select from outbox.held_key for update").execute(&mut *lock).await.unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("HOSTILE_CHILD", database.url())
        .spawn()
        .unwrap();
    let counts = "select state, wait_event_type from pg_stat_activity
        where datname = current_database() and query like '%Counts an attempt%' and pid <> pg_backend_pid()";
    let state = || async {
        sqlx::query_as::<_, (String, Option<String>)>(counts).fetch_optional(pool).await.unwrap()
    };
    until("it is about to count", || async {
        state().await.is_some_and(|(_, waits)| waits.as_deref() == Some("Lock"))
    })
    .await;
    let signal = |signal: &str| {
        std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    };
    signal("-STOP");
    lock.rollback().await.unwrap();
    until("it stands still", || async {
        state().await.is_some_and(|(state, _)| state == "idle in transaction")
    })
    .await;
    let began = Instant::now();
    let mut settings = settings();
    settings.lease = Duration::from_secs(2);
    let relay = start(pool, broker.publisher(), settings);
    write(pool, &[to("here", "a", 2)]).await;
    write(pool, &(0..64).map(|key| to("here", &format!("k{key}"), 1)).collect::<Vec<_>>()).await;
    while began.elapsed() < Duration::from_secs(40) && numbers(&broker, "a").is_empty() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let pending = admin::status(pool).await.unwrap()[0].pending;
    println!(
        "after {:?}: a {:?}, others {}, pending {pending}, it {:?}",
        began.elapsed(),
        numbers(&broker, "a"),
        broker.published().len(),
        state().await
    );
    child.kill().unwrap();
    child.wait().unwrap();
    relay.token.cancel();
    assert_eq!(numbers(&broker, "a")[..1], [1], "it is locked still");
    assert_eq!(pending, 0, "nothing is recorded");
}

/// Right (docs/operations.md: "A row of the log that is no message … is parked at once"): also if its key is longer than an
/// index takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_no_message_is_parked_whatever_its_key() {
    let database = Database::new("hostile_key").await;
    let pool = database.pool();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), patient());
    sqlx::raw_sql(
        "alter table outbox.message drop constraint message_key, drop constraint message_occurred_at;
        insert into outbox.message (id, correlation, occurred_at, source, topic, kind, key, payload)
        select gen_random_uuid(), gen_random_uuid(), 'infinity', '/x', 'here', 'k',
            (select string_agg(md5(random()::text), '') from generate_series(1, 200)), ''",
    )
    .execute(pool)
    .await
    .unwrap();
    write(pool, &[to("here", "a", 1)]).await;
    until("others go on", || async { numbers(&broker, "a") == [1] }).await;
    until("parked", || async { held(pool).await.first().is_some_and(HeldKey::is_parked) }).await;
    relay.stop().await.unwrap();
}

/// A number from a seed, for what may not differ between two runs.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

fn copies(broker: &Broker, id: uuid::Uuid) -> usize {
    broker.published().iter().filter(|published| *published.message.id.as_uuid() == id).count()
}

/// Right: whatever destinations, keys, persons and polite processes do at once, nothing is lost, nothing comes twice,
/// no key is inverted, and what was given up is not published.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a search: CHAOS_SEED, CHAOS_SECONDS"]
async fn chaos() {
    let number =
        |name: &str, or: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(or);
    let (seed, seconds) = (number("CHAOS_SEED", 1), number("CHAOS_SECONDS", 15));
    let crashes = number("CHAOS_CRASHES", 0) > 0;
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let database = Database::new("hostile_chaos").await;
    let options = database.url().parse().unwrap();
    let pool = &outbox::pool_options().max_connections(30).connect_with(options).await.unwrap();
    let broker = Broker::new();
    let one_per_key = chance.below(2) == 0;
    let mut settings = settings();
    settings.lease = Duration::from_secs(if crashes { 2 } else { 3600 });
    settings.shards = [1, 4, 16][chance.below(3) as usize];
    settings.drain = Duration::from_secs(25);
    settings.max_attempts = 2 + chance.below(3) as u32;
    (settings.max_unrecorded, settings.read.page) = (40 + chance.below(100) as usize, 15);
    settings.record_interval = Duration::from_millis(10 + chance.below(100));
    if chance.below(2) == 0 && !crashes {
        settings.policies = outbox::Policies::default().with("third".parse().unwrap(), outbox::Policy::Skip);
    }
    println!("seed {seed} one_per_key {one_per_key} settings {settings:?}");
    let run = || {
        let publisher = if one_per_key { broker.publisher().one_per_key() } else { broker.publisher() };
        start(pool, publisher, settings.clone())
    };
    let topics = ["here", "away", "third"];
    let mut sent = [0_usize; 16];
    let mut running = vec![run()];
    let began = Instant::now();
    let mut ids = std::collections::HashMap::new();
    let mut skipped: Vec<(uuid::Uuid, usize)> = Vec::new();
    while began.elapsed() < Duration::from_secs(seconds) {
        match chance.below(20) {
            0..=8 => {
                let mut messages = Vec::new();
                for _ in 0..1 + chance.below(30) {
                    let key = chance.below(15) as usize;
                    let key = if chance.below(3) == 0 { 0 } else { key };
                    sent[key] += 1;
                    let topic = if key == 1 { "here" } else { topics[chance.below(3) as usize] };
                    let message = to(topic, &format!("k{key}"), sent[key]);
                    ids.insert(*message.id.as_uuid(), (key, sent[key]));
                    messages.push(message);
                }
                write(pool, &messages).await;
            }
            9 => broker.close_destination(topics[1 + chance.below(2) as usize]),
            10 => broker.open_destination(topics[1 + chance.below(2) as usize]),
            11 => broker.reject_key(&format!("k{}", chance.below(15))),
            12 => broker.accept_key(&format!("k{}", chance.below(15))),
            13 => {
                let held = held(pool).await;
                if !held.is_empty() {
                    let one = &held[chance.below(held.len() as u64) as usize];
                    if chance.below(2) == 0 {
                        // From here on; it may have been published before a crash.
                        let before = one.first.map_or(0, |id| copies(&broker, *id.as_uuid()));
                        let id = admin::skip(pool, "default", one.position, "ada", "chaos").await.unwrap();
                        skipped
                            .extend(id.filter(|id| Some(*id) == one.first).map(|id| (*id.as_uuid(), before)));
                    } else {
                        admin::redrive(pool, "default", one.position, "ada", None).await.unwrap();
                    }
                }
            }
            14 if running.len() < 3 => running.push(run()),
            15 if running.len() > 1 || chance.below(3) == 0 => {
                if !running.is_empty() {
                    let one = running.swap_remove(chance.below(running.len() as u64) as usize);
                    if crashes && chance.below(2) == 0 {
                        one.task.abort();
                    } else {
                        one.stop().await.unwrap();
                    }
                }
                if running.is_empty() {
                    running.push(run());
                }
            }
            16 => broker.fail_next(1 + chance.below(3) as usize, brokers::memory::Fault::Unknown),
            17 => broker.fail_next(1 + chance.below(3) as usize, brokers::memory::Fault::Rejected),
            18 => broker.delay_confirmations(Duration::from_millis(chance.below(30))),
            _ => tokio::time::sleep(Duration::from_millis(chance.below(150))).await,
        }
    }
    if running.is_empty() {
        running.push(run());
    }
    broker.delay_confirmations(Duration::ZERO);
    topics.iter().for_each(|topic| broker.open_destination(topic));
    (0..16).for_each(|key| broker.accept_key(&format!("k{key}")));
    let all = ids.len();
    let deadline = Instant::now() + Duration::from_secs(60);
    let given_up = loop {
        for held in held(pool).await.iter().filter(|held| held.is_parked()) {
            admin::redrive(pool, "default", held.position, "ada", None).await.unwrap();
        }
        let given_up: Vec<uuid::Uuid> =
            sqlx::query_scalar("select message_id from outbox.audit where action = 'skip'")
                .fetch_all(pool)
                .await
                .unwrap();
        let published: std::collections::HashSet<uuid::Uuid> =
            broker.published().iter().map(|published| *published.message.id.as_uuid()).collect();
        if published.len() + given_up.len() >= all && held(pool).await.is_empty() {
            break given_up;
        }
        if Instant::now() > deadline {
            let missing: Vec<_> = ids
                .iter()
                .filter(|(id, _)| !published.contains(*id) && !given_up.contains(*id))
                .map(|(_, n)| *n)
                .collect();
            panic!(
                "seed {seed}: missing {missing:?} held {:?} status {:?}",
                held(pool).await,
                admin::status(pool).await
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    for one in running {
        one.stop().await.unwrap();
    }
    // Whatever is read again now was not recorded.
    let relay = run();
    write(pool, &(0..64).map(|key| to("here", &format!("z{key}"), 1)).collect::<Vec<_>>()).await;
    until("all is read", || async { (0..64).all(|key| !numbers(&broker, &format!("z{key}")).is_empty()) })
        .await;
    relay.stop().await.unwrap();
    let mut faults = Vec::new();
    for (id, before) in &skipped {
        if copies(&broker, *id) > *before {
            faults.push(format!("skipped and published: {:?}", ids[id]));
        }
    }
    for id in given_up.iter().filter(|id| skipped.iter().all(|(skipped, _)| skipped != *id)) {
        if copies(&broker, *id) > 0 {
            faults.push(format!("given up and published: {:?}", ids[id]));
        }
    }
    for key in 0..15 {
        let numbers = numbers(&broker, &format!("k{key}"));
        let firsts = relay_support::firsts(&numbers);
        if !firsts.is_sorted() {
            faults.push(format!("inverted k{key}: {firsts:?}"));
        }
        if !crashes && firsts.len() != numbers.len() {
            let again: Vec<_> = (0..numbers.len())
                .filter(|at| numbers[..*at].contains(&numbers[*at]))
                .map(|at| numbers[at])
                .collect();
            faults.push(format!("copies k{key}: {again:?}"));
        }
    }
    if broker.overlaps() > 0 && !crashes {
        faults.push(format!("overlaps {}", broker.overlaps()));
    }
    let left: i64 =
        sqlx::query_scalar("select count(*) from outbox.settled_message").fetch_one(pool).await.unwrap();
    println!(
        "seed {seed}: {all} messages, {} given up, {left} settled left, faults {faults:?}",
        given_up.len()
    );
    assert!(faults.is_empty(), "seed {seed}: {faults:?}");
}

/// Right (law 6): destinations that are down keep no other waiting, however many they are.
#[tokio::test(flavor = "multi_thread")]
async fn many_destinations_that_are_down_keep_no_other_waiting() {
    let database = Database::new("hostile_many").await;
    let pool = database.pool();
    let many: usize = std::env::var("MANY").ok().and_then(|text| text.parse().ok()).unwrap_or(3000);
    let broker = Broker::new();
    (0..many).for_each(|number| broker.close_destination(&format!("order.{number}")));
    let mut settings = Settings::default();
    settings.lease = Duration::from_secs(10);
    let options = database.url().parse().unwrap();
    let relays = outbox::pool_options().max_connections(10).connect_with(options).await.unwrap();
    let relay = start(&relays, broker.publisher(), settings);
    write(pool, &[to("here", "h", 0)]).await;
    until("it runs", || async { at(&broker, "here") == 1 }).await;
    let away = |number: usize| to(&format!("order.{number}"), &format!("w{number}"), 1);
    write(pool, &(0..many).map(away).collect::<Vec<_>>()).await;
    let began = Instant::now();
    let (mut number, mut worst) = (1, Duration::ZERO);
    let transactions = "select xact_commit from pg_stat_database where datname = current_database()";
    let before: i64 = sqlx::query_scalar(transactions).fetch_one(pool).await.unwrap();
    while began.elapsed() < Duration::from_secs(45) {
        let sent = Instant::now();
        write(pool, &[to("here", "h", number)]).await;
        number += 1;
        until("others go on", || async { at(&broker, "here") >= number }).await;
        worst = worst.max(sent.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let after: i64 = sqlx::query_scalar(transactions).fetch_one(pool).await.unwrap();
    let epochs: i64 =
        sqlx::query_scalar("select max(epoch) from outbox.cursor").fetch_one(pool).await.unwrap();
    println!(
        "many {many}: {number} others, the worst wait {worst:?}, {} transactions/s, epoch {epochs}, held {}",
        (after - before) / 45,
        held(pool).await.len()
    );
    (0..many).for_each(|number| broker.open_destination(&format!("order.{number}")));
    let opened = Instant::now();
    until_free(pool).await;
    println!("free after {:?}", opened.elapsed());
    relay.stop().await.unwrap();
    assert!(worst < Duration::from_secs(2), "the worst wait {worst:?}");
}

/// Right ("no command advises what loses"; what is advised can be done): of a retired relay the doctor says that `outbox
/// replay` publishes what is still needed of what it holds. A held message is a copy, and the log may have been emptied
/// since: then a replay has nothing to publish, and nothing else publishes it.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_doctor_advises_for_what_a_retired_relay_holds_can_be_done() {
    let database = Database::new("hostile_advice").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    let mut settings = patient();
    settings.retention = Duration::ZERO;
    let relay = start(pool, broker.publisher(), settings);
    write(pool, &[to("here", "bad", 1)]).await;
    until("parked", || async { held(pool).await.first().is_some_and(HeldKey::is_parked) }).await;
    sqlx::raw_sql("select setval('outbox.message_position_seq', 5 * (1 << 20))").execute(pool).await.unwrap();
    write(pool, &(0..64).map(|key| to("here", &format!("k{key}"), 1)).collect::<Vec<_>>()).await;
    until("published", || async { broker.published().len() == 64 }).await;
    until("emptied", || async {
        outbox::prune(pool).await.unwrap();
        write(pool, &(0..64).map(|key| to("here", &format!("k{key}"), 1)).collect::<Vec<_>>()).await;
        let first = "select count(*) from outbox.message where position = 1";
        sqlx::query_scalar::<_, i64>(first).fetch_one(pool).await.unwrap() == 0
    })
    .await;
    relay.stop().await.unwrap();
    admin::retire(pool, "default", "ada", "over").await.unwrap();
    let found = admin::examine(pool, admin_ages(), admin_ages()).await.unwrap();
    let parked = found.iter().find(|finding| finding.name == "parked_keys").unwrap();
    assert!(parked.remedy.contains("outbox replay publishes what is still needed"), "{}", parked.remedy);
    let replayed = Broker::new();
    let replay = outbox::replay::Replay::new("again", pool.clone(), replayed.publisher(), "ada")
        .with_filter(outbox::replay::Filter::default());
    replay.run(tokio_util::sync::CancellationToken::new()).await.unwrap();
    assert_eq!(numbers(&replayed, "bad"), [1], "what is held cannot be replayed");
}

/// Right: a fleet with more databases than places repeats nothing, though a destination of one database is down: each
/// turn ends with a polite stop. It repeats what was confirmed beside the message that waits at each turn, and keeps the
/// place of others for `drain` each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_takes_turns_repeats_nothing_while_a_destination_is_down() {
    let (one, two) = (Database::new("hostile_fleet1").await, Database::new("hostile_fleet2").await);
    let broker = Broker::new();
    let publisher =
        Gated { publisher: broker.publisher(), gate: watch::channel(true).1, refused: Arc::default() };
    let mut settings = settings();
    settings.lease = Duration::from_secs(10);
    settings.drain = Duration::from_secs(3);
    write(one.pool(), &[to("away", "w", 1)]).await;
    for number in 1..=20 {
        write(one.pool(), &[to("here", &format!("h{number}"), number)]).await;
    }
    let fleet = outbox::Fleet::new("default", publisher)
        .with_settings(settings)
        .with_connections(4)
        .with_database("one", one.url().parse().unwrap())
        .with_database("two", two.url().parse().unwrap());
    let stop = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(fleet.run(stop.clone()));
    let (began, mut worst, mut number) = (Instant::now(), Duration::ZERO, 0);
    while began.elapsed() < Duration::from_secs(40) {
        let sent = Instant::now();
        number += 1;
        write(two.pool(), &[to("there", "t", number)]).await;
        until("the other database goes on", || async { at(&broker, "there") >= number }).await;
        worst = worst.max(sent.elapsed());
    }
    stop.cancel();
    let _ = running.await;
    println!("{} of 20 published, the other database waited {worst:?}", at(&broker, "here"));
    assert_eq!(at(&broker, "here"), 20, "copies");
}
