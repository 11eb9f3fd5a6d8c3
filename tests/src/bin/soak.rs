//! The soak: is every message that committed delivered, in order, and has its effect once, while the relay is killed
//! again and again? The verdict is a line of JSON, the last one on standard output.
//!
//! Exit codes: 0 every promise was kept; 1 one was broken (which `--plant` must bring about); 2 the run proves too little
//! or could not be made, or the planted bug was not caught.

#[path = "../soak/mod.rs"]
mod soak;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

/// Of every disturbance, with several relays: a fifth of what an idle machine manages.
const EACH_A_MINUTE: f64 = 4.0;

/// Kill the relay under load, again and again, and judge what came out
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Arguments {
    /// Messages to commit, at least
    #[arg(long, default_value_t = 100_000)]
    messages: u64,
    /// Of everything that is left to chance
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kills that must each find a backlog [default: 24]; with several relays as many starts, polite stops, freezes that
    /// outlive the lease and takeovers as well [default: 4 a minute]
    #[arg(long)]
    kills: Option<u64>,
    /// Processes of the relay; several are started, stopped, killed and frozen at random all the while
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    relays: u8,
    /// With several relays: for so long, instead of for a number of messages
    #[arg(long, conflicts_with = "messages")]
    minutes: Option<f64>,
    /// Instead of the shipped relay, a naive one with this bug: is it caught?
    #[arg(long)]
    plant: Option<soak::Plant>,
    #[command(subcommand)]
    child: Option<Child>,
}

#[derive(Debug, clap::Subcommand)]
enum Child {
    /// What `--plant` starts
    #[command(hide = true)]
    NaiveRelay { plant: soak::Plant, file: PathBuf },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build() {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(error.into()),
    };
    done.unwrap_or_else(|error| {
        let verdict = serde_json::json!({ "violations": [], "too_little": ["a whole run"], "error": format!("{error:#}") });
        let _ = writeln!(std::io::stdout(), "{verdict}");
        ExitCode::from(2)
    })
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(Child::NaiveRelay { plant, file }) = arguments.child {
        soak::naive::run(plant, &std::env::var("DATABASE_URL")?, &file).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let Arguments { messages, seed, kills, relays, minutes, plant, child: _ } = arguments;
    let lasts = minutes.map(|minutes| Duration::try_from_secs_f64(minutes * 60.0)).transpose()?;
    let each_minute = |minutes: f64| (minutes * EACH_A_MINUTE).ceil().max(1.0) as u64;
    let kills = kills.unwrap_or(if relays == 1 { 24 } else { each_minute(minutes.unwrap_or_default()) });
    let settings = soak::Settings { messages, lasts, seed, kills, relays: relays.into(), plant };
    let verdict = soak::run(&settings).await?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&verdict)?)?;
    Ok(verdict.exit_code())
}
