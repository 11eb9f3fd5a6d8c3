//! `cargo demo serve`: stays up, and says what to try.

use std::time::Duration;

use super::DemoError;
use super::databases::Databases;
use super::fleet::{Fleet, variable};
use super::say::Say;

const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// Prints what to try, and returns only if a process ends that should not.
pub(super) async fn until_stopped(
    say: Say,
    databases: &Databases,
    fleet: &mut Fleet,
    outbox: &std::path::Path,
) -> Result<(), DemoError> {
    let (order, stock) = (&fleet.order.address, &fleet.stock.address);
    let (payment, shipping) = (&fleet.payment.address, &fleet.shipping.address);
    say.line(format_args!(
        r#"
An order that completes; then the same with "destination": "AQ", which nobody serves, and another idempotency_key:
  curl -s {order}/orders -d '{{"idempotency_key": "cart-1", "customer": "ada", "destination": "DE",
    "lines": [{{"article": "lamp", "quantity": 2}}]}}'
The orders, and one with its history:
  curl -s {order}/orders
  curl -s {order}/orders/ID
What the others know:
  curl -s {stock}/stock
  curl -s {payment}/payments
  curl -s {payment}/accounts
  curl -s {shipping}/shipments
Whether a service is well, and what it has seen:
  curl -s {payment}/health/ready
  curl -s {payment}/stats"#
    ));
    say.line("The whole workflow of an order, by the id that POST /orders answered as \"workflow\":");
    for (service, database) in databases.of_services() {
        say.line(format_args!("  export {}='{}'", variable(service), database.url));
    }
    let from: Vec<String> = databases
        .of_services()
        .iter()
        .map(|(service, _)| format!("--database env:{}", variable(service)))
        .collect();
    say.line(format_args!("  {} trace WORKFLOW {}", outbox.display(), from.join(" ")));
    say.line("Kill one, place orders, and see them wait (nothing starts it again):");
    for pair in fleet.pairs() {
        for child in [&pair.service, &pair.relay] {
            say.line(format_args!("  kill -9 {:<8} # the {}", child.pid(), child.name));
        }
    }
    say.line("\nCtrl-C ends everything.");
    loop {
        tokio::time::sleep(BETWEEN_LOOKS).await;
        fleet.report_ended(say);
    }
}
