//! A database whose clock is wrong: nothing is published before its time.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStderr, Stdio};

use common::outbox;
use sqlx::{Connection, Executor, PgConnection};
use tests::clock::WrongClock;

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until_logged(log: &mut Lines<BufReader<ChildStderr>>, words: &str) {
    assert!(log.any(|line| line.unwrap().contains(words)), "the log ends without {words:?}");
}

#[tokio::test]
async fn a_database_clock_that_jumps_brings_no_scheduled_message_before_its_time() {
    let clock = WrongClock::start();
    let url = clock.server.url("postgres");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    migrations::Schema::Outbox.migrate(&mut connection).await.unwrap();
    connection
        .execute(
            "select outbox.enqueue_at(now() + interval '3 days', 'orders', 'order.overdue', '1'::text);
             select outbox.enqueue_at(now() - interval '1 hour', 'orders', 'order.overdue', '2'::text)",
        )
        .await
        .unwrap();
    clock.set(30 * 86_400);
    let arguments = ["relay", "--broker", "file:/dev/null", "--lease", "1s"];
    let mut command = outbox(&arguments, &[("DATABASE_URL", &url)]);
    let mut relay = Killed(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let mut log = BufReader::new(relay.0.stderr.take().unwrap()).lines();
    until_logged(&mut log, "clocks of database and process differ");
    let count = async |connection: &mut PgConnection| -> (i64, i64) {
        let both =
            "select (select count(*) from outbox.message), (select count(*) from outbox.scheduled_message)";
        sqlx::query_as(both).fetch_one(connection).await.unwrap()
    };
    assert_eq!(count(&mut connection).await, (0, 2));
    clock.set(0);
    until_logged(&mut log, "clocks of database and process agree");
    while count(&mut connection).await.0 == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(count(&mut connection).await, (1, 1));
}
