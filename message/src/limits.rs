//! What a message may be. The same limits stand as CHECK constraints in the schema and in the SQL function; a test
//! holds them together. They are checked before any SQL runs, so that a bad message never aborts a transaction.

/// Longest payload, in bytes: 960 KiB. With headers, percent-encoded at their worst, it stays below 1 MiB, the smallest
/// default limit among the brokers.
pub const PAYLOAD_BYTES: usize = 983_040;
/// All headers together, in bytes, as stored.
pub const HEADERS_BYTES: usize = 16_384;
/// Longest header name, in bytes.
pub const HEADER_NAME_BYTES: usize = 64;
/// Longest key, in bytes.
pub const KEY_BYTES: usize = 512;
/// Longest topic, kind and source, in bytes.
pub const NAME_BYTES: usize = 200;
/// Beginnings of header names that belong to the wire and to the relay.
pub const RESERVED_PREFIXES: [&str; 4] = ["ce-", "nats-", "webhook-", "outbox-"];

/// The header that marks what a replay publishes, with the replay's name: the one of the reserved names that a broker
/// delivers. Nobody can enqueue it.
pub const REPLAY: &str = "outbox-replay";
/// Longest name of a relay or a replay, in bytes.
pub const OPERATION_BYTES: usize = 63;

/// The longest time that a setting can mean: a hundred years. Longer ones are taken for it, so that a clock plus a setting
/// never overflows, neither here nor in a database.
pub const LONGEST: std::time::Duration = std::time::Duration::from_secs(100 * 365 * 86_400);

/// Quotes, colon, comma and a blank, as JSON stores each pair.
pub(crate) const HEADER_OVERHEAD: usize = 8;

/// The part of a message that is not as it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Field {
    /// [`Message::source`](crate::Message::source)
    Source,
    /// [`Message::topic`](crate::Message::topic)
    Topic,
    /// [`Message::kind`](crate::Message::kind)
    Kind,
    /// [`Message::key`](crate::Message::key)
    Key,
    /// [`Message::headers`](crate::Message::headers)
    Headers,
    /// [`Message::payload`](crate::Message::payload)
    Payload,
    /// [`Message::occurred_at`](crate::Message::occurred_at)
    OccurredAt,
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Field::Source => "source",
            Field::Topic => "topic",
            Field::Kind => "kind",
            Field::Key => "key",
            Field::Headers => "headers",
            Field::Payload => "payload",
            Field::OccurredAt => "occurred_at",
        })
    }
}

/// A message breaks a limit: whose fault it is stands in the name, and what to change in `field` and `limit`. It never
/// repeats the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {limit}")]
#[non_exhaustive]
pub struct InvalidMessage {
    /// The part at fault.
    pub field: Field,
    /// What it must be.
    pub limit: &'static str,
}

const fn invalid(field: Field, limit: &'static str) -> InvalidMessage {
    InvalidMessage { field, limit }
}

fn check(holds: bool, field: Field, limit: &'static str) -> Result<(), InvalidMessage> {
    if holds { Ok(()) } else { Err(invalid(field, limit)) }
}

fn printable(text: &str) -> bool {
    (1..=NAME_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether `text` may be a source.
///
/// # Errors
/// What a source must be.
pub fn source(text: &str) -> Result<(), InvalidMessage> {
    check(printable(text), Field::Source, "1 to 200 printable ASCII characters without a space")
}

pub(crate) fn kind(text: &str) -> Result<(), InvalidMessage> {
    check(printable(text), Field::Kind, "1 to 200 printable ASCII characters without a space")
}

/// Whether `text` may be a topic.
///
/// # Errors
/// What a topic must be.
pub fn topic(text: &str) -> Result<(), InvalidMessage> {
    let word = |word: &str| {
        !word.is_empty()
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    check(
        text.len() <= NAME_BYTES && text.split('.').all(word),
        Field::Topic,
        "words of A-Z a-z 0-9 _ - joined by dots, at most 200 bytes",
    )
}

/// Whether `text` may be a key.
///
/// # Errors
/// What a key must be.
pub fn key(text: &str) -> Result<(), InvalidMessage> {
    check((1..=KEY_BYTES).contains(&text.len()), Field::Key, "1 to 512 bytes")?;
    check(!text.contains('\0'), Field::Key, "must not contain NUL")
}

pub(crate) fn payload(bytes: &[u8]) -> Result<(), InvalidMessage> {
    check(bytes.len() <= PAYLOAD_BYTES, Field::Payload, "at most 983040 bytes")
}

pub(crate) fn occurred_at(moment: chrono::DateTime<chrono::Utc>) -> Result<(), InvalidMessage> {
    const YEAR_10000: i64 = 253_402_300_800;
    check((0..YEAR_10000).contains(&moment.timestamp()), Field::OccurredAt, "between the years 1970 and 9999")
}

pub(crate) fn header_name(name: &str) -> Result<(), InvalidMessage> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let letters = (1..=HEADER_NAME_BYTES).contains(&name.len())
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-'));
    let reserved = RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    check(
        letters && !reserved,
        Field::Headers,
        "a name has 1 to 64 of a-z 0-9 . _ - and no reserved prefix (ce- nats- webhook- outbox-)",
    )
}

pub(crate) fn header_value(value: &str) -> Result<(), InvalidMessage> {
    check(
        value.chars().all(|char| char >= ' ' && char != '\x7f'),
        Field::Headers,
        "a value is a string without control characters",
    )
}

/// Whether `text` may name a relay or a replay.
///
/// # Errors
/// What a name must be.
pub fn operation(text: &str) -> Result<(), InvalidMessage> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    check(
        (1..=OPERATION_BYTES).contains(&text.len())
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-')),
        Field::Headers,
        "the name of a replay has 1 to 63 of a-z 0-9 . _ - and begins with a letter or digit",
    )
}

pub(crate) fn headers_bytes(bytes: usize) -> Result<(), InvalidMessage> {
    check(bytes <= HEADERS_BYTES, Field::Headers, "at most 16384 bytes in all")
}
