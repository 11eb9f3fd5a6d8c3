//! The identity of a message: a UUID that its producer makes, in order of time.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::{NoContext, Timestamp, Uuid, Variant};

/// The namespace of identities made from a foreign CloudEvent's `source` and `id` ([`MessageId::foreign`]).
pub const FOREIGN: Uuid = Uuid::from_u128(0x8f6a_2c50_7d1e_5b04_9a3f_61c2_e07b_94d8);

/// Identifies one message, wherever a copy of it is. Never nil.
///
/// A new one is a UUIDv7 ([RFC 9562](https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7)), so that it carries
/// the millisecond in which it was made: an inbox can tell how old a copy is, and an index finds it by block range. It
/// is no order: clocks differ.
///
/// ```
/// use message::MessageId;
/// let id = MessageId::new();
/// assert_eq!(id, id.to_string().parse().unwrap());
/// assert!(id.made_at().is_some());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Uuid", into = "Uuid")]
pub struct MessageId(Uuid);

/// The text or UUID given is not the identity of a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidId {
    /// The nil UUID identifies nothing.
    #[error("id: must not be nil")]
    Nil,
    /// Not a UUID.
    #[error("id: not a UUID")]
    NotUuid,
}

impl MessageId {
    /// A new identity, made now.
    #[allow(clippy::new_without_default, reason = "a default that differs each time would surprise")]
    pub fn new() -> Self {
        MessageId(Uuid::now_v7())
    }

    /// A new identity that carries `moment` instead of now, to the millisecond. A UUIDv7 knows the years 1970 to 10889; a
    /// moment before or after becomes the first or the last of them.
    pub fn at(moment: DateTime<Utc>) -> Self {
        // 48 bits of milliseconds: more would wrap round, and a late moment would look like an early one.
        let milliseconds = moment.timestamp_millis().clamp(0, (1 << 48) - 1).unsigned_abs();
        let nanos = u32::try_from(milliseconds % 1_000 * 1_000_000).unwrap_or(0);
        MessageId(Uuid::new_v7(Timestamp::from_unix(NoContext, milliseconds / 1_000, nanos)))
    }

    /// The identity of an event whose own `id` is not a UUID: the same for the same (`source`, `id`), every time.
    pub fn foreign(source: &str, id: &str) -> Self {
        // The lengths' separator: no pair of different parts gives the same name.
        MessageId(Uuid::new_v5(&FOREIGN, format!("{}:{source}{id}", source.len()).as_bytes()))
    }

    /// When it was made, if it says so (a UUIDv7 does).
    pub fn made_at(&self) -> Option<DateTime<Utc>> {
        // A version means something in this variant only.
        if self.0.get_version_num() != 7 || self.0.get_variant() != Variant::RFC4122 {
            return None;
        }
        let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
        DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
    }

    /// The UUID.
    pub const fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl TryFrom<Uuid> for MessageId {
    type Error = InvalidId;

    fn try_from(id: Uuid) -> Result<Self, InvalidId> {
        if id.is_nil() { Err(InvalidId::Nil) } else { Ok(MessageId(id)) }
    }
}

impl FromStr for MessageId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        MessageId::try_from(Uuid::parse_str(text).map_err(|_| InvalidId::NotUuid)?)
    }
}

impl From<MessageId> for Uuid {
    fn from(id: MessageId) -> Uuid {
        id.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_made_at_a_moment_carries_that_moment() {
        let moment = DateTime::from_timestamp_millis(1_800_000_000_123).unwrap();
        assert_eq!(MessageId::at(moment).made_at(), Some(moment));
    }

    #[test]
    fn a_moment_that_no_id_can_carry_becomes_the_nearest_that_one_can() {
        let made_at = |moment| MessageId::at(moment).made_at().map(|moment| moment.timestamp_millis());
        let last = (1_i64 << 48) - 1;
        for (moment, milliseconds) in [
            (DateTime::<Utc>::MIN_UTC, 0),
            (DateTime::from_timestamp(-1, 500_000_000).unwrap(), 0),
            (DateTime::from_timestamp_millis(last).unwrap(), last),
            (DateTime::from_timestamp_millis(last + 1).unwrap(), last),
            (DateTime::<Utc>::MAX_UTC, last),
        ] {
            assert_eq!(made_at(moment), Some(milliseconds), "{moment}");
        }
    }

    #[test]
    fn an_id_of_another_variant_carries_no_moment() {
        let mut bytes = *MessageId::new().as_uuid().as_bytes();
        bytes[8] &= 0x3f;
        assert_eq!(MessageId(Uuid::from_bytes(bytes)).made_at(), None);
    }

    #[test]
    fn nil_is_no_identity() {
        assert_eq!(MessageId::try_from(Uuid::nil()), Err(InvalidId::Nil));
        assert_eq!("order-1".parse::<MessageId>(), Err(InvalidId::NotUuid));
    }

    #[test]
    fn a_foreign_identity_depends_on_both_parts_and_on_nothing_else() {
        assert_eq!(MessageId::foreign("/a", "1"), MessageId::foreign("/a", "1"));
        assert_ne!(MessageId::foreign("/a", "1"), MessageId::foreign("/a1", ""));
        assert_eq!(MessageId::foreign("/a", "1").made_at(), None);
        // Golden: an upgrade that changed it would let every foreign copy through again.
        assert_eq!(MessageId::foreign("/a", "1").to_string(), "8eea493d-0a8a-5ffc-8f81-4b43a5cf022b");
    }
}
