//! Deliveries that wait for their turn, while the broker is asked to keep them for this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use message::Delivery;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use crate::apply::heard;

/// A delivery whose turn has not come.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// What the message is called; `None`: it is none, and is not tried.
    id: Option<Uuid>,
    received: Instant,
    shared: Arc<Shared>,
}

/// What the loop and the task that extends deliveries have in common: the one must not wait for the broker, the other needs
/// the delivery.
#[derive(Debug)]
struct Shared {
    delivery: Mutex<Option<Delivery>>,
    /// Its turn has come: it is extended no longer.
    taken: CancellationToken,
}

impl Waiting {
    pub(crate) fn new(delivery: Delivery, received: Instant) -> Self {
        let id = delivery.received.as_ref().ok().map(|message| *message.id.as_uuid());
        let shared = Shared { delivery: Mutex::new(Some(delivery)), taken: CancellationToken::new() };
        Waiting { id, received, shared: Arc::new(shared) }
    }

    pub(crate) fn id(&self) -> Option<Uuid> {
        self.id
    }

    /// Asks the broker to wait as long again, until its turn comes.
    pub(crate) fn extend(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move {
            let extend = async {
                match &*shared.delivery.lock().await {
                    Some(delivery) => delivery.extend().await,
                    None => Ok(()),
                }
            };
            if let Some(Err(error)) = shared.taken.run_until_cancelled(extend).await {
                debug!(%error, "a delivery could not be extended");
            }
        }
    }

    /// The delivery, and when it was received. `None`: never.
    pub(crate) async fn take(self) -> Option<(Delivery, Instant)> {
        self.shared.taken.cancel();
        Some((self.shared.delivery.lock().await.take()?, self.received))
    }
}

/// Gives deliveries back to the broker, in order, so that it has them in order.
pub(crate) async fn give_back(waiting: impl IntoIterator<Item = Waiting>) {
    for waiting in waiting {
        let Some((delivery, _)) = waiting.take().await else { continue };
        if heard(delivery.retry_after(Duration::ZERO)).await.is_err() {
            // Then it comes again when the broker has waited enough, and so do those after it.
            return;
        }
    }
}
