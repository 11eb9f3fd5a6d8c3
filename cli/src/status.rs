//! `outbox status`: how far behind each relay is, who works for it, and what relays and consumers hold back.

use std::time::Duration;

use chrono::{DateTime, Utc};
use inbox::admin::ConsumerStatus;
use outbox::admin::RelayStatus;
use serde::Serialize;

use crate::duration::{self, passed, seconds};
use crate::exit::Failure;
use crate::output::{self, Format, plain};
use crate::schema::{INBOX, OUTBOX};
use crate::{database, schema};

/// Show how far behind each relay is, and what relays and consumers hold back
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// A URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// A relay that no process has run for longer may be one that is not needed any more
    #[arg(long, value_name = "DURATION", default_value = duration::ABANDONED, value_parser = duration::argument)]
    abandoned: Duration,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

const EXAMPLES: &str = "\
Examples:
  outbox status
  outbox status --output json | jq -e 'any(.relays[]; .state != \"retired\") and all(.relays[]; .parked == 0 and (.state == \"retired\" or .lag_seconds < 60))'

state: stopped is a relay, or a consumer group, that should run and has no living process.
pending: messages committed and not recorded as published, without those held back. lag: the age of the oldest of
them. shards: how many have a living owner; fewer than all for longer than a lease means that no process runs. A process that
waits for its broker at its start is named below the table (json: waiting, waiting_for).
scheduled: messages that are not due yet, counted up to 10,000.
A destination that takes nothing now is named, with the keys that wait for it.
retrying and parked count keys; held counts the messages behind them. `outbox parked` lists them.

Exit codes: 0 printed; 1 the database refused; 2 wrong usage; 3 the database cannot be reached; 4 the schema is
missing or does not fit this build.";

#[derive(Serialize)]
struct Status {
    relays: Vec<Relay>,
    scheduled: Scheduled,
    consumers: Vec<Consumer>,
    /// Schemas that are there and that this role may not look at.
    unseen: Vec<&'static str>,
}

#[derive(Clone, Serialize)]
struct Relay {
    relay: String,
    state: String,
    pending: i64,
    lag_seconds: f64,
    oldest: Option<DateTime<Utc>>,
    retrying: i64,
    parked: i64,
    held: i64,
    held_bytes: i64,
    set_aside: i64,
    waits: Vec<Wait>,
    processes: i64,
    waiting: i64,
    waiting_for: Option<String>,
    shards: i16,
    owned_shards: i64,
    pins: Vec<i64>,
    unattended_since: Option<DateTime<Utc>>,
    /// A consumer group of this log.
    is_group: bool,
    /// What its processes publish to, or have published to.
    destination: Option<String>,
    /// Where living processes publish to, if that differs.
    split: Vec<String>,
}

/// A destination that keys wait for.
#[derive(Clone, Serialize)]
struct Wait {
    destination: String,
    keys: i64,
    since: DateTime<Utc>,
    error: String,
}

/// Up to 10,000 are counted; `more`: there are more.
#[derive(Clone, Copy, Default, Serialize)]
struct Scheduled {
    waiting: i64,
    more: bool,
    next_due: Option<DateTime<Utc>>,
}

#[derive(Serialize)]
struct Consumer {
    consumer: String,
    started_at: Option<DateTime<Utc>>,
    retrying: i64,
    parked: i64,
    held: i64,
    oldest_held_at: Option<DateTime<Utc>>,
    processes: i64,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let url = database::named(args.database.as_deref())?;
    let pool = database::pool(&url, "status").await?;
    let failed =
        |error: sqlx::Error| database::failed_for("outbox_monitor", &format!("database {url}"), &error);
    let mut connection = pool.acquire().await.map_err(failed)?;
    let present = schema::visible(&mut connection, &url).await?;
    let mut status = Status {
        relays: Vec::new(),
        scheduled: Scheduled::default(),
        consumers: Vec::new(),
        unseen: present.unseen.clone(),
    };
    if present.outbox {
        let relays = outbox::admin::status(&pool).await.map_err(failed)?;
        status.relays = relays.into_iter().map(Relay::from).collect();
        let outbox::admin::Scheduled { waiting, more, next_due, .. } =
            outbox::admin::scheduled(&pool).await.map_err(failed)?;
        status.scheduled = Scheduled { waiting, more, next_due };
    }
    if present.inbox {
        let consumers = inbox::admin::status(&mut connection).await.map_err(failed)?;
        status.consumers = consumers.into_iter().map(Consumer::from).collect();
    }
    match args.output {
        Format::Json => output::print_json(&status),
        Format::Text => output::print(&text(&status, args.abandoned, Utc::now())),
    }
}

fn text(status: &Status, abandoned: Duration, now: DateTime<Utc>) -> String {
    let mut text = String::new();
    if status.unseen.contains(&OUTBOX) {
        text.push_str(&schema::unseen(OUTBOX));
    } else if status.relays.is_empty() {
        text.push_str("no relay has run here: what is enqueued waits for one (outbox relay; in a database that is the broker, a consumer)\n");
    } else {
        let rows: Vec<Vec<String>> = status.relays.iter().map(Relay::cells).collect();
        let head = ["relay", "state", "pending", "lag", "retrying", "parked", "held", "processes", "shards"];
        text.push_str(&output::table(&head, &rows));
        text.extend(status.relays.iter().filter_map(Relay::waits_for_broker));
        text.extend(status.relays.iter().flat_map(|relay| relay.waits_for_destinations(now)));
        text.extend(status.relays.iter().filter_map(Relay::differs));
        text.extend(status.relays.iter().filter_map(|relay| relay.abandoned(abandoned, now)));
    }
    text.extend(status.scheduled.line(now));
    text.push('\n');
    if status.unseen.contains(&INBOX) {
        text.push_str(&schema::unseen(INBOX));
    } else if status.consumers.is_empty() {
        text.push_str("no consumer has run here\n");
    } else {
        let rows: Vec<Vec<String>> = status.consumers.iter().map(|consumer| consumer.cells(now)).collect();
        text.push_str(&output::table(
            &["consumer", "started", "processes", "retrying", "parked", "held", "oldest"],
            &rows,
        ));
    }
    text
}

impl Scheduled {
    fn line(&self, now: DateTime<Utc>) -> Option<String> {
        let next = self.next_due?;
        let plus = if self.more { "+" } else { "" };
        let due = if next > now {
            format!("the next is due in {}", passed(next - now))
        } else {
            format!("the first was due {} ago: run a relay to have it published", passed(now - next))
        };
        Some(format!("scheduled: {}{plus} messages; {due}\n", self.waiting))
    }
}

impl Relay {
    fn cells(&self) -> Vec<String> {
        let lag = seconds(self.lag_seconds);
        vec![
            self.relay.clone(),
            self.state.clone(),
            self.pending.to_string(),
            passed(lag),
            self.retrying.to_string(),
            self.parked.to_string(),
            self.held.to_string(),
            self.processes.to_string(),
            format!("{} of {}", self.owned_shards, self.shards),
        ]
    }
}

impl Relay {
    /// What to say of a relay of which processes wait for their broker before they take part.
    fn waits_for_broker(&self) -> Option<String> {
        let reason = self.waiting_for.as_deref().filter(|_| self.waiting > 0)?;
        let (relay, waiting) = (&self.relay, self.waiting);
        Some(format!("relay {relay}: processes that wait for their broker: {waiting} ({reason})\n"))
    }

    /// What its held keys wait for, if it is not a time or a person.
    fn waits_for_destinations(&self, now: DateTime<Utc>) -> Vec<String> {
        let mut lines: Vec<String> = self
            .waits
            .iter()
            .map(|wait| {
                format!(
                    "relay {}: {} keys wait for destination {}, for {}: {}\n",
                    self.relay,
                    wait.keys,
                    plain(&wait.destination),
                    passed(now - wait.since),
                    plain(&wait.error),
                )
            })
            .collect();
        if self.set_aside > 0 {
            lines.push(format!(
                "relay {}: {} keys are set aside: the backlog of each took more than half of what the relay reads ahead\n",
                self.relay, self.set_aside
            ));
        }
        lines
    }

    fn kind(&self) -> &'static str {
        if self.is_group { "group" } else { "relay" }
    }

    /// What to say of a relay whose processes publish to different places.
    fn differs(&self) -> Option<String> {
        let (first, rest) = self.split.split_first()?;
        let more: String = rest.iter().map(|process| format!("; {}", plain(process))).collect();
        let (kind, name) = (self.kind(), plain(&self.relay));
        Some(format!(
            "processes of {kind} {name} differ in what they publish to, and each gets a part of the log: {}{more}\n",
            plain(first)
        ))
    }

    /// What to say of a relay that no process has run for long and that keeps leaves of the log from being emptied. What it
    /// advises loses nothing: to retire is a dry run by itself.
    fn abandoned(&self, abandoned: Duration, now: DateTime<Utc>) -> Option<String> {
        let since = self.unattended_since.filter(|_| !self.pins.is_empty())?;
        if (now - since).to_std().unwrap_or_default() < abandoned {
            return None;
        }
        let name = plain(&self.relay);
        let attend = if self.state == "paused" {
            format!(
                "outbox audit --relay {name} says who paused it, and why; outbox relays resume {name} has it go on"
            )
        } else {
            format!(
                "start a process of it; if it is not needed any more, outbox relays retire {name} says what giving it up \
                 would lose"
            )
        };
        Some(format!(
            "{} {name} pins {} of the 16 leaves of the log, and no process has run it for {}: {attend}\n",
            self.kind(),
            self.pins.len(),
            passed(now - since),
        ))
    }
}

impl Consumer {
    fn cells(&self, now: DateTime<Utc>) -> Vec<String> {
        let age = |at: Option<DateTime<Utc>>| {
            at.map_or_else(|| "-".to_owned(), |at| format!("{} ago", passed(now - at)))
        };
        vec![
            self.consumer.clone(),
            age(self.started_at),
            self.processes.to_string(),
            self.retrying.to_string(),
            self.parked.to_string(),
            self.held.to_string(),
            age(self.oldest_held_at),
        ]
    }
}

impl From<RelayStatus> for Relay {
    fn from(status: RelayStatus) -> Self {
        Relay {
            state: output::state(&status),
            relay: status.relay,
            pending: status.pending,
            lag_seconds: status.lag_seconds,
            oldest: status.oldest,
            retrying: status.retrying,
            parked: status.parked,
            held: status.held_messages,
            held_bytes: status.held_bytes,
            set_aside: status.set_aside,
            waits: status.waits.into_iter().map(Wait::from).collect(),
            processes: status.processes,
            waiting: status.waiting,
            waiting_for: status.waiting_for,
            shards: status.shards,
            owned_shards: status.owned_shards,
            pins: status.pins,
            unattended_since: status.unattended_since,
            is_group: status.is_group,
            destination: status.destination,
            split: status.split,
        }
    }
}

impl From<outbox::admin::Wait> for Wait {
    fn from(wait: outbox::admin::Wait) -> Self {
        Wait { destination: wait.destination, keys: wait.keys, since: wait.since, error: wait.error }
    }
}

impl From<ConsumerStatus> for Consumer {
    fn from(status: ConsumerStatus) -> Self {
        Consumer {
            consumer: status.consumer,
            started_at: status.started_at,
            retrying: status.retrying,
            parked: status.parked,
            held: status.messages,
            oldest_held_at: status.oldest_held_at,
            processes: status.processes,
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn a_person_reads_two_tables() {
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let relay = Relay {
            relay: "default".to_owned(),
            state: "running".to_owned(),
            pending: 12,
            lag_seconds: 1.25,
            oldest: None,
            retrying: 0,
            parked: 1,
            held: 3,
            held_bytes: 300,
            set_aside: 0,
            waits: vec![Wait {
                destination: "shop.orders".to_owned(),
                keys: 2,
                since: now - TimeDelta::seconds(90),
                error: "no stream takes it".to_owned(),
            }],
            processes: 2,
            waiting: 0,
            waiting_for: None,
            shards: 16,
            owned_shards: 15,
            pins: vec![0, 1],
            unattended_since: None,
            is_group: false,
            destination: None,
            split: Vec::new(),
        };
        let abandoned = Relay {
            relay: "old".to_owned(),
            owned_shards: 0,
            processes: 0,
            set_aside: 1,
            waits: Vec::new(),
            state: "stopped".to_owned(),
            unattended_since: Some(now - TimeDelta::hours(26)),
            is_group: true,
            ..relay.clone()
        };
        let just_stopped = Relay {
            relay: "new".to_owned(),
            unattended_since: Some(now - TimeDelta::seconds(1)),
            set_aside: 0,
            ..abandoned.clone()
        };
        let split = Relay {
            relay: "two".to_owned(),
            waits: Vec::new(),
            split: vec!["pid 1: nats://a".to_owned(), "pid 2: nats://b\u{1b}[2J".to_owned()],
            ..relay.clone()
        };
        let waits = Relay {
            processes: 0,
            waiting: 1,
            waiting_for: Some("broker unavailable: refused".to_owned()),
            ..relay.clone()
        };
        assert_eq!(
            waits.waits_for_broker().unwrap(),
            "relay default: processes that wait for their broker: 1 (broker unavailable: refused)\n"
        );
        assert_eq!(relay.waits_for_broker(), None);
        let paused =
            Relay { relay: "held".to_owned(), state: "paused".to_owned(), set_aside: 0, ..abandoned.clone() };
        let consumer = Consumer {
            consumer: "stock".to_owned(),
            started_at: Some(now - TimeDelta::seconds(90)),
            retrying: 0,
            parked: 0,
            held: 0,
            oldest_held_at: None,
            processes: 1,
        };
        let expected = "\
relay    state    pending  lag   retrying  parked  held  processes  shards
default  running  12       1.2s  0         1       3     2          15 of 16
old      stopped  12       1.2s  0         1       3     0          0 of 16
held     paused   12       1.2s  0         1       3     0          0 of 16
new      stopped  12       1.2s  0         1       3     0          0 of 16
two      running  12       1.2s  0         1       3     2          15 of 16
relay default: 2 keys wait for destination shop.orders, for 1m30s: no stream takes it
relay old: 1 keys are set aside: the backlog of each took more than half of what the relay reads ahead
processes of relay two differ in what they publish to, and each gets a part of the log: pid 1: nats://a; pid 2: nats://b\\u{1b}[2J
group old pins 2 of the 16 leaves of the log, and no process has run it for 1d02h: start a process of it; if it is not needed any more, outbox relays retire old says what giving it up would lose
group held pins 2 of the 16 leaves of the log, and no process has run it for 1d02h: outbox audit --relay held says who paused it, and why; outbox relays resume held has it go on
scheduled: 10000+ messages; the next is due in 1m30s

consumer  started    processes  retrying  parked  held  oldest
stock     1m30s ago  1          0         0       0     -
";
        let scheduled =
            Scheduled { waiting: 10_000, more: true, next_due: Some(now + TimeDelta::seconds(90)) };
        let overdue = Scheduled { waiting: 1, more: false, ..scheduled };
        assert_eq!(
            overdue.line(now + TimeDelta::minutes(3)).unwrap(),
            "scheduled: 1 messages; the first was due 1m30s ago: run a relay to have it published\n"
        );
        assert_eq!(
            text(
                &Status {
                    relays: vec![relay, abandoned, paused, just_stopped, split],
                    scheduled,
                    consumers: vec![consumer],
                    unseen: Vec::new()
                },
                Duration::from_hours(24),
                now
            ),
            expected
        );
    }

    #[test]
    fn what_a_role_may_not_look_at_is_a_sentence_and_not_an_empty_table() {
        let status = Status {
            relays: Vec::new(),
            scheduled: Scheduled::default(),
            consumers: Vec::new(),
            unseen: vec![INBOX],
        };
        let text = text(&status, Duration::ZERO, Utc::now());
        assert!(text.contains("no relay has run here") && text.contains("schema inbox"), "{text}");
        assert!(text.contains("outbox_monitor") && !text.contains("no consumer has run here"), "{text}");
    }
}
