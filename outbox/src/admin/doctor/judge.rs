//! What the facts mean, and what to do about each. No I/O.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Facts, Finding, Old, Severity, ago, lasting};
use crate::admin::RelayStatus;
use crate::log::Refusal;
use crate::replay::ReplayStatus;

/// The oldest server whose transaction ids and snapshots can be read.
const SERVER: i32 = 140_000;
/// Leaves of the log's ring.
const LEAVES: i64 = 16;

fn unsafe_(name: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { name, severity: Severity::Unsafe, what: what.into(), remedy: remedy.into() }
}

fn hurts(name: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { name, severity: Severity::Hurts, what: what.into(), remedy: remedy.into() }
}

/// What a relay would refuse, in its words. What the facts tell better is left to them.
pub(super) fn refusal(refusal: &Refusal) -> Option<Finding> {
    let (name, remedy) = match refusal {
        Refusal::HiddenRows | Refusal::CachedPositions | Refusal::Unlogged => return None,
        Refusal::Replica => ("replica", "point it at the primary, and fail over by its name"),
        Refusal::OtherEncoding => ("encoding", "restore it into a database made with: encoding 'UTF8'"),
        Refusal::OtherCluster => {
            ("other_cluster", "before any service that writes is started: outbox repair")
        }
        Refusal::IdsBehind => ("ids_behind", "before any service that writes is started: outbox repair"),
        Refusal::PositionsBehind => {
            ("positions_behind", "before any service that writes is started: outbox repair")
        }
        _ => ("refused", "outbox relay --check, and its first lines of log"),
    };
    Some(unsafe_(name, refusal.to_string(), remedy))
}

/// What the catalog and the settings tell.
pub(super) fn facts(facts: &Facts) -> Vec<Finding> {
    [safety(facts), consequences(facts)].concat()
}

fn safety(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if facts.server_version < SERVER {
        found.push(unsafe_(
            "server_version",
            format!(
                "PostgreSQL {}: transaction ids are read wrongly before 14",
                facts.server_version / 10_000
            ),
            "upgrade to 14 or newer",
        ));
    }
    if !facts.fsync {
        found.push(unsafe_(
            "fsync",
            "fsync is off: a crash of the machine loses committed messages, or the database",
            "alter system set fsync = on; select pg_reload_conf()",
        ));
    }
    if !facts.full_page_writes {
        found.push(unsafe_(
            "full_page_writes",
            "full_page_writes is off: a crash of the machine can tear pages",
            "alter system set full_page_writes = on; select pg_reload_conf()",
        ));
    }
    if !facts.hidden.is_empty() {
        found.push(unsafe_(
            "row_level_security",
            format!("row-level security hides rows without an error: {}", facts.hidden.join(", ")),
            "alter table … disable row level security, for each",
        ));
    }
    if !facts.unlogged.is_empty() {
        found.push(unsafe_(
            "unlogged",
            format!("a crash of the server empties unlogged tables: {}", facts.unlogged.join(", ")),
            "alter table … set logged, for each",
        ));
    }
    if facts.sequence_cache != 1 || facts.sequence_increment != 1 {
        found.push(unsafe_(
            "sequence_cache",
            format!(
                "positions are not drawn in order: the sequence has a cache of {} and steps of {}",
                facts.sequence_cache, facts.sequence_increment
            ),
            "alter sequence outbox.message_position_seq cache 1 increment 1",
        ));
    }
    if facts.leaves != LEAVES {
        found.push(unsafe_(
            "leaves",
            format!("the log has {} leaves instead of {LEAVES}: what falls on a missing one fails", facts.leaves),
            "attach what was detached: alter table outbox.message attach partition outbox.message_N for values in (N)",
        ));
    }
    if !facts.triggers_before.is_empty() || !facts.rules.is_empty() {
        found.push(unsafe_(
            "triggers",
            format!(
                "what runs before a message is written can change or drop it: {}",
                [&*facts.triggers_before, &*facts.rules].concat().join(", ")
            ),
            "have the service that writes do what they do, and drop them then",
        ));
    }
    if !facts.held_rules.is_empty() {
        found.push(unsafe_(
            "held_rules",
            format!(
                "a relay stops where its held keys or their copies are refused or changed: {}",
                facts.held_rules.join(", ")
            ),
            "drop them: what a message may be, the service that enqueues it decides",
        ));
    }
    found
}

fn consequences(facts: &Facts) -> Vec<Finding> {
    let mut found: Vec<Finding> = [clocks(facts), search_path(facts)].into_iter().flatten().collect();
    if !facts.triggers_after.is_empty() {
        found.push(hurts(
            "triggers_after",
            format!(
                "each message pays for a trigger in its business transaction: {}",
                facts.triggers_after.join(", ")
            ),
            "have the consumer of the message do what they do, and drop them then",
        ));
    }
    if facts.synchronous_commit == "off" || !facts.lazy_roles.is_empty() {
        let roles =
            if facts.lazy_roles.is_empty() { "this role".to_owned() } else { facts.lazy_roles.join(", ") };
        found.push(hurts(
            "synchronous_commit",
            format!(
                "synchronous_commit is off by default for {roles}: a crash loses commits that were answered"
            ),
            "alter database or role … set synchronous_commit = on; off only in transactions that may be lost",
        ));
    }
    if !facts.autovacuum {
        found.push(hurts(
            "autovacuum",
            "autovacuum is off: cursors grow with every record, and transaction ids run out",
            "alter system set autovacuum = on; select pg_reload_conf()",
        ));
    }
    if !facts.missing_roles.is_empty() {
        found.push(hurts(
            "roles",
            format!(
                "who works here has more rights than it needs: no role {}",
                facts.missing_roles.join(", ")
            ),
            "read the head of outbox migrate --roles, run it as a superuser, and grant the roles in the same transaction: who has none is locked out",
        ));
    } else if !facts.without_rights.is_empty() {
        found.push(hurts(
            "rights",
            format!("the roles were not given their rights on: {}", facts.without_rights.join(", ")),
            "after each migration: outbox migrate --roles | psql …",
        ));
    }
    if !facts.sees_others {
        found.push(hurts(
            "unseen",
            "this role does not see the transactions of others: an old one may hold the cluster back",
            "grant pg_read_all_stats to whoever runs the doctor",
        ));
    }
    found
}

fn clocks(facts: &Facts) -> Option<Finding> {
    let difference = facts.clock_difference?;
    let side = if difference < TimeDelta::zero() { "behind" } else { "ahead of" };
    Some(hurts(
        "clocks_differ",
        format!(
            "the database's clock is {} s {side} this machine's: a process that sees such a difference moves no scheduled \
             message into the log, empties no leaf for its age, and removes no row of an inbox",
            difference.num_seconds().abs()
        ),
        "set the clock that is wrong",
    ))
}

/// Paths in which what others create is found before what PostgreSQL has.
fn search_path(facts: &Facts) -> Option<Finding> {
    let session = Some(("this role's sessions", &*facts.path));
    let set = facts.paths.iter().map(|(role, path)| (role.as_str(), path.as_str()));
    let mut paths: Vec<(&str, &str)> = set.filter(|(_, path)| is_behind(path)).collect();
    if paths.is_empty() {
        paths.extend(session.filter(|(_, path)| is_behind(path)));
    }
    let paths: Vec<String> = paths.iter().map(|(role, path)| format!("of {role}: {path}")).collect();
    (!paths.is_empty()).then(|| {
        hurts(
            "search_path",
            format!(
                "pg_catalog is not the first schema of a search path ({}): who may create functions in a schema before it \
                 decides what a statement of that role does",
                paths.join("; ")
            ),
            "alter role or database … set search_path without pg_catalog, which is searched first then, or reset it",
        )
    })
}

/// Whether a search path names `pg_catalog` behind another schema. One that does not name it has it first, and `pg_temp`
/// holds nothing of others.
fn is_behind(path: &str) -> bool {
    let schemas = path.split(',').map(|schema| schema.trim().trim_matches('"').to_ascii_lowercase());
    let others: Vec<String> = schemas.filter(|schema| schema != "pg_temp").collect();
    others.iter().position(|schema| schema == "pg_catalog").is_some_and(|place| place > 0)
}

/// What holds the cluster back.
pub(super) fn holder(old: &Old) -> Finding {
    let Old { kind, name, seconds, detail } = old;
    let time = lasting(seconds.unwrap_or_default());
    match kind.as_str() {
        "prepared" => hurts(
            "prepared_transaction",
            format!(
                "prepared transaction {name} ({detail}) waits for {time}: what it wrote waits, and nothing is vacuumed"
            ),
            format!(
                "the transaction manager that prepared it knows whether to commit: have it finish. By hand, `commit prepared \
                 '{name}'` keeps what it wrote and `rollback prepared` discards it"
            ),
        ),
        "slot" => hurts(
            "slot",
            format!(
                "nobody reads replication slot {name} ({detail}): the WAL is kept for it, and perhaps dead rows"
            ),
            "start its reader. Without the slot the reader misses what was written since: drop it only if the reader is gone",
        ),
        _ => hurts(
            "old_transaction",
            format!(
                "process {name} ({detail}) is in a transaction since {time}: nothing is vacuumed meanwhile"
            ),
            format!(
                "have its program commit or end it; select pg_terminate_backend({name}) would roll back what it has done"
            ),
        ),
    }
}

/// Held messages, and bytes of theirs, from which on it is worth a word.
const MANY_HELD: i64 = 100_000;
const MUCH_HELD: i64 = 1 << 30;

/// What counts as long, and the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ages {
    pub(super) old: Duration,
    pub(super) abandoned: Duration,
    pub(super) now: DateTime<Utc>,
}

impl Ages {
    /// Whether what has no process since then may not be needed any more.
    fn is_abandoned(self, since: Option<DateTime<Utc>>) -> bool {
        since.is_some_and(|since| (self.now - since).as_seconds_f64() >= self.abandoned.as_secs_f64())
    }
}

/// What is wrong with the relays. Following a remedy at any moment loses nothing: what gives messages up is named only
/// where nothing has run for long, and is a dry run by itself.
pub(super) fn relays(relays: &[RelayStatus], last_position: i64, ages: Ages) -> Vec<Finding> {
    let Ages { old, now, .. } = ages;
    let mut found = Vec::new();
    if relays.is_empty() && last_position > 0 {
        found.push(hurts(
            "no_relay",
            format!("no relay has run here, and services have written: {last_position} positions are drawn"),
            "outbox relay --broker …; in a database that is the broker, a consumer",
        ));
    }
    let waiting = relays.iter().map(|relay| relay.pending).min().unwrap_or_default();
    if relays.iter().all(|relay| relay.state == "retired") && waiting > 0 {
        found.push(hurts(
            "all_retired",
            format!("every relay here is retired: {waiting} messages wait, and no relay publishes them"),
            "run a relay under another name. It begins with the oldest message of the log, so that none is left out; \
             consumers see again what was published before",
        ));
    }
    for relay in relays {
        found.extend(split(relay));
        let (name, waits) = (&relay.relay, relay.pending > 0);
        let backlog = format!("{} messages wait, the oldest for {}", relay.pending, ago(relay.oldest, now));
        match relay.state.as_str() {
            "running" if relay.processes == 0 && relay.waiting > 0 => found.push(hurts(
                "waiting_relay",
                format!(
                    "relay {name} waits for its broker ({}): {backlog}",
                    relay.waiting_for.as_deref().unwrap_or("it does not answer")
                ),
                "is the broker there, and is this its address?",
            )),
            "running" if relay.processes == 0 && (waits || !relay.pins.is_empty()) => found.push(hurts(
                "unattended_relay",
                format!(
                    "no process has run {} for {}: {backlog}, {}",
                    named(relay),
                    ago(relay.unattended_since, now),
                    kept(relay)
                ),
                start(relay, ages),
            )),
            "running" if relay.lag_seconds > old.as_secs_f64() && waits => found.push(hurts(
                "lagging_relay",
                format!("relay {name} is behind: {backlog}"),
                "the logs of its processes say why: is its broker slow or down?",
            )),
            "paused" if waits => found.push(hurts(
                "paused_relay",
                format!("relay {name} is paused: {backlog}, {}", kept(relay)),
                format!(
                    "outbox audit --relay {name} says who paused it, and why; outbox relays resume {name} has it go on"
                ),
            )),
            _ => {}
        }
        if relay.held_messages >= MANY_HELD || relay.held_bytes >= MUCH_HELD {
            found.push(hurts(
                "many_held",
                format!(
                    "relay {name} holds {} messages, {} MiB, beside the log: {}",
                    relay.held_messages,
                    relay.held_bytes >> 20,
                    waits_for(relay)
                ),
                format!("outbox status; outbox parked list --all --relay {name}; mend what they wait for"),
            ));
        }
        // A retired relay tries none of those that it holds.
        let (parked, messages) = match &*relay.state {
            "retired" => (relay.parked + relay.retrying, relay.held_messages),
            _ => (relay.parked, relay.parked_messages),
        };
        if parked > 0 {
            found.push(hurts(
                "parked_keys",
                format!("relay {name} has parked {parked} keys; {messages} messages wait for a person"),
                if relay.state == "retired" {
                    format!(
                        "outbox parked --relay {name} lists them; it is retired and tries none. outbox replay publishes those \
                         that the log still has; of the others the table outbox.held_message has the last copy"
                    )
                } else {
                    format!("outbox parked --relay {name} says why; mend the cause, and redrive them")
                },
            ));
        }
    }
    found
}

/// Its name, and what its processes have published to.
fn named(relay: &RelayStatus) -> String {
    let kind = if relay.is_group { "group" } else { "relay" };
    match &relay.destination {
        Some(destination) => format!("{kind} {} ({destination})", relay.relay),
        None => format!("{kind} {}", relay.relay),
    }
}

/// How a relay that should run goes on.
fn start(relay: &RelayStatus, ages: Ages) -> String {
    let name = &relay.relay;
    let start = if relay.is_group {
        format!("start a consumer of group {name}")
    } else {
        format!("start a process of relay {name}, with the broker and the routes that it had")
    };
    if !ages.is_abandoned(relay.unattended_since) {
        return start;
    }
    format!(
        "{start}; if it is not needed any more, outbox relays retire {name} says what giving it up would lose"
    )
}

/// Processes of one relay that publish to different places.
fn split(relay: &RelayStatus) -> Option<Finding> {
    if relay.split.is_empty() || relay.state == "retired" {
        return None;
    }
    Some(unsafe_(
        "split_relay",
        format!(
            "processes of {} {} differ in what they publish to, and each gets a part of the log: {}",
            if relay.is_group { "group" } else { "relay" },
            relay.relay,
            relay.split.join("; ")
        ),
        "stop those that are wrong; for two destinations run two relays with names of their own",
    ))
}

/// What its held keys wait for.
fn waits_for(relay: &RelayStatus) -> String {
    let waits: Vec<String> = relay
        .waits
        .iter()
        .take(5)
        .map(|wait| format!("{} keys wait for destination {}", wait.keys, wait.destination))
        .collect();
    match waits.is_empty() {
        true => format!("{} keys are retried, {} are parked", relay.retrying, relay.parked),
        false => waits.join(", "),
    }
}

/// What that costs.
fn kept(relay: &RelayStatus) -> String {
    match relay.pins.len() {
        0 => "and the log keeps them".to_owned(),
        leaves => format!("and {leaves} of {LEAVES} leaves of the log are kept for them"),
    }
}

/// A replay that nobody works at.
pub(super) fn replay(replay: &ReplayStatus, abandoned: Duration, now: DateTime<Utc>) -> Option<Finding> {
    let ReplayStatus { name, after, .. } = replay;
    let ages = Ages { old: abandoned, abandoned, now };
    (replay.state == "running" && !replay.working).then(|| {
        hurts(
            "unfinished_replay",
            format!("no process works at replay {name}: the log keeps everything after position {after} for it"),
            if ages.is_abandoned(Some(replay.recorded_at)) {
                format!(
                    "outbox replay {name} --execute goes on; if it is not needed any more, outbox replays cancel {name} says \
                     what giving it up would lose"
                )
            } else {
                format!("outbox replay {name} --execute goes on")
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Facts {
        Facts {
            server_version: 150_018,
            fsync: true,
            full_page_writes: true,
            synchronous_commit: "on".to_owned(),
            autovacuum: true,
            lazy_roles: Vec::new(),
            paths: vec![("deploy".to_owned(), "pg_catalog, public".to_owned())],
            path: "\"$user\", public".to_owned(),
            clock_difference: None,
            hidden: Vec::new(),
            unlogged: Vec::new(),
            leaves: 16,
            sequence_cache: 1,
            sequence_increment: 1,
            triggers_before: Vec::new(),
            triggers_after: Vec::new(),
            rules: Vec::new(),
            held_rules: Vec::new(),
            missing_roles: Vec::new(),
            without_rights: Vec::new(),
            sees_others: true,
            last_position: 0,
        }
    }

    /// A fact made wrong.
    type Fault = fn(&mut Facts);

    #[test]
    fn each_fact_that_is_wrong_is_found_by_its_name_and_no_other() {
        assert_eq!(facts(&sound()), []);
        let cases: [(Fault, &str, Severity); 20] = [
            (|f| f.server_version = 130_022, "server_version", Severity::Unsafe),
            (|f| f.fsync = false, "fsync", Severity::Unsafe),
            (|f| f.full_page_writes = false, "full_page_writes", Severity::Unsafe),
            (|f| f.hidden.push("it".to_owned()), "row_level_security", Severity::Unsafe),
            (|f| f.unlogged.push("it".to_owned()), "unlogged", Severity::Unsafe),
            (|f| f.sequence_cache = 32, "sequence_cache", Severity::Unsafe),
            (|f| f.sequence_increment = -1, "sequence_cache", Severity::Unsafe),
            (|f| f.leaves = 15, "leaves", Severity::Unsafe),
            (|f| f.triggers_before.push("it".to_owned()), "triggers", Severity::Unsafe),
            (|f| f.rules.push("it".to_owned()), "triggers", Severity::Unsafe),
            (|f| f.held_rules.push("it".to_owned()), "held_rules", Severity::Unsafe),
            (|f| f.triggers_after.push("it".to_owned()), "triggers_after", Severity::Hurts),
            (|f| f.synchronous_commit = "off".to_owned(), "synchronous_commit", Severity::Hurts),
            (|f| f.lazy_roles.push("it".to_owned()), "synchronous_commit", Severity::Hurts),
            (|f| f.paths[0].1 = "public, pg_catalog".to_owned(), "search_path", Severity::Hurts),
            (|f| f.path = "\"$user\", public, \"pg_catalog\"".to_owned(), "search_path", Severity::Hurts),
            (|f| f.clock_difference = Some(TimeDelta::hours(-2)), "clocks_differ", Severity::Hurts),
            (|f| f.autovacuum = false, "autovacuum", Severity::Hurts),
            (|f| f.missing_roles.push("it".to_owned()), "roles", Severity::Hurts),
            (|f| f.sees_others = false, "unseen", Severity::Hurts),
        ];
        for (fault, name, severity) in cases {
            let mut wrong = sound();
            fault(&mut wrong);
            let found = facts(&wrong);
            assert_eq!((found.len(), found[0].name, found[0].severity), (1, name, severity), "{found:?}");
            assert!(!found[0].remedy.is_empty());
        }
        let mut wrong = sound();
        wrong.without_rights.push("it".to_owned());
        assert_eq!(facts(&wrong)[0].name, "rights");
    }

    #[test]
    fn a_path_is_dangerous_only_if_another_schema_comes_before_pg_catalog() {
        for path in ["", "public", "pg_catalog", "pg_catalog, public", "pg_temp, pg_catalog, public"] {
            assert!(!is_behind(path), "{path}");
        }
        for path in ["public, pg_catalog", "\"$user\",pg_catalog", "pg_temp, public, pg_catalog, app"] {
            assert!(is_behind(path), "{path}");
        }
    }

    #[test]
    fn a_relay_is_named_for_what_waits_for_it() {
        let relay = |state: &str, processes: i64, pending: i64, lag_seconds: f64| RelayStatus {
            relay: "default".to_owned(),
            state: state.to_owned(),
            pending,
            oldest: None,
            lag_seconds,
            processes,
            shards: 16,
            owned_shards: 16,
            retrying: 1,
            parked: 0,
            set_aside: 0,
            waits: Vec::new(),
            parked_messages: 0,
            held_messages: 3,
            held_bytes: 30,
            pins: Vec::new(),
            unattended_since: None,
            waiting: 0,
            waiting_for: None,
            is_group: false,
            destination: None,
            split: Vec::new(),
        };
        let minute = Duration::from_secs(60);
        let ages = Ages { old: minute, abandoned: minute, now: DateTime::UNIX_EPOCH };
        let names = |relay: RelayStatus| {
            let found = relays(&[relay], 9, ages);
            found.iter().map(|finding| finding.name).collect::<Vec<_>>()
        };
        let split = RelayStatus { split: vec!["pid 1: a".to_owned()], ..relay("running", 1, 0, 0.0) };
        assert_eq!(names(split), ["split_relay"]);
        assert_eq!(names(relay("running", 0, 5, 1.0)), ["unattended_relay"]);
        assert_eq!(names(relay("running", 1, 5, 61.0)), ["lagging_relay"]);
        assert_eq!(names(relay("paused", 0, 5, 1.0)), ["paused_relay"]);
        assert_eq!(names(relay("retired", 0, 5, 1.0)), ["all_retired", "parked_keys"]);
        assert_eq!(names(relay("retired", 0, 0, 0.0)), ["parked_keys"]);
        for fine in [relay("running", 1, 5, 1.0), relay("running", 0, 0, 0.0), relay("paused", 0, 0, 0.0)] {
            assert_eq!(names(fine), [""; 0]);
        }
        let with = |change: fn(&mut RelayStatus)| {
            let mut holding = relay("running", 1, 0, 0.0);
            change(&mut holding);
            names(holding)
        };
        assert_eq!(with(|relay| relay.held_messages = MANY_HELD - 1), [""; 0]);
        assert_eq!(with(|relay| relay.held_messages = MANY_HELD), ["many_held"]);
        assert_eq!(with(|relay| relay.held_bytes = MUCH_HELD), ["many_held"]);
        assert_eq!(relays(&[], 0, ages), []);
        assert_eq!(relays(&[], 9, ages)[0].name, "no_relay");
        let both = [relay("retired", 0, 5, 1.0), relay("running", 1, 5, 1.0)];
        assert!(relays(&both, 9, ages).iter().all(|finding| finding.name != "all_retired"));
    }
}
