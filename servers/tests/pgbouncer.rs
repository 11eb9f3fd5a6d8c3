//! PgBouncer starts in front of a PostgreSQL, as nobody special, and leaves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's helpers fail as its test does")]

mod common;

use common::is_alive;
use servers::{Pgbouncer, Postgres};

#[test]
fn it_runs_as_the_user_of_its_server_and_leaves_nothing() {
    let postgres = Postgres::start_own().unwrap();
    let pooler = Pgbouncer::start(&postgres, 2).unwrap();
    let owner = |pid: u32| {
        let output = std::process::Command::new("ps").args(["-o", "uid=", "-p", &pid.to_string()]).output();
        String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
    };
    let (pid, folder) = (pooler.pid().unwrap(), pooler.folder().to_owned());
    assert_eq!(owner(pid), owner(postgres.pid().unwrap()));
    assert_ne!(owner(pid), "0");
    let url = pooler.url("other");
    assert!(url.contains("@127.0.0.1:") && url.ends_with("/other") && url != postgres.url("other"), "{url}");
    drop(pooler);
    assert!(!is_alive(pid) && !folder.exists());
}
