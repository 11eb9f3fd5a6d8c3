//! Messages that the client library cannot read: found, handed out as malformed, acknowledged and so passed.
//!
//! Such a delivery takes the connection along, and what came behind it. So after a lost connection the messages that the
//! group has under way and that are not here are read one by one as bytes. One that cannot be read has no key, so it is
//! handed out at once: it holds back nothing, and nothing holds it back. The others that the connection took along are
//! sent back, so that they come again at once and not after the ack wait; only by the active subscriber, since another one's
//! are in good hands.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::{Client, Request, Subject};
use async_trait::async_trait;
use bytes::Bytes;
use message::{Acknowledge, Delivery, Malformed, MalformedReason, SubscribeError};
use tokio::task::JoinSet;

use super::connect::{answer, connected};
use super::consumer::PRIORITY_GROUP;
use super::hold::REMEMBERED;
use super::stored::{self, Stored};
use super::unreadable;
use crate::pace::Pace;

/// Every subject.
const ALL: &str = ">";

/// What a look is about.
pub(super) struct Wanted {
    pub(super) client: Client,
    pub(super) consumer: PullConsumer,
    pub(super) stream: String,
    pub(super) subjects: Vec<String>,
    /// The sequences of what is here.
    pub(super) here: HashSet<u64>,
    /// How many of them are not answered.
    pub(super) unanswered: usize,
}

/// What a look has found.
pub(super) struct Found {
    unreadable: Vec<Unreadable>,
    /// What can be read and is not here.
    pub(super) readable: Vec<u64>,
    /// The pin of the active subscriber.
    pub(super) pin: Option<String>,
    /// The group's latest delivery.
    delivery: u64,
}

/// What the client cannot read.
struct Unreadable {
    stored: Stored,
    reason: &'static str,
    /// The group's latest delivery when it was found.
    delivery: u64,
}

/// The looks of one subscriber, and what they found.
#[derive(Default)]
pub(super) struct Passing {
    /// A connection was lost since the last look began.
    is_due: bool,
    look: JoinSet<Result<Found, SubscribeError>>,
    found: VecDeque<Unreadable>,
    known: Arc<Mutex<Known>>,
    /// Acknowledged and found again: the server has it between others that are not, or lost the acknowledgement.
    again: Vec<(u64, u64)>,
    failures: Pace,
}

/// What was found.
#[derive(Default)]
struct Known {
    unanswered: HashSet<Place>,
    /// The latest.
    acknowledged: BTreeSet<Place>,
}

/// A sequence, and when it was stored: a stream that is made again gives its sequences again.
type Place = (u64, String);

impl Passing {
    /// A connection was lost: perhaps by something that cannot be read.
    pub(super) fn suspect(&mut self) {
        self.is_due = true;
    }

    /// Whether a look is to [begin](Self::begin).
    pub(super) fn is_due(&self) -> bool {
        self.is_due && self.look.is_empty()
    }

    /// Looks, beside everything else.
    pub(super) fn begin(&mut self, wanted: Wanted) {
        self.is_due = false;
        self.look.spawn(look(wanted));
    }

    /// What the look has found that may have to be sent back, if it is over and found what cannot be read.
    pub(super) fn ended(&mut self) -> Option<Found> {
        match self.look.try_join_next()? {
            Ok(Ok(mut found)) => {
                self.failures.reset();
                let mut known = lock(&self.known);
                let had_some = !found.unreadable.is_empty();
                for unreadable in found.unreadable.drain(..) {
                    let place = unreadable.stored.place();
                    if known.acknowledged.contains(&place) {
                        self.again.push((place.0, unreadable.delivery));
                    } else if known.unanswered.insert(place) {
                        self.found.push_back(unreadable);
                    }
                }
                had_some.then_some(found)
            }
            // The connection was lost again, or reading is not allowed: another look.
            Ok(Err(error)) => {
                if self.failures.is_due(Instant::now()) {
                    tracing::warn!(%error, "no look at the messages under way, trying again");
                }
                self.is_due = true;
                None
            }
            // A panic of ours.
            Err(_) => {
                self.is_due = true;
                None
            }
        }
    }

    /// Up to `max` that were found, to be handed out.
    pub(super) fn take(&mut self, client: &Client, group: (&str, &str), max: usize) -> Vec<Delivery> {
        let count = self.found.len().min(max);
        let deliver = |Unreadable { stored, reason, delivery }| {
            tracing::warn!(
                stream = group.0,
                group = group.1,
                sequence = stored.sequence,
                reason,
                "the nats client cannot read a message: it is handed out as malformed"
            );
            let answer = Answer {
                client: client.clone(),
                reply: reply(group, stored.sequence, delivery),
                place: stored.place(),
                known: Arc::clone(&self.known),
            };
            let bytes = [stored.headers, stored.payload].concat();
            let malformed =
                Malformed::new(MalformedReason::Unreadable(reason), stored.subject, Bytes::from(bytes));
            Delivery::new(Err(malformed), Box::new(answer))
        };
        self.found.drain(..count).map(deliver).collect()
    }

    /// Acknowledges once more what is found again. Without waiting: it is found as long as it is under way.
    pub(super) async fn acknowledge_again(
        &mut self,
        client: &Client,
        group: (&str, &str),
    ) -> Result<(), SubscribeError> {
        while let Some((sequence, delivery)) = self.again.pop() {
            send(client, reply(group, sequence, delivery), AckKind::Ack).await?;
        }
        Ok(())
    }
}

/// Sends back what the connection took along.
pub(super) async fn send_back(
    client: &Client,
    group: (&str, &str),
    found: &Found,
    sequences: impl Iterator<Item = u64>,
) -> Result<(), SubscribeError> {
    for sequence in sequences {
        send(client, reply(group, sequence, found.delivery), AckKind::Nak(None)).await?;
    }
    Ok(())
}

async fn send(client: &Client, reply: Subject, kind: AckKind) -> Result<(), SubscribeError> {
    let sent = client.publish(reply, kind.into()).await;
    sent.map_err(|error| SubscribeError::Unavailable(format!("nats: {error}")))
}

/// Where the answer to a delivery goes. The server finds the message by its sequence, and wants a delivery's number
/// that can be one; the rest tells the client something.
fn reply((stream, group): (&str, &str), sequence: u64, delivery: u64) -> Subject {
    Subject::from(format!("$JS.ACK.{stream}.{group}.1.{sequence}.{delivery}.0.0"))
}

/// Reads what the group has under way and is not here. Nothing is read if nothing is missing.
async fn look(wanted: Wanted) -> Result<Found, SubscribeError> {
    let Wanted { client, consumer, stream, subjects, here, unanswered } = wanted;
    let unavailable = |error: String| SubscribeError::Unavailable(format!("nats: {error}"));
    let info = answer(&client, consumer.get_info()).await?.map_err(|error| unavailable(error.to_string()))?;
    let pinned = info.priority_groups.iter().find(|group| group.group == PRIORITY_GROUP);
    let mut found = Found {
        unreadable: Vec::new(),
        readable: Vec::new(),
        pin: pinned.and_then(|group| group.pinned_client_id.clone()).filter(|pin| !pin.is_empty()),
        delivery: info.delivered.consumer_sequence,
    };
    if info.num_ack_pending <= unanswered {
        return Ok(found);
    }
    let filters = if subjects.is_empty() { vec![ALL.to_owned()] } else { subjects };
    for filter in filters {
        let mut sequence = info.ack_floor.stream_sequence + 1;
        while sequence <= info.delivered.stream_sequence {
            if here.contains(&sequence) {
                sequence += 1;
                continue;
            }
            let Some(stored) =
                stored::next(&client, &stream, sequence, &filter).await.map_err(unavailable)?
            else {
                break;
            };
            sequence = stored.sequence + 1;
            if stored.sequence > info.delivered.stream_sequence || here.contains(&stored.sequence) {
                continue;
            }
            match unreadable::fault(&stored.subject, &stored.headers) {
                Some(reason) => {
                    let delivery = info.delivered.consumer_sequence;
                    found.unreadable.push(Unreadable { stored, reason, delivery });
                }
                None => found.readable.push(stored.sequence),
            }
        }
    }
    Ok(found)
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer to a message that was not delivered by the client.
struct Answer {
    client: Client,
    reply: Subject,
    place: Place,
    known: Arc<Mutex<Known>>,
}

impl Answer {
    async fn send(&self, kind: AckKind) -> Result<(), SubscribeError> {
        connected(&self.client)?;
        let request = self.client.send_request(self.reply.clone(), Request::new().payload(kind.into()));
        let taken = answer(&self.client, request).await?;
        taken.map(drop).map_err(|error| SubscribeError::Unavailable(format!("nats: {}", error.kind())))
    }
}

#[async_trait]
impl Acknowledge for Answer {
    async fn acknowledge(self: Box<Self>) -> Result<(), SubscribeError> {
        {
            // Whether or not that reaches the server: its effect is there.
            let mut known = lock(&self.known);
            known.acknowledged.insert(self.place.clone());
            if known.acknowledged.len() > REMEMBERED {
                known.acknowledged.pop_first();
            }
        }
        self.send(AckKind::Ack).await
    }

    async fn retry_after(self: Box<Self>, delay: Duration) -> Result<(), SubscribeError> {
        self.send(AckKind::Nak(Some(delay))).await
    }

    async fn extend(&self) -> Result<(), SubscribeError> {
        self.send(AckKind::Progress).await
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // What is not acknowledged comes again and is found again.
        lock(&self.known).unanswered.remove(&self.place);
    }
}
