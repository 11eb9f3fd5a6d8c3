//! Reads a message of a stream as bytes: the answer is JSON with base64 in it, so nothing of the message passes through the
//! client's parser.

use async_nats::Client;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::connect::answer;

/// A message as the stream keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    /// The server writes U+FFFD for a byte that is not UTF-8.
    pub(super) subject: String,
    /// The block, from its first line to the empty one.
    pub(super) headers: Bytes,
    pub(super) payload: Bytes,
    /// When it was stored, as the server writes it.
    pub(super) time: String,
}

impl Stored {
    /// Which message it is: a stream that is made again gives its sequences again.
    pub(super) fn place(&self) -> (u64, String) {
        (self.sequence, self.time.clone())
    }
}

/// The message with that sequence; `None`: the stream does not hold it any more.
pub(super) async fn message(client: &Client, stream: &str, sequence: u64) -> Result<Option<Stored>, String> {
    get(client, stream, &json!({ "seq": sequence })).await
}

/// The first message from that sequence on whose subject fits `filter`.
pub(super) async fn next(
    client: &Client,
    stream: &str,
    sequence: u64,
    filter: &str,
) -> Result<Option<Stored>, String> {
    get(client, stream, &json!({ "seq": sequence, "next_by_subj": filter })).await
}

async fn get(client: &Client, stream: &str, request: &serde_json::Value) -> Result<Option<Stored>, String> {
    let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
    let answered = answer(client, client.request(subject, request.to_string().into())).await;
    let answered = answered.map_err(|error| error.to_string())?.map_err(|error| error.kind().to_string())?;
    parse(&answered.payload)
}

#[derive(Deserialize)]
struct Answer {
    error: Option<Refused>,
    message: Option<Raw>,
}

#[derive(Deserialize)]
struct Refused {
    code: u16,
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct Raw {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    #[serde(default)]
    time: String,
}

/// The server's code for a sequence that the stream does not hold.
const NO_MESSAGE: u32 = 10_037;

fn parse(answer: &[u8]) -> Result<Option<Stored>, String> {
    let unreadable = |_| "the answer to a message's sequence cannot be read".to_owned();
    let answer: Answer = serde_json::from_slice(answer).map_err(unreadable)?;
    match (answer.error, answer.message) {
        (Some(Refused { code: 404, err_code: NO_MESSAGE, .. }), _) => Ok(None),
        (Some(refused), _) => Err(format!("{} ({})", refused.description, refused.err_code)),
        (None, Some(raw)) => {
            let bytes = |text: &str| {
                STANDARD.decode(text).map(Bytes::from).map_err(|_| "a message's base64 is none".to_owned())
            };
            Ok(Some(Stored {
                sequence: raw.seq,
                subject: raw.subject,
                headers: bytes(&raw.hdrs)?,
                payload: bytes(&raw.data)?,
                time: raw.time,
            }))
        }
        (None, None) => Err("the answer to a message's sequence holds no message".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_byte_for_byte() {
        let answer = br#"{"type":"t","message":{"subject":"a.b","seq":7,"hdrs":"TkFUUy8xLjANCg0K","data":"/w==","time":"t"}}"#;
        let stored = parse(answer).unwrap().unwrap();
        assert_eq!((stored.sequence, &*stored.headers), (7, &b"NATS/1.0\r\n\r\n"[..]));
        assert_eq!((&*stored.payload, &*stored.subject), (&b"\xff"[..], "a.b"));
        let plain = parse(br#"{"message":{"subject":"a.b","seq":1,"time":"t"}}"#).unwrap().unwrap();
        assert_eq!((plain.headers.len(), plain.payload.len()), (0, 0));
    }

    #[test]
    fn only_a_missing_message_is_gone() {
        let error = |code: u16, err_code: u32| {
            let text = format!(r#"{{"error":{{"code":{code},"err_code":{err_code},"description":"d"}}}}"#);
            parse(text.as_bytes())
        };
        assert_eq!(error(404, 10037), Ok(None));
        assert!(error(404, 10059).is_err() && error(503, 10008).is_err() && parse(b"{}").is_err());
    }
}
