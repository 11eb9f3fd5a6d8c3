//! What JetStream knows a message by, and whether what it keeps is that message. No I/O.

use std::collections::BTreeSet;

use message::{Outgoing, wire};
use uuid::Uuid;

use super::stored::Stored;

/// The namespace of what is hashed here.
const NAMESPACE: Uuid = Uuid::from_u128(0x2c8d_95f6_51a4_4f1c_9d0b_7a3e_64c1_80f2);

/// The `Nats-Msg-Id`: the message's own id, and a hash of what makes it a message of its own at the broker. A stream
/// removes copies by this id alone, over all its subjects: two relays, two destinations, two sources that use one UUID, and
/// a replay must each have another one.
pub(super) fn of(relay: &str, outgoing: &Outgoing) -> String {
    let message = &outgoing.message;
    let (replay, source) = (message.headers.replay().unwrap_or_default(), message.source.as_deref());
    // Only the last part may hold a NUL.
    let parts = [replay, source.unwrap_or_default(), &outgoing.destination, relay].join("\0");
    format!("{}/{}", message.id, Uuid::new_v5(&NAMESPACE, parts.as_bytes()).simple())
}

/// The id of a message whose first one another message has: it depends on the content, so that a further try has it, too.
pub(super) fn suffixed(first: &str, outgoing: &Outgoing) -> String {
    let mut content = Vec::with_capacity(outgoing.message.payload.len());
    for (name, value) in wire::binary::NATS.encode(&outgoing.message) {
        content.extend_from_slice(name.as_bytes());
        content.push(b'\n');
        content.extend_from_slice(value.as_bytes());
        content.push(b'\n');
    }
    content.extend_from_slice(&outgoing.message.payload);
    format!("{first}/{}", Uuid::new_v5(&NAMESPACE, &content).simple())
}

/// What is stored, compared with what was sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Same,
    /// The same in everything but the subject: another message, unless the stream changes subjects.
    SameElsewhere,
    Other,
}

/// Compares what a stream keeps with what was sent.
pub(super) fn compare(stored: &Stored, outgoing: &Outgoing) -> Found {
    let sent = wire::binary::NATS.encode(&outgoing.message);
    let sent: BTreeSet<(&str, &str)> =
        sent.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let same = stored.payload == outgoing.message.payload && headers(&stored.headers) == Some(sent);
    match (same, *stored.subject == *outgoing.destination) {
        (false, _) => Found::Other,
        (true, true) => Found::Same,
        (true, false) => Found::SameElsewhere,
    }
}

/// The headers but the server's own, as we write them.
fn headers(block: &[u8]) -> Option<BTreeSet<(&str, &str)>> {
    let lines = std::str::from_utf8(block).ok()?.lines().skip(1).filter(|line| !line.is_empty());
    let pairs = lines.map(|line| line.split_once(':').map(|(name, value)| (name, value.trim())));
    let pairs: BTreeSet<(&str, &str)> = pairs.collect::<Option<_>>()?;
    let servers = |name: &str| name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"));
    Some(pairs.into_iter().filter(|(name, _)| !servers(name)).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use message::Message;

    use super::*;

    fn outgoing(destination: &str, source: &str, replay: Option<&str>) -> Outgoing {
        let id = "018f0000-0000-7000-8000-000000000001".parse().unwrap();
        let mut message = Message::new("t", "k", "{}").with_id(id).with_source(source);
        if let Some(replay) = replay {
            message.headers.insert("outbox-replay", replay);
        }
        Outgoing { destination: destination.into(), message: Arc::new(message) }
    }

    fn stored(outgoing: &Outgoing) -> Stored {
        let pairs = wire::binary::NATS.encode(&outgoing.message);
        let lines: String = pairs.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        Stored {
            sequence: 1,
            subject: outgoing.destination.to_string(),
            headers: format!("NATS/1.0\r\n{lines}Nats-Msg-Id: x\r\nNats-Expected-Stream: S\r\n\r\n").into(),
            payload: outgoing.message.payload.clone(),
            time: String::new(),
        }
    }

    #[test]
    fn each_part_makes_another_id_and_nothing_besides_does() {
        let ids: BTreeSet<String> = [
            of("main", &outgoing("a.b", "/s", None)),
            of("audit", &outgoing("a.b", "/s", None)),
            of("main", &outgoing("a.c", "/s", None)),
            of("main", &outgoing("a.b", "/t", None)),
            of("main", &outgoing("a.b", "/s", Some("r"))),
        ]
        .into();
        assert_eq!(ids.len(), 5);
        assert!(ids.contains(&of("main", &outgoing("a.b", "/s", None))));
        assert!(ids.iter().all(|id| id.starts_with("018f0000-0000-7000-8000-000000000001/")));
    }

    #[test]
    fn what_is_stored_is_this_message_only_if_all_of_it_is() {
        let sent = outgoing("a.b", "/s", None);
        assert_eq!(compare(&stored(&sent), &sent), Found::Same);
        assert_eq!(compare(&Stored { subject: "a.c".into(), ..stored(&sent) }, &sent), Found::SameElsewhere);
        assert_eq!(compare(&Stored { payload: "[]".into(), ..stored(&sent) }, &sent), Found::Other);
        assert_eq!(
            compare(&Stored { headers: "NATS/1.0\r\n\r\n".into(), ..stored(&sent) }, &sent),
            Found::Other
        );
        assert_eq!(compare(&stored(&outgoing("a.b", "/t", None)), &sent), Found::Other);
    }

    #[test]
    fn a_suffix_is_of_the_content() {
        let (one, other) = (outgoing("a.b", "/s", None), outgoing("a.b", "/t", None));
        assert_eq!(suffixed("x", &one), suffixed("x", &one));
        assert_ne!(suffixed("x", &one), suffixed("x", &other));
    }
}
