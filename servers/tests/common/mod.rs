//! What the tests look with: a statement over the raw protocol, and whether processes and folders are gone.
#![allow(dead_code, reason = "every test file uses a part")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use servers::Postgres;

/// Sends one simple query over the server's own socket and returns the last row's first column, or the error.
pub(crate) fn ask(postgres: &Postgres, statement: &str) -> Result<String, String> {
    let socket = postgres.folder().unwrap().join(format!(".s.PGSQL.{}", postgres.port().unwrap()));
    let mut server = UnixStream::connect(socket).map_err(|error| error.to_string())?;
    let startup = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    send(&mut server, b"", startup);
    until_ready(&mut server)?;
    send(&mut server, b"Q", format!("{statement}\0").as_bytes());
    until_ready(&mut server)
}

fn send(server: &mut UnixStream, kind: &[u8], body: &[u8]) {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    server.write_all(&[kind, &length, body].concat()).unwrap();
}

fn until_ready(server: &mut UnixStream) -> Result<String, String> {
    let mut answer = String::new();
    loop {
        let mut head = [0; 5];
        server.read_exact(&mut head).map_err(|error| error.to_string())?;
        let length = u32::from_be_bytes(head[1..].try_into().unwrap());
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        server.read_exact(&mut body).map_err(|error| error.to_string())?;
        match head[0] {
            b'Z' => return Ok(answer),
            b'E' => return Err(String::from_utf8_lossy(&body).replace('\0', " ")),
            // Two bytes count the columns, four the length of the first.
            b'D' => answer = String::from_utf8_lossy(&body[6..]).into_owned(),
            _ => {}
        }
    }
}

/// Waits until `happened`, and fails with `what` when it has not after 20 s.
pub(crate) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every process whose command line names `folder`, or (on Linux) that stands in it: the server, the keeper, and
/// the server's helpers, which rename themselves.
pub(crate) fn processes_of(folder: &Path) -> Vec<String> {
    let output = Command::new("ps").args(["-A", "-ww", "-o", "pid=,stat=,args="]).output().expect("ps");
    let folder = folder.to_str().unwrap();
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    let named = listing.lines().filter(|line| line.contains(folder)).map(str::to_owned);
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let standing = processes.filter_map(|process| {
        let place = std::fs::read_link(process.path().join("cwd")).ok()?;
        let place = place.to_str()?;
        place.starts_with(folder).then(|| format!("{} in {place}", process.path().display()))
    });
    named.chain(standing).collect()
}

/// Whether a process is there and not merely waiting to be waited for.
pub(crate) fn is_alive(pid: u32) -> bool {
    let output = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().expect("ps");
    let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    !state.is_empty() && !state.starts_with('Z')
}

pub(crate) fn kill_9(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}
