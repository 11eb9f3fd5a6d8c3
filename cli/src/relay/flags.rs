//! The flags of `outbox relay`: each setting of the file under the same name.

use std::path::PathBuf;

use super::Config;
use crate::config::TopicFlags;
use crate::exit::Failure;

/// Publish what services enqueue: the daemon
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// A TOML file with these settings [default: $OUTBOX_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration, print what it means, and end
    #[arg(long)]
    pub(super) check: bool,
    /// A URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// A file with the URL of a database a line, instead of --database: each is relayed, in turns if need be
    #[arg(long, value_name = "FILE")]
    databases: Option<String>,
    /// Connections to all databases together, with --databases [default: 40]
    #[arg(long, value_name = "NUMBER")]
    connections: Option<String>,
    /// The relay's name: processes of one name share its work, each name has cursors of its own [default: default]
    #[arg(long, value_name = "NAME")]
    relay: Option<String>,
    /// file:/PATH, file:- (standard output), nats://HOST, postgres://HOST/DATABASE, memory: (keeps nothing); @FILE or
    /// env:NAME where the URL holds a secret
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// Where a topic goes: `orders.>=shop.{topic}`; the first that fits counts; none: to its own name [repeatable]
    #[arg(long, value_name = "PATTERN=DESTINATION")]
    route: Vec<String>,
    /// What becomes of a key when the last attempt fails: `metrics.>=skip`, or park; the first that fits counts; none: park
    /// [repeatable]
    #[arg(long, value_name = "PATTERN=POLICY")]
    policy: Vec<String>,
    /// Where a new relay begins: beginning, now, a time like 2026-01-31T12:00:00Z, or position:NUMBER [default: beginning]
    #[arg(long, value_name = "WHERE")]
    start: Option<String>,
    /// Shards of a new relay: at most so many processes share its work [default: 16]
    #[arg(long, value_name = "NUMBER")]
    shards: Option<String>,
    /// The JetStream stream to send to; checked, or created if subjects are given
    #[arg(long, value_name = "NAME")]
    nats_stream: Option<String>,
    /// The subjects to create the stream with, joined by commas
    #[arg(long, value_name = "SUBJECTS")]
    nats_subjects: Option<String>,
    /// A file with the NATS user's credentials: a JWT and its seed (.creds)
    #[arg(long, value_name = "FILE", help_heading = "NATS")]
    nats_credentials: Option<String>,
    /// A file with the seed of the NATS user's NKey
    #[arg(long, value_name = "FILE", help_heading = "NATS")]
    nats_nkey: Option<String>,
    /// A PEM file with the certificate authorities to trust, instead of the system's
    #[arg(long, value_name = "FILE", help_heading = "NATS")]
    nats_ca: Option<String>,
    /// A PEM file with the certificate to present to NATS
    #[arg(long, value_name = "FILE", help_heading = "NATS")]
    nats_certificate: Option<String>,
    /// A PEM file with the key of --nats-certificate
    #[arg(long, value_name = "FILE", help_heading = "NATS")]
    nats_key: Option<String>,
    /// Most messages handed to the broker at once
    #[arg(long, value_name = "MESSAGES", help_heading = "Pace")]
    batch: Option<String>,
    /// Most messages on the wire at once
    #[arg(long, value_name = "MESSAGES", help_heading = "Pace")]
    max_on_wire: Option<String>,
    /// Most messages read and not yet recorded: what a crash may repeat
    #[arg(long, value_name = "MESSAGES", help_heading = "Pace")]
    max_unrecorded: Option<String>,
    /// Most bytes of payloads in memory, about
    #[arg(long, value_name = "BYTES", help_heading = "Pace")]
    max_bytes: Option<String>,
    /// How often progress is recorded: a crash repeats what was confirmed since
    #[arg(long, value_name = "DURATION", help_heading = "Pace")]
    record_interval: Option<String>,
    /// Longest pause between looks at an idle log
    #[arg(long, value_name = "DURATION", help_heading = "Pace")]
    poll_ceiling: Option<String>,
    /// Listen for services whose doorbell rings, and look less often; takes a direct connection of its own
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        help_heading = "Pace")]
    doorbell: Option<String>,
    /// Longest pause between looks at an idle log while the doorbell is heard
    #[arg(long, value_name = "DURATION", help_heading = "Pace")]
    doorbell_ceiling: Option<String>,
    /// How long the broker may take for a batch before its outcome counts as unknown
    #[arg(long, value_name = "DURATION", help_heading = "Failure")]
    publish_timeout: Option<String>,
    /// How long a process may be silent before another takes its shards
    #[arg(long, value_name = "DURATION", help_heading = "Failure")]
    lease: Option<String>,
    /// How long delivered messages stay in the log, at least until it comes round to their place
    #[arg(long, value_name = "DURATION", help_heading = "Pace")]
    retention: Option<String>,
    /// How long a stop waits for what is on the wire; shorter than your supervisor's patience
    #[arg(long, value_name = "DURATION", help_heading = "Failure")]
    drain: Option<String>,
    /// Attempts at a message that the broker rejects before its key is parked
    #[arg(long, value_name = "NUMBER", help_heading = "Failure")]
    retry_max_attempts: Option<String>,
    /// The first wait between such attempts; it doubles
    #[arg(long, value_name = "DURATION", help_heading = "Failure")]
    retry_first: Option<String>,
    /// The longest wait between such attempts
    #[arg(long, value_name = "DURATION", help_heading = "Failure")]
    retry_ceiling: Option<String>,
    /// The first wait while the broker is unavailable; it doubles
    #[arg(long, value_name = "DURATION", help_heading = "Failure")]
    unavailable_first: Option<String>,
    /// The longest wait while the broker is unavailable
    #[arg(long, value_name = "DURATION", help_heading = "Failure")]
    unavailable_ceiling: Option<String>,
    /// What is logged: info, debug, or directives like outbox=debug,warn
    #[arg(long, value_name = "DIRECTIVES", help_heading = "Log")]
    log: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT", help_heading = "Log")]
    log_format: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  outbox relay --broker file:- | jq .type
  outbox relay --broker nats://nats:4222 --nats-stream SHOP --nats-subjects 'shop.>' --route '>=shop.{topic}'
  outbox relay --config /etc/outbox/relay.toml

A configuration file. Each setting is also a flag and a variable: retry.first is --retry-first and OUTBOX_RETRY_FIRST.
A flag beats the environment, the environment beats the file. Durations are a whole number and a unit: 250ms, 30s, 5m, 2h.
  # database = \"postgres://...\"   better in DATABASE_URL, or only readable by the relay
  relay = \"default\"
  broker = \"nats://nats:4222\"
  start = \"beginning\"
  lease = \"10s\"
  [retry]
  max_attempts = 10
  first = \"200ms\"
  [nats]
  stream = \"SHOP\"
  [[route]]
  topic = \"orders.>\"
  destination = \"shop.{topic}\"
  [[policy]]
  topic = \"metrics.>\"
  policy = \"skip\"

Where a relay begins counts only when it is new. At a position or a time it passes over what is committed and stands before
it; a transaction that is still open then is published when it commits. A policy of skip gives up the order of the key, for
the message that is given up; `outbox audit` lists them.

SIGTERM and SIGINT finish what is on the wire, record it and hand over; a second signal ends the process at once, and
what was on the wire may be published again. SIGHUP ends it at once too.

A broker that is down is waited for: the first failure is logged at once, with its address and cause, the next ones more
and more seldom. A broker that does not let the relay in, or that the relay does not trust, ends the start.

Exit codes: 0 stopped when asked; 1 refused to run, or the broker refused it; 2 wrong usage or configuration; 3 at the
start, the database cannot be reached, or database or broker does not let us in; 4 the schema is missing or does not fit
this build.";

impl Args {
    /// The whole configuration: file, environment, flags.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        let topics = TopicFlags { routes: &self.route, policies: &self.policy };
        Config::of_process(self.config.as_deref(), &self.given(), topics)
    }

    fn given(&self) -> [(&'static str, Option<&str>); 33] {
        [
            ("database", self.database.as_deref()),
            ("databases", self.databases.as_deref()),
            ("connections", self.connections.as_deref()),
            ("relay", self.relay.as_deref()),
            ("broker", self.broker.as_deref()),
            ("start", self.start.as_deref()),
            ("shards", self.shards.as_deref()),
            ("nats.stream", self.nats_stream.as_deref()),
            ("nats.subjects", self.nats_subjects.as_deref()),
            ("batch", self.batch.as_deref()),
            ("max_on_wire", self.max_on_wire.as_deref()),
            ("max_unrecorded", self.max_unrecorded.as_deref()),
            ("max_bytes", self.max_bytes.as_deref()),
            ("record_interval", self.record_interval.as_deref()),
            ("poll_ceiling", self.poll_ceiling.as_deref()),
            ("doorbell", self.doorbell.as_deref()),
            ("doorbell_ceiling", self.doorbell_ceiling.as_deref()),
            ("publish_timeout", self.publish_timeout.as_deref()),
            ("lease", self.lease.as_deref()),
            ("retention", self.retention.as_deref()),
            ("drain", self.drain.as_deref()),
            ("retry.max_attempts", self.retry_max_attempts.as_deref()),
            ("retry.first", self.retry_first.as_deref()),
            ("retry.ceiling", self.retry_ceiling.as_deref()),
            ("unavailable.first", self.unavailable_first.as_deref()),
            ("unavailable.ceiling", self.unavailable_ceiling.as_deref()),
            ("nats.credentials", self.nats_credentials.as_deref()),
            ("nats.nkey", self.nats_nkey.as_deref()),
            ("nats.ca", self.nats_ca.as_deref()),
            ("nats.certificate", self.nats_certificate.as_deref()),
            ("nats.key", self.nats_key.as_deref()),
            ("log", self.log.as_deref()),
            ("log_format", self.log_format.as_deref()),
        ]
    }
}
