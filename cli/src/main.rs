//! The `outbox` binary: the relay as a daemon, and the commands of whoever operates one.
//!
//! Standard output is data, standard error is for people, and the exit code says which kind of thing went wrong
//! ([`exit::Exit`]). Flags beat the environment, the environment beats the file.

mod audit;
mod bench;
mod config;
mod consumers;
mod database;
mod doctor;
mod duration;
mod exit;
mod logging;
mod migrate;
mod moment;
mod output;
mod parked;
mod relay;
mod relays;
mod repair;
mod replay;
mod replays;
mod schema;
mod secret;
mod signals;
mod status;
mod suggest;
mod text_file;
mod trace;
mod who;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// Messages that leave a database if and only if their transaction commits
#[derive(Debug, Parser)]
#[command(name = "outbox", version, max_term_width = 100, after_long_help = HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How long a command may take that looks or decides (all but relay, replay, migrate and bench)
    #[arg(long, global = true, value_name = "DURATION", default_value = "15m", value_parser = duration::argument)]
    timeout: Duration,
}

impl Command {
    /// Whether it asks something of a database and ends: then it must end also if the database never answers.
    fn is_one_question(&self) -> bool {
        !matches!(self, Command::Migrate(_) | Command::Relay(_) | Command::Replay(_) | Command::Bench(_))
    }
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Migrate(migrate::Args),
    Relay(Box<relay::Args>),
    Status(status::Args),
    Doctor(doctor::Args),
    Relays(relays::Args),
    Parked(parked::Args),
    Consumers(consumers::Args),
    Audit(audit::Args),
    Trace(trace::Args),
    Replay(Box<replay::Args>),
    Replays(replays::Args),
    Repair(repair::Args),
    #[command(subcommand)]
    Bench(bench::Command),
}

const HELP: &str = "\
Getting started:
  export DATABASE_URL=postgres://app:secret@localhost/orders
  outbox migrate                        the schemas `outbox` and `inbox`
  outbox relay --broker file:-          publishes what services enqueue, here to standard output
  outbox status                         how far behind each relay is, and what is held back
  outbox doctor                         what makes the set-up unsafe, or will hurt

The database:
  DATABASE_URL, or --database with a URL that holds no password, @FILE (a file that holds the URL), or env:NAME.
  A password on the command line is refused: every process of the machine can read it.

Exit codes:
  0    done
  1    it did not work, or was not found
  2    the command line or the configuration is wrong; nothing was tried
  3    the database cannot be reached, or it or the broker does not let us in
  4    the schema is missing, older than this build needs, or newer than it understands
  5    outbox doctor found something that makes the set-up unsafe
  130  ended at once by a second SIGINT (143: SIGTERM)

`outbox COMMAND --help` has examples for each command.";

fn main() -> ExitCode {
    // Two providers are compiled in, and the clients panic where none is chosen.
    rustls::crypto::ring::default_provider().install_default().ok();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(&format!("outbox: {failure}"));
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn run(cli: Cli) -> Result<(), exit::Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| exit::Failure::failed(format!("cannot start: {error}")))?;
    let limit = cli.command.is_one_question().then_some(cli.timeout);
    let command = async {
        match cli.command {
            Command::Migrate(args) => migrate::run(args).await,
            Command::Relay(args) => relay::run(*args).await,
            Command::Status(args) => status::run(args).await,
            Command::Doctor(args) => doctor::run(args).await,
            Command::Relays(args) => relays::run(args).await,
            Command::Parked(args) => parked::run(args).await,
            Command::Consumers(args) => consumers::run(args).await,
            Command::Audit(args) => audit::run(args).await,
            Command::Trace(args) => trace::run(args).await,
            Command::Replay(args) => replay::run(*args).await,
            Command::Replays(args) => replays::run(args).await,
            Command::Repair(args) => repair::run(args).await,
            Command::Bench(command) => bench::run(command).await,
        }
    };
    let ended = runtime.block_on(async {
        let Some(limit) = limit else { return command.await };
        let late = |_| {
            Err(exit::Failure::unreachable(format!(
                "no answer within {}: the network or the database is silent, or another transaction has locked what is asked for",
                duration::show(limit)
            )))
        };
        tokio::time::timeout(limit, command).await.unwrap_or_else(late)
    });
    // A blocking read of standard input or a slow name look-up must not keep the process alive.
    runtime.shutdown_background();
    ended
}

/// Help and version are data; what is wrong with a command line is not, and may repeat what stood there.
fn refuse(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        output::complain(secret::redact(&error.to_string()).trim_end());
        return ExitCode::from(exit::Exit::Usage as u8);
    }
    match output::print(&error.to_string()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.exit as u8),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
