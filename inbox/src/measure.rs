//! What the consumer counts. Labels are few: a consumer's name and one of a dozen results.

use std::sync::Arc;
use std::time::Duration;

/// Messages by what became of them; a message that is tried again counts each time.
const MESSAGES: &str = "inbox_messages_total";
/// From the beginning of a transaction to its commit, for messages that were handled.
const SECONDS: &str = "inbox_handle_seconds";

pub(crate) const HANDLED: &str = "handled";
pub(crate) const REPEAT: &str = "repeat";
pub(crate) const UNHANDLED: &str = "unhandled";
pub(crate) const HELD: &str = "held";
pub(crate) const QUARANTINED: &str = "quarantined";
pub(crate) const MALFORMED: &str = "malformed";
pub(crate) const REFUSED: &str = "refused";
pub(crate) const UNSTORABLE: &str = "unstorable";
pub(crate) const FAILED: &str = "failed";
pub(crate) const REJECTED: &str = "rejected";
pub(crate) const PANICKED: &str = "panicked";
pub(crate) const TIMED_OUT: &str = "timed_out";
pub(crate) const SWALLOWED: &str = "swallowed";
pub(crate) const LOST: &str = "lost";
pub(crate) const PARKED: &str = "parked";
pub(crate) const CONTENTION: &str = "contention";
pub(crate) const DATABASE: &str = "database";
pub(crate) const POSTPONED: &str = "postponed";

pub(crate) fn count(consumer: &Arc<str>, result: &'static str) {
    metrics::counter!(MESSAGES, "consumer" => consumer.clone(), "result" => result).increment(1);
}

pub(crate) fn handled(consumer: &Arc<str>, taken: Duration) {
    count(consumer, HANDLED);
    metrics::histogram!(SECONDS, "consumer" => consumer.clone()).record(taken.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use async_trait::async_trait;
    use message::{Acknowledge, Delivery, Message, SubscribeError, Subscriber};
    use metrics::{
        Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    };

    use super::*;
    use crate::Consumer;
    use crate::apply::{Applied, deliver};

    /// Keeps the names and labels of what is counted.
    #[derive(Default, Clone)]
    struct Counted(Arc<Mutex<Vec<String>>>);

    struct One(Counted, String);

    impl CounterFn for One {
        fn increment(&self, _: u64) {
            self.0.0.lock().unwrap().push(self.1.clone());
        }

        fn absolute(&self, _: u64) {}
    }

    impl Recorder for Counted {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            let labels: Vec<String> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            Counter::from_arc(Arc::new(One(self.clone(), format!("{} {}", key.name(), labels.join(" ")))))
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    struct Silent;

    #[async_trait]
    impl Subscriber for Silent {
        async fn receive(&mut self, _: usize) -> Result<Vec<Delivery>, SubscribeError> {
            std::future::pending().await
        }
    }

    #[async_trait]
    impl Acknowledge for Silent {
        async fn acknowledge(self: Box<Self>) -> Result<(), SubscribeError> {
            Ok(())
        }

        async fn retry_after(self: Box<Self>, _: Duration) -> Result<(), SubscribeError> {
            Ok(())
        }

        async fn extend(&self) -> Result<(), SubscribeError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_kind_that_none_handles_is_counted_and_needs_no_statement_while_that_is_believed() {
        let counted = Counted::default();
        let _guard = metrics::set_default_local_recorder(&counted);
        let pool = sqlx::PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").unwrap();
        let consumer = Consumer::new("shipping", pool, Silent);
        consumer.core.other_kinds.believe_that_none_is_registered().await;
        let delivery = Delivery::new(Ok(Message::new("t", "order.dreamt", "")), Box::new(Silent));
        assert_eq!(deliver(&consumer.core, delivery, Instant::now()).await, Applied::Done);
        let counted = counted.0.lock().unwrap();
        assert_eq!(*counted, ["inbox_messages_total consumer=shipping result=unhandled"]);
    }
}
