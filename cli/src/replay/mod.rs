//! `outbox replay`: messages that the log still holds, published once more; and what that would be.

mod flags;

use std::convert::Infallible;

use chrono::{DateTime, SecondsFormat, Utc};
use migrations::Schema;
use outbox::log::Refusal;
use outbox::replay::{Filter, Found, Place, Preview, Replay, ReplayError, ReplaySettings, Replayed};
use serde::Serialize;
use sqlx::postgres::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) use self::flags::Args;
use crate::config::{Config, Databases, LogFormat, TopicFlags};
use crate::exit::{Failure, chain};
use crate::output::{self, Format, plain};
use crate::relay::publisher;
use crate::secret::SecretUrl;
use crate::signals::Signals;
use crate::{database, logging, schema, who};

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    if message::limits::operation(&args.name).is_err() {
        return Err(Failure::usage(
            "the replay's name: a-z 0-9 . _ -, beginning with a letter or digit, at most 63 characters",
        ));
    }
    let filter = args.which.filter()?;
    if args.execute { execute(&args, filter).await } else { tell(&args, filter).await }
}

impl Args {
    fn given(&self) -> [(&'static str, Option<&str>); 4] {
        [
            ("database", self.database.as_deref()),
            ("broker", self.broker.as_deref()),
            ("nats.stream", self.nats_stream.as_deref()),
            ("log", self.log.as_deref()),
        ]
    }
}

fn one(databases: Databases) -> Result<SecretUrl, Failure> {
    match databases {
        Databases::One(url) => Ok(url),
        Databases::Many(..) => Err(Failure::usage("a replay is of one database: give --database")),
    }
}

async fn open(url: &SecretUrl, connections: u32) -> Result<PgPool, Failure> {
    let mut connection = database::connect(url, "replay").await?;
    schema::check(Schema::Outbox, &mut connection, url).await?;
    let options = database::options(url, "replay")?;
    Ok(outbox::pool_options().max_connections(connections).connect_lazy_with(options))
}

/// Says what would be published.
async fn tell(args: &Args, filter: Option<Filter>) -> Result<(), Failure> {
    let flags = [("database", args.database.as_deref())];
    let url = one(Config::databases_of_process(args.config.as_deref(), &flags)?)?;
    let pool = open(&url, 1).await?;
    let preview = outbox::replay::preview(&pool, &args.name, filter.as_ref()).await;
    let preview = preview.map_err(|error| failure(error, &args.name, &url))?;
    match args.output {
        Format::Json => output::print_json(&document(&args.name, &preview)),
        Format::Text => output::print(&text(&args.name, &preview)),
    }
}

/// Publishes.
async fn execute(args: &Args, filter: Option<Filter>) -> Result<(), Failure> {
    let (who, reason) = (args.who.name()?, who::reason(args.reason.as_deref())?);
    if let Some(template) = &args.destination {
        // Before anything is tried.
        let checked = outbox::Routes::default().with(">", template);
        checked.map_err(|error| Failure::usage(format!("--destination: {error}")))?;
    }
    let config = Config::of_process(args.config.as_deref(), &args.given(), TopicFlags::default())?;
    let url = one(config.databases.clone())?;
    logging::start(config.log.as_deref(), LogFormat::Text)?;
    let stop = CancellationToken::new();
    let mut watch: JoinSet<Infallible> = JoinSet::new();
    watch.spawn(Signals::catch()?.watch(stop.clone()));
    let pool = open(&url, 3).await?;
    let publisher = publisher::of(&config, &stop).await?;

    let mut replay = Replay::new(&args.name, pool, publisher, who).with_settings(settings(args, &config));
    if let Some(filter) = filter {
        replay = replay.with_filter(filter);
    }
    if let Some(template) = &args.destination {
        replay = replay.with_destination(template).map_err(Failure::usage)?;
    }
    if let Some(reason) = reason {
        replay = replay.with_reason(reason);
    }
    let done = replay.run(stop).await.map_err(|error| failure(error, &args.name, &url))?;
    let Replayed { published, skipped, after, finished, already, .. } = done;
    if !finished {
        return Err(Failure::failed(format!(
            "replay {}: stopped after position {after}, {published} published: the same command goes on",
            args.name
        )));
    }
    match args.output {
        Format::Json => {
            output::print_json(&Report { replay: &args.name, published, skipped, finished, already })
        }
        Format::Text if already => output::print(&format!(
            "replay {}: was finished before, with {published} published and {skipped} given up; nothing was published now: \
             take another name to publish them once more\n",
            args.name
        )),
        Format::Text => output::print(&format!(
            "replay {}: finished, {published} published, {skipped} given up\n",
            args.name
        )),
    }
}

fn settings(args: &Args, config: &Config) -> ReplaySettings {
    let mut settings = ReplaySettings::default();
    settings.routes = config.settings.routes.clone();
    settings.rate = args.rate;
    settings.skip_rejected = args.skip_rejected;
    settings.batch = config.settings.batch;
    settings.publish_timeout = config.settings.publish_timeout;
    settings.lease = config.settings.lease;
    settings.unavailable = config.settings.unavailable;
    settings
}

#[derive(Serialize)]
struct Report<'a> {
    replay: &'a str,
    published: i64,
    skipped: i64,
    finished: bool,
    /// It was finished before: nothing was published now.
    already: bool,
}

/// What would be published, for a script.
#[derive(Serialize)]
struct Document<'a> {
    replay: &'a str,
    /// `new`, `running`, `finished` or `cancelled`.
    state: &'static str,
    messages: i64,
    topics: &'a std::collections::BTreeMap<String, i64>,
    first: Option<End>,
    last: Option<End>,
}

#[derive(Serialize)]
struct End {
    position: i64,
    id: Uuid,
    enqueued_at: DateTime<Utc>,
}

impl From<Place> for End {
    fn from(place: Place) -> Self {
        End { position: place.position, id: place.id.into(), enqueued_at: place.enqueued_at }
    }
}

fn document<'a>(name: &'a str, preview: &'a Preview) -> Document<'a> {
    let state = match preview.found {
        Found::Running(_) => "running",
        Found::Finished(_) => "finished",
        Found::Cancelled => "cancelled",
        _ => "new",
    };
    let end = |last: bool| preview.ends.map(|(first, end)| End::from(if last { end } else { first }));
    Document {
        replay: name,
        state,
        messages: preview.messages,
        topics: &preview.topics,
        first: end(false),
        last: end(true),
    }
}

fn text(name: &str, preview: &Preview) -> String {
    let messages = |count: i64| if count == 1 { "1 message".to_owned() } else { format!("{count} messages") };
    let mut text = match preview.found {
        Found::Finished(Replayed { published, skipped, .. }) => {
            return format!(
                "replay {name} is finished: {} published, {skipped} given up\n",
                messages(published)
            );
        }
        Found::Cancelled => return format!("replay {name} was cancelled: take another name\n"),
        Found::Running(Replayed { after, published, .. }) => format!(
            "replay {name} stands after position {after}, with {} published. It would go on with {}\n",
            messages(published),
            messages(preview.messages)
        ),
        _ => format!("replay {name} would publish {}\n", messages(preview.messages)),
    };
    if !preview.topics.is_empty() {
        let rows: Vec<Vec<String>> =
            preview.topics.iter().map(|(topic, count)| vec![topic.clone(), count.to_string()]).collect();
        text.push('\n');
        text.push_str(&output::table(&["topic", "messages"], &rows));
    }
    if let Some((first, last)) = preview.ends {
        text.push('\n');
        for (name, place) in [("first", first), ("last", last)] {
            let at = place.enqueued_at.to_rfc3339_opts(SecondsFormat::Millis, true);
            text.push_str(&format!("{name}: position {}, {}, enqueued {at}\n", place.position, place.id));
        }
    }
    text.push_str("\nNothing was published and nothing was written: --execute does it.\n");
    text
}

fn failure(error: ReplayError, name: &str, url: &SecretUrl) -> Failure {
    let doing = format!("replay {} of database {url}", plain(name));
    match error {
        ReplayError::Refused(Refusal::Schema(error)) => schema::failure(error).within(doing),
        ReplayError::NotBegun => Failure::usage(format!(
            "{doing}: it has not begun, and which messages? Give --topic, --since or another filter, or --all"
        )),
        ReplayError::Rejected { .. } => Failure::failed(format!(
            "{doing}: {}; mend the cause and run it again (--skip-rejected would give up every message that is \
                 rejected)",
            chain(&error)
        )),
        ReplayError::Database(error) => match error.as_database_error().and_then(|error| error.code()) {
            Some(code) if code == "42501" => database::failed(
                &format!("{doing} (it takes outbox_operator, and with --execute outbox_relay, too)"),
                &error,
            ),
            _ => database::failed(&doing, &error),
        },
        error => Failure::failed(format!("{doing}: {}", chain(&error))),
    }
}
