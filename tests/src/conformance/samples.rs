//! Messages at the edges of what `docs/wire.md` allows.

use chrono::DateTime;
use message::{Message, MessageId};

/// One message for each odd shape that a field may have. All are valid.
pub fn messages_of_every_shape() -> Vec<Message> {
    let plain = || Message::new("orders", "order.placed", "{}").with_source("/shop");
    let payload = |payload: Vec<u8>| Message::new("orders", "order.placed", payload).with_source("/shop");
    let noise: Vec<u8> = (0..983_040_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let cause = plain().with_header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let mut messages = vec![
        plain(),
        payload(vec![]),
        payload(noise).with_content_type("application/octet-stream").with_key("big"),
        payload(b"\0\r\n\xff\xfe".to_vec()).with_content_type("application/x-odd; charset=\"none\""),
        payload(b"{\"a\":1,\"a\" : 1e400000,\"b\":\"\\ud800\\u0000\"}\n".to_vec()),
        payload(b"null".to_vec()),
        plain().caused_by(&cause.clone().with_header("tracestate", "vendor=a:b, other=c d")),
        cause,
        plain().with_id("018f0000-0000-7000-8000-000000000001".parse().expect("a UUID")),
        plain().with_id(MessageId::foreign("/elsewhere", "A-1")),
        plain().with_source("urn:x/!~`'\"%25<>{}|\\^"),
        plain().with_occurred_at(DateTime::UNIX_EPOCH),
        plain()
            .with_occurred_at(DateTime::from_timestamp_micros(253_402_300_799_999_999).expect("year 9999")),
        Message::new("A-z_0.9-_.x".to_owned() + &".w".repeat(90), "!~%\"'\\,;:=", "{}").with_source("/shop"),
        plain().with_header("x-empty", ""),
        plain().with_header("x-odd", " lead, trail \u{e9}\u{301} \u{1f600} \u{5d0} %41 \"q\" \\ "),
        plain().with_header("x.y_z-1", "a:b").with_header("host", "h").with_header("content-length", "7"),
        plain().with_header("long", "v".repeat(16_000)),
    ];
    let keys = [
        "k",
        " ",
        "é",
        "e\u{301}",
        "\u{1f469}\u{200d}\u{1f680}",
        "\u{5d0}\u{5d1}",
        "a\r\nb\t\u{1}",
        "%41\"",
        "a.b*>#/",
    ];
    messages.extend(keys.map(|key| plain().with_key(key)));
    messages.push(plain().with_key("é".repeat(256)));
    for message in &messages {
        message.validate().expect("a sample is a valid message");
    }
    messages
}
