//! When a consumer is ready: messages of its kinds may be produced from then on.

use tokio::sync::watch;

/// Tells whether a [`Consumer`](crate::Consumer) is ready. What is committed to the broker from then on is received: its
/// subscriber has its place, also in a new group that begins with what comes. And no process of this consumer drops a
/// message of a kind that it handles, also none of an older build that still runs.
///
/// A consumer that handles a kind that its name had not registered before is ready five seconds after its start at the
/// soonest; otherwise it is ready when it has subscribed. It is ready no longer when it has ended.
///
/// A deployment that starts consumers first, waits until they are ready, and then starts the producers of new kinds loses
/// no message.
#[derive(Debug, Clone)]
pub struct Ready(pub(crate) watch::Receiver<bool>);

impl Ready {
    /// Whether the consumer is ready now: for a health check.
    pub fn is_ready(&self) -> bool {
        // Its sender is gone when the consumer has ended.
        *self.0.borrow() && self.0.has_changed().is_ok()
    }

    /// Waits until the consumer is ready. `false`: it ended before that, or has not been run and never will.
    pub async fn wait(&mut self) -> bool {
        self.0.wait_for(|ready| *ready).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_consumer_that_has_ended_is_not_ready() {
        let (sender, receiver) = watch::channel(false);
        let mut ready = Ready(receiver);
        assert!(!ready.is_ready());
        sender.send_replace(true);
        assert!(ready.wait().await && ready.is_ready());
        drop(sender);
        assert!(!ready.is_ready());
        let (sender, receiver) = watch::channel(false);
        drop(sender);
        assert!(!Ready(receiver).wait().await);
    }
}
