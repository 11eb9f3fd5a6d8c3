//! `outbox doctor`: everything that makes a set-up unsafe or will hurt, by name, each with what to do.

mod inbox;
mod pooler;

use std::time::Duration;

use migrations::{Schema, SchemaError};
use outbox::admin::{Finding, Severity};
use outbox::log::{LogError, Refusal};
use serde::Serialize;
use sqlx::postgres::PgPool;

use crate::exit::{Failure, chain};
use crate::output::{self, Format, plain};
use crate::secret::SecretUrl;
use crate::{database, duration, schema};

/// Say what makes a set-up unsafe or will hurt, and what to do about it
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// A URL without a password, @FILE, or env:NAME: what your services and relays use [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// A transaction that lasts longer, or a relay that is further behind, is worth a word
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration::argument)]
    old: Duration,
    /// A relay or replay that no process has run for longer may be one that is not needed any more
    #[arg(long, value_name = "DURATION", default_value = duration::ABANDONED, value_parser = duration::argument)]
    abandoned: Duration,
    /// What hurts is a failure, too
    #[arg(long)]
    strict: bool,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

const EXAMPLES: &str = "\
Examples:
  outbox doctor
  outbox doctor --output json | jq -r '.findings[] | .name'
  outbox doctor --strict                before a release

unsafe: messages can be lost, reordered or hidden, or a relay refuses to run. hurts: it goes on, and will cost.

What is looked at: the schemas; read replica, encoding, row-level security, unlogged tables, the sequence of positions,
missing leaves, triggers and rules on the log and on its held keys, a restored or rewound cluster; fsync, full_page_writes,
synchronous_commit, search_path, autovacuum; a pooler that changes the server connection; old transactions, prepared transactions,
replication slots without a reader; roles and their rights; relays that nobody runs, that are paused or behind; parked
keys; kinds that no process of a consumer has handled for 7 days; replays that nobody finishes; clocks that differ, and
an inbox that refuses too much or removes too little. Nothing is written. To see the transactions of others takes
pg_read_all_stats.

Exit codes: 0 nothing is unsafe; 1 the database refused; 2 wrong usage; 3 the database cannot be reached; 5 something is
unsafe (with --strict: or hurts).";

/// What was found, for a script.
#[derive(Serialize)]
struct Report {
    safe: bool,
    findings: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    name: &'static str,
    severity: &'static str,
    what: String,
    remedy: String,
}

const SCHEMA: &str = "schema";
const ENCODING: &str = "encoding";
/// How long no process of a consumer handles a kind before that is worth a word.
const UNSEEN: Duration = Duration::from_hours(7 * 24);
const UNSAFE: &str = "unsafe";
const HURTS: &str = "hurts";

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let url = database::named(args.database.as_deref())?;
    let report = Report::new(examine(&url, args.old, args.abandoned).await?);
    match args.output {
        Format::Json => output::print_json(&report)?,
        Format::Text => output::print(&report.text())?,
    }
    let count = |severity| report.findings.iter().filter(|line| line.severity == severity).count();
    let (is_unsafe, hurts) = (count(UNSAFE), if args.strict { count(HURTS) } else { 0 });
    match is_unsafe + hurts {
        0 => Ok(()),
        found => Err(Failure::unsafe_set_up(format!(
            "database {url}: {found} of {} findings must be mended",
            report.findings.len()
        ))),
    }
}

async fn examine(url: &SecretUrl, old: Duration, abandoned: Duration) -> Result<Vec<Line>, Failure> {
    let failed = |error: sqlx::Error| database::failed(&format!("database {url}"), &error);
    let mut found: Vec<Line> = pooler::probe(url).await?.into_iter().collect();
    // Everything in transactions, and no statement with a name: behind a pooler one would be prepared here and run there,
    // or be somebody else's.
    let options = database::options(url, "doctor")?;
    let pool = outbox::pool_options().max_connections(2).connect_lazy_with(options);
    let outbox = look_at(Schema::Outbox, &pool, &mut found).await.map_err(failed)?;
    let inbox = look_at(Schema::Inbox, &pool, &mut found).await.map_err(failed)?;
    if outbox == Look::Unseen && inbox != Look::Fits {
        return Err(Failure::failed(format!(
            "database {url}: permission denied: this role may look at no schema; outbox_monitor may (outbox migrate --roles)"
        )));
    }
    if outbox == Look::Absent && found.iter().all(|line| line.name != SCHEMA) {
        found.push(Line::missing());
    }
    for (look, name) in [(outbox, schema::OUTBOX), (inbox, schema::INBOX)] {
        if look == Look::Unseen {
            found.push(Line::unseen(name));
        }
    }
    if outbox == Look::Fits {
        let examined = outbox::admin::examine(&pool, old, abandoned).await;
        let examined = examined.map_err(|error| match error {
            Refusal::Log(LogError::Database(error)) => {
                database::failed_for("outbox_monitor", &format!("database {url}"), &error)
            }
            error => Failure::failed(format!("database {url}: {}", chain(&error))),
        })?;
        found.extend(examined.into_iter().map(Line::from));
    }
    if inbox == Look::Fits {
        let failed = |error| database::failed_for("outbox_monitor", &format!("database {url}"), &error);
        // The outbox has said it of both.
        let told = found.iter().any(|line| line.name == inbox::CLOCKS);
        found.extend(
            consumers(&pool)
                .await
                .map_err(failed)?
                .into_iter()
                .filter(|line| !told || line.name != inbox::CLOCKS),
        );
        let encoded = encoding(&pool).await.map_err(failed)?;
        found.extend(encoded.filter(|_| found.iter().all(|line| line.name != ENCODING)));
    }
    Ok(found)
}

/// What was found of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Fits,
    /// It is missing, or does not fit.
    Absent,
    /// This role may not look at it.
    Unseen,
}

/// Whether a schema is there and fits. One that does not fit is a finding; the inbox may be missing. The transaction ends
/// with a schema that may not be looked at, so each has one of its own.
async fn look_at(schema: Schema, pool: &PgPool, found: &mut Vec<Line>) -> Result<Look, sqlx::Error> {
    let mut looking = pool.begin_with(database::BEGIN_READING).await?;
    let checked = schema.check(&mut looking).await;
    looking.rollback().await?;
    match checked {
        Ok(()) => Ok(Look::Fits),
        Err(SchemaError::Missing { .. }) => Ok(Look::Absent),
        Err(error) if schema::is_unseen(&error) => Ok(Look::Unseen),
        Err(SchemaError::Unreadable { source, .. }) => Err(source),
        Err(error) => {
            found.push(Line {
                name: SCHEMA,
                severity: UNSAFE,
                what: chain(&error),
                remedy: "migrate first, then roll out: outbox migrate".to_owned(),
            });
            Ok(Look::Absent)
        }
    }
}

/// What consumers have parked, and how far back they take messages.
async fn consumers(pool: &PgPool) -> Result<Vec<Line>, sqlx::Error> {
    let mut looking = pool.acquire().await?;
    let status = ::inbox::admin::status(&mut looking).await?;
    let kinds = ::inbox::admin::kinds(&mut looking, None).await?;
    let floor = ::inbox::admin::floor(&mut looking).await?;
    let ahead = ::inbox::admin::times_ahead(&mut looking).await?;
    let unhandled = kinds.iter().filter(|kind| kind.is_unhandled(UNSEEN)).map(|kind| Line {
        name: "unhandled_kind",
        severity: HURTS,
        what: match kind.unseen {
            Some(unseen) => format!(
                "no process of consumer {} has handled kind {} for {} days; {} messages of it are held",
                kind.consumer,
                kind.kind,
                unseen.as_secs() / 86_400,
                kind.messages
            ),
            None => format!(
                "no process of consumer {} handles kind {}; {} messages of it are held",
                kind.consumer, kind.kind, kind.messages
            ),
        },
        remedy: format!(
            "start a process that handles it, or give it up: outbox consumers forget-kind {} {} --reason …",
            kind.consumer, kind.kind
        ),
    });
    let parked = status.into_iter().filter(|consumer| consumer.parked > 0);
    let parked = parked.map(|consumer| Line {
        name: "parked_keys",
        severity: HURTS,
        what: format!(
            "consumer {} has parked {} keys; {} messages wait for a person",
            consumer.consumer, consumer.parked, consumer.parked_messages
        ),
        remedy: format!(
            "outbox parked --consumer {} says why; mend the cause, and redrive them",
            consumer.consumer
        ),
    });
    Ok(parked.chain(unhandled).chain(inbox::floor(&floor)).chain(inbox::times_ahead(ahead)).collect())
}

/// Whether the inbox cannot store every text of a message, also for services that only call `admit`.
async fn encoding(pool: &PgPool) -> Result<Option<Line>, sqlx::Error> {
    let encoding = ::inbox::admin::encoding(&mut *pool.acquire().await?).await?;
    Ok((encoding != "UTF8").then(|| Line {
        name: ENCODING,
        severity: UNSAFE,
        what: format!("the database's encoding is {encoding}, not UTF8: it cannot store what messages carry"),
        remedy: "restore it into a database made with: encoding 'UTF8'".to_owned(),
    }))
}

impl Line {
    fn unseen(schema: &str) -> Self {
        Line {
            name: "unseen_schema",
            severity: HURTS,
            what: format!("this role may not look at schema {schema}: what is wrong there is not said"),
            remedy: "run the doctor with the rights of outbox_monitor (outbox migrate --roles)".to_owned(),
        }
    }

    fn missing() -> Self {
        Line {
            name: SCHEMA,
            severity: UNSAFE,
            what: "there is no schema outbox: nothing can be enqueued".to_owned(),
            remedy: "outbox migrate, or the scripts that outbox migrate --print shows".to_owned(),
        }
    }
}

impl From<Finding> for Line {
    fn from(finding: Finding) -> Self {
        let severity = if finding.severity == Severity::Unsafe { UNSAFE } else { HURTS };
        Line { name: finding.name, severity, what: finding.what, remedy: finding.remedy }
    }
}

impl Report {
    /// The worst first.
    fn new(mut findings: Vec<Line>) -> Self {
        findings.sort_by_key(|line| line.severity == HURTS);
        Report { safe: findings.iter().all(|line| line.severity != UNSAFE), findings }
    }

    fn text(&self) -> String {
        if self.findings.is_empty() {
            return "nothing was found: the set-up is sound\n".to_owned();
        }
        let entry = |line: &Line| {
            format!(
                "{}  {}\n  {}\n  do: {}\n",
                line.severity,
                line.name,
                plain(&line.what),
                plain(&line.remedy)
            )
        };
        self.findings.iter().map(entry).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_stands_first_and_a_name_cannot_write_on_the_terminal() {
        let line = |severity, name, what: &str| Line {
            name,
            severity,
            what: what.to_owned(),
            remedy: "mend it".to_owned(),
        };
        let report = Report::new(vec![line(HURTS, "slot", "slot a\u{1b}[2J"), line(UNSAFE, "fsync", "off")]);
        assert!(!report.safe);
        let expected = r"unsafe  fsync
  off
  do: mend it

hurts  slot
  slot a\u{1b}[2J
  do: mend it
";
        assert_eq!(report.text(), expected);
        assert!(Report::new(vec![line(HURTS, "slot", "")]).safe);
    }
}
