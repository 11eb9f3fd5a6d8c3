//! `outbox parked`: what relays and consumers hold back, and what a person decides about it.

mod held;
mod list;

use outbox::admin::AdminError;
use serde::Serialize;
use sqlx::postgres::{PgConnection, PgPool};
use uuid::Uuid;

use self::held::{Held, Holder};
use crate::exit::Failure;
use crate::output::{self, Format};
use crate::secret::SecretUrl;
use crate::who::{self, Who};
use crate::{database, schema};

/// List, redrive or skip what is parked
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: list::List,
}

const EXAMPLES: &str = "\
Examples:
  outbox parked                                        everything parked, by relays and by consumers
  outbox parked list --consumer payment --all          also what is still retried
  outbox parked redrive --relay default --position 812
  outbox parked redrive --consumer payment --every     every parked key of that consumer
  outbox parked skip --consumer payment --message 0192f0c1-7e1a-7b5e-8a2b-3f1d5c6e7a90 --reason 'paid by hand'
                                                       gives up that message; the next of its key is tried
  outbox parked redrive --consumer payment --key order-7 --late --through 23
                                                       admits what is past the horizon, up to number 23

A key that fails its last attempt is parked: its messages wait, in order, and other keys go on. Redrive tries them
again, in order, with as many attempts as if they were new. Skip gives up the first message of a key for that relay
or consumer: that is a decision for a person, and it cannot be undone. It names the message, as the list shows it: if
another one is the first meanwhile, nothing is changed. Both are written down with who decided and why: `outbox audit`. Nobody can change a message: publish another one, or skip this one.

Exit codes: 0 done; 1 nothing of that name is held, or the database refused; 2 wrong usage; 3 the database cannot be
reached; 4 the schema is missing or does not fit this build.";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List what is parked (also without any word)
    List(list::List),
    /// Try a held key again, now and as if it were new
    Redrive(Redrive),
    /// Give up a message, the first of a held key; the next one is tried
    Skip(Skip),
}

#[derive(Debug, clap::Args)]
struct Redrive {
    #[command(flatten)]
    choice: Choice,
    /// Every parked key of the relay or consumer
    #[arg(long, conflicts_with_all = ["key", "position", "hold"])]
    every: bool,
    /// Admit messages that are past the inbox's horizon: you know that they were not handled, the inbox does not
    #[arg(long, requires_all = ["consumer", "through"], conflicts_with = "every")]
    late: bool,
    /// Up to the message of this number, the last that you have seen; what came later is refused as before
    #[arg(long, value_name = "NUMBER", requires = "late")]
    through: Option<i64>,
    #[command(flatten)]
    who: Who,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Skip {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    who: Who,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT", required = true)]
    reason: String,
}

/// The message that a person has looked at.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The message
    #[arg(long, value_name = "ID")]
    message: Option<Uuid>,
    /// A relay's message, by its position: for one without an id
    #[arg(long, value_name = "POSITION", conflicts_with = "consumer")]
    position: Option<i64>,
    /// A consumer's message, by its number: for one without an id
    #[arg(long, value_name = "NUMBER", conflicts_with = "relay")]
    number: Option<i64>,
}

/// Whose.
#[derive(Debug, clap::Args)]
struct Place {
    /// A URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// Of this relay's
    #[arg(long, value_name = "NAME", required_unless_present = "consumer", conflicts_with = "consumer")]
    relay: Option<String>,
    /// Of this consumer's
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

/// Whose held key, and which.
#[derive(Debug, clap::Args)]
struct Choice {
    #[command(flatten)]
    place: Place,
    /// The key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// A relay's hold, by the position of its first message
    #[arg(long, value_name = "POSITION", conflicts_with_all = ["key", "consumer"])]
    position: Option<i64>,
    /// A consumer's hold, by its number
    #[arg(long, value_name = "HOLD", conflicts_with_all = ["key", "relay"])]
    hold: Option<i64>,
}

/// What was done, for a script.
#[derive(Serialize)]
struct Done {
    #[serde(skip_serializing_if = "Option::is_none")]
    redriven: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<Option<Uuid>>,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    match args.command.unwrap_or(Command::List(args.list)) {
        Command::List(list) => list::run(list).await,
        Command::Redrive(redrive) => run_redrive(redrive).await,
        Command::Skip(skip) => run_skip(skip).await,
    }
}

async fn run_redrive(
    Redrive { choice, every, late: _, through, who, reason }: Redrive,
) -> Result<(), Failure> {
    if !every {
        choice.names_a_key(", or --every")?;
    }
    let (who, reason) = (&*who.name()?, who::reason(reason.as_deref())?);
    let (pool, url) = choice.place.open().await?;
    let mut connection = pool.acquire().await.map_err(|error| failed(&url, &error))?;
    let holder = choice.place.holder();
    let redriven = match (every, &holder) {
        (true, Holder::Consumer(name)) => {
            inbox::admin::redrive_all(&mut connection, name, who, reason).await.map_err(AdminError::from)
        }
        (true, Holder::Relay(name)) => redrive_every(&pool, name, who, reason).await,
        (false, holder) => {
            let number = choice.number(&pool, &mut connection, holder, &url).await?;
            let done = match (holder, through) {
                (Holder::Relay(name), _) => outbox::admin::redrive(&pool, name, number, who, reason).await,
                (Holder::Consumer(name), Some(through)) => {
                    let admitted =
                        inbox::admin::admit_late(&mut connection, name, number, through, who, reason).await;
                    admitted.map_err(AdminError::from)
                }
                (Holder::Consumer(name), None) => {
                    let redriven = inbox::admin::redrive(&mut connection, name, number, who, reason).await;
                    redriven.map_err(AdminError::from)
                }
            };
            done.map(u64::from)
        }
    };
    let redriven = redriven.map_err(|error| undecided(&url, &error))?;
    if redriven == 0 && !every {
        return Err(not_held(&holder));
    }
    if redriven == 0 {
        holder.must_exist(&pool, &mut connection, &url).await?;
    }
    let keys = if redriven == 1 { "key is" } else { "keys are" };
    report(
        choice.place.output,
        &Done { redriven: Some(redriven), skipped: None },
        &format!("{redriven} held {keys} tried again by {holder}\n"),
    )
}

async fn redrive_every(
    pool: &PgPool,
    relay: &str,
    who: &str,
    reason: Option<&str>,
) -> Result<u64, AdminError> {
    let mut redriven = 0;
    for held in outbox::admin::held_keys(pool, relay).await?.iter().filter(|held| held.is_parked()) {
        redriven += u64::from(outbox::admin::redrive(pool, relay, held.position, who, reason).await?);
    }
    Ok(redriven)
}

async fn run_skip(Skip { place, which, who, reason }: Skip) -> Result<(), Failure> {
    let who = &*who.name()?;
    who::reason(Some(&reason))?;
    let (pool, url) = place.open().await?;
    let mut connection = pool.acquire().await.map_err(|error| failed(&url, &error))?;
    let holder = place.holder();
    let held = held::of(&pool, &mut connection, &holder).await.map_err(|error| failed(&url, &error))?;
    let (number, id) = which.first_of(&held).ok_or_else(|| not_first(&holder))??;
    let skipped = match &holder {
        Holder::Relay(name) => {
            let skipped = outbox::admin::skip(&pool, name, number, who, &reason).await;
            skipped.map_err(|error| undecided(&url, &error))?
        }
        Holder::Consumer(name) => {
            let skipped = inbox::admin::skip(&mut connection, name, number, who, &reason).await;
            skipped.map_err(|error| failed(&url, &error))?.is_some()
        }
    };
    if !skipped {
        return Err(not_first(&holder));
    }
    let name = id.map_or_else(|| "a message without identity".to_owned(), |id| format!("message {id}"));
    report(
        place.output,
        &Done { redriven: None, skipped: Some(id) },
        &format!("{name} is given up by {holder}; the next of its key is tried\n"),
    )
}

fn report(format: Format, done: &Done, text: &str) -> Result<(), Failure> {
    match format {
        Format::Json => output::print_json(done),
        Format::Text => output::print(text),
    }
}

fn failed(url: &SecretUrl, error: &sqlx::Error) -> Failure {
    database::failed(&format!("database {url}"), error)
}

fn undecided(url: &SecretUrl, error: &AdminError) -> Failure {
    database::undecided(&format!("database {url}"), error)
}

fn not_first(holder: &Holder) -> Failure {
    Failure::failed(format!(
        "{holder} holds no such message as the first of a key in the state that this asks for, or not any more, or a process of \
         the retired relay is still alive; nothing was changed; `outbox parked --all` lists them"
    ))
}

fn not_held(holder: &Holder) -> Failure {
    Failure::failed(format!(
        "{holder} holds no such key in the state that this asks for; `outbox parked --all` lists them"
    ))
}

impl Which {
    /// The number of the message, and its id, if it is the first of a held key.
    fn first_of(&self, held: &[Held]) -> Option<Result<(i64, Option<Uuid>), Failure>> {
        let wanted = |held: &&Held| match self.message {
            Some(id) => held.first_id == Some(id),
            None => held.first.is_some() && held.first == self.position.or(self.number),
        };
        let mut found = held.iter().filter(wanted).filter_map(|held| Some((held.first?, held.first_id)));
        let first = found.next()?;
        Some(match found.next() {
            None => Ok(first),
            // One id from two sources.
            Some(_) => Err(Failure::usage("two held messages have this id: give --position or --number")),
        })
    }
}

impl Place {
    fn holder(&self) -> Holder {
        match (&self.relay, &self.consumer) {
            (Some(relay), _) => Holder::Relay(relay.clone()),
            (None, consumer) => Holder::Consumer(consumer.clone().unwrap_or_default()),
        }
    }

    async fn open(&self) -> Result<(PgPool, SecretUrl), Failure> {
        let url = database::named(self.database.as_deref())?;
        let pool = database::pool(&url, "parked").await?;
        let mut connection = pool.acquire().await.map_err(|error| failed(&url, &error))?;
        schema::check(self.holder().schema(), &mut connection, &url).await?;
        drop(connection);
        Ok((pool, url))
    }
}

impl Choice {
    /// Redriving whatever happens to be held would be a trap.
    fn names_a_key(&self, or: &str) -> Result<(), Failure> {
        if self.key.is_some() || self.position.is_some() || self.hold.is_some() {
            return Ok(());
        }
        let number = if self.place.relay.is_some() { "--position" } else { "--hold" };
        Err(Failure::usage(format!("which key? Give --key or {number}{or}")))
    }

    /// The number of the hold, looked up by its key if that was given.
    async fn number(
        &self,
        pool: &PgPool,
        connection: &mut PgConnection,
        holder: &Holder,
        url: &SecretUrl,
    ) -> Result<i64, Failure> {
        if let Some(number) = self.position.or(self.hold) {
            return Ok(number);
        }
        let held = held::of(pool, connection, holder).await.map_err(|error| failed(url, &error))?;
        let number = held
            .into_iter()
            .find(|held| held.key.is_some() && held.key == self.key)
            .map(|Held { number, .. }| number);
        number.ok_or_else(|| not_held(holder))
    }
}
