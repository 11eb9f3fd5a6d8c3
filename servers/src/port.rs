//! A port on loopback that nobody listens on right now.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};

/// The first port, chosen by chance, that can be bound.
///
/// Asking the system for port 0 would give one of the range it hands to outgoing connections, where any
/// client may take it while a killed server is down, and the server then cannot come back to its port. So the
/// choice is made below that range (32768 on Linux, 49152 on macOS). Another server may still be faster;
/// whoever starts one tries again with another port.
pub fn free() -> Option<u16> {
    const FIRST: u64 = 15_000;
    const LAST: u64 = 32_000;
    (0..1000)
        .map(|_| FIRST + RandomState::new().build_hasher().finish() % (LAST - FIRST))
        .filter_map(|port| u16::try_from(port).ok())
        .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
}

/// Whether a server's last words were that its port is taken.
pub(crate) fn is_taken(log: &str) -> bool {
    let log = log.to_lowercase();
    // The second is Docker's.
    log.contains("address already in use") || log.contains("port is already allocated")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound() {
        let port = free().unwrap();
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    }
}
