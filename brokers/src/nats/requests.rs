//! What we have asked the server for, and what it says to that. No I/O.

use std::time::{Duration, Instant};

use async_nats::StatusCode;

/// Requests, one after the other, in the time after which the server takes us for gone.
const IN_A_TAKEOVER: u32 = 3;
/// Signs of life while a request waits.
const HEARTBEATS: u32 = 3;

/// The server's word.
const DELETED: &str = "Consumer Deleted";

pub(super) struct Requests {
    most: usize,
    /// How long a request waits at the server.
    expires: Duration,
    /// Messages that were asked for and have not come.
    asked: usize,
    asked_at: Option<Instant>,
    heard_at: Option<Instant>,
}

/// What something that arrived means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It is a message.
    Message,
    /// A sign of life, or the end of a request.
    Nothing,
    /// Our pin is not valid any more.
    Unpinned,
    /// Asking is of no use until the consumer was looked at.
    Refused(String),
    /// The same, and it may be another then.
    Gone(String),
}

impl Requests {
    /// Of up to `most` messages each, so often that the server does not take us for gone after `takeover`.
    pub(super) fn new(most: usize, takeover: Duration) -> Self {
        Requests { most, expires: takeover / IN_A_TAKEOVER, asked: 0, asked_at: None, heard_at: None }
    }

    pub(super) fn expires(&self) -> Duration {
        self.expires
    }

    pub(super) fn heartbeat(&self) -> Duration {
        self.expires / HEARTBEATS
    }

    /// How many messages are to be asked for, if any. With enough at hand, one from time to time keeps the pin.
    pub(super) fn due(&self, enough: bool, now: Instant) -> Option<usize> {
        let expired = self.asked_at.is_none_or(|asked| now.duration_since(asked) >= self.expires);
        match enough {
            false => (self.asked <= self.most / 2).then_some(self.most),
            true => (self.asked == 0 && expired).then_some(1),
        }
    }

    pub(super) fn asked(&mut self, messages: usize, now: Instant) {
        self.asked += messages;
        self.asked_at = Some(now);
    }

    /// No request waits at the server.
    pub(super) fn forget(&mut self) {
        self.asked = 0;
        self.asked_at = None;
    }

    /// Whether a request waits and the server has given no sign of life for so long that it does not know of it.
    pub(super) fn are_lost(&self, now: Instant) -> bool {
        let latest = self.asked_at.max(self.heard_at);
        self.asked > 0 && latest.is_some_and(|latest| now.duration_since(latest) > self.expires)
    }

    /// `unserved`: how many messages the ended request still asked for, if that was said.
    pub(super) fn hear(
        &mut self,
        status: Option<StatusCode>,
        description: Option<&str>,
        unserved: Option<usize>,
        now: Instant,
    ) -> Heard {
        self.heard_at = Some(now);
        match status.unwrap_or(StatusCode::OK) {
            StatusCode::OK => {
                self.asked = self.asked.saturating_sub(1);
                Heard::Message
            }
            StatusCode::IDLE_HEARTBEAT => Heard::Nothing,
            StatusCode::NOT_FOUND | StatusCode::TIMEOUT => {
                self.asked = unserved.map_or(0, |unserved| self.asked.saturating_sub(unserved));
                Heard::Nothing
            }
            StatusCode::PIN_ID_MISMATCH => {
                self.forget();
                Heard::Unpinned
            }
            status => {
                self.forget();
                let why = description.map_or_else(|| format!("status {status}"), ToOwned::to_owned);
                if status == StatusCode::NO_RESPONDERS || why == DELETED {
                    Heard::Gone(why)
                } else {
                    Heard::Refused(why)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAKEOVER: Duration = Duration::from_secs(9);

    fn asked(messages: usize) -> (Requests, Instant) {
        let (mut requests, now) = (Requests::new(200, TAKEOVER), Instant::now());
        requests.asked(messages, now);
        (requests, now)
    }

    fn hear(requests: &mut Requests, status: StatusCode, unserved: Option<usize>, now: Instant) -> Heard {
        requests.hear(Some(status), None, unserved, now)
    }

    #[test]
    fn more_is_asked_for_when_half_has_come() {
        let (mut requests, now) = asked(200);
        for _ in 0..99 {
            assert_eq!(requests.hear(None, None, None, now), Heard::Message);
        }
        assert_eq!(requests.due(false, now), None);
        assert_eq!(requests.hear(None, None, None, now), Heard::Message);
        assert_eq!(requests.due(false, now), Some(200));
        assert_eq!(requests.due(true, now), None, "there is enough");
    }

    #[test]
    fn with_enough_at_hand_one_is_asked_for_often_enough_to_keep_the_pin() {
        let (mut requests, now) = asked(1);
        assert_eq!(hear(&mut requests, StatusCode::TIMEOUT, Some(1), now), Heard::Nothing);
        assert_eq!(requests.due(true, now + TAKEOVER / 3 - Duration::from_millis(1)), None);
        assert_eq!(requests.due(true, now + TAKEOVER / 3), Some(1));
    }

    #[test]
    fn a_request_that_ended_unserved_is_asked_again() {
        let (mut requests, now) = asked(200);
        requests.asked(200, now);
        hear(&mut requests, StatusCode::TIMEOUT, Some(150), now);
        assert_eq!(requests.due(false, now), None, "the other one waits");
        hear(&mut requests, StatusCode::TIMEOUT, Some(200), now);
        assert_eq!(requests.due(false, now), Some(200));
        let (mut requests, now) = asked(200);
        hear(&mut requests, StatusCode::TIMEOUT, None, now);
        assert_eq!(requests.due(false, now), Some(200));
    }

    #[test]
    fn requests_are_lost_without_a_sign_of_life() {
        let (mut requests, now) = asked(200);
        let silence = TAKEOVER / 3 + Duration::from_millis(1);
        assert!(!requests.are_lost(now + TAKEOVER / 3) && requests.are_lost(now + silence));
        hear(&mut requests, StatusCode::IDLE_HEARTBEAT, None, now + TAKEOVER / 3);
        assert!(!requests.are_lost(now + silence) && requests.are_lost(now + TAKEOVER / 3 + silence));
        requests.forget();
        assert!(!requests.are_lost(now + TAKEOVER * 2), "nobody waits");
    }

    #[test]
    fn a_refused_request_does_not_wait() {
        let (mut requests, now) = asked(200);
        assert_eq!(hear(&mut requests, StatusCode::PIN_ID_MISMATCH, None, now), Heard::Unpinned);
        assert_eq!(requests.due(false, now), Some(200));
        for (status, description, heard) in [
            (StatusCode::REQUEST_TERMINATED, Some("why"), Heard::Refused("why".to_owned())),
            (StatusCode::REQUEST_TERMINATED, Some(DELETED), Heard::Gone(DELETED.to_owned())),
            (StatusCode::NO_RESPONDERS, None, Heard::Gone("status 503".to_owned())),
        ] {
            let (mut requests, now) = asked(200);
            assert_eq!(requests.hear(Some(status), description, None, now), heard);
            assert_eq!(requests.due(false, now), Some(200));
        }
    }
}
