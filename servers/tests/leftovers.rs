//! Whatever way the starting process ends, its servers end and their folders go.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's helpers fail as its test does")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{eventually, is_alive, kill_9, processes_of};

/// The `servers` program, which needs no variables of ours and gets its temporary folders in `temp`.
fn servers(temp: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_servers"));
    command.env_remove("DATABASE_URL").env_remove("NATS_URL").env("TMPDIR", temp);
    command
}

/// A folder in which every user may make folders, as in `/tmp`.
fn temp() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    temp
}

/// A parent that has started its servers and runs a command that waits for its standard input to end.
fn started_parent(mut command: Command) -> (Child, u32) {
    command.args(["run", "sh", "-c", "echo started $$; read -r never"]);
    let mut parent = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let shell = line.trim().strip_prefix("started ").unwrap().parse().unwrap();
    (parent, shell)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn nothing_remains(temp: &Path) {
    eventually("the folders are gone", || entries(temp).is_empty());
    eventually("the processes are gone", || processes_of(temp).is_empty());
}

#[test]
fn a_killed_parent_leaves_no_server_behind() {
    let temp = temp();
    let (mut parent, shell) = started_parent(servers(temp.path()));
    assert_eq!(entries(temp.path()).len(), 2, "one folder per server");
    assert!(!processes_of(temp.path()).is_empty());
    kill_9(parent.id());
    parent.wait().unwrap();
    nothing_remains(temp.path());
    drop(parent);
    eventually("the command is gone", || !is_alive(shell));
}

#[test]
fn an_interrupted_parent_leaves_no_server_behind() {
    let temp = temp();
    let (mut parent, _) = started_parent(servers(temp.path()));
    // As a terminal does for Ctrl-C: to the whole foreground group.
    let group = format!("-{}", parent.id());
    assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
    parent.wait().unwrap();
    nothing_remains(temp.path());
}

#[test]
fn a_parent_killed_at_any_moment_of_the_start_leaves_nothing() {
    // From before the first folder, through initdb, to the servers' start.
    for wait in [0, 1, 3, 10, 30, 100, 200, 300, 450, 600, 800, 1000, 1300] {
        let temp = temp();
        let mut parent = servers(temp.path()).args(["run", "true"]).stderr(Stdio::null()).spawn().unwrap();
        // The moment itself is what is varied here: there is no event to wait for.
        std::thread::sleep(std::time::Duration::from_millis(wait));
        kill_9(parent.id());
        parent.wait().unwrap();
        nothing_remains(temp.path());
    }
}

#[test]
fn a_keeper_whose_parent_is_gone_before_it_answers_leaves_no_folder() {
    let temp = temp();
    let mut keeper = Command::new("/bin/sh")
        .args(["-c", include_str!("../src/process/keeper.sh"), "keeper"])
        .arg(temp.path().join("gone-XXXXXX"))
        .args(["TERM", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // What a killed parent does to both pipes, before the keeper has written a word.
    drop((keeper.stdout.take(), keeper.stdin.take()));
    keeper.wait().unwrap();
    nothing_remains(temp.path());
}

#[test]
fn the_command_sees_both_servers_and_its_code_is_passed_on() {
    let temp = temp();
    let script = r#"case "$DATABASE_URL $NATS_URL" in postgres://*@127.0.0.1:*/postgres\ nats://127.0.0.1:*) exit 7;; esac"#;
    let status = servers(temp.path()).args(["run", "sh", "-c", script]).status().unwrap();
    assert_eq!(status.code(), Some(7));
    assert_eq!(entries(temp.path()), Vec::<PathBuf>::new());
    let status = servers(temp.path()).args(["run", "sh", "-c", "kill -9 $$"]).status().unwrap();
    assert_eq!(status.code(), Some(128 + 9));
}

#[test]
fn given_servers_are_passed_on_untouched() {
    let temp = temp();
    let script =
        r#"test "$DATABASE_URL" = "postgres://u:p@h:1/postgres?a=b" && test "$NATS_URL" = nats://h:2"#;
    let status = servers(temp.path())
        .args(["run", "sh", "-c", script])
        .env("DATABASE_URL", "postgres://u:p@h:1/mine?a=b")
        .env("NATS_URL", "nats://h:2")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn an_unknown_way_to_find_postgres_is_refused() {
    let temp = temp();
    let output = servers(temp.path()).args(["run", "true"]).env("OUTBOX_POSTGRES", "magic").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not one of installed, download, docker"));
}

#[test]
fn an_ordinary_user_runs_the_servers_too() {
    let as_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if !as_root {
        // Then every other test has shown it.
        return;
    }
    // An ordinary user cannot download into the cache that root shares with everyone.
    assert!(servers(&std::env::temp_dir()).arg("install").status().unwrap().success());
    const NOBODY: u32 = 65_534;
    let temp = temp();
    // The build folder may lie in root's home.
    let program = temp.path().join("servers");
    fs::copy(env!("CARGO_BIN_EXE_servers"), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let folders = temp.path().join("folders");
    fs::create_dir(&folders).unwrap();
    fs::set_permissions(&folders, fs::Permissions::from_mode(0o1777)).unwrap();
    let mut command = Command::new(&program);
    command.env_remove("DATABASE_URL").env_remove("NATS_URL").env("TMPDIR", &folders);
    command.env("OUTBOX_CACHE", std::env::var_os("OUTBOX_CACHE").unwrap_or("/var/cache/outbox".into()));
    command.uid(NOBODY).gid(NOBODY).current_dir("/");
    let (mut parent, _) = started_parent(command);
    assert_eq!(entries(&folders).len(), 2);
    let owner = |path: &PathBuf| std::os::unix::fs::MetadataExt::uid(&fs::metadata(path).unwrap());
    assert!(entries(&folders).iter().all(|folder| owner(folder) == NOBODY));
    kill_9(parent.id());
    parent.wait().unwrap();
    nothing_remains(&folders);
}
