//! Consumers that are killed: their backlog goes on at its rate, and a message that kills its process parks, alone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use std::collections::HashSet;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use brokers::postgres::{PostgresPublisher, PostgresSubscriber};
use inbox::admin::{self, HeldKey, HeldState};
use inbox::{Backoff, Consumer, HandlerError};
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, note, placed, start};
use message::{Message, Outgoing, publish_all};
use sqlx::{PgPool, PgTransaction};
use tests::Database;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const CHILD: &str = "INBOX_QUARANTINE_DATABASE";
const CONCURRENCY: usize = 4;
const MAX_ATTEMPTS: u32 = 2;
/// In hand, and declared ahead: twice the concurrency.
const SUSPECTS: i64 = 3 * CONCURRENCY as i64;
/// Several processes die and expire one after the other.
const DEADLINE: Duration = Duration::from_secs(240);

/// What the processes of the tests do. Its tries are counted in a table of their own, whatever becomes of them.
struct Deadly {
    notes: PgPool,
    in_hand: AtomicUsize,
}

#[async_trait::async_trait]
impl inbox::Handler for Deadly {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        let beside = self.in_hand.fetch_add(1, Ordering::SeqCst);
        let handled = self.one(tx, message, beside).await;
        self.in_hand.fetch_sub(1, Ordering::SeqCst);
        handled
    }
}

impl Deadly {
    async fn one(
        &self,
        tx: &mut PgTransaction<'_>,
        message: &Message,
        beside: usize,
    ) -> Result<(), HandlerError> {
        let note = note(message);
        if note.starts_with("dies") {
            self.tried(&note, beside).await?;
            let _ = Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
            std::future::pending::<()>().await;
        }
        if note.starts_with("fails once") && self.tried(&note, beside).await? == 1 {
            return Err(HandlerError::retry("not yet"));
        }
        if note.starts_with("fails once") {
            // In hand until the others have died with it, unless it is tried alone.
            for _ in 0..200 {
                let parked = "select count(*) from inbox.held_key where state = 'parked'";
                let parked: i64 = sqlx::query_scalar(parked).fetch_one(&self.notes).await?;
                if parked > 0 || self.in_hand.load(Ordering::SeqCst) == 1 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        }
        effect(tx, message).await
    }

    /// How often it was tried, with this try.
    async fn tried(&self, note: &str, beside: usize) -> Result<i64, HandlerError> {
        let sql = "with noted as (insert into tried (note, beside) values ($1, $2))
            select 1 + count(*) from tried where note = $1";
        let beside = i32::try_from(beside)?;
        Ok(sqlx::query_scalar(sql).bind(note).bind(beside).fetch_one(&self.notes).await?)
    }
}

/// A process of the tests below, which start this binary again for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_of_the_consumer() {
    let Ok(url) = std::env::var(CHILD) else { return };
    // It ends with the test that started it, however that ends.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let connect =
        |connections| outbox::pool_options().max_connections(connections).connect_lazy(&url).unwrap();
    let subscriber =
        PostgresSubscriber::new(connect(4), CONSUMER.parse().unwrap()).with_lease(Duration::from_millis(500));
    let backoff =
        Backoff::default().with_first(Duration::from_millis(40)).with_ceiling(Duration::from_millis(200));
    let deadly = Deadly { notes: connect(2), in_hand: AtomicUsize::new(0) };
    let consumer = Consumer::new(CONSUMER, connect(8), subscriber)
        .with_concurrency(CONCURRENCY)
        .with_max_attempts(MAX_ATTEMPTS)
        .with_backoff(backoff)
        .with_handler_timeout(Duration::from_secs(10))
        .on(KIND, deadly);
    consumer.run(CancellationToken::new()).await.unwrap();
}

struct Killed(Child);

impl Killed {
    fn start(database: &Database) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_process_of_the_consumer", "--nocapture", "--test-threads", "1"])
            .env(CHILD, database.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Killed(child.unwrap())
    }

    fn has_died(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // With -9; it may be dead.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A database that is broker and service in one.
struct Place {
    database: Database,
}

impl Place {
    async fn new(claim: &str) -> Self {
        let database = Database::new(claim).await;
        // Each hold is noted with the attempts that it was opened with.
        let tables = "create table effect (number bigserial primary key, message uuid not null, note text);
            create table tried (note text, beside int);
            create table opened (key text, attempts int);
            create function opened() returns trigger language plpgsql as $$
                begin insert into public.opened values (new.key, new.attempts); return null; end $$;
            create trigger opened after insert on inbox.held_key for each row execute function opened()";
        sqlx::raw_sql(tables).execute(database.pool()).await.unwrap();
        Place { database }
    }

    async fn publish(&self, messages: &[Message]) {
        let batch: Vec<Outgoing> = messages
            .iter()
            .map(|message| Outgoing { destination: "orders".into(), message: Arc::new(message.clone()) })
            .collect();
        for result in publish_all(&PostgresPublisher::new(self.database.pool().clone()), &batch).await {
            result.unwrap();
        }
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(self.database.pool()).await.unwrap()
    }

    async fn held(&self) -> Vec<HeldKey> {
        let mut connection = self.database.pool().acquire().await.unwrap();
        admin::held_keys(&mut connection, Some(CONSUMER), 1_000).await.unwrap()
    }

    /// How many keys were ever held.
    async fn holds(&self) -> i64 {
        self.count("select case when is_called then last_value else 0 end from inbox.held_key_hold_seq").await
    }

    /// The row of a process that was killed expires now and not in a few seconds.
    async fn expire(&self) {
        let expire = "update inbox.process set expires_at = clock_timestamp()";
        sqlx::raw_sql(expire).execute(self.database.pool()).await.unwrap();
    }
}

/// Asks again until it is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_consumer_takes_up_its_backlog_and_holds_no_more_than_it_had_in_hand() {
    let place = Place::new("takes up its backlog").await;
    let messages: Vec<Message> =
        (0..600).map(|n| placed(&format!("key-{}", n % 97), &format!("{n:03}"))).collect();
    place.publish(&messages).await;
    let effects = "select count(*) from effect";
    for (kills, handled) in [(1, 100), (2, 250)] {
        let killed = Killed::start(&place.database);
        until("some are handled", async || place.count(effects).await >= handled).await;
        drop(killed);
        place.expire().await;
        // What was in hand at the first kill was not declared; at the second it was.
        assert!(place.holds().await <= (kills - 1) * SUSPECTS, "{}", place.holds().await);
    }
    let running = Killed::start(&place.database);
    until("all are handled", async || place.count(effects).await == 600).await;
    until("nothing is held", async || place.held().await.is_empty()).await;
    drop(running);
    assert!(place.holds().await <= SUSPECTS, "{} keys were held", place.holds().await);
    assert_eq!(place.count("select count(distinct message) from effect").await, 600);
    let inversions = "select count(*) from effect a join effect b on a.number < b.number
        and a.note::int % 97 = b.note::int % 97 and a.note > b.note";
    assert_eq!(place.count(inversions).await, 0);
    assert_eq!(place.count("select max(attempts)::bigint from inbox.message").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_messages_that_kill_their_processes_park_and_no_other_key_with_them() {
    let place = Place::new("killers park").await;
    let mut messages = vec![placed("retry", "fails once")];
    messages.extend((0..60).map(|n| placed(&format!("before-{n}"), "good")));
    messages.push(placed("killer-1", "dies 1"));
    messages.push(placed("", "dies 2"));
    messages.push(placed("killer-1", "behind"));
    messages.extend((0..60).map(|n| placed(&format!("after-{}", n % 20), "good")));
    place.publish(&messages).await;
    let mut processes: Vec<Killed> = (0..4).map(|_| Killed::start(&place.database)).collect();
    until("both are parked and the others handled", async || {
        for process in &mut processes {
            if process.has_died() {
                *process = Killed::start(&place.database);
            }
        }
        let held = place.held().await;
        let parked = held.iter().filter(|held| held.state == HeldState::Parked).count();
        parked == 2 && held.len() == 2 && place.count("select count(*) from effect").await == 121
    })
    .await;
    drop(processes);
    for held in place.held().await {
        assert!(held.key.as_deref().is_none_or(|key| key == "killer-1"), "{held:?}");
        assert_eq!(held.attempts, MAX_ATTEMPTS as i32);
        assert!(held.last_error.starts_with("attempts used up"), "{held:?}");
        assert_eq!(held.messages, if held.key.is_some() { 2 } else { 1 });
    }
    assert_eq!(place.count("select count(distinct message) from effect").await, 121);
    // The innocent retry was in hand when processes died, and none of these tries is counted against it. Its first try counts
    // if its failure was written before its process died: then its hold was opened with one attempt.
    let counted = "select max(attempts)::bigint from inbox.message where message_id = (
        select message from effect where note = 'fails once')";
    let failed = "select coalesce(max(attempts), 0)::bigint from opened where key = 'retry'";
    assert_eq!(place.count(counted).await, 1 + place.count(failed).await);
    // The tries that count are those that were made alone.
    let alone = "select count(*) from tried where note like 'dies%' and beside = 0";
    assert!(place.count(alone).await >= 2 * i64::from(MAX_ATTEMPTS));
}

/// Notes whether the message stands in the row of its process when its first try begins, and in quarantine.
struct Looks(PgPool);

#[async_trait::async_trait]
impl inbox::Handler for Looks {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        let sql = "select exists (select from inbox.process where $1 = any (in_hand))";
        let declared: bool = sqlx::query_scalar(sql).bind(message.id.as_uuid()).fetch_one(&self.0).await?;
        sqlx::query("insert into effect (message, note) values ($1, $2)")
            .bind(message.id.as_uuid())
            .bind(declared.to_string())
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_death_each_message_is_declared_before_its_first_try_and_otherwise_none_is() {
    let service = Service::new("declared").await;
    let messages = |keys: usize| -> Vec<Message> {
        let key = |n: usize| if keys == 0 { String::new() } else { format!("key-{}", n % keys) };
        (0..100).map(|n| placed(&key(n), "")).collect()
    };
    let run = async || {
        let running = start(service.consumer().with_concurrency(4).on(KIND, Looks(service.pool.clone())));
        // A lane for each, a lane for all, lanes that take turns.
        for keys in [0, 1, 3] {
            service.publish(&messages(keys)).await;
            service.acknowledged().await;
        }
        running.stop().await;
    };
    run().await;
    assert_eq!(service.count("select count(*) from effect where note = 'false'").await, 300);
    let dead = "insert into inbox.process (id, consumer, expires_at) values (gen_random_uuid(), $1, now())";
    sqlx::query(dead).bind(CONSUMER).execute(&service.pool).await.unwrap();
    run().await;
    assert_eq!(service.count("select count(*) from effect where note = 'true'").await, 300);
    let held = "select case when is_called then last_value else 0 end from inbox.held_key_hold_seq";
    assert_eq!(service.count(held).await, 0);
}

#[tokio::test]
async fn a_retry_that_was_in_hand_when_its_process_died_is_not_counted_and_is_made_alone() {
    let service = Service::new("retry not counted").await;
    service.publish(&[placed("a", "1")]).await;
    let reject = async |_: &mut PgTransaction<'_>, _: &Message| Err(HandlerError::reject("not today"));
    let running = start(service.consumer().on(KIND, reject));
    service.parked(1).await;
    running.stop().await;
    // As the only try that is granted leaves it behind: another process died in it, beside others.
    let died = "update inbox.held_key
        set state = 'retrying', attempts = 1, next_attempt_at = now(), tried_by = gen_random_uuid()";
    sqlx::raw_sql(died).execute(&service.pool).await.unwrap();
    let running = start(service.consumer().with_max_attempts(1).on(KIND, effect));
    service.nothing_is_held().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["1"]);
    assert_eq!(service.count("select attempts::bigint from inbox.message").await, 1);
    // Its try has ended: it is suspected no longer.
    assert_eq!(service.count("select count(*) from inbox.quarantine").await, 0);
}

#[tokio::test]
async fn a_message_in_quarantine_is_taken_out_by_a_try_that_fails_and_its_key_keeps_its_order() {
    let service = Service::new("taken out").await;
    let messages = [placed("a", "1"), placed("a", "2"), placed("", "3")];
    for message in &messages {
        let quarantine = "insert into inbox.quarantine (consumer, message_id) values ($1, $2)";
        let quarantine = sqlx::query(quarantine).bind(CONSUMER).bind(message.id.as_uuid());
        quarantine.execute(&service.pool).await.unwrap();
    }
    service.publish(&messages).await;
    service.publish(&[placed("a", "4")]).await;
    let tries = Arc::new(AtomicUsize::new(0));
    let handler = FailsFirst(tries.clone());
    let running = start(service.consumer().on(KIND, handler));
    service.acknowledged().await;
    service.nothing_is_held().await;
    running.stop().await;
    let notes = service.notes().await;
    let of_a: Vec<&String> = notes.iter().filter(|note| *note != "3").collect();
    assert_eq!(of_a, ["1", "2", "4"]);
    assert_eq!(notes.len(), 4);
    assert_eq!(tries.load(Ordering::SeqCst), 5);
    assert_eq!(service.count("select count(*) from inbox.quarantine").await, 0);
}

struct FailsFirst(Arc<AtomicUsize>);

#[async_trait::async_trait]
impl inbox::Handler for FailsFirst {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        effect(tx, message).await?;
        match self.0.fetch_add(1, Ordering::SeqCst) {
            0 => Err(HandlerError::retry("the first")),
            _ => Ok(()),
        }
    }
}

async fn beat(service: &Service, process: Uuid) -> (i64, i64, i64) {
    sqlx::query_as(include_str!("../../inbox/src/sql/heartbeat.sql"))
        .bind(process)
        .bind(CONSUMER)
        .bind(60_000_i64)
        .bind(false)
        .bind(90_000_i64)
        .bind(86_400_000_i64)
        .fetch_one(&service.pool)
        .await
        .unwrap()
}

/// A process with these messages declared, that has expired.
async fn dead(service: &Service, messages: &[Uuid]) -> Uuid {
    let sql = "insert into inbox.process (id, consumer, expires_at, in_hand)
        values (gen_random_uuid(), $1, now() - interval '1 second', $2) returning id";
    sqlx::query_scalar(sql).bind(CONSUMER).bind(messages).fetch_one(&service.pool).await.unwrap()
}

#[tokio::test]
async fn what_a_dead_process_had_declared_is_quarantined_unless_it_is_handled_or_held() {
    let service = Service::new("death is judged").await;
    let (handled, failed) = (placed("a", "1"), placed("b", "2"));
    service.publish(&[handled.clone(), failed.clone()]).await;
    let handler = async |tx: &mut PgTransaction<'_>, message: &Message| match note(message).as_str() {
        "2" => Err(HandlerError::reject("no")),
        _ => effect(tx, message).await,
    };
    let running = start(service.consumer().on(KIND, handler));
    service.acknowledged().await;
    running.stop().await;
    let suspect = Uuid::now_v7();
    let me = Uuid::new_v4();
    let mine = [*handled.id.as_uuid(), *failed.id.as_uuid(), suspect];
    let (one, _) = (dead(&service, &mine).await, dead(&service, &[suspect]).await);
    // A held key that it was trying is due at once.
    let trying = "update inbox.held_key set state = 'retrying', next_attempt_at = now() + interval '1 day', tried_by = $1";
    sqlx::query(trying).bind(one).execute(&service.pool).await.unwrap();
    // Long forgotten by the broker.
    let old = "insert into inbox.quarantine (consumer, message_id, quarantined_at)
        select $1, id, now() - interval '2 days' from unnest($2::uuid[]) as id";
    let old = sqlx::query(old).bind(CONSUMER).bind([Uuid::now_v7(), *failed.id.as_uuid()]);
    old.execute(&service.pool).await.unwrap();
    let (died, quarantined, recent) = beat(&service, me).await;
    assert_eq!((died, quarantined, recent), (2, 1, 90_000));
    let left: Vec<Uuid> =
        sqlx::query_scalar("select message_id from inbox.quarantine").fetch_all(&service.pool).await.unwrap();
    assert_eq!(HashSet::from_iter(left), HashSet::from([suspect, *failed.id.as_uuid()]));
    assert_eq!(service.count("select count(*) from inbox.held_key where next_attempt_at <= now()").await, 1);
    // All processes of the consumer hear of it.
    let (died, quarantined, recent) = beat(&service, Uuid::new_v4()).await;
    assert_eq!((died, quarantined), (0, 0));
    assert!(recent > 0 && recent <= 90_000, "{recent}");
}

#[tokio::test]
async fn a_process_whose_own_heartbeat_has_expired_judges_no_other() {
    let service = Service::new("after an outage").await;
    let running = start(service.consumer().on(KIND, effect));
    eventually("it is registered", async || {
        (service.count("select count(*) from inbox.consumer").await == 1).then_some(())
    })
    .await;
    running.stop().await;
    let (me, other) = (dead(&service, &[]).await, dead(&service, &[Uuid::now_v7()]).await);
    assert_eq!(beat(&service, me).await, (0, 0, 0));
    assert_eq!(service.count("select count(*) from inbox.process").await, 2);
    // The other has not come back by the next heartbeat.
    assert_eq!(beat(&service, me).await, (1, 1, 90_000));
    let left: Uuid =
        sqlx::query_scalar("select id from inbox.process").fetch_one(&service.pool).await.unwrap();
    assert!(left == me && left != other);
}
