//! The stream that must be there before anything is sent, and what it must be like. No I/O.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType};
use message::limits::LONGEST;

/// The stream that takes the messages, and whether it may be created.
///
/// A stream that throws away what nobody has read (limits that discard the old, an age, interest without a consumer) is
/// refused unless [`that_may_discard`](Self::that_may_discard) says that this is wanted.
///
/// ```
/// use brokers::nats::StreamPolicy;
/// let made_here = StreamPolicy::create("ORDERS", ["orders.>"]).with_replicas(3);
/// let made_elsewhere = StreamPolicy::check("ORDERS");
/// # let _ = (made_here, made_elsewhere);
/// ```
#[derive(Debug, Clone)]
pub struct StreamPolicy {
    name: String,
    wanted: Option<Config>,
    may_discard: bool,
}

impl StreamPolicy {
    /// The stream exists, made by someone else; it is checked.
    pub fn check(name: impl Into<String>) -> Self {
        StreamPolicy { name: name.into(), wanted: None, may_discard: false }
    }

    /// The stream is created if it does not exist: in files, taking `subjects`, without limits, with the copies of two
    /// minutes removed. One that exists is compared and never changed.
    pub fn create(name: impl Into<String>, subjects: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let name = name.into();
        let wanted = Config {
            name: name.clone(),
            subjects: subjects.into_iter().map(Into::into).collect(),
            storage: StorageType::File,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            duplicate_window: Duration::from_secs(120),
            num_replicas: 1,
            max_bytes: -1,
            max_messages: -1,
            max_messages_per_subject: -1,
            ..Config::default()
        };
        StreamPolicy { name, wanted: Some(wanted), may_discard: false }
    }

    /// Created with this many replicas.
    pub fn with_replicas(self, replicas: usize) -> Self {
        self.wanting(|wanted| wanted.num_replicas = replicas)
    }

    /// Created with this limit. A full stream refuses new messages, and publishing to it waits
    /// (`DestinationUnavailable`).
    pub fn with_max_bytes(self, bytes: i64) -> Self {
        self.wanting(|wanted| wanted.max_bytes = bytes)
    }

    /// Created with an age after which messages are thrown away, read or not; needs
    /// [`that_may_discard`](Self::that_may_discard).
    pub fn with_max_age(self, age: Duration) -> Self {
        self.wanting(|wanted| wanted.max_age = age.min(LONGEST))
    }

    /// Created with this window, in which a second copy of a message is not stored.
    pub fn with_duplicate_window(self, window: Duration) -> Self {
        self.wanting(|wanted| wanted.duplicate_window = window.min(LONGEST))
    }

    /// The stream may throw away messages that nobody has read. Who asks for this gives up that nothing is lost.
    pub fn that_may_discard(mut self) -> Self {
        self.may_discard = true;
        self
    }

    fn wanting(mut self, change: impl FnOnce(&mut Config)) -> Self {
        if let Some(wanted) = &mut self.wanted {
            change(wanted);
        }
        self
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What to create, if it may be created.
    pub(super) fn wanted(&self) -> Option<&Config> {
        self.wanted.as_ref()
    }

    /// Why the stream, as it is, must not be used.
    pub(super) fn fault(&self, found: &Config) -> Option<String> {
        let fault = keeps_what_it_confirms(found)
            .or_else(|| discards(found).filter(|_| !self.may_discard))
            .or_else(|| self.wanted.as_ref().and_then(|wanted| differs(wanted, found)))?;
        Some(format!("stream {}: {fault}", self.name))
    }
}

fn keeps_what_it_confirms(found: &Config) -> Option<String> {
    let fault = if found.storage != StorageType::File {
        "storage: must be file"
    } else if found.no_ack {
        "no_ack: must be off"
    } else if found.persist_mode == Some(PersistenceMode::Async) {
        "persist_mode: must not be async"
    } else if found.sealed {
        "sealed: takes no messages"
    } else if found.mirror.is_some() {
        "mirror: takes no messages of its own"
    } else {
        return None;
    };
    Some(fault.to_owned())
}

fn discards(found: &Config) -> Option<String> {
    let limited = found.max_bytes > 0 || found.max_messages > 0 || found.max_messages_per_subject > 0;
    let why = if found.discard == DiscardPolicy::Old && limited {
        "discard: old, with a limit"
    } else if found.max_messages_per_subject > 0 && !found.discard_new_per_subject {
        "max_msgs_per_subject: discards the old"
    } else if !found.max_age.is_zero() {
        "max_age: discards by age"
    } else if found.retention == RetentionPolicy::Interest {
        "retention: interest, which keeps nothing while nobody is subscribed"
    } else {
        return None;
    };
    Some(format!("{why}: unread messages would be lost (allow it or change the stream)"))
}

/// An older server ignores what it does not know, so what was asked for is compared with what is there.
fn differs(wanted: &Config, found: &Config) -> Option<String> {
    let limit = |limit: i64| if limit > 0 { limit } else { -1 };
    let subjects = wanted.subjects.iter().find(|subject| !found.subjects.contains(subject));
    if let Some(subject) = subjects {
        return Some(format!("subjects: {subject} is not among them"));
    }
    let field = if wanted.retention != found.retention {
        "retention"
    } else if limit(wanted.max_bytes) != limit(found.max_bytes) {
        "max_bytes"
    } else if limit(found.max_messages) != limit(wanted.max_messages) {
        "max_msgs"
    } else if wanted.max_bytes > 0 && wanted.discard != found.discard {
        "discard"
    } else if wanted.max_age != found.max_age {
        "max_age"
    } else if wanted.duplicate_window != found.duplicate_window {
        "duplicate_window"
    } else if wanted.num_replicas != found.num_replicas {
        "num_replicas"
    } else {
        return None;
    };
    Some(format!("{field}: is not what was asked for"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> StreamPolicy {
        StreamPolicy::create("S", ["a.>"])
    }

    fn found(change: impl FnOnce(&mut Config)) -> Config {
        let mut config = policy().wanted.unwrap();
        change(&mut config);
        config
    }

    #[test]
    fn a_stream_that_was_made_as_asked_is_fine() {
        assert_eq!(policy().fault(&found(|_| {})), None);
        assert_eq!(policy().fault(&found(|c| c.subjects.push("b".to_owned()))), None);
        assert_eq!(StreamPolicy::check("S").fault(&found(|c| c.num_replicas = 3)), None);
    }

    #[test]
    fn a_stream_that_loses_what_it_confirmed_is_refused_whatever_is_allowed() {
        let changes: [fn(&mut Config); 4] = [
            |c| c.storage = StorageType::Memory,
            |c| c.no_ack = true,
            |c| c.persist_mode = Some(PersistenceMode::Async),
            |c| c.sealed = true,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(StreamPolicy::check("S").that_may_discard().fault(&found(change)).is_some(), "{number}");
        }
    }

    #[test]
    fn a_stream_that_discards_the_unread_is_refused_unless_allowed() {
        let changes: [fn(&mut Config); 5] = [
            |c| (c.discard, c.max_bytes) = (DiscardPolicy::Old, 1),
            |c| (c.discard, c.max_messages) = (DiscardPolicy::Old, 1),
            |c| c.max_messages_per_subject = 1,
            |c| c.max_age = Duration::from_secs(1),
            |c| c.retention = RetentionPolicy::Interest,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let found = found(change);
            assert!(StreamPolicy::check("S").fault(&found).is_some(), "{number}");
            assert_eq!(StreamPolicy::check("S").that_may_discard().fault(&found), None, "{number}");
        }
        assert_eq!(StreamPolicy::check("S").fault(&found(|c| c.max_bytes = 1)), None);
    }

    #[test]
    fn a_difference_is_named() {
        let fault = |change: fn(&mut Config)| policy().fault(&found(change)).unwrap();
        assert!(fault(|c| c.subjects.clear()).contains("subjects"));
        assert!(fault(|c| c.duplicate_window = Duration::ZERO).contains("duplicate_window"));
        assert!(fault(|c| c.num_replicas = 3).contains("num_replicas"));
    }
}
