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

/// The server answered, so nothing is kept by this try. Only what is known to lie with the message is its fault, and only
/// what concerns every stream is the broker's: a stream that is full, sealed or busy keeps no other from publishing. Limits of
/// resources are of one server, one kind of storage or one tier of an account, so they count as the destination's.
fn refused(answer: &jetstream::Error) -> PublishError {
    let text = answer.to_string();
    match answer.error_code() {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            PublishError::Rejected(text)
        }
        // The same code as for a stream that is full.
        ErrorCode::STREAM_STORE_FAILED if is_too_large_to_store(answer) => PublishError::Rejected(text),
        // A copy of this message is being stored, or fails to be: whether the stream keeps it is known later. In a cluster, when a
        // message is sent again before its first try is through.
        ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => PublishError::Unknown(text),
        ErrorCode::CLUSTER_NOT_AVAILABLE
        | ErrorCode::JETSTREAM_NOT_ENABLED
        | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
        | ErrorCode::NO_ACCOUNT => PublishError::Unavailable(text),
        _ => PublishError::DestinationUnavailable(text),
    }
}

/// Whether the server said that its file storage takes no message of this size, which it tells by words alone.
fn is_too_large_to_store(answer: &jetstream::Error) -> bool {
    answer.to_string().contains(TOO_LARGE)
}

/// The server's words.
const TOO_LARGE: &str = "message too large";

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: u16, err_code: u64, description: &str) -> PublishError {
        let answer = format!(r#"{{"code":{code},"err_code":{err_code},"description":"{description}"}}"#);
        let answer: jetstream::Error = serde_json::from_str(&answer).unwrap();
        meaning(&AckError::with_source(PublishErrorKind::Other, answer), "orders", None)
    }

    #[test]
    fn only_an_oversized_message_is_at_fault_itself() {
        for (code, err_code, description) in [
            (400, 10054, "message size exceeds maximum allowed"),
            (400, 10097, "header size exceeds maximum allowed of 64k"),
            (503, 10077, "message too large"),
        ] {
            assert!(matches!(said(code, err_code, description), PublishError::Rejected(_)), "{err_code}");
        }
    }

    #[test]
    fn what_concerns_one_stream_or_the_resources_of_one_server_is_the_destinations() {
        for (code, err_code, description) in [
            (503, 10077, "maximum bytes exceeded"),
            (400, 10060, "expected stream does not match"),
            (429, 10167, "too many requests"),
            (400, 10109, "invalid operation on sealed stream"),
            (503, 10063, "expected stream sequence does not match"),
            (500, 10118, "stream is offline"),
            (400, 10169, "message counter increment is missing"),
            (503, 10023, "insufficient resources"),
            (400, 10002, "resource limits exceeded for account"),
            (400, 10120, "no JetStream default or applicable tiered limit present"),
            (500, 10028, "insufficient memory resources available"),
            (500, 10047, "insufficient storage resources available"),
            (500, 65000, "what no server says today"),
        ] {
            let meant = said(code, err_code, description);
            assert!(matches!(meant, PublishError::DestinationUnavailable(_)), "{err_code}");
        }
    }

    #[test]
    fn what_concerns_every_stream_is_the_brokers() {
        // Not available in the cluster; JetStream not enabled, for the server or the account; no account.
        for (code, err_code) in [(503, 10008), (503, 10076), (503, 10039), (503, 10035)] {
            assert!(matches!(said(code, err_code, "d"), PublishError::Unavailable(_)), "{err_code}");
        }
    }

    #[test]
    fn a_message_whose_copy_is_being_stored_is_unknown_and_says_nothing_of_its_stream() {
        let meant = said(409, 10158, "duplicate message id is in process");
        assert!(matches!(meant, PublishError::Unknown(_)), "{meant}");
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
