//! Whether a server takes connections: it is asked with a startup packet, as `pg_isready` does.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn on_socket(folder: &Path, port: u16) -> bool {
    UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).is_ok_and(|stream| {
        stream.set_read_timeout(Some(PATIENCE)).is_ok() && takes_connections(stream).unwrap_or(false)
    })
}

pub(super) fn on_port(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, PATIENCE).is_ok_and(|stream| {
        stream.set_read_timeout(Some(PATIENCE)).is_ok() && takes_connections(stream).unwrap_or(false)
    })
}

/// Any answer but "starting up", "shutting down" or "in recovery" (all 57P03) will do; a request for a
/// password is one.
fn takes_connections(mut server: impl Read + Write) -> io::Result<bool> {
    const STARTUP: &[u8] = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let length = u32::try_from(STARTUP.len() + 4).map_err(io::Error::other)?;
    server.write_all(&[&length.to_be_bytes(), STARTUP].concat())?;
    let mut kind = [0; 5];
    server.read_exact(&mut kind)?;
    if kind[0] != b'E' {
        return Ok(kind[0] == b'R');
    }
    let mut fields = [0; 1024];
    let read = server.read(&mut fields)?;
    Ok(!fields[..read].windows(7).any(|window| window == b"C57P03\0"))
}
