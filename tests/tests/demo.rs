//! `cargo demo` as a user runs it: it adds up after the kills, it notices a sum that does not, and nothing of it stays.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// A build from nothing included.
const PATIENCE: Duration = Duration::from_secs(600);

/// The demo as a process, on the server that `DATABASE_URL` names.
struct Demo {
    child: Child,
    pid: u32,
    lines: Lines<BufReader<ChildStdout>>,
    said: String,
}

impl Demo {
    fn start(arguments: &[&str]) -> Demo {
        let mut command = Command::new(env!("CARGO"));
        command.args(["demo", "--"]).args(arguments);
        command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        // Cargo becomes the program that it runs, so this is the demo's own id.
        let pid = child.id().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Demo { child, pid, lines, said: String::new() }
    }

    /// Reads on until a line contains `text`; what was read stays in `said`.
    async fn says(&mut self, text: &str) {
        loop {
            let line =
                tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("it goes on").unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended without {text:?}:\n{}", self.said));
            self.said.push_str(&line);
            self.said.push('\n');
            if line.contains(text) {
                return;
            }
        }
    }

    async fn end(&mut self) -> ExitStatus {
        while let Some(line) = self.lines.next_line().await.unwrap() {
            self.said.push_str(&line);
            self.said.push('\n');
        }
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap()
    }

    async fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.pid.to_string()]).status().await.unwrap();
        assert!(sent.success());
    }

    /// The processes that `serve` names.
    fn pids(&self) -> Vec<String> {
        let after = self.said.split("kill -9 ").skip(1);
        let pids: Vec<String> =
            after.filter_map(|rest| rest.split_whitespace().next()).map(str::to_owned).collect();
        assert_eq!(pids.len(), 8, "{}", self.said);
        pids
    }

    async fn databases(&self) -> i64 {
        sqlx::query_scalar("select count(*) from pg_database where datname ~ $1")
            .bind(format!("^outbox_demo_.*_{}$", self.pid))
            .fetch_one(&mut connection("postgres").await)
            .await
            .unwrap()
    }
}

async fn connection(database: &str) -> PgConnection {
    let server =
        std::env::var("DATABASE_URL").expect("DATABASE_URL: `tests/run` starts a server and sets it");
    let options: sqlx::postgres::PgConnectOptions = server.parse().unwrap();
    PgConnection::connect_with(&options.database(database)).await.unwrap()
}

async fn is_gone(pid: &str) -> bool {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(30) {
        let asked = Command::new("kill").args(["-0", pid]).stderr(Stdio::null()).status().await.unwrap();
        // Who was not waited for still has an id; it is dead all the same.
        let state = tokio::fs::read_to_string(format!("/proc/{pid}/stat")).await.unwrap_or_default();
        if !asked.success() || state.contains(") Z ") {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

/// The number in front of `label` in the table.
fn number(said: &str, label: &str) -> i64 {
    let number = said.lines().find_map(|line| {
        let (number, text) = line.trim().split_once("  ")?;
        (text == label).then(|| number.parse().ok())?
    });
    number.unwrap_or_else(|| panic!("no {label}:\n{said}"))
}

#[tokio::test]
async fn the_demo_adds_up_after_a_service_and_a_relay_were_killed() {
    let mut demo = Demo::start(&["--orders", "120"]);
    let status = demo.end().await;
    let said = &demo.said;
    assert!(status.success(), "{status}:\n{said}");
    for text in [
        "the payment service is gone, and stays down",
        "the order service's relay is gone, under load",
        "orders wait for the payment service",
        "the payment service is started again",
        "Everything adds up",
        // The trees.
        "shipment.dispatched",
        "order.completed",
        "payment.refunded",
        "stock.released",
    ] {
        assert!(said.contains(text), "no {text:?}:\n{said}");
    }
    assert!(!said.contains("FAILED"), "{said}");
    // Whatever it waits for stands in its lines: the last of them has nothing left.
    let mut lines = said.lines().filter_map(|line| line.split_once(" effects ")?.1.split_once(" held back "));
    let (effects, held) = lines.next_back().unwrap();
    let (made, due) = effects.trim().split_once(" of ").unwrap();
    assert_eq!((made, held.trim()), (due, "0"), "{said}");
    assert_eq!(made.parse(), Ok(number(said, "effects, each exactly once")), "{said}");
    assert_eq!(number(said, "in all"), 120);
    assert_eq!(number(said, "completed"), 80);
    // How many copies a kill makes is a matter of its moment, which the demo seeks and cannot force; the soak counts them.
    assert!(said.contains("duplicates seen by consumers and discarded"), "{said}");
    assert_eq!(demo.databases().await, 0);
}

#[tokio::test]
async fn a_cent_too_many_in_one_account_is_found() {
    let mut demo = Demo::start(&["--orders", "30"]);
    demo.says("four services and four relays are at work").await;
    let mut payment = connection(&format!("outbox_demo_payment_{}", demo.pid)).await;
    payment
        .execute("update payments.account set balance_cents = balance_cents + 1 where customer = 'student'")
        .await
        .unwrap();
    drop(payment);
    let status = demo.end().await;
    assert_eq!(status.code(), Some(1), "{}", demo.said);
    let failed: Vec<&str> = demo.said.lines().filter(|line| line.contains("FAILED")).collect();
    assert!(failed.len() == 1 && failed[0].contains("cents in all balances"), "{}", demo.said);
    assert_eq!(demo.databases().await, 0);
}

#[tokio::test]
async fn an_interrupted_demo_leaves_no_process_and_no_database() {
    let mut demo = Demo::start(&["serve"]);
    demo.says("Ctrl-C ends everything").await;
    demo.signal("-INT").await;
    let status = demo.end().await;
    assert_eq!(status.code(), Some(130), "{}", demo.said);
    for pid in demo.pids() {
        assert!(is_gone(&pid).await, "{pid} is there:\n{}", demo.said);
    }
    assert_eq!(demo.databases().await, 0);
}

#[tokio::test]
async fn a_killed_demo_leaves_no_process() {
    let mut demo = Demo::start(&["serve"]);
    demo.says("Ctrl-C ends everything").await;
    demo.signal("-KILL").await;
    demo.end().await;
    for pid in demo.pids() {
        assert!(is_gone(&pid).await, "{pid} is there:\n{}", demo.said);
    }
    // Nobody was left to drop them on a server that is not the demo's own.
    let mut server = connection("postgres").await;
    for role in ["order", "stock", "payment", "shipping", "broker"] {
        let drop = format!("drop database outbox_demo_{role}_{} with (force)", demo.pid);
        server.execute(AssertSqlSafe(drop)).await.unwrap();
    }
}
