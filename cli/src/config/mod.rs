//! What a relay is to do: from a file, the environment and flags, checked as a whole before anything is tried.

mod broker;
mod file;
mod layers;
mod nats;
mod settings;
mod topics;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outbox::Settings;
use outbox::log::Start;

pub(crate) use self::broker::{Broker, FORMS};
use self::layers::Layer;
pub(crate) use self::nats::{NatsAccess, NatsStream};
pub(crate) use self::topics::TopicFlags;
use self::topics::Topics;
use crate::duration::show;
use crate::exit::Failure;
use crate::moment;
use crate::secret::SecretUrl;
use crate::text_file;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Everything `outbox relay` needs.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) databases: Databases,
    pub(crate) relay: String,
    pub(crate) broker: Broker,
    pub(crate) nats_stream: Option<NatsStream>,
    pub(crate) nats_access: NatsAccess,
    /// The library's defaults where nothing was given.
    pub(crate) settings: Settings,
    pub(crate) log: Option<String>,
    pub(crate) log_format: LogFormat,
}

/// Whose outbox it relays.
#[derive(Debug, Clone)]
pub(crate) enum Databases {
    One(SecretUrl),
    /// Several, within a budget of connections.
    Many(Vec<SecretUrl>, usize),
}

impl fmt::Display for Databases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Databases::One(url) => write!(f, "database {url}"),
            Databases::Many(urls, connections) => {
                write!(f, "{} databases over at most {connections} connections", urls.len())
            }
        }
    }
}

/// The variable that names the file.
const CONFIG: &str = "OUTBOX_CONFIG";

/// The relay's name when none is given.
const RELAY: &str = "default";

/// Connections of a relay to several databases, together.
const CONNECTIONS: usize = 40;
/// Longest file of databases: some ten thousand.
const DATABASES_BYTES: usize = 4 << 20;

/// Shortest time that a timer is worth setting for.
const TICK: Duration = Duration::from_millis(1);
/// Shortest lease: less than the pause of a busy machine would pass shards around for nothing.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

impl Config {
    /// The configuration of this process, from the file that the argument or else a variable names, its environment, and
    /// flags.
    pub(crate) fn of_process(
        path: Option<&Path>,
        flags: &[(&'static str, Option<&str>)],
        topic_flags: TopicFlags<'_>,
    ) -> Result<Self, Failure> {
        let named = file_of_process(path)?;
        Config::read(named.as_deref(), variables_of_process(), flags, topic_flags)
    }

    /// The database alone, as [`of_process`](Self::of_process) has it, for what needs no broker.
    pub(crate) fn databases_of_process(
        path: Option<&Path>,
        flags: &[(&'static str, Option<&str>)],
    ) -> Result<Databases, Failure> {
        let named = file_of_process(path)?;
        let (layer, _) = layers(named.as_deref(), variables_of_process(), flags)?;
        databases(&layer)?.ok_or_else(no_database)
    }

    /// Reads the file, then the environment, then the flags, each on top of the one before.
    pub(crate) fn read(
        path: Option<&Path>,
        variables: impl Iterator<Item = (String, String)>,
        flags: &[(&'static str, Option<&str>)],
        topic_flags: TopicFlags<'_>,
    ) -> Result<Self, Failure> {
        let (layer, topics) = layers(path, variables, flags)?;
        Config::from_layer(&layer, &topics.under(topic_flags)?)
    }

    fn from_layer(layer: &Layer, topics: &Topics) -> Result<Self, Failure> {
        let databases = databases(layer)?.ok_or_else(no_database)?;
        let broker = layer.url("broker")?.ok_or_else(|| {
            Failure::usage(format!("no broker: --broker, OUTBOX_BROKER, or `broker` in the file: {FORMS}"))
        })?;
        let name = "a name of a-z 0-9 . _ -, beginning with a letter or digit, at most 63 characters";
        let config = Config {
            databases,
            relay: layer.text("relay", name, relay_name)?.unwrap_or_else(|| RELAY.to_owned()),
            broker: Broker::parse(&broker)?,
            nats_stream: nats::stream(layer)?,
            nats_access: nats::access(layer)?,
            settings: settings(layer, topics)?,
            log: layer.text("log", "log directives like info or outbox=debug,warn", log_directives)?,
            log_format: layer
                .text("log_format", "text or json", |text| match text {
                    "text" => Some(LogFormat::Text),
                    "json" => Some(LogFormat::Json),
                    _ => None,
                })?
                .unwrap_or_default(),
        };
        if !matches!(config.broker, Broker::Nats(_)) {
            if config.nats_stream.is_some() {
                return Err(Failure::usage("nats.stream is given, and the broker is not NATS"));
            }
            if config.nats_access != NatsAccess::default() {
                return Err(Failure::usage(
                    "nats.credentials, nkey, ca, certificate or key is given, and the broker is not NATS",
                ));
            }
        }
        if config.settings.doorbell && matches!(config.databases, Databases::Many(..)) {
            return Err(Failure::usage(
                "doorbell and databases are both given: a relay of many databases listens to none",
            ));
        }
        Ok(config)
    }
}

/// One database, or the file that names several.
fn databases(layer: &Layer) -> Result<Option<Databases>, Failure> {
    let connections = layer.count("connections", 4..=100_000)?;
    let Some(path) = layer.text("databases", "a file", |path| Some(path.to_owned()))? else {
        if connections.is_some() {
            return Err(Failure::usage(
                "connections is given without databases: one database needs no budget",
            ));
        }
        return Ok(layer.url("database")?.map(Databases::One));
    };
    if layer.get("database").is_some() {
        return Err(Failure::usage("database (or DATABASE_URL) and databases are both given: one of them"));
    }
    let text = text_file::read(path.as_ref(), DATABASES_BYTES)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let urls: Vec<SecretUrl> = lines.map(SecretUrl::new).collect();
    if urls.is_empty() {
        return Err(Failure::usage(format!("{path}: names no database")));
    }
    Ok(Some(Databases::Many(urls, connections.map_or(CONNECTIONS, |connections| connections as usize))))
}

fn no_database() -> Failure {
    Failure::usage("no database: set DATABASE_URL, or `database` in the file, or --database @FILE")
}

fn file_of_process(path: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    match path {
        Some(path) => Ok(Some(path.to_owned())),
        None => Ok(crate::database::variable(CONFIG)?.map(PathBuf::from)),
    }
}

/// A variable that is not UTF-8 is none of ours.
fn variables_of_process() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn layers(
    path: Option<&Path>,
    variables: impl Iterator<Item = (String, String)>,
    flags: &[(&'static str, Option<&str>)],
) -> Result<(Layer, Topics), Failure> {
    let (layer, topics) = match path {
        Some(path) => file::read(path)?,
        None => (Layer::default(), Topics::default()),
    };
    let layer =
        layer.under(Layer::from_environment(variables)?).under(Layer::from_flags(flags.iter().copied()));
    Ok((layer, topics))
}

/// The relay's own settings, and what must hold between them.
fn settings(layer: &Layer, topics: &Topics) -> Result<Settings, Failure> {
    let mut settings = Settings::default();
    settings.routes = topics.routes()?;
    settings.policies = topics.policies()?;
    let wanted = format!("beginning, now, position:NUMBER, or {}", moment::GRAMMAR);
    let start = layer.text("start", &wanted, start)?;
    set(&mut settings.start, start);
    set(&mut settings.shards, layer.count("shards", 1..=1024)?.map(|shards| shards as i16));
    for (key, most, field) in [
        ("batch", 10_000, &mut settings.batch),
        ("max_on_wire", 1_000_000, &mut settings.max_on_wire),
        ("max_unrecorded", 1_000_000, &mut settings.max_unrecorded),
        ("max_bytes", u32::MAX, &mut settings.max_bytes),
    ] {
        set(field, layer.count(key, 1..=most)?.map(|number| number as usize));
    }
    set(&mut settings.doorbell, layer.switch("doorbell")?);
    set(&mut settings.max_attempts, layer.count("retry.max_attempts", 1..=1_000_000)?);
    for (key, least, field) in [
        ("record_interval", TICK, &mut settings.record_interval),
        ("poll_ceiling", TICK, &mut settings.read.poll_ceiling),
        ("doorbell_ceiling", TICK, &mut settings.read.doorbell_ceiling),
        ("publish_timeout", TICK, &mut settings.publish_timeout),
        ("lease", SHORTEST_LEASE, &mut settings.lease),
        ("retention", Duration::ZERO, &mut settings.retention),
        ("drain", Duration::ZERO, &mut settings.drain),
        ("retry.first", TICK, &mut settings.retry.first),
        ("retry.ceiling", TICK, &mut settings.retry.ceiling),
        ("unavailable.first", TICK, &mut settings.unavailable.first),
        ("unavailable.ceiling", TICK, &mut settings.unavailable.ceiling),
    ] {
        set(field, layer.duration(key, least)?);
    }
    bounds(&settings)?;
    Ok(settings)
}

fn start(text: &str) -> Option<Start> {
    match (text, text.strip_prefix("position:")) {
        ("beginning", _) => Some(Start::Beginning),
        ("now", _) => Some(Start::Now),
        // `parse` alone would take "+5".
        (_, Some(position)) if position.bytes().all(|byte| byte.is_ascii_digit()) => {
            position.parse().ok().filter(|position| *position > 0).map(Start::AtPosition)
        }
        (text, _) => moment::parse(text).map(Start::AtTime),
    }
}

fn set<T>(field: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *field = given;
    }
}

/// What would make the settings contradict each other; both sides are printed, since one may be a default.
fn bounds(settings: &Settings) -> Result<(), Failure> {
    let Settings { batch, max_on_wire, max_unrecorded, retry, unavailable, lease, record_interval, .. } =
        settings;
    let refuse = |larger: &str, large: String, sign: &str, smaller: &str, small: String, why: &str| {
        Err(Failure::usage(format!("{larger} ({large}) must {sign} {smaller} ({small}): {why}")))
    };
    for (larger, large, smaller, small, why) in [
        ("max_on_wire", max_on_wire, "batch", batch, "a batch is on the wire as a whole"),
        (
            "max_unrecorded",
            max_unrecorded,
            "max_on_wire",
            max_on_wire,
            "what is on the wire is not recorded yet",
        ),
    ] {
        if large < small {
            return refuse(larger, large.to_string(), "be at least", smaller, small.to_string(), why);
        }
    }
    for (larger, large, smaller, small) in [
        ("retry.ceiling", retry.ceiling, "retry.first", retry.first),
        ("unavailable.ceiling", unavailable.ceiling, "unavailable.first", unavailable.first),
    ] {
        if large < small {
            return refuse(
                larger,
                show(large),
                "be at least",
                smaller,
                show(small),
                "waits grow up to the ceiling",
            );
        }
    }
    // Three: one record may fail and be written again before anybody else takes the shards.
    if *lease < *record_interval * 3 {
        let why = "progress must be recorded while the shards are still this process's";
        return refuse(
            "lease",
            show(*lease),
            "be at least three times",
            "record_interval",
            show(*record_interval),
            why,
        );
    }
    Ok(())
}

fn relay_name(text: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let valid = (1..=63).contains(&text.len())
        && text.bytes().next().is_some_and(plain)
        && text.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-'));
    valid.then(|| text.to_owned())
}

fn log_directives(text: &str) -> Option<String> {
    tracing_subscriber::EnvFilter::try_new(text).ok().map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flags: &[(&'static str, Option<&str>)], routes: &[&str]) -> Result<Config, String> {
        let environment =
            [("DATABASE_URL", "postgres://app:m4rker@db/orders"), ("OUTBOX_BROKER", "nats://m4rker@n")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let routes: Vec<String> = routes.iter().map(|route| route.to_string()).collect();
        let topics = TopicFlags { routes: &routes, ..TopicFlags::default() };
        Config::read(None, environment.into_iter(), flags, topics).map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_is_not_given_is_left_to_the_library() {
        let config = read(&[], &[]).unwrap();
        assert_eq!((config.relay.as_str(), config.settings.batch), ("default", Settings::default().batch));
        assert!(
            matches!(config.databases, Databases::One(url) if url.expose() == "postgres://app:m4rker@db/orders")
        );
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", read(&[], &[]).unwrap()).contains("m4rker"));
    }

    #[test]
    fn a_start_is_a_word_a_position_or_a_moment() {
        let moment = moment::parse("2026-01-31T12:00:00Z").unwrap();
        for (text, expected) in [
            ("beginning", Some(Start::Beginning)),
            ("now", Some(Start::Now)),
            ("position:812", Some(Start::AtPosition(812))),
            ("2026-01-31T12:00:00Z", Some(Start::AtTime(moment))),
            ("position:", None),
            ("position:0", None),
            ("position:+5", None),
            ("position:99999999999999999999", None),
            ("812", None),
        ] {
            assert_eq!(start(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_as_it_must_be_is_named() {
        for (flags, routes, expected) in [
            (("relay", "Default"), "", "--relay: must be a name of a-z 0-9"),
            (("start", "yesterday"), "", "--start: must be beginning, now, position:NUMBER, or"),
            (("log", "outbox=loud"), "", "--log: must be log directives"),
            (("log_format", "xml"), "", "--log-format: must be text or json"),
            (("broker", "nats://user:m4rker@n"), "", "--broker: the URL holds a password"),
            (("broker", "kafka://n"), "", "broker kafka://n: must be file:/PATH"),
            (("nats.subjects", "a"), "", "nats.subjects are given without nats.stream"),
            (("nats.stream", "a.b"), "", "--nats-stream: must be a stream's name"),
            (
                ("nats.nkey", "SUAM4RKERM4RKERM4RKERM4RKERM4RKERM4RKERM4RKERM4RKERM4RKER4"),
                "",
                "--nats-nkey: must be a file",
            ),
            (("nats.certificate", "c.pem"), "", "nats.certificate and nats.key belong together"),
            (("doorbell", "yes"), "", "--doorbell: must be true or false"),
            (("lease", "10ms"), "", "--lease: must be a whole number and a unit"),
            (("batch", "0"), "", "--batch: must be a whole number from 1 to 10000"),
            (("relay", "a"), "orders", "--route: must be PATTERN=DESTINATION"),
            (("relay", "a"), "a..b=x", "--route: route pattern: words"),
            (("relay", "a"), "a={key}", "--route: route destination: text"),
        ] {
            let routes: &[&str] = if routes.is_empty() { &[] } else { &[routes] };
            let fault = read(&[(flags.0, Some(flags.1))], routes).map(drop).unwrap_err();
            assert!(fault.starts_with(expected), "{fault}");
            assert!(!fault.to_lowercase().contains("m4rker"), "{fault}");
        }
    }

    #[test]
    fn an_inequality_that_does_not_hold_is_printed_with_both_sides() {
        for (flag, value, expected) in [
            ("batch", "5000", "max_on_wire (4000) must be at least batch (5000): a batch"),
            ("max_unrecorded", "100", "max_unrecorded (100) must be at least max_on_wire (4000): what"),
            (
                "record_interval",
                "5s",
                "lease (10s) must be at least three times record_interval (5s): progress",
            ),
            ("retry.first", "1h", "retry.ceiling (5m) must be at least retry.first (1h): waits"),
            (
                "unavailable.ceiling",
                "1ms",
                "unavailable.ceiling (1ms) must be at least unavailable.first (50ms)",
            ),
        ] {
            let fault = read(&[(flag, Some(value))], &[]).map(drop).unwrap_err();
            assert!(fault.starts_with(expected), "{fault}");
        }
    }
}
