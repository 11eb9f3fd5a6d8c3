//! NATS starts, answers, dies, comes back with its streams, stands still, and leaves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's helpers fail as its test does")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::is_alive;
use servers::Nats;

/// One request to JetStream's interface over the plain text protocol; the reply's body.
fn request(nats: &Nats, subject: &str, body: &str) -> std::io::Result<String> {
    let mut server = TcpStream::connect(("127.0.0.1", nats.port().unwrap()))?;
    server.set_read_timeout(Some(Duration::from_secs(1)))?;
    let length = body.len();
    let ask = format!(
        "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\nPUB {subject} answer {length}\r\n{body}\r\n"
    );
    server.write_all(ask.as_bytes())?;
    let mut lines = BufReader::new(server).lines();
    while let Some(line) = lines.next() {
        if line?.starts_with("MSG answer") {
            return lines.next().unwrap();
        }
    }
    Err(std::io::ErrorKind::UnexpectedEof.into())
}

const MAKE: (&str, &str) =
    ("$JS.API.STREAM.CREATE.orders", r#"{"name":"orders","subjects":["orders"],"storage":"file"}"#);

#[test]
fn a_killed_server_comes_back_with_its_streams() {
    let mut nats = Nats::start_own().unwrap();
    let url = nats.url();
    let made = request(&nats, MAKE.0, MAKE.1).unwrap();
    assert!(made.contains("\"did_create\":true"), "{made}");
    request(&nats, "orders", "one").unwrap();
    nats.kill().unwrap();
    request(&nats, "orders", "lost").unwrap_err();
    nats.restart().unwrap();
    let stream = request(&nats, "$JS.API.STREAM.INFO.orders", "").unwrap();
    assert!(stream.contains("\"messages\":1,"), "{stream}");
    assert_eq!(nats.url(), url);
}

#[test]
fn a_paused_server_takes_connections_and_does_not_answer() {
    let mut nats = Nats::start_own().unwrap();
    nats.pause().unwrap();
    request(&nats, "$JS.API.INFO", "").unwrap_err();
    nats.resume().unwrap();
    request(&nats, "$JS.API.INFO", "").unwrap();
}

#[test]
fn a_dropped_server_leaves_nothing_even_when_paused() {
    let mut nats = Nats::start_own().unwrap();
    let (pid, folder) = (nats.pid().unwrap(), nats.folder().unwrap().to_owned());
    nats.pause().unwrap();
    drop(nats);
    assert!(!is_alive(pid) && !folder.exists());
}
