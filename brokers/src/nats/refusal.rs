//! Whose fault it was that a publish was not acknowledged. No I/O.

use std::error::Error as _;

use async_nats::jetstream::context::{PublishError as AckError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode};
use message::PublishError;

/// What the answer to a publish means; `stream` is the stream it should have gone to.
pub(super) fn meaning(error: &AckError, destination: &str, stream: Option<&str>) -> PublishError {
    match error.kind() {
        PublishErrorKind::StreamNotFound => PublishError::DestinationUnavailable(match stream {
            Some(stream) => format!("no stream takes subject {destination} (expected: stream {stream})"),
            None => format!("no stream takes subject {destination}"),
        }),
        PublishErrorKind::MaxPayloadExceeded => {
            PublishError::Rejected("payload and headers: longer than the server's max_payload".to_owned())
        }
        PublishErrorKind::TimedOut => PublishError::Unknown("no acknowledgement in time".to_owned()),
        PublishErrorKind::BrokenPipe => PublishError::Unknown("the connection was lost".to_owned()),
        PublishErrorKind::MaxAckPending => {
            PublishError::Unavailable("too many acknowledgements outstanding".to_owned())
        }
        _ => match error.source().and_then(|source| source.downcast_ref::<jetstream::Error>()) {
            Some(answer) => refused(answer),
            // What arrived was no acknowledgement: the stream may have kept the message all the same.
            None => PublishError::Unknown("the answer was no acknowledgement".to_owned()),
        },
    }
}

/// The server answered, so the message is not kept. Only what is known to lie with the message is its fault, and only what
/// is known to concern every stream is the broker's: a stream that is full, sealed or busy keeps no other from publishing.
fn refused(answer: &jetstream::Error) -> PublishError {
    let text = answer.to_string();
    match answer.error_code() {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            PublishError::Rejected(text)
        }
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::CLUSTER_NOT_AVAILABLE
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::JETSTREAM_NOT_ENABLED
        | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::NO_ACCOUNT
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED => PublishError::Unavailable(text),
        _ => PublishError::DestinationUnavailable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: u16, err_code: u64) -> PublishError {
        let answer = format!(r#"{{"code":{code},"err_code":{err_code},"description":"d"}}"#);
        let answer: jetstream::Error = serde_json::from_str(&answer).unwrap();
        meaning(&AckError::with_source(PublishErrorKind::Other, answer), "orders", None)
    }

    #[test]
    fn only_an_oversized_message_is_at_fault_itself() {
        assert!(matches!(of(400, 10054), PublishError::Rejected(_)));
        // Maximum bytes exceeded; wrong stream; too many requests.
        for (code, err_code) in [(503, 10077), (400, 10060), (429, 10167)] {
            assert!(matches!(of(code, err_code), PublishError::DestinationUnavailable(_)), "{err_code}");
        }
    }

    #[test]
    fn what_concerns_every_stream_is_the_brokers() {
        // Insufficient resources; JetStream not enabled, for the server or the account; storage exceeded.
        for (code, err_code) in [(503, 10023), (503, 10076), (503, 10039), (500, 10047)] {
            assert!(matches!(of(code, err_code), PublishError::Unavailable(_)), "{err_code}");
        }
    }

    #[test]
    fn a_missing_answer_is_unknown_and_a_missing_stream_is_named() {
        let error = |kind| meaning(&AckError::new(kind), "orders", Some("ORDERS"));
        assert!(matches!(error(PublishErrorKind::TimedOut), PublishError::Unknown(_)));
        assert!(matches!(error(PublishErrorKind::BrokenPipe), PublishError::Unknown(_)));
        assert!(matches!(error(PublishErrorKind::Other), PublishError::Unknown(_)));
        let missing = error(PublishErrorKind::StreamNotFound);
        assert!(
            matches!(&missing, PublishError::DestinationUnavailable(text) if text.contains("stream ORDERS")),
            "{missing}"
        );
    }
}
