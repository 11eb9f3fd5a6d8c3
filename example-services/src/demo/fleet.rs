//! The demo's eight processes: four services, and a relay for each service's database.

use std::path::Path;
use std::process::Command;

use super::carrier::Carrier;
use super::child::{Child, ChildError};
use super::databases::{Databases, SERVICES};
use super::say::Say;

/// The variable through which `outbox trace` gets a service's database: an address may hold a password, and every process
/// of the machine can read a command line.
pub(super) fn variable(service: &str) -> String {
    format!("DEMO_{}_DATABASE", service.to_uppercase())
}

/// A service and the relay that publishes what it enqueues.
pub(super) struct Pair {
    pub(super) service: Child,
    pub(super) relay: Child,
    /// Where the service answers; another one after each start.
    pub(super) address: String,
}

/// All of them, in the order in which they work on an order.
pub(super) struct Fleet {
    pub(super) order: Pair,
    pub(super) stock: Pair,
    pub(super) payment: Pair,
    pub(super) shipping: Pair,
}

impl Fleet {
    /// Starts every process, and waits until the services answer. `outbox` is the path of that binary.
    pub(super) async fn start(
        databases: &Databases,
        carrier: &Carrier,
        outbox: &Path,
    ) -> Result<Fleet, ChildError> {
        let pair = async |name: &str, database: &str| {
            // The service first: it migrates its database, and a relay refuses one without a schema.
            let mut service = Child::start(format!("{name} service"), service(name, database, carrier))?;
            let address = service.address().await?;
            let relay = Child::start(format!("{name} relay"), relay(database, carrier, outbox))?;
            Ok::<_, ChildError>(Pair { service, relay, address })
        };
        let [order, stock, payment, shipping] = SERVICES;
        Ok(Fleet {
            order: pair(order, &databases.order.url).await?,
            stock: pair(stock, &databases.stock.url).await?,
            payment: pair(payment, &databases.payment.url).await?,
            shipping: pair(shipping, &databases.shipping.url).await?,
        })
    }

    /// An error if a process has ended that nobody killed.
    pub(super) fn alive(&mut self) -> Result<(), ChildError> {
        for pair in self.pairs_mut() {
            pair.service.alive()?;
            pair.relay.alive()?;
        }
        Ok(())
    }

    /// Says which processes have ended since the last time, if any: somebody may have killed one to see what happens.
    pub(super) fn report_ended(&mut self, say: Say) {
        for pair in self.pairs_mut() {
            for child in [&mut pair.service, &mut pair.relay] {
                if child.alive().is_err() {
                    child.kill();
                    say.now(format_args!("the {} has ended; what needs it waits", child.name));
                }
            }
        }
    }

    /// The pairs.
    pub(super) fn pairs(&self) -> [&Pair; 4] {
        [&self.order, &self.stock, &self.payment, &self.shipping]
    }

    fn pairs_mut(&mut self) -> [&mut Pair; 4] {
        [&mut self.order, &mut self.stock, &mut self.payment, &mut self.shipping]
    }
}

impl Drop for Fleet {
    /// Each process is waited for when it is dropped; asked before, they end side by side.
    fn drop(&mut self) {
        for pair in self.pairs() {
            pair.service.ask_to_end();
            pair.relay.ask_to_end();
        }
    }
}

fn service(name: &str, database: &str, carrier: &Carrier) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "demo".into()));
    command.args(["service", name]);
    command.env("SERVICE_DATABASE", database).env("SERVICE_BROKER", carrier.url());
    command
}

fn relay(database: &str, carrier: &Carrier, outbox: &Path) -> Command {
    let mut command = Command::new(outbox);
    command.arg("relay").env("DATABASE_URL", database);
    // A killed relay repeats what it published since its last record: seldom enough to see duplicates in a short run. A
    // short lease, so that the next process need not wait long for what the killed one held.
    command.env("OUTBOX_RECORD_INTERVAL", "600ms").env("OUTBOX_LEASE", "2s");
    match carrier {
        Carrier::Log { url } => {
            command.env("OUTBOX_BROKER", url);
        }
        Carrier::Stream { server, name, .. } => {
            command.env("OUTBOX_BROKER", server).env("OUTBOX_NATS_STREAM", name);
            command.args(["--route", &format!(">={name}.{{topic}}")]);
        }
    }
    command
}
