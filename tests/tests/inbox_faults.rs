//! The database fails under a consumer: nothing is lost, nothing doubled, nothing counted.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod inbox_support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use inbox::HandlerError;
use inbox_support::{CONSUMER, KIND, Service, effect, eventually, note, placed, start};
use message::Message;
use sqlx::{Connection, PgConnection, PgTransaction};
use tokio_util::sync::CancellationToken;

/// Kills its own backend in its first tries, after it has written.
struct Killed(AtomicUsize);

#[async_trait::async_trait]
impl inbox::Handler for Killed {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        effect(tx, message).await?;
        let tried = self.0.fetch_add(1, Ordering::SeqCst);
        if tried < 4 {
            let killed =
                sqlx::query("select pg_terminate_backend(pg_backend_pid())").execute(&mut **tx).await;
            // However it is reported, even as a success or for good: its transaction is gone.
            return match tried {
                0 => Err(HandlerError::from(killed.unwrap_err())),
                1 => Ok(()),
                2 => Err(HandlerError::retry("lost something")),
                _ => Err(HandlerError::reject("lost something")),
            };
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_connection_lost_in_a_handler_counts_nothing() {
    let service = Service::new("connection lost").await;
    service.publish(&[placed("a", "1")]).await;
    let running = start(service.consumer().with_max_attempts(1).on(KIND, Killed(AtomicUsize::new(0))));
    service.acknowledged().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["1"]);
    assert!(service.held().await.is_empty());
}

/// Stands still in the middle of its transaction, and everything in its process with it.
struct Frozen(std::sync::mpsc::Sender<()>, std::sync::Mutex<std::sync::mpsc::Receiver<()>>);

#[async_trait::async_trait]
impl inbox::Handler for Frozen {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        effect(tx, message).await?;
        let _ = self.0.send(());
        let _ = self.1.lock().unwrap().recv();
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_stands_still_keeps_its_locks_for_no_longer_than_a_try() {
    let service = Service::new("stands still").await;
    service.publish(&[placed("a", "1")]).await;
    let ((begun, has_begun), (thaw, thawed)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let (url, broker) = (service.database.url().to_owned(), service.broker.clone());
    let stopping = CancellationToken::new();
    let stop = stopping.clone();
    // A runtime of one thread: nothing of it moves while the handler stands still, neither time-outs nor heartbeats.
    let frozen = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let pool = outbox::pool_options().max_connections(4).connect(&url).await.unwrap();
            let handler = Frozen(begun, std::sync::Mutex::new(thawed));
            let consumer = inbox::Consumer::new(CONSUMER, pool, broker.subscriber(CONSUMER, ["orders"]))
                .with_handler_timeout(Duration::from_secs(1))
                .on(KIND, handler);
            consumer.run(stop).await.unwrap();
        });
    });
    tokio::task::spawn_blocking(move || has_begun.recv().unwrap()).await.unwrap();
    let idle = "select count(*) from pg_stat_activity
        where datname = current_database() and state like 'idle in transaction%' and pid <> pg_backend_pid()";
    assert!(service.count(idle).await > 0);
    // It would stand there for ever.
    eventually("the server ends it", async || (service.count(idle).await == 0).then_some(())).await;
    thaw.send(()).unwrap();
    drop(thaw);
    stopping.cancel();
    frozen.join().unwrap();
}

/// Fails each message's first try, so that the kills meet held keys too.
struct FirstFails(Arc<AtomicUsize>);

#[async_trait::async_trait]
impl inbox::Handler for FirstFails {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        effect(tx, message).await?;
        let tried = self.0.fetch_add(1, Ordering::SeqCst);
        if tried.is_multiple_of(9) { Err(HandlerError::retry("each ninth")) } else { Ok(()) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_killed_at_random_moments_lose_nothing_and_double_nothing() {
    let service = Service::new("killed at random").await;
    let tries = Arc::new(AtomicUsize::new(0));
    let mut killer = PgConnection::connect(service.database.url()).await.unwrap();
    // A claim whose answer was lost keeps its key for the time of a try: let that be short.
    let consumer =
        || service.consumer().with_max_attempts(1_000).with_handler_timeout(Duration::from_secs(1));
    let running = [
        start(consumer().on(KIND, FirstFails(tries.clone()))),
        start(consumer().on(KIND, FirstFails(tries.clone()))),
    ];
    // A start that fails is the caller's to repeat; what is killed here is the work.
    let started = async || service.count("select count(*) from inbox.process").await == 2;
    eventually("both have started", async || started().await.then_some(())).await;
    let mut kills = 0;
    let mut published = 0;
    while kills < 150 {
        let messages: Vec<Message> = (published..published + 12)
            .map(|n| placed(&format!("key-{}", n % 5), &format!("{n:05}")))
            .collect();
        published += 12;
        service.publish(&messages).await;
        // At a moment when a transaction of the consumer is open, whichever statement it is at.
        let kill = "select count(*) filter (where pg_terminate_backend(pid)) from (
            select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
                and xact_start is not null and backend_type = 'client backend'
            order by random() limit 1) as victim";
        let killed: i64 = sqlx::query_scalar(kill).fetch_one(&mut killer).await.unwrap();
        kills += killed;
        // As much as two consumers do between two kills, not more.
        eventually("the backlog is short", || async {
            (service.broker.unacknowledged(CONSUMER) < 60).then_some(())
        })
        .await;
    }
    service.acknowledged().await;
    service.nothing_is_held().await;
    for running in running {
        running.stop().await;
    }
    assert_eq!(service.count("select count(*) from effect").await, published);
    assert_eq!(service.count("select count(distinct message) from effect").await, published);
    let inversions = "select count(*) from effect a join effect b on a.number < b.number
        and a.note::int % 5 = b.note::int % 5 and a.note > b.note";
    assert_eq!(service.count(inversions).await, 0);
}

#[tokio::test]
async fn a_database_that_is_away_is_waited_for() {
    let service = Service::new("database away").await;
    let name = &service.database.name;
    let running = start(service.consumer().with_max_attempts(1).on(KIND, effect));
    service.publish(&[placed("a", "1")]).await;
    service.acknowledged().await;
    let mut admin = service.database.admin().acquire().await.unwrap();
    let allow =
        |allowed: bool| sqlx::AssertSqlSafe(format!("alter database {name} allow_connections {allowed}"));
    sqlx::query(allow(false)).execute(&mut *admin).await.unwrap();
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
    sqlx::query(kill).bind(name).execute(&mut *admin).await.unwrap();
    service.publish(&[placed("a", "2"), placed("b", "3")]).await;
    assert_eq!(service.broker.unacknowledged(CONSUMER), 2);
    sqlx::query(allow(true)).execute(&mut *admin).await.unwrap();
    service.acknowledged().await;
    running.stop().await;
    let mut notes = service.notes().await;
    notes.sort();
    assert_eq!(notes, ["1", "2", "3"]);
    assert!(service.held().await.is_empty());
}

#[tokio::test]
async fn a_consumer_that_is_stopped_while_the_database_is_away_stops_and_loses_nothing() {
    let service = Service::new("stopped in outage").await;
    let name = &service.database.name;
    let mut admin = service.database.admin().acquire().await.unwrap();
    let allow =
        |allowed: bool| sqlx::AssertSqlSafe(format!("alter database {name} allow_connections {allowed}"));
    let running = start(service.consumer().on(KIND, effect));
    service.publish(&[placed("a", "0")]).await;
    service.acknowledged().await;
    sqlx::query(allow(false)).execute(&mut *admin).await.unwrap();
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
    sqlx::query(kill).bind(name).execute(&mut *admin).await.unwrap();
    service.publish(&[placed("a", "1"), placed("a", "2")]).await;
    running.stop().await;
    assert_eq!(service.broker.unacknowledged(CONSUMER), 2);
    sqlx::query(allow(true)).execute(&mut *admin).await.unwrap();
    let running = start(service.consumer().on(KIND, effect));
    service.acknowledged().await;
    running.stop().await;
    assert_eq!(service.notes().await, ["0", "1", "2"]);
}

/// Asks another database, which is missing (or starts, or has no connection left).
struct Elsewhere(String);

#[async_trait::async_trait]
impl inbox::Handler for Elsewhere {
    async fn handle(&self, _: &mut PgTransaction<'_>, _: &Message) -> Result<(), HandlerError> {
        PgConnection::connect(&self.0).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_another_database_is_the_handlers_affair() {
    let service = Service::new("another database").await;
    let url = service.database.url().replace(&service.database.name, "there_is_no_such_database");
    service.publish(&[placed("a", "1")]).await;
    let running = start(service.consumer().with_max_attempts(2).on(KIND, Elsewhere(url)));
    let parked = service.parked(1).await.remove(0);
    running.stop().await;
    assert_eq!(parked.attempts, 2);
    assert!(parked.last_error.contains("3D000"), "{}", parked.last_error);
}

/// Ends its backend each time, in its statement or at its COMMIT: out of memory, say, or a crash in an extension.
struct EndsBackend;

#[async_trait::async_trait]
impl inbox::Handler for EndsBackend {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        effect(tx, message).await?;
        if note(message) == "ends at once" {
            sqlx::query("select pg_terminate_backend(pg_backend_pid())").execute(&mut **tx).await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_ends_its_backend_each_time_parks_in_the_end() {
    let service = Service::new("ends its backend").await;
    let at_commit = "create function stop() returns trigger language plpgsql as $$
            begin perform pg_terminate_backend(pg_backend_pid()); return null; end
        $$;
        create constraint trigger stop after insert on effect deferrable initially deferred
            for each row when (new.note = 'ends at commit') execute function stop()";
    sqlx::raw_sql(at_commit).execute(&service.pool).await.unwrap();
    let mut messages = vec![placed("a", "ends at once"), placed("b", "ends at commit")];
    messages.extend((0..20).map(|n| placed(&format!("other-{n}"), "other")));
    service.publish(&messages).await;
    let running = start(service.consumer().with_max_attempts(2).on(KIND, EndsBackend));
    service.acknowledged().await;
    let parked = service.parked(2).await;
    running.stop().await;
    for key in &parked {
        assert_eq!((key.attempts, key.messages), (2, 1), "{}", key.last_error);
        assert!(key.last_error.contains("while nothing else was tried"), "{}", key.last_error);
    }
    assert_eq!(parked.len(), 2);
    assert_eq!(service.count("select count(*) from effect where note = 'other'").await, 20);
    assert_eq!(service.count("select count(*) from effect").await, 20);
}

/// What a log line was.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Fails as a database does that has no more room, until it has.
#[derive(Clone, Default)]
struct Full(Arc<AtomicBool>, Arc<AtomicUsize>);

#[async_trait::async_trait]
impl inbox::Handler for Full {
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
        effect(tx, message).await?;
        if !self.0.load(Ordering::SeqCst) {
            self.1.fetch_add(1, Ordering::SeqCst);
            sqlx::query("do 'begin raise disk_full; end'").execute(&mut **tx).await?;
        }
        Ok(())
    }
}

/// On one thread, whose lines are read.
#[tokio::test]
async fn an_outage_that_many_messages_meet_is_one_line_with_the_databases_address() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let service = Service::new("outage lines").await;
    service.publish(&(0..8).map(|number| placed(&format!("k{number}"), "x")).collect::<Vec<_>>()).await;
    let full = Full::default();
    let running = start(service.consumer().on(KIND, full.clone()));
    let tried = || async { (full.1.load(Ordering::SeqCst) >= 16).then_some(()) };
    eventually("each was tried more than once", tried).await;
    full.0.store(true, Ordering::SeqCst);
    service.acknowledged().await;
    running.stop().await;
    let lines = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let said: Vec<_> = lines.lines().filter(|line| line.contains("cannot be tried now")).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("host=") && said[0].contains("port=") && said[0].contains("disk_full"),
        "{said:?}"
    );
}
