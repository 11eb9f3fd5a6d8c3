//! What this process publishes to, and whether another process of its relay publishes elsewhere.

use std::sync::{Mutex, PoisonError};

use message::Publisher;

use super::Relay;
use crate::log::{Destination, Elsewhere, LogConnection, Store};

/// What was warned of last, so that each difference is logged once.
pub(super) type Warned = Mutex<Vec<Elsewhere>>;

impl<P: Publisher + 'static> Relay<P> {
    /// Registers the broker and the routes, and warns of processes that have others. A publisher that does not say where
    /// it publishes to is not compared.
    pub(super) async fn register_destination(
        &self,
        store: &Store,
        log: &mut LogConnection,
    ) -> Result<(), sqlx::Error> {
        let Some(broker) = self.publisher.describe() else { return Ok(()) };
        let routes = self.settings.routes.to_string();
        let text = if routes.is_empty() { broker } else { format!("{broker}, routes {routes}") };
        let destination = Destination::of_relay(&text);
        let elsewhere = store.publishes_to(log.connection(), &destination).await?;
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        for other in elsewhere.iter().filter(|other| !warned.contains(other)) {
            tracing::warn!(
                relay = self.name,
                destination = destination.as_str(),
                process = other.process,
                elsewhere = other.destination,
                "another process of this relay publishes elsewhere: each gets a part of the log; stop one of them"
            );
        }
        *warned = elsewhere;
        Ok(())
    }
}
