//! What a service has seen since it started, from the counters that the inbox keeps: so that anybody can ask, and the demo
//! can show the duplicates that were discarded. A service of yours would install an exporter of metrics instead.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

/// The inbox's counter of messages, by what became of them.
const MESSAGES: &str = "inbox_messages_total";
const RESULT: &str = "result";

/// Messages by what became of them: `handled`, `repeat` and others that the inbox names.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    by_result: Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>,
}

impl Counts {
    /// Counts for this process, from now on; none where something else counts already.
    pub fn install() -> Counts {
        let counts = Counts::default();
        if metrics::set_global_recorder(counts.clone()).is_err() {
            tracing::warn!("another recorder of metrics is installed: /stats stays empty");
        }
        counts
    }

    /// The counts now.
    pub fn now(&self) -> BTreeMap<String, u64> {
        let counters = self.by_result.lock().unwrap_or_else(PoisonError::into_inner);
        counters.iter().map(|(result, count)| (result.clone(), count.load(Ordering::Relaxed))).collect()
    }
}

impl Recorder for Counts {
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let result = key.labels().find(|label| label.key() == RESULT);
        match result {
            Some(result) if key.name() == MESSAGES => {
                let mut counters = self.by_result.lock().unwrap_or_else(PoisonError::into_inner);
                Counter::from_arc(counters.entry(result.value().to_owned()).or_default().clone())
            }
            _ => Counter::noop(),
        }
    }

    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_by_what_became_of_them() {
        let counts = Counts::default();
        metrics::with_local_recorder(&counts, || {
            metrics::counter!(MESSAGES, "consumer" => "stock", RESULT => "repeat").increment(2);
            metrics::counter!(MESSAGES, "consumer" => "stock", RESULT => "handled").increment(5);
            metrics::counter!(MESSAGES, "consumer" => "stock", RESULT => "repeat").increment(1);
            metrics::counter!("another_total", RESULT => "repeat").increment(1);
        });
        assert_eq!(counts.now(), [("handled".to_owned(), 5), ("repeat".to_owned(), 3)].into());
    }
}
