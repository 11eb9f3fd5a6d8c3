//! The name of a consumer group.

use std::fmt;
use std::str::FromStr;

/// The name of a consumer group: its name in `outbox.relay` of the broker database.
///
/// ```
/// use brokers::postgres::Group;
/// assert!("shipping".parse::<Group>().is_ok());
/// assert!("Shipping!".parse::<Group>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Group(String);

/// The text is not the name of a group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("group: 1 to 63 of a-z 0-9 . _ -, and the first a letter or digit")]
pub struct InvalidGroup;

impl Group {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Group {
    type Err = InvalidGroup;

    fn from_str(text: &str) -> Result<Self, InvalidGroup> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let valid = (1..=63).contains(&text.len())
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-'));
        if valid { Ok(Group(text.to_owned())) } else { Err(InvalidGroup) }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_what_the_table_of_relays_takes() {
        for name in ["a", "0", "order.service_2-b", &"a".repeat(63)] {
            assert!(name.parse::<Group>().is_ok(), "{name}");
        }
        for name in ["", "A", "-a", ".a", "a b", "é", "a\n", &"a".repeat(64)] {
            assert_eq!(name.parse::<Group>(), Err(InvalidGroup), "{name}");
        }
    }
}
