//! The demo's command line.

use std::str::FromStr;

use crate::service::{Address, Config};

/// Four services, their relays and a broker on this machine: a few hundred orders, a service and a relay killed in the
/// middle, and the proof that everything adds up.
///
/// PostgreSQL is the one in `DATABASE_URL`, else one of its own that is gone afterwards.
#[derive(Debug, clap::Parser)]
#[command(name = "demo", bin_name = "cargo demo --", after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) what: Option<What>,
    /// Place so many generated orders instead of those in orders.csv.
    #[arg(long, value_name = "N", value_parser = parse_orders)]
    pub(super) orders: Option<usize>,
    /// Which generated orders: the same for the same number.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(super) seed: u64,
    #[command(flatten)]
    broker: BrokerFlag,
}

const EXAMPLES: &str = "\
Examples:
  cargo demo                       the orders of orders.csv, PostgreSQL as the broker
  cargo demo -- --orders 2000      so many generated orders (what follows -- is the demo's, not cargo's)
  cargo demo -- --broker nats      the same through NATS JetStream
  cargo demo serve                 stays up, and prints the curl lines to try

Exit code: 0 only if everything adds up.";

/// What to do instead of the story.
#[derive(Debug, clap::Subcommand)]
pub(super) enum What {
    /// Stay up for you to curl, until Ctrl-C.
    Serve {
        #[command(flatten)]
        broker: BrokerFlag,
    },
    /// Be one of the services.
    #[command(hide = true)]
    Service {
        /// Which one.
        name: String,
        #[command(flatten)]
        config: Config,
    },
}

/// The flag that chooses a broker.
#[derive(Debug, clap::Args)]
pub(super) struct BrokerFlag {
    /// The broker: postgres (a log in a database), nats (starts one), or a server: postgres://… or nats://…
    #[arg(long, value_name = "BROKER", default_value = "postgres")]
    broker: Address,
}

/// Not a broker. Said by us and not by clap, which would repeat the address, and it may hold a password.
#[derive(Debug, thiserror::Error)]
#[error("--broker: must be postgres, nats, postgres://… or nats://…")]
pub(super) struct InvalidBroker;

impl Arguments {
    /// Which broker.
    pub(super) fn broker(&self) -> Result<BrokerChoice, InvalidBroker> {
        let flag = match &self.what {
            Some(What::Serve { broker }) => broker,
            _ => &self.broker,
        };
        flag.broker.0.parse()
    }
}

/// Which broker.
#[derive(Debug, Clone)]
pub(super) enum BrokerChoice {
    /// On the server of the services' databases.
    Postgres,
    /// On that server.
    PostgresAt(Address),
    /// One of our own, or `NATS_URL`.
    Nats,
    /// That server.
    NatsAt(Address),
}

impl FromStr for BrokerChoice {
    type Err = InvalidBroker;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = Address(text.to_owned());
        match text.split_once("://") {
            None if text == "postgres" => Ok(BrokerChoice::Postgres),
            None if text == "nats" => Ok(BrokerChoice::Nats),
            Some(("postgres" | "postgresql", _)) => Ok(BrokerChoice::PostgresAt(address)),
            Some(("nats" | "tls", _)) => Ok(BrokerChoice::NatsAt(address)),
            _ => Err(InvalidBroker),
        }
    }
}

/// The shop has goods for so many.
const MOST: usize = 100_000;

fn parse_orders(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(orders) if (1..=MOST).contains(&orders) => Ok(orders),
        _ => Err(format!("must be 1 to {MOST}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_broker_is_a_word_or_an_address_and_nothing_else() {
        assert!(matches!("postgres".parse(), Ok(BrokerChoice::Postgres)));
        assert!(matches!("nats".parse(), Ok(BrokerChoice::Nats)));
        assert!(matches!("nats://h:4222".parse(), Ok(BrokerChoice::NatsAt(_))));
        assert!(matches!("postgres://h/d".parse(), Ok(BrokerChoice::PostgresAt(_))));
        for text in ["", "kafka", "kafka://h", "postgresql", "tls"] {
            assert!(text.parse::<BrokerChoice>().is_err(), "{text}");
        }
    }
}
