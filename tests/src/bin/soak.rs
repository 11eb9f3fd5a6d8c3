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

use anyhow::Result;
use clap::Parser;

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
    /// Kills that must each find a backlog
    #[arg(long, default_value_t = 24)]
    kills: u64,
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
    let Arguments { messages, seed, kills, plant, child: _ } = arguments;
    let verdict = soak::run(&soak::Settings { messages, seed, kills, plant }).await?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&verdict)?)?;
    Ok(verdict.exit_code())
}
