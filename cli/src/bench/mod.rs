//! `outbox bench`: what a relay costs on the machine at hand, beside the limit measured in the same run.

mod drain;
mod held;
mod idle;
mod isolation;
mod latency;
mod load;
mod outage;
mod pages;
mod place;
mod polls;
mod restart;
mod retention;
mod server;

use crate::exit::Failure;

/// Measure what a relay costs here, beside the limit measured in the same run
///
/// Each makes a database of its own on the server that the database URL names (its role must be allowed to), and drops
/// it at the end.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Drain(drain::Args),
    Latency(latency::Args),
    Held(held::Args),
    Idle(idle::Args),
    Isolation(isolation::Args),
    Outage(outage::Args),
    ConsumerRestart(restart::Args),
    Retention(retention::Args),
}

/// Runs the command.
pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    // A relay that is stopped says so; only what goes wrong is worth a line beside the figures.
    crate::logging::start(None, Default::default())?;
    match command {
        Command::Drain(args) => drain::run(args).await,
        Command::Latency(args) => latency::run(args).await,
        Command::Held(args) => held::run(args).await,
        Command::Idle(args) => idle::run(args).await,
        Command::Isolation(args) => isolation::run(args).await,
        Command::Outage(args) => outage::run(args).await,
        Command::ConsumerRestart(args) => restart::run(args).await,
        Command::Retention(args) => retention::run(args).await,
    }
}

/// The middle of some figures.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The figure below which a part of them lies; `part` from 0 to 1.
fn percentile(mut figures: Vec<f64>, part: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    let last = figures.len().saturating_sub(1) as f64;
    figures.get((last * part).round() as usize).copied().unwrap_or(f64::NAN)
}

/// Cut to what can be read.
fn round(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_what_they_say() {
        let figures: Vec<f64> = (1..=101).rev().map(f64::from).collect();
        assert_eq!((median(figures.clone()), percentile(figures.clone(), 0.99)), (51.0, 100.0));
        assert_eq!((percentile(figures, 1.0), round(1.23456)), (101.0, 1.235));
    }
}
