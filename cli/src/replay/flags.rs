//! The flags of `outbox replay`.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use message::MessageId;
use outbox::Pattern;
use outbox::replay::Filter;

use crate::exit::Failure;
use crate::moment;
use crate::output::Format;
use crate::who::Who;

/// Publish messages once more that the log still holds: says which, and does it with --execute
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The replay's name: run again under it, a replay that was stopped or killed goes on
    pub(super) name: String,
    /// Do it. Without, nothing is published and nothing is written
    #[arg(long)]
    pub(super) execute: bool,
    /// A URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    pub(super) database: Option<String>,
    /// Where to, as for outbox relay: file:/PATH, file:- (standard output), nats://HOST, postgres://HOST/DATABASE …; @FILE
    /// or env:NAME where the URL holds a secret [default: $OUTBOX_BROKER]
    #[arg(long, value_name = "URL")]
    pub(super) broker: Option<String>,
    /// The JetStream stream to send to
    #[arg(long, value_name = "NAME")]
    pub(super) nats_stream: Option<String>,
    /// A relay's configuration file: its database, its broker and its routes [default: $OUTBOX_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// One destination for all, where {topic} stands for the topic [default: the configuration's routes, or the topic]
    #[arg(long, value_name = "TEMPLATE")]
    pub(super) destination: Option<String>,
    #[command(flatten)]
    pub(super) which: Which,
    /// At most so many messages a second: 500/s [default: as fast as the broker takes them]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(super) rate: Option<u32>,
    /// Give up what the broker rejects, and write it down, instead of stopping there
    #[arg(long)]
    pub(super) skip_rejected: bool,
    #[command(flatten)]
    pub(super) who: Who,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    /// What is logged: info, debug, or directives like outbox=debug,warn
    #[arg(long, value_name = "DIRECTIVES")]
    pub(super) log: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
}

/// Which messages: those that fit every flag that is given. A flag that is given several times: any of its values.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Which messages (those that fit all that is given)")]
pub(super) struct Which {
    /// At or after this position
    #[arg(long, value_name = "POSITION", value_parser = clap::value_parser!(i64).range(1..))]
    from_position: Option<i64>,
    /// At or before this position
    #[arg(long, value_name = "POSITION", value_parser = clap::value_parser!(i64).range(1..))]
    to_position: Option<i64>,
    /// Enqueued at or after this time: 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<DateTime<Utc>>,
    /// Enqueued before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<DateTime<Utc>>,
    /// Of this topic, or a pattern of topics: orders.> [repeatable]
    #[arg(long, value_name = "PATTERN")]
    topic: Vec<Pattern>,
    /// Of this kind [repeatable]
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// Of this key [repeatable]
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// This one [repeatable]
    #[arg(long, value_name = "ID")]
    id: Vec<MessageId>,
    /// Of the workflow that the message of this id began [repeatable]
    #[arg(long, value_name = "ID")]
    correlation: Vec<MessageId>,
    /// Every message that the log holds
    #[arg(long, conflicts_with_all = ["from_position", "to_position", "since", "until", "topic", "kind", "key", "id", "correlation"])]
    all: bool,
}

const EXAMPLES: &str = "\
Examples:
  outbox replay search-2 --topic 'orders.>' --since 2026-01-31T00:00:00Z          which, and how many
  outbox replay search-2 --topic 'orders.>' --since 2026-01-31T00:00:00Z \\
      --broker nats://nats:4222 --destination 'rebuild.{topic}' --rate 500/s --execute
  outbox replay search-2 --broker nats://nats:4222 --execute                      goes on where it was
  outbox replay one-more --id $ID --broker file:- --execute

A replay publishes what was committed when it began, in order per key, and only what the log still holds. Until it is
finished, or cancelled (`outbox replays`), the log keeps what is left of it.

Each message keeps its id and bears the header outbox-replay with the replay's name. So an inbox discards what its
consumer has handled: a replay reaches consumers that are new, or have never seen the message, and changes nothing at
the others. To have the effects anew, replay to a consumer of another name: its inbox knows nothing yet. Copies past
the inbox's horizon (7 days unless it was set otherwise) are parked there, not handled: `outbox parked redrive --late`.
Every subscriber of the destination gets the copies, also those without an inbox: mind --destination.

Killed, it repeats what it had published and not recorded, at most about a second's worth, and no order is lost. One
process works at a replay at a time; after a kill the next waits until the first can be taken for dead.

The database's role needs the rights of outbox_operator, and with --execute also of outbox_relay, since it reads payloads.

Exit codes: 0 published all of it, or said what it would publish; 1 stopped before its end (the same command goes on),
a message was rejected, the broker refused it, or the replay cannot go on; 2 wrong usage; 3 the database cannot be
reached; 4 the schema is missing or does not fit this build.";

impl Which {
    /// The filter; `None`: nothing is said, so it must have begun.
    pub(super) fn filter(&self) -> Result<Option<Filter>, Failure> {
        let mut filter = Filter::default();
        if let (Some(from), Some(to)) = (self.from_position, self.to_position)
            && from > to
        {
            return Err(Failure::usage(format!(
                "--from-position ({from}) must be at most --to-position ({to})"
            )));
        }
        if let (Some(since), Some(until)) = (self.since, self.until)
            && since >= until
        {
            return Err(Failure::usage("--since must be before --until"));
        }
        if let Some(position) = self.from_position {
            filter = filter.with_from_position(position);
        }
        if let Some(position) = self.to_position {
            filter = filter.with_to_position(position);
        }
        if let Some(moment) = self.since {
            filter = filter.with_since(moment);
        }
        if let Some(moment) = self.until {
            filter = filter.with_until(moment);
        }
        filter = self.topic.iter().cloned().fold(filter, Filter::with_topic);
        filter = self.kind.iter().cloned().fold(filter, Filter::with_kind);
        filter = self.key.iter().cloned().fold(filter, Filter::with_key);
        filter = self.id.iter().copied().fold(filter, Filter::with_id);
        filter = self.correlation.iter().copied().fold(filter, Filter::with_correlation);
        Ok((self.all || !filter.is_empty()).then_some(filter))
    }
}

fn time(text: &str) -> Result<DateTime<Utc>, String> {
    moment::parse(text).ok_or_else(|| format!("must be {}", moment::GRAMMAR))
}

/// `500/s`, or `500`.
fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    // `parse` alone would take "+5".
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let rate = digits.then(|| number.parse().ok()).flatten().filter(|rate| (1..=1_000_000).contains(rate));
    rate.ok_or_else(|| "must be messages a second, from 1/s to 1000000/s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_messages_a_second() {
        assert_eq!((rate("500/s"), rate("1")), (Ok(500), Ok(1)));
        for text in ["", "/s", "0", "0/s", "-1", "+5/s", "1.5/s", "500/m", "1000001"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
