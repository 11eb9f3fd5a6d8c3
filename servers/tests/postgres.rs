//! PostgreSQL starts, answers, crashes, comes back, and leaves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's helpers fail as its test does")]

mod common;

use std::net::TcpStream;
use std::process::Command;

use common::{ask, eventually, is_alive, processes_of};
use servers::{Postgres, PostgresOptions};

#[test]
fn a_started_server_answers() {
    let postgres = Postgres::start_own().unwrap();
    assert_eq!(ask(&postgres, "select 6 * 7").unwrap(), "42");
    TcpStream::connect(("127.0.0.1", postgres.port().unwrap())).unwrap();
    assert!(postgres.describe().contains(&postgres.port().unwrap().to_string()), "{}", postgres.describe());
}

#[test]
fn loopback_asks_for_the_password_in_the_url() {
    let postgres = Postgres::start_own().unwrap();
    let said = ask(
        &postgres,
        "select count(*) from pg_hba_file_rules where type = 'host' and auth_method = 'trust'",
    );
    assert_eq!(said.unwrap(), "0");
    if let Ok(output) =
        Command::new("psql").args([&postgres.url("postgres"), "-XAtc", "select current_user"]).output()
    {
        assert_eq!(String::from_utf8_lossy(&output.stdout), "postgres\n", "{output:?}");
    }
}

#[test]
fn options_become_settings() {
    let postgres = PostgresOptions::new().durable(true).with_setting("wal_level", "logical").start().unwrap();
    assert_eq!(ask(&postgres, "show wal_level").unwrap(), "logical");
    assert_eq!(ask(&postgres, "show fsync").unwrap(), "on");
    assert_eq!(ask(&postgres, "show max_connections").unwrap(), "200");
    assert_eq!(ask(&postgres, "show max_prepared_transactions").unwrap(), "10");
}

#[test]
fn a_dropped_server_leaves_no_process_and_no_folder() {
    let postgres = Postgres::start_own().unwrap();
    let pid = postgres.pid().unwrap();
    let folder = postgres.folder().unwrap().to_owned();
    assert!(is_alive(pid) && folder.is_dir());
    drop(postgres);
    assert!(!is_alive(pid));
    assert!(!folder.exists());
    assert_eq!(processes_of(&folder), Vec::<String>::new());
}

#[test]
fn a_panic_leaves_no_server_behind() {
    let (told, hear) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let postgres = Postgres::start_own().unwrap();
        told.send((postgres.pid().unwrap(), postgres.folder().unwrap().to_owned())).unwrap();
        panic!("on purpose");
    });
    let (pid, folder) = hear.recv().unwrap();
    panicked.join().unwrap_err();
    assert!(!is_alive(pid) && !folder.exists());
}

#[test]
fn two_servers_have_two_ports() {
    let other = std::thread::spawn(|| Postgres::start_own().unwrap());
    let one = Postgres::start_own().unwrap();
    let other = other.join().unwrap();
    assert_ne!(one.port(), other.port());
    ask(&one, "create table only_in_one ()").unwrap();
    ask(&other, "select * from only_in_one").unwrap_err();
}

#[test]
fn a_taken_port_is_an_error_that_says_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = PostgresOptions::new().with_port(port).start().unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("Address already in use"), "{source}");
}

#[test]
fn a_crashed_and_a_killed_server_keep_what_was_committed() {
    let mut postgres = Postgres::start_own().unwrap();
    let port = postgres.port();
    ask(&postgres, "create table kept as select 1 as n").unwrap();
    postgres.crash().unwrap();
    ask(&postgres, "select 1").unwrap_err();
    postgres.restart().unwrap();
    ask(&postgres, "insert into kept values (2)").unwrap();
    postgres.kill().unwrap();
    assert_eq!(postgres.pid(), None);
    postgres.restart().unwrap();
    assert_eq!(ask(&postgres, "select count(*) from kept").unwrap(), "2");
    assert_eq!(postgres.port(), port);
}

#[test]
fn a_server_killed_by_someone_else_can_be_restarted() {
    let mut postgres = Postgres::start_own().unwrap();
    let pid = postgres.pid().unwrap();
    common::kill_9(pid);
    eventually("the server is dead", || !is_alive(pid));
    postgres.restart().unwrap();
    assert_eq!(ask(&postgres, "select 1").unwrap(), "1");
}

#[test]
fn a_kept_directory_opens_again() {
    let kept = tempfile::tempdir().unwrap();
    let first = PostgresOptions::new().kept_at(kept.path()).start().unwrap();
    ask(&first, "create table kept as select 'here' as word").unwrap();
    drop(first);
    let second = PostgresOptions::new().kept_at(kept.path()).start().unwrap();
    assert_eq!(ask(&second, "select word from kept").unwrap(), "here");
}

#[test]
fn a_copy_holds_what_was_there_and_a_standby_follows() {
    let original = Postgres::start_own().unwrap();
    let write = |word: &str| ask(&original, &format!("create table {word} ()")).unwrap();
    write("before");
    let mut copy = PostgresOptions::new().copy_of(&original).unwrap();
    let mut standby = PostgresOptions::new().standby_of(&original).unwrap();
    write("after");
    copy.restart().unwrap();
    standby.restart().unwrap();
    assert_ne!(copy.port(), original.port());
    let tables =
        "select string_agg(relname, ' ' order by relname) from pg_class where relname in ('before', 'after')";
    assert_eq!(ask(&copy, tables).unwrap(), "before");
    assert_eq!(ask(&copy, "select pg_is_in_recovery()").unwrap(), "f");
    eventually("the standby follows", || ask(&standby, tables).is_ok_and(|tables| tables == "after before"));
    assert_eq!(ask(&standby, "select pg_is_in_recovery()").unwrap(), "t");
}

#[test]
fn a_program_of_the_server_works_on_its_data_while_that_is_stopped() {
    let mut postgres = Postgres::start_own().unwrap();
    let data = postgres.data().unwrap().to_str().unwrap().to_owned();
    postgres.program("pg_resetwal", &["--next-transaction-id=30000", &data]).unwrap();
    postgres.restart().unwrap();
    let next = ask(&postgres, "select pg_snapshot_xmax(pg_current_snapshot())").unwrap();
    assert!(next.parse::<u64>().unwrap() >= 30_000, "{next}");
    assert!(postgres.program("pg_resetwal", &["--no-such-option"]).is_err());
}

#[test]
fn a_given_server_is_not_made_durable() {
    let mut run = Command::new(env!("CARGO_BIN_EXE_servers"));
    run.args(["run", "--durable", "true"]).env("DATABASE_URL", "postgres://localhost/given");
    let ran = run.output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(
        ran.status.code() == Some(1) && said.contains("--durable") && said.contains("DATABASE_URL"),
        "{said}"
    );
}
