//! What the relay's own measurements say of its polls, collected for as long as the command runs.

use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use crate::exit::Failure;

/// The durations of looks and pages, in milliseconds.
#[derive(Debug, Default, Clone)]
pub(super) struct Polls {
    looks: Samples,
    pages: Samples,
}

#[derive(Debug, Default, Clone)]
struct Samples(Arc<Mutex<Vec<f64>>>);

impl Samples {
    fn take(&self) -> Vec<f64> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl HistogramFn for Samples {
    fn record(&self, seconds: f64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(seconds * 1000.0);
    }
}

impl Polls {
    /// Collects from now on.
    pub(super) fn collect() -> Result<Self, Failure> {
        let polls = Polls::default();
        metrics::set_global_recorder(polls.clone())
            .map_err(|_| Failure::failed("bench: measurements go elsewhere already"))?;
        Ok(polls)
    }

    /// Takes out what was collected: looks, pages.
    pub(super) fn take(&self) -> (Vec<f64>, Vec<f64>) {
        (self.looks.take(), self.pages.take())
    }
}

impl Recorder for Polls {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match key.name() {
            "outbox_look_seconds" => Histogram::from_arc(Arc::new(self.looks.clone())),
            "outbox_page_seconds" => Histogram::from_arc(Arc::new(self.pages.clone())),
            _ => Histogram::noop(),
        }
    }
}
