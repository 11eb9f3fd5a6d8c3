//! The durable consumer that is a group, as it must be, and the refusal of one that is not.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PriorityPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{ConsumerInfoErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::ConsumerErrorKind;
use async_nats::jetstream::{self, Context, ErrorCode};
use message::SubscribeError;

use super::connect::answer;
use super::filter;

/// The server pins one client within such a group; ours has only one.
pub(super) const PRIORITY_GROUP: &str = "active";

pub(super) struct Wanted {
    stream: String,
    pub(super) group: String,
    pub(super) subjects: Vec<String>,
    pub(super) ack_wait: Duration,
    pub(super) takeover: Duration,
    pub(super) max_ack_pending: u32,
}

impl Wanted {
    pub(super) fn new(stream: String, group: String) -> Self {
        Wanted {
            stream,
            group,
            subjects: Vec::new(),
            ack_wait: Duration::from_secs(30),
            takeover: Duration::from_secs(10),
            max_ack_pending: 1_000,
        }
    }

    /// The stream's and the consumer's.
    pub(super) fn name(&self) -> (&str, &str) {
        (&self.stream, &self.group)
    }

    /// Creates the consumer, or changes it to what is wanted. The second: whether it asks for more than it did.
    pub(super) async fn make(
        &self,
        client: &Client,
        context: &Context,
    ) -> Result<(PullConsumer, bool), SubscribeError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if self.group.is_empty() || !self.group.bytes().all(plain) {
            return Err(SubscribeError::Refused("group: letters, digits, _ and - only".to_owned()));
        }
        let stream = answer(client, context.get_stream(&self.stream)).await?;
        let stream = stream.map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(answer) if answer.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                SubscribeError::Unavailable(format!("stream {}: is missing", self.stream))
            }
            GetStreamErrorKind::InvalidStreamName | GetStreamErrorKind::EmptyName => {
                SubscribeError::Refused("stream: is no name of a stream".to_owned())
            }
            _ => SubscribeError::Unavailable(format!("stream {}: {error}", self.stream)),
        })?;
        let found = answer(client, stream.consumer_info(&self.group)).await?;
        let found = match found {
            Ok(info) => Some(filters(&info.config)),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => None,
            // Not known, it must not be written over: others may have asked for more.
            Err(error) => return Err(SubscribeError::Unavailable(format!("group {}: {error}", self.group))),
        };
        let mut config = self.config();
        if let Some(found) = &found {
            config.filter_subjects = filter::union(found, &self.subjects);
            if !filter::hold(&self.subjects, found) {
                tracing::warn!(
                    group = self.group,
                    asks = self.subjects.join(", "),
                    receives = config.filter_subjects.join(", "),
                    "processes of this group have asked for other subjects: each receives what any of them has asked for"
                );
            }
        }
        let consumer = answer(client, stream.create_consumer(config)).await?;
        let consumer = consumer.map_err(|error| match error.kind() {
            ConsumerErrorKind::JetStream(answer) => self.refused(&answer),
            kind => SubscribeError::Unavailable(format!("group {}: {kind}", self.group)),
        })?;
        match self.fault(&consumer.cached_info().config) {
            None => {
                let is_wider = found.is_some_and(|found| !filter::hold(&found, &self.subjects));
                Ok((consumer, is_wider))
            }
            Some(fault) => Err(SubscribeError::Refused(format!("group {}: {fault}", self.group))),
        }
    }

    fn config(&self) -> pull::Config {
        pull::Config {
            durable_name: Some(self.group.clone()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            max_deliver: -1,
            max_ack_pending: i64::from(self.max_ack_pending),
            filter_subjects: self.subjects.clone(),
            priority_policy: PriorityPolicy::PinnedClient,
            priority_groups: vec![PRIORITY_GROUP.to_owned()],
            priority_timeout: self.takeover,
            ..pull::Config::default()
        }
    }

    fn refused(&self, answer: &jetstream::Error) -> SubscribeError {
        let text = format!("group {}: {answer}", self.group);
        // 4xx: it will say the same again, unless it is only busy.
        if (400..500).contains(&answer.code()) && !matches!(answer.code(), 404 | 408 | 429) {
            SubscribeError::Refused(text)
        } else {
            SubscribeError::Unavailable(text)
        }
    }

    /// An older server ignores what it does not know, so what was asked for is compared with what is there.
    fn fault(&self, found: &jetstream::consumer::Config) -> Option<&'static str> {
        if found.priority_policy != PriorityPolicy::PinnedClient {
            Some("the server does not pin a client (2.11 or newer does), so keys would not stay in order")
        } else if found.ack_policy != AckPolicy::Explicit {
            Some("ack_policy: must be explicit")
        } else if found.max_deliver > 0 {
            Some("max_deliver: must be unlimited, else messages are lost after so many tries")
        } else {
            None
        }
    }
}

/// The subjects that a consumer asks for; none are all.
fn filters(config: &jetstream::consumer::Config) -> Vec<String> {
    match config.filter_subject.is_empty() {
        true => config.filter_subjects.clone(),
        false => vec![config.filter_subject.clone()],
    }
}
