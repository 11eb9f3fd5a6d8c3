//! What is wrong with a configuration or a command line is said in one line, with its place, without its secrets, before
//! anything is tried.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;

use common::{MARKER, run};

const DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://app:m4rker@127.0.0.1:1/orders");

/// What `outbox relay --check` says of a file of this content.
fn check_file(content: &[u8]) -> common::Ran {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.toml");
    fs::write(&path, content).unwrap();
    let ran = run(&["relay", "--check", "--config", path.to_str().unwrap()], &[DATABASE]);
    let err = ran.err.replace(path.to_str().unwrap(), "FILE");
    common::Ran { err, ..ran }
}

#[test]
fn a_file_that_cannot_be_read_is_refused_with_path_and_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let refused = |path: &str, reason: &str| {
        run(&["relay", "--config", path], &[DATABASE]).failed(2, &[&format!("outbox: {path}: {reason}")]);
    };
    refused(&path("missing.toml"), "no such file");
    refused(&path(""), "is a directory");
    for (content, reason) in [
        (&b""[..], "is empty"),
        (b" \n\r\n", "is empty"),
        (b"\xef\xbb\xbfrelay = \"a\"", "begins with a byte order mark"),
        (b"relay = \"\xff\"", "not UTF-8, at byte 10"),
        (&[b'#'; (1 << 20) + 1], "longer than 1048576 bytes"),
    ] {
        fs::write(path("relay.toml"), content).unwrap();
        refused(&path("relay.toml"), reason);
    }
}

#[test]
fn a_file_whose_content_is_wrong_is_refused_with_the_key() {
    for (content, words) in [
        ("leese = \"30s\"", ["FILE: unknown key leese", "did you mean lease?"]),
        ("lease = \"30s\"\nlease = \"m4rker\"", ["FILE:2: duplicate key", ""]),
        ("database = \"m4rker", ["FILE:1: ", "string"]),
        ("batch = \"m4rker\"", ["FILE: batch: must be", "number"]),
        ("batch = -1", ["FILE: batch: must be", "from 1 to 10000"]),
        ("batch = 99999999999999999999", ["FILE:1: ", ""]),
        ("lease = \"5m30\"", ["FILE: lease: must be", "250ms, 30s, 5m, 2h"]),
        ("lease = \"30s\"\nrecord_interval = \"20s\"", ["lease (30s)", "three times record_interval (20s)"]),
        ("broker = \"kafka://u:m4rker@host\"", ["broker kafka://host: must be", "nats://HOST"]),
        ("broker = \"m4rker\"", ["broker (no URL): must be", ""]),
        ("broker = \"memory:\"\ndatabase = \"mysql://u:m4rker@host/db\"", ["", ""]),
        (
            "broker = \"memory:\"\n[[route]]\ntopic = \"a\"\ndestination = \"{kind}\"",
            ["FILE: route 1: route destination", "{topic}"],
        ),
    ] {
        // A key that is there twice is a mistake of its own.
        let broker = if content.contains("broker") { "" } else { "broker = \"memory:\"\n" };
        let file = format!("{content}\n{broker}");
        let ran = check_file(file.as_bytes());
        if words == ["", ""] {
            // The URL of another layer wins.
            ran.succeeded();
        } else {
            ran.failed(2, &words);
        }
    }
}

#[test]
fn carriage_returns_are_line_ends() {
    let ran = check_file(b"relay = \"a\"\r\nbroker = \"memory:\"\r\n[retry]\r\nfirst = \"1s\"\r\n");
    assert_eq!(
        ran.succeeded(),
        "relay a: from database postgres://127.0.0.1:1/orders to memory, where nothing is kept\n"
    );
}

#[test]
fn a_flag_beats_the_environment_and_the_environment_beats_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.toml");
    fs::write(&path, "relay = \"file\"\nbroker = \"memory:\"").unwrap();
    let name = |flags: &[&str], environment: &[(&str, &str)]| {
        let arguments = [&["relay", "--check"], flags].concat();
        let environment = [&[DATABASE, ("OUTBOX_CONFIG", path.to_str().unwrap())], environment].concat();
        run(&arguments, &environment).succeeded().split(':').next().unwrap().to_owned()
    };
    assert_eq!(name(&[], &[]), "relay file");
    assert_eq!(name(&[], &[("OUTBOX_RELAY", "variable")]), "relay variable");
    assert_eq!(name(&["--relay", "flag"], &[("OUTBOX_RELAY", "variable")]), "relay flag");
}

#[test]
fn a_password_on_the_command_line_is_refused_everywhere() {
    let url = format!("postgres://app:{MARKER}@host/db");
    let id = "0193b5a0-0000-7000-8000-000000000001";
    for command in [
        &["migrate", "--database", &url][..],
        &["status", "--database", &url],
        &["parked", "--database", &url],
        &["parked", "skip", "--relay", "default", "--position", "1", "--reason", "x", "--database", &url],
        &["relays", "--database", &url],
        &["doctor", "--database", &url],
        &["relays", "pause", "default", "--database", &url],
        &["audit", "--database", &url],
        &["replay", "r", "--all", "--database", &url],
        &["replay", "r", "--all", "--execute", "--broker", "memory:", "--database", &url],
        &["replays", "--database", &url],
        &["trace", id, "--database", &url],
        &["relay", "--broker", "memory:", "--database", &url],
    ] {
        run(command, &[]).failed(2, &["DATABASE_URL", "--database @FILE", "command line"]);
    }
    let nats = format!("nats://{MARKER}@host");
    run(&["relay", "--broker", &nats], &[DATABASE])
        .failed(2, &["--broker: the URL holds a password", "@FILE"]);
    // Even where it is no argument's value at all.
    assert_eq!(run(&["status", &url], &[]).code, Some(2));
    assert_eq!(run(&[&url], &[]).code, Some(2));
}

#[test]
fn a_database_is_taken_from_a_file_or_a_variable() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("url");
    fs::write(&path, format!("postgres://app:{MARKER}@127.0.0.1:1/orders\n")).unwrap();
    let at = format!("@{}", path.display());
    run(&["status", "--database", &at], &[]).failed(3, &["database postgres://127.0.0.1:1/orders: "]);
    run(&["status", "--database", "env:MINE"], &[("MINE", DATABASE.1)]).failed(3, &["127.0.0.1:1/orders"]);
    run(&["status", "--database", "env:MINE"], &[]).failed(2, &["--database: the environment holds no MINE"]);
    run(&["status"], &[]).failed(2, &["no database: set DATABASE_URL"]);
    fs::write(&path, "a\nb\n").unwrap();
    run(&["status", "--database", &at], &[]).failed(2, &["must hold one line"]);
}

#[test]
fn a_misspelt_variable_is_refused_and_what_kubernetes_sets_is_not() {
    let relay = |variable| run(&["relay", "--check", "--broker", "memory:"], &[DATABASE, variable]);
    relay(("OUTBOX_LEESE", MARKER)).failed(2, &["unknown variable OUTBOX_LEESE; did you mean OUTBOX_LEASE?"]);
    relay(("OUTBOX_LEASE", "soon")).failed(2, &["OUTBOX_LEASE: must be"]);
    relay(("OUTBOX_SERVICE_HOST", "10.0.0.1")).succeeded();
}

#[test]
fn help_teaches_and_shows_no_secret_of_the_environment() {
    for command in
        ["migrate", "relay", "status", "doctor", "relays", "parked", "audit", "trace", "replay", "replays"]
    {
        let ran = run(&[command, "--help"], &[DATABASE, ("OUTBOX_BROKER", "nats://m4rker@host")]);
        let help = ran.succeeded();
        assert!(help.contains("Examples:") && help.contains("Exit codes:"), "{command}: {help}");
    }
    let ran = run(&["--help"], &[DATABASE]);
    assert!(ran.succeeded().contains("Exit codes:"));
}
