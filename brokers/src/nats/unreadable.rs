//! What the client library cannot read. No I/O.
//!
//! On such a delivery it drops the connection, and on one kind it panics; the server delivers again, and so on. What is
//! examined here was read in another way, as bytes. The rules are those of async-nats 0.51 (`Connection::try_read_op`),
//! over what the server sends: the header block as it was published, with the line of the pin written over its last two
//! bytes.

use async_nats::{HeaderName, HeaderValue, StatusCode};

const VERSION: &str = "NATS/1.0";
const PIN: &str = "Nats-Pin-Id";
/// What the server takes for the end of a header block, whatever it is.
const END: usize = 2;

/// Why a delivery of this message cannot be read; `None`: it can.
pub(super) fn fault(subject: &str, headers: &[u8]) -> Option<&'static str> {
    if subject.contains(char::is_whitespace) {
        return Some("the subject holds white space");
    }
    // What the server writes for a byte that is not UTF-8. Somebody may have meant it; then the message is parked, not lost.
    if subject.contains(char::REPLACEMENT_CHARACTER) {
        return Some("the subject is not UTF-8");
    }
    let Ok(headers) = std::str::from_utf8(&delivered(headers)).map(ToOwned::to_owned) else {
        return Some("the headers are not UTF-8");
    };
    let mut lines = headers.lines().peekable();
    let Some(status) = lines.next().and_then(|line| line.strip_prefix(VERSION)) else {
        return Some("the headers do not begin with NATS/1.0");
    };
    let status = status.trim();
    let status = status.split_once(' ').map_or(status, |(status, _)| status.trim());
    if !status.is_empty() && status.parse::<StatusCode>().is_err() {
        return Some("the headers begin with a status that is none");
    }
    let mut pinned = false;
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let Some((name, value)) = line.split_once(':') else { return Some("a header has no colon") };
        if name.parse::<HeaderName>().is_err() {
            return Some("a header's name is not printable ASCII without blanks");
        }
        let mut value = value.trim_start().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        if value.trim_end().parse::<HeaderValue>().is_err() {
            return Some("a header holds a carriage return");
        }
        pinned = (name, value.trim_end()) == (PIN, "pin");
    }
    // The line of the pin has become a part of another one, so the block did not end as one does.
    (!pinned).then_some(UNTERMINATED)
}

/// Said of a delivery that can be read and lacks what the server wrote at its end, too.
pub(super) const UNTERMINATED: &str = "the headers do not end with an empty line";

/// The header block as the server delivers it.
fn delivered(headers: &[u8]) -> Vec<u8> {
    let mut block = match headers.len() {
        0..=END => format!("{VERSION}\r\n").into_bytes(),
        length => headers[..length - END].to_vec(),
    };
    block.extend_from_slice(PIN.as_bytes());
    block.extend_from_slice(b": pin\r\n\r\n");
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_reads_has_no_fault() {
        for headers in [
            "",
            "NATS/1.0\r\n\r\n",
            "NATS/1.0\r\nA: b\r\n\r\n",
            "NATS/1.0\r\nA: b\r\n c\r\n: empty\r\n\r\n",
            "NATS/1.0 503 No Responders\r\n\r\n",
            "NATS/1.0\r\nA: caf\u{e9}\r\n\r\n",
            "NATS/1.0\r\nA: b\0\r\nNats-Pin-Id: forged\r\n\r\n",
            "NATS/1.0\nA: b\n\r\n",
        ] {
            assert_eq!(fault("orders.caf\u{e9}", headers.as_bytes()), None, "{headers:?}");
        }
    }

    #[test]
    fn what_the_client_cannot_read_is_named() {
        for (headers, said) in [
            (&b"NATS/1.0\r\nA: caf\xe9\r\n\r\n"[..], "UTF-8"),
            (b"HTTP/1.1\r\nA: b\r\n\r\n", "NATS/1.0"),
            (b"\r\n\r\n", "NATS/1.0"),
            (b"NATS/1.0 abc\r\n\r\n", "status"),
            (b"NATS/1.0 42\r\n\r\n", "status"),
            (b"NATS/1.0\r\n", "status"),
            (b"NATS/1.0\r\nA\r\n\r\n", "colon"),
            (b"NATS/1.0\r\nA B: c\r\n\r\n", "name"),
            (b"NATS/1.0\r\n A: c\r\n\r\n", "name"),
            (b"NATS/1.0\r\n\xc3\xa9: c\r\n\r\n", "name"),
            (b"NATS/1.0\r\nA: b\rc\r\n\r\n", "carriage return"),
            (b"NATS/1.0\r\nA: b\r\n", "end"),
            (b"NATS/1.0\r\nA: b", "end"),
            (b"NATS/1.0\r\nNats-Pin-Id: forged\r\n", "end"),
        ] {
            assert!(fault("orders", headers).is_some_and(|fault| fault.contains(said)), "{headers:?}");
        }
        assert!(fault("a.\u{fffd}", b"").is_some());
        assert!(fault("a.\u{a0}", b"").is_some() && fault("a.\u{b}", b"").is_some());
    }
}
