//! Places the orders over HTTP at an even pace, and some of them twice, as an impatient customer does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::orders::Planned;

/// Every so many orders one is sent again.
const TWICE: usize = 10;
/// Tries of one order, and the wait between them.
const TRIES: usize = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(250);
/// Requests under way at once.
const AT_ONCE: usize = 16;

/// Orders on their way to the order service.
pub(super) struct Placing {
    tasks: JoinSet<Result<(), PlaceError>>,
    placed: Arc<AtomicUsize>,
    repeated: Arc<AtomicUsize>,
}

/// Why an order was not placed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    #[error("the order service does not answer")]
    Http(#[from] reqwest::Error),
    #[error("the order service answered {0}")]
    Refused(reqwest::StatusCode),
    #[error("the order service took a repeated request for another order")]
    TakenTwice,
    #[error("a request panicked")]
    Panicked(#[from] tokio::task::JoinError),
}

impl Placing {
    /// Begins to send `orders` to the order service at `address`, so many a second.
    pub(super) fn start(
        client: reqwest::Client,
        address: &str,
        orders: &[Planned],
        a_second: f64,
    ) -> Placing {
        let (placed, repeated) = (Arc::default(), Arc::default());
        let mut tasks = JoinSet::new();
        let pace = Pace {
            client,
            url: format!("{address}/orders"),
            placed: Arc::clone(&placed),
            repeated: Arc::clone(&repeated),
        };
        let orders = orders.to_vec();
        tasks.spawn(pace.send_all(orders, Duration::from_secs_f64(1.0 / a_second)));
        Placing { tasks, placed, repeated }
    }

    /// Orders that are placed.
    pub(super) fn placed(&self) -> usize {
        self.placed.load(Ordering::Relaxed)
    }

    /// Requests that were sent a second time, and answered with the same order.
    pub(super) fn repeated(&self) -> usize {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Whether all are placed; an error if one cannot be.
    pub(super) fn done(&mut self) -> Result<bool, PlaceError> {
        match self.tasks.try_join_next() {
            Some(ended) => ended?.map(|()| true),
            None => Ok(self.tasks.is_empty()),
        }
    }
}

#[derive(Clone)]
struct Pace {
    client: reqwest::Client,
    url: String,
    placed: Arc<AtomicUsize>,
    repeated: Arc<AtomicUsize>,
}

#[derive(Deserialize)]
struct Answer {
    id: Uuid,
}

impl Pace {
    async fn send_all(self, orders: Vec<Planned>, between: Duration) -> Result<(), PlaceError> {
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        let mut requests = JoinSet::new();
        let mut ticks = tokio::time::interval(between);
        for (index, planned) in orders.into_iter().enumerate() {
            ticks.tick().await;
            // Never closed.
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            let pace = self.clone();
            requests.spawn(async move {
                let first = pace.send(&planned).await?;
                pace.placed.fetch_add(1, Ordering::Relaxed);
                if index % TWICE == 0 {
                    if pace.send(&planned).await? != first {
                        return Err(PlaceError::TakenTwice);
                    }
                    pace.repeated.fetch_add(1, Ordering::Relaxed);
                }
                drop(slot);
                Ok(())
            });
            while let Some(ended) = requests.try_join_next() {
                ended??;
            }
        }
        while let Some(ended) = requests.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// The order's id. The idempotency key makes it safe to try again after any failure.
    async fn send(&self, planned: &Planned) -> Result<Uuid, PlaceError> {
        let mut tries = 1;
        loop {
            let sent = self.client.post(&self.url).json(&planned.order).send().await;
            let failure = match sent {
                Ok(answer) if answer.status().is_success() => return Ok(answer.json::<Answer>().await?.id),
                Ok(answer) if answer.status().is_client_error() => {
                    return Err(PlaceError::Refused(answer.status()));
                }
                Ok(answer) => PlaceError::Refused(answer.status()),
                Err(error) => PlaceError::Http(error),
            };
            if tries == TRIES {
                return Err(failure);
            }
            tries += 1;
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }
}
