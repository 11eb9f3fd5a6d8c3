//! What every publisher and subscriber of a broker must hold, as claims over the two ports. A broker's test file says how
//! it is set up ([`Setup`]) and calls [`conformance_tests!`](crate::conformance_tests), which makes a test of each claim.

mod claims;
mod redelivery;
mod samples;
mod traffic;

use std::time::Duration;

use async_trait::async_trait;
use message::{Publisher, Subscriber};

pub use claims::*;
pub use redelivery::*;
pub use samples::messages_of_every_shape;
pub use traffic::{assert_in_order, assert_same, keyed, publish_in_order, receive_all};

/// How long anything may take that must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One broker, set up for one claim: nothing else is on `destination`.
#[async_trait]
pub trait Setup: Send + Sync {
    /// Where the claim publishes to.
    fn destination(&self) -> String;

    /// A publisher to the broker.
    async fn publisher(&self) -> Box<dyn Publisher>;

    /// A subscriber of `group` to the destination, from its first message on.
    async fn subscriber(&self, group: &str) -> Box<dyn Subscriber>;

    /// How long the broker waits for an answer before it delivers again: short, for the claims wait for it.
    fn answer_wait(&self) -> Duration;

    /// A destination that takes nothing now, though the broker works. `None`: this broker has none of that kind.
    async fn closed_destination(&self) -> Option<String>;

    /// A publisher to a broker of this kind that cannot be reached.
    async fn unreachable(&self) -> Box<dyn Publisher>;

    /// Puts what another producer may send on the destination, headers as CloudEvents over HTTP spells them. `false`:
    /// only we write to this broker.
    async fn put_foreign(&self, headers: &[(&str, &str)], payload: &'static [u8]) -> bool;
}

/// A test of each claim. `$setup` is a function `async fn() -> impl Setup`.
#[macro_export]
macro_rules! conformance_tests {
    ($setup:path) => {
        $crate::conformance_tests!(@ $setup:
            every_confirmed_message_arrives_as_it_was_sent,
            a_publisher_says_what_it_publishes_to,
            a_broker_that_is_unavailable_is_told_apart_from_a_destination_that_is,
            messages_of_a_key_arrive_in_order,
            each_group_receives_everything,
            subscribers_of_a_group_share_without_doubles_and_in_order,
            what_others_wrote_comes_out_as_the_wire_page_says,
            a_cancelled_receive_loses_nothing,
            acknowledgements_may_come_in_any_order,
            an_unanswered_message_comes_again_and_is_not_overtaken,
            a_retried_message_waits_and_is_not_overtaken,
            an_extended_delivery_does_not_come_again,
            a_subscriber_dropped_half_way_loses_nothing,
        );
    };
    (@ $setup:path: $($claim:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                $crate::conformance::$claim(&$setup().await).await;
            }
        )*
    };
}
