//! A row of the log that is no message: it is delivered as what it is, so that the consumer parks it and goes on. No I/O.

use std::sync::Arc;

use message::{Malformed, MalformedReason};
use outbox::log::LogMessage;

use super::desk::Received;

/// What a consumer is given of a row.
pub(super) fn received(log: LogMessage) -> Received {
    let Some(fault) = &log.fault else { return Ok(log.message) };
    let attribute = fault.split_once(':').map_or("", |(attribute, _)| attribute);
    let reason = match attribute {
        "id" => MalformedReason::NoIdentity,
        "correlation" => MalformedReason::Invalid("correlation"),
        "causation" => MalformedReason::Invalid("causation"),
        "occurred_at" => MalformedReason::Invalid("time"),
        "source" => MalformedReason::Invalid("source"),
        "kind" => MalformedReason::Invalid("type"),
        "headers" => MalformedReason::Invalid("headers"),
        _ => MalformedReason::Invalid("row"),
    };
    let message = &log.message;
    tracing::error!(position = log.position, id = %message.id, %fault, "a row of the log cannot be read as a message");
    Err(Arc::new(Malformed::new(reason, &*message.topic, message.payload.clone())))
}

#[cfg(test)]
mod tests {
    use message::Message;

    use super::*;

    #[test]
    fn a_row_with_a_fault_is_malformed_and_any_other_a_message() {
        let log = |fault: Option<&str>| LogMessage {
            position: 1,
            slot: 0,
            enqueued_at: chrono::DateTime::UNIX_EPOCH,
            message: Arc::new(Message::new("orders", "k", "body")),
            fault: fault.map(Arc::from),
        };
        assert!(received(log(None)).is_ok());
        let malformed = received(log(Some("enqueued_at: not between the years 1970 and 9999"))).unwrap_err();
        assert_eq!((&*malformed.destination, &malformed.payload[..]), ("orders", &b"body"[..]));
        assert_eq!(malformed.reason, MalformedReason::Invalid("row"));
        let malformed = received(log(Some("headers: not an object"))).unwrap_err();
        assert_eq!(malformed.reason, MalformedReason::Invalid("headers"));
    }
}
