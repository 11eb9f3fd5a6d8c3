//! The soak: writers, a relay that is killed again and again, a consumer, and a ledger that judges what came out. Or a
//! relay of several processes that share its shards, which are started, stopped, killed and frozen all the while.
//!
//! Everything is real: a PostgreSQL, the shipped relay's binary, a file as the broker, the inbox. What committed stands in
//! a table of the soak's own; everything else is judged by it. That the judge sees what it should is proven by relays
//! with planted bugs ([`naive`]), which the same workload must convict.

mod cluster;
mod consumer;
mod dice;
mod disturber;
mod gate;
mod killer;
mod ledger;
pub(crate) mod naive;
mod naive_team;
mod plant;
mod relay;
mod repeats;
mod roster;
mod run;
mod shape;
mod sharing;
mod transaction;
mod unowned;
mod verdict;
mod watch;
mod wire;
mod writers;

pub(crate) use plant::Plant;
pub(crate) use run::{Settings, run};
pub(crate) use verdict::Verdict;
