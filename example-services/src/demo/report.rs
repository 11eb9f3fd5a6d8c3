//! The final table.

use std::path::Path;
use std::process::Command;

use super::DemoError;
use super::carrier::Carrier;
use super::databases::Databases;
use super::fleet::{Fleet, variable};
use super::orders::Planned;
use super::say::Say;
use super::story::{Told, discarded};
use super::tally::{self, Messages};

/// What the table is about.
pub(super) struct Report<'r> {
    pub(super) say: Say,
    pub(super) databases: &'r Databases,
    pub(super) fleet: &'r Fleet,
    pub(super) client: &'r reqwest::Client,
    pub(super) outbox: &'r Path,
    pub(super) carrier: &'r Carrier,
}

impl Report<'_> {
    /// Prints it; whether every check holds.
    pub(super) async fn print(&self, told: &Told, orders: &[Planned]) -> Result<bool, DemoError> {
        let say = self.say;
        let (ends, _) = tally::ends(self.databases, orders).await?;
        say.line("\nOrders by outcome");
        for (end, count) in &ends {
            let cancelled = if end == "completed" { "" } else { "cancelled: " };
            say.line(format_args!("  {count:7}  {cancelled}{end}"));
        }
        say.line(format_args!("  {:7}  in all", ends.values().sum::<i64>()));

        let messages = Messages::read(self.databases, false).await?;
        let mut discarded_copies = told.discarded_before_kill;
        for pair in self.fleet.pairs() {
            discarded_copies += discarded(self.client, &pair.address).await?;
        }
        say.line("\nMessages");
        say.line(format_args!(
            "  {:7}  enqueued, each in the transaction of its state change",
            messages.enqueued
        ));
        let published = self.carrier.published(self.databases).await?;
        say.line(format_args!("  {published:7}  published"));
        say.line(format_args!("  {:7}  of them copies, on the wire", published - messages.enqueued));
        say.line(format_args!("  {discarded_copies:7}  duplicates seen by consumers and discarded"));
        say.line(format_args!("  {:7}  effects, each exactly once", messages.effects_made()));
        say.line(format_args!("  {:7}  POST /orders sent twice, one order each", told.repeated_requests));

        say.line("\nChecks across the databases");
        let mut all_hold = true;
        for check in &told.checks {
            let (left, right) = (check.left, check.right);
            let (verdict, equals) = if check.holds() { ("ok    ", "=") } else { ("FAILED", "≠") };
            all_hold &= check.holds();
            say.line(format_args!("  {verdict}  {} {}  {equals}  {} {}", left.0, left.1, right.0, right.1));
        }
        self.trace("A completed order", "completed").await?;
        self.trace(
            "A compensated order: the shipment is refused, payment and stock undo their part",
            "unserved",
        )
        .await?;
        Ok(all_hold)
    }

    /// The tree of one workflow, by the `outbox` binary.
    async fn trace(&self, title: &str, ended: &str) -> Result<(), DemoError> {
        let Some(workflow) = tally::workflow(self.databases, ended).await? else {
            self.say.line(format_args!("\n{title}: none in this run"));
            return Ok(());
        };
        self.say.line(format_args!("\n{title} (outbox trace {workflow})"));
        let mut command = Command::new(self.outbox);
        command.arg("trace").arg(workflow.to_string());
        for (service, database) in self.databases.of_services() {
            let variable = variable(service);
            command.arg("--database").arg(format!("env:{variable}")).env(variable, &database.url);
        }
        let traced = command.output().map_err(DemoError::Trace)?;
        if !traced.status.success() {
            let said = String::from_utf8_lossy(&traced.stderr).trim().to_owned();
            return Err(DemoError::TraceFailed { said });
        }
        self.say.line(String::from_utf8_lossy(&traced.stdout).trim_end());
        Ok(())
    }
}
