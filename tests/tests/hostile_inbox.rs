//! What a hostile reader of the consumer found: each test fails, and says in a comment what is right.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod inbox_support;

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use brokers::postgres::{PostgresPublisher, PostgresSubscriber};
use inbox::{Backoff, Consumer, HandlerError, admin};
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, note, placed, start};
use message::{Acknowledge, Delivery, Message, Outgoing, SubscribeError, Subscriber, publish_all};
use sqlx::{AssertSqlSafe, Executor, PgTransaction};
use tests::Database;
use tokio_util::sync::CancellationToken;

async fn reject(_: &mut PgTransaction<'_>, _: &Message) -> Result<(), HandlerError> {
    Err(HandlerError::reject("not today"))
}

/// A handler that works under a role of its tenant, as services with row-level security do (`set local role`). Its first
/// tries commit. Right: so do its retries, or the fault is counted and the message parks with a sentence about it. Found:
/// `advance.sql` runs under the handler's role, fails with 42501, is taken for a fault of the database, and the key is
/// tried for ever, uncounted, its handler's work rolled back each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_sets_a_local_role_is_done_with_a_retry_as_with_a_first_try() {
    let service = Service::new("local role").await;
    let role = format!("hostile_{}", uuid::Uuid::new_v4().simple());
    let make = format!(
        "create role {role}; grant insert on effect to {role}; grant usage on sequence effect_number_seq to {role}"
    );
    service.pool.execute(AssertSqlSafe(make)).await.unwrap();
    let tries = Arc::new(AtomicUsize::new(0));
    let running =
        start(service.consumer().with_max_attempts(3).on(KIND, AsRole(role.clone(), tries.clone())));
    service.publish(&[placed("a", "first try"), placed("b", "fails once")]).await;
    service.acknowledged().await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (held, notes) = (service.held().await, service.notes().await);
    running.stop().await;
    let clean = format!("drop owned by {role}; drop role {role}");
    service.pool.execute(AssertSqlSafe(clean)).await.unwrap();
    assert!(
        held.is_empty(),
        "tried {} times, handled {notes:?}, held {held:?}",
        tries.load(Ordering::SeqCst)
    );
}

struct AsRole(String, Arc<AtomicUsize>);

#[async_trait::async_trait]
impl inbox::Handler for AsRole {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        tx.execute(AssertSqlSafe(format!("set local role {}", self.0))).await?;
        if note(message) == "fails once" && self.1.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(HandlerError::retry("not yet"));
        }
        effect(tx, message).await
    }
}

/// A handler gives up waiting for a statement (a time-out of its own), and says so: tried again. The statement fails a moment
/// later, by a value. Right: the try counts against the message, which is held whole. Found: the next statement on the
/// connection, our `touch`, is answered with that error. It is taken for one of our own that cannot carry the message
/// (`Setback::from`): the message is parked as JSON in bytes, "the inbox cannot store it as a message", and no redrive can
/// ever handle it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_a_statement_that_a_handler_gave_up_does_not_make_its_message_unstorable() {
    for says in ["retry", "ok"] {
        let service = Service::new("gave up a statement").await;
        let handler = async |tx: &mut PgTransaction<'_>, message: &Message| {
            if message.key.as_deref() == Some("mended") {
                return effect(tx, message).await;
            }
            let slow = "select 1 / (select count(*)::int - 1 from pg_sleep(1))";
            let answer = tokio::time::timeout(Duration::from_millis(300), tx.execute(slow)).await;
            match (answer, note(message) == "retry") {
                (Err(_), true) => Err(HandlerError::retry("the statement took too long")),
                (Err(_), false) => Ok(()),
                (Ok(_), _) => Err(HandlerError::reject("it was to take longer")),
            }
        };
        service.publish(&[placed("a", says)]).await;
        let running = start(service.consumer().with_max_attempts(2).on(KIND, handler));
        let parked = service.parked(1).await.remove(0);
        running.stop().await;
        let mut connection = service.pool.acquire().await.unwrap();
        let held = admin::held_messages(&mut connection, CONSUMER, parked.hold, 10).await.unwrap();
        assert!(
            held[0].received.is_ok() && parked.attempts == 2,
            "{says}: {} attempts, {:?}, {:?}",
            parked.attempts,
            parked.last_error,
            held[0].received
        );
    }
}

/// A handler gives up waiting for a statement that hangs (a time-out of its own, shorter than the consumer's), and says so.
/// Right: "how long one try of a handler may take; then it is rolled back and counted" (`with_handler_timeout`): the try ends
/// within it, is counted, and its backend is ended. Found: our `touch`, and then ROLLBACK, queue up behind the statement on its
/// connection, each for twice the time of a try; then it is the database's fault and nothing is counted, up to twenty times
/// in place, and the statement goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_statement_that_a_handler_gave_up_is_counted_and_ended_in_time() {
    let service = Service::new("gave up a hanging one").await;
    let handler = async |tx: &mut PgTransaction<'_>, _: &Message| {
        let answer =
            tokio::time::timeout(Duration::from_millis(300), tx.execute("select pg_sleep(600)")).await;
        answer.map_err(|_| HandlerError::retry("the statement took too long"))?;
        Ok::<(), HandlerError>(())
    };
    let consumer = service.consumer().with_max_attempts(2).with_handler_timeout(Duration::from_secs(2));
    let running = start(consumer.on(KIND, handler));
    service.publish(&[placed("a", "1")]).await;
    tokio::time::sleep(Duration::from_secs(75)).await;
    let held = service.held().await;
    let sleeping = "select count(*) from pg_stat_activity
        where datname = current_database() and state = 'active' and query like '%pg_sleep%' and pid <> pg_backend_pid()";
    let sleeping = service.count(sleeping).await;
    running.stop.cancel();
    assert!(
        held.iter().any(|held| held.attempts == 2) && sleeping == 0,
        "after 75 s: {held:?}; {sleeping} backends go on with the statement"
    );
}

/// A handler that asks another database, which is missing (or starts, or has no connection left). Right: "that another
/// server does not answer is the handler's affair" (`judge`), as it is when nothing listens there: it counts, and parks in the
/// end. Found: by its SQLSTATE it is taken for an outage of the inbox's own database, though the transaction stands: nothing
/// is counted, nothing ever parks, and the log says that "the database does not do its part".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_another_database_is_the_handlers_affair() {
    let service = Service::new("another database").await;
    let url = service.database.url().replace(&service.database.name, "there_is_no_such_database");
    let handler = Elsewhere(url, AtomicUsize::new(0));
    service.publish(&[placed("a", "1")]).await;
    let running = start(service.consumer().with_max_attempts(2).on(KIND, handler));
    tokio::time::sleep(Duration::from_secs(100)).await;
    let held = service.held().await;
    running.stop().await;
    assert!(held.iter().any(|held| held.state == admin::HeldState::Parked), "after 100 s: {held:?}");
}

struct Elsewhere(String, AtomicUsize);

#[async_trait::async_trait]
impl inbox::Handler for Elsewhere {
    async fn handle(&self, _: &mut PgTransaction<'_>, _: &Message) -> Result<(), HandlerError> {
        use sqlx::Connection;
        self.1.fetch_add(1, Ordering::SeqCst);
        sqlx::PgConnection::connect(&self.0).await?;
        Ok(())
    }
}

/// A handler gives up waiting for a savepoint (a time-out around `tx.begin()`), and goes on without it. The driver then rolls
/// back the whole transaction, so what the handler writes afterwards commits by itself. Right: either that is named among the
/// cases in which an effect may happen twice, or the consumer's transaction does not let it. Found: the try is counted as
/// failed ("the handler ended the transaction it was given"), its effect stays, and the next try makes it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_gave_up_a_savepoint_has_its_effect_once() {
    let service = Service::new("gave up a savepoint").await;
    service.publish(&[placed("a", "1")]).await;
    let running = start(service.consumer().on(KIND, GivesUpSavepoint(AtomicUsize::new(0))));
    service.acknowledged().await;
    service.nothing_is_held().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["1"]);
}

struct GivesUpSavepoint(AtomicUsize);

#[async_trait::async_trait]
impl inbox::Handler for GivesUpSavepoint {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        use sqlx::Connection;
        if self.0.fetch_add(1, Ordering::SeqCst) == 0 {
            let savepoint = tokio::time::timeout(Duration::ZERO, (**tx).begin()).await;
            drop(savepoint);
        }
        effect(tx, message).await
    }
}

/// A message whose statement ends its backend each time (out of memory, a crash in an extension: then the whole server starts
/// again). Perhaps right: like one that kills its process it is suspected after so many tries, and parks in the end. Found:
/// twenty tries in its first minute, and then tries without end, uncounted (by decision: an outage is never a message's).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_ends_its_backend_each_time_parks_in_the_end() {
    let service = Service::new("ends its backend").await;
    let tries = Arc::new(AtomicUsize::new(0));
    service.publish(&[placed("a", "1")]).await;
    let running = start(service.consumer().with_max_attempts(2).on(KIND, EndsBackend(tries.clone())));
    tokio::time::sleep(Duration::from_secs(110)).await;
    let held = service.held().await;
    running.stop().await;
    let tries = tries.load(Ordering::SeqCst);
    assert!(
        held.iter().any(|held| held.state == admin::HeldState::Parked),
        "{tries} tries in 110 s: {held:?}"
    );
}

struct EndsBackend(Arc<AtomicUsize>);

#[async_trait::async_trait]
impl inbox::Handler for EndsBackend {
    async fn handle(&self, tx: &mut PgTransaction<'_>, _: &Message) -> Result<(), HandlerError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        tx.execute("select pg_terminate_backend(pg_backend_pid())").await?;
        Ok(())
    }
}

/// A subscriber to which saying "still at work" takes long: one whose server says nothing (the NATS client waits five
/// seconds). Acknowledging works.
struct Slow<S>(S, Duration, Arc<AtomicBool>);
struct SlowAnswer(Delivery, Duration, Arc<AtomicBool>);

#[async_trait::async_trait]
impl<S: Subscriber> Subscriber for Slow<S> {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscribeError> {
        let deliveries = self.0.receive(max).await?;
        let slow = |delivery: Delivery| {
            let received = delivery.received.clone();
            Delivery::new(received, Box::new(SlowAnswer(delivery, self.1, self.2.clone())))
        };
        Ok(deliveries.into_iter().map(slow).collect())
    }
    async fn close(&mut self) {
        self.0.close().await;
    }
}

#[async_trait::async_trait]
impl Acknowledge for SlowAnswer {
    async fn acknowledge(self: Box<Self>) -> Result<(), SubscribeError> {
        self.0.acknowledge().await
    }
    async fn retry_after(self: Box<Self>, delay: Duration) -> Result<(), SubscribeError> {
        self.0.retry_after(delay).await
    }
    async fn extend(&self) -> Result<(), SubscribeError> {
        if self.2.load(Ordering::SeqCst) {
            tokio::time::sleep(self.1).await;
            return Err(SubscribeError::Unavailable("no answer in time".to_owned()));
        }
        self.0.extend().await
    }
}

/// While the broker is asked to wait longer, the handler of the message is not polled (`deliver`: the `select` awaits
/// `extend` in a branch). Right: a broker that says nothing for a while costs the handler nothing. Found, with the defaults of
/// consumer and NATS client (10 s, 30 s; 5 s): the handler's time passes while it stands still; it is then said to have taken
/// longer than 30 s, which is counted against the message, and parks it in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_slow_to_extend_takes_no_time_from_the_handler() {
    let service = Service::new("slow to extend").await;
    let subscriber = Slow(
        service.broker.subscriber(CONSUMER, ["orders"]),
        Duration::from_secs(5),
        Arc::new(AtomicBool::new(true)),
    );
    let handler = async |tx: &mut PgTransaction<'_>, message: &Message| {
        // Twenty-three seconds of work.
        for _ in 0..23 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            tx.execute("select 1").await?;
        }
        effect(tx, message).await
    };
    let consumer =
        Consumer::new(CONSUMER, service.pool.clone(), subscriber).with_max_attempts(1).on(KIND, handler);
    let running = start(consumer);
    service.publish(&[placed("a", "1")]).await;
    service.acknowledged().await;
    running.stop().await;
    let held = service.held().await;
    assert!(held.is_empty(), "{:?}", held[0].last_error);
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const CHAOS: &str = "HOSTILE_INBOX_CHAOS";

/// Fails now and then, meets others now and then, and notes what it did.
struct Moody;

#[async_trait::async_trait]
impl inbox::Handler for Moody {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        let chance = uuid::Uuid::new_v4().as_u128() % 1_000;
        tokio::time::sleep(Duration::from_millis((chance % 40) as u64)).await;
        effect(tx, message).await?;
        match chance {
            0..20 => Err(HandlerError::retry("not now")),
            20..30 => {
                let meets = "do $$ begin raise exception using errcode = '40001'; end $$";
                tx.execute(meets).await?;
                Ok(())
            }
            30..33 => {
                tx.execute("select pg_terminate_backend(pg_backend_pid())").await?;
                Ok(())
            }
            33..36 => panic!("a handler that panics"),
            _ => Ok(()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_of_chaos() {
    let Ok(spec) = std::env::var(CHAOS) else { return };
    let (kinds, url) = spec.split_once('|').unwrap();
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    std::thread::spawn(move || {
        // A byte: in good order. The end: at once.
        if std::io::stdin().read(&mut [0]).unwrap_or(0) == 0 {
            std::process::exit(0);
        }
        stopping.cancel();
    });
    let connect =
        |connections| outbox::pool_options().max_connections(connections).connect_lazy(url).unwrap();
    let subscriber = PostgresSubscriber::new(connect(4), CONSUMER.parse().unwrap())
        .with_lease(Duration::from_millis(1500));
    let mut consumer = Consumer::new(CONSUMER, connect(9), subscriber)
        .with_concurrency(4)
        .with_max_attempts(1_000)
        .with_backoff(
            Backoff::default().with_first(Duration::from_millis(40)).with_ceiling(Duration::from_millis(400)),
        )
        .with_handler_timeout(Duration::from_secs(3))
        .with_isolation(match std::env::var("CHAOS_ISOLATION").as_deref() {
            Ok("serializable") => inbox::Isolation::Serializable,
            Ok("repeatable") => inbox::Isolation::RepeatableRead,
            _ => inbox::Isolation::ReadCommitted,
        });
    for kind in kinds.split(',') {
        consumer = consumer.on(kind, Moody);
    }
    let _ = consumer.run(stop).await;
}

/// Processes of two builds that are stopped, killed and frozen past their expiry, while a person redrives. Right, and
/// found: nothing is lost, doubled, overtaken or parked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn chaos() {
    let database = Database::new("chaos").await;
    let pool = database.pool().clone();
    sqlx::raw_sql("create table effect (number bigserial primary key, message uuid not null, note text)")
        .execute(&pool)
        .await
        .unwrap();
    let start = |kinds: &str| {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_process_of_chaos", "--nocapture", "--test-threads", "1"])
            .env(CHAOS, format!("{kinds}|{}", database.url()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Killed(child.unwrap())
    };
    const OLD: &str = "order.placed";
    const NEW: &str = "order.placed,order.amended";
    let mut builds = [OLD, NEW, OLD, NEW];
    let mut processes: Vec<Killed> = builds.iter().map(|kinds| start(kinds)).collect();
    let known = "select count(*) from inbox.consumer_kind where kind = 'order.amended'";
    eventually("the new kind is known", async || {
        let known: i64 = sqlx::query_scalar(known).fetch_one(&pool).await.unwrap_or(0);
        (known > 0).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let seconds: u64 = std::env::var("CHAOS_SECONDS").map_or(120, |seconds| seconds.parse().unwrap());
    let (begun, mut published) = (Instant::now(), 0_u32);
    let publisher = PostgresPublisher::new(pool.clone());
    let mut frozen: Vec<(usize, Instant)> = Vec::new();
    let mut next_fault = Instant::now();
    let signal = |process: &Killed, signal: &str| {
        let _ = Command::new("kill").args([signal, &process.0.id().to_string()]).status();
    };
    while begun.elapsed() < Duration::from_secs(seconds) {
        let batch: Vec<Outgoing> = (0..20)
            .map(|_| {
                published += 1;
                let kind = if published % 7 == 0 { "order.amended" } else { "order.placed" };
                let message = Message::new("orders", kind, published.to_string())
                    .with_key(format!("k{}", published % 43));
                Outgoing { destination: "orders".into(), message: Arc::new(message) }
            })
            .collect();
        for result in publish_all(&publisher, &batch).await {
            result.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
        let dice = uuid::Uuid::new_v4().as_u128();
        frozen.retain(|(which, since)| {
            let thaws = since.elapsed() > Duration::from_secs(11);
            if thaws {
                signal(&processes[*which], "-CONT");
            }
            !thaws
        });
        if next_fault.elapsed() > Duration::ZERO && frozen.is_empty() {
            next_fault = Instant::now() + Duration::from_secs(4);
            let which = (dice % 4) as usize;
            match (dice >> 8) % 4 {
                0 | 1 => {
                    signal(&processes[which], "-STOP");
                    frozen.push((which, Instant::now()));
                }
                2 => processes[which] = start(builds[which]),
                _ => {
                    use std::io::Write;
                    let _ = processes[which].0.stdin.as_mut().unwrap().write_all(b"x");
                    let _ = processes[which].0.wait();
                    builds[which] = if builds[which] == OLD { NEW } else { OLD };
                    if builds.iter().all(|kinds| *kinds == OLD) {
                        builds[which] = NEW;
                    }
                    processes[which] = start(builds[which]);
                }
            }
        }
        let mut connection = pool.acquire().await.unwrap();
        if dice & (7 << 20) == 0 {
            for held in admin::held_keys(&mut connection, Some(CONSUMER), 5).await.unwrap() {
                admin::redrive(&mut connection, CONSUMER, held.hold, "ada", None).await.unwrap();
            }
        }
    }
    for (which, _) in frozen {
        signal(&processes[which], "-CONT");
    }
    processes.push(start(NEW));
    let end = Instant::now() + Duration::from_secs(180);
    let facts = async || -> (i64, i64, i64) {
        sqlx::query_as(
            "select (select count(*) from effect), (select count(*) from inbox.held_key),
                (select count(*) from inbox.held_key where state = 'parked')",
        )
        .fetch_one(&pool)
        .await
        .unwrap()
    };
    let mut now = facts().await;
    while (now.0 < i64::from(published) || now.1 > 0) && Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(5)).await;
        now = facts().await;
        eprintln!("{:?} after the faults: {now:?} of {published}", end.duration_since(Instant::now()));
    }
    let inversions: i64 = sqlx::query_scalar(
        "select count(*) from (select note::int as note, lag(note::int) over (partition by note::int % 43 order by number) as
            before from effect) as pair where before > note",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    let distinct: i64 =
        sqlx::query_scalar("select count(distinct message) from effect").fetch_one(&pool).await.unwrap();
    let held: Vec<String> =
        sqlx::query_scalar("select held_key::text from inbox.held_key").fetch_all(&pool).await.unwrap();
    let attempts: i64 =
        sqlx::query_scalar("select max(attempts)::bigint from inbox.message").fetch_one(&pool).await.unwrap();
    let quarantine: i64 =
        sqlx::query_scalar("select count(*) from inbox.quarantine").fetch_one(&pool).await.unwrap();
    drop(processes);
    eprintln!(
        "published {published}, effects {now:?}, distinct {distinct}, inversions {inversions}, attempts {attempts}, quarantine {quarantine}, held {held:?}"
    );
    assert_eq!((now.0, distinct, inversions, now.1), (i64::from(published), i64::from(published), 0, 0));
}

/// Held keys of a consumer whose handlers' transactions are serializable. Right: keys that have nothing to do with each other do
/// not keep each other from being drained. Found: `receive`, `retry` and `advance` read and write the small tables of what is
/// held within the serializable transaction, so those of different keys fail by each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn held_keys_drain_at_each_level() {
    for isolation in
        [inbox::Isolation::ReadCommitted, inbox::Isolation::RepeatableRead, inbox::Isolation::Serializable]
    {
        let service = Service::new("drain levels").await;
        let messages: Vec<Message> =
            (0..1_000).map(|n| placed(&format!("k{}", n % 40), &n.to_string())).collect();
        service.publish(&messages).await;
        let running = start(service.consumer().on(KIND, reject));
        service.acknowledged().await;
        running.stop().await;
        let mut connection = service.pool.acquire().await.unwrap();
        let keys = admin::redrive_all(&mut connection, CONSUMER, "ada", None).await.unwrap();
        drop(connection);
        let tries = Arc::new(AtomicUsize::new(0));
        let consumer = || {
            let tries = tries.clone();
            service.consumer().with_isolation(isolation).on(KIND, Counts(tries))
        };
        let begun = Instant::now();
        let running = [start(consumer()), start(consumer())];
        while begun.elapsed() < Duration::from_secs(60) && !service.held().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let took = begun.elapsed();
        let effects = service.count("select count(*) from effect").await;
        eprintln!(
            "{isolation:?}: {keys} keys, {effects} of 1,000 in {took:?}, {} tries",
            tries.load(Ordering::SeqCst)
        );
        for one in running {
            one.stop().await;
        }
    }
}

struct Counts(Arc<AtomicUsize>);

#[async_trait::async_trait]
impl inbox::Handler for Counts {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(5)).await;
        effect(tx, message).await
    }
}
