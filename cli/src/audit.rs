//! `outbox audit`: what was decided, by whom and why.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::exit::Failure;
use crate::output::{self, Format, plain};
use crate::{database, schema};

/// List what people, and relays in their name, have decided
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// A URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// Only about this relay
    #[arg(long, value_name = "NAME", conflicts_with = "consumer")]
    relay: Option<String>,
    /// Only about this consumer
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// At most so many, the latest
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    limit: i64,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

const EXAMPLES: &str = "\
Examples:
  outbox audit
  outbox audit --relay default --output json | jq '.[] | select(.action == \"skip\") | .message_id'

Redrives and skips, of relays and of consumers; what a relay skipped because its topic's policy says so; relays paused,
resumed and retired; kinds of consumers that were forgotten; replays begun and cancelled, and what they skipped. Each was written in the transaction of what it tells. `who` is what somebody said (--by), `role`
the role of the database that did it.

Exit codes: 0 printed; 1 the database refused; 2 wrong usage; 3 the database cannot be reached; 4 the schema is
missing or does not fit this build.";

/// A decision about a relay or a consumer.
#[derive(Debug, Serialize)]
struct Entry {
    at: DateTime<Utc>,
    who: String,
    role: String,
    action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    relay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hold: Option<i64>,
    message_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    reason: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let url = database::named(args.database.as_deref())?;
    let pool = database::pool(&url, "audit").await?;
    let failed = |error: sqlx::Error| database::failed(&format!("database {url}"), &error);
    let mut connection = pool.acquire().await.map_err(failed)?;
    let present = schema::present(&mut connection, &url).await?;
    let mut entries: Vec<Entry> = Vec::new();
    if present.outbox && args.consumer.is_none() {
        let found = outbox::admin::audit(&pool, args.relay.as_deref(), args.limit).await.map_err(failed)?;
        entries.extend(found.into_iter().map(Entry::from));
    }
    if present.inbox && args.relay.is_none() {
        let found = inbox::admin::audit(&mut connection, args.consumer.as_deref(), args.limit);
        entries.extend(found.await.map_err(failed)?.into_iter().map(Entry::from));
    }
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.at));
    entries.truncate(usize::try_from(args.limit).unwrap_or(usize::MAX));
    match args.output {
        Format::Json => output::print_json(&entries),
        Format::Text if entries.is_empty() => output::print("nothing was decided\n"),
        Format::Text => output::print(&entries.iter().map(Entry::text).collect::<String>()),
    }
}

impl Entry {
    /// Two lines: when, who, what; why.
    fn text(&self) -> String {
        let mut what = self.action.clone();
        for (name, value) in [
            ("relay", self.relay.clone()),
            ("replay", self.replay.clone()),
            ("consumer", self.consumer.clone()),
            ("position", self.position.map(|number| number.to_string())),
            ("hold", self.hold.map(|number| number.to_string())),
            ("message", self.message_id.map(|id| id.to_string())),
            ("kind", self.kind.clone()),
        ] {
            if let Some(value) = value {
                what.push_str(&format!(", {name} {value}"));
            }
        }
        format!(
            "{} UTC  {} (role {}): {}\n  {}\n",
            self.at.format("%Y-%m-%d %H:%M:%S"),
            plain(&self.who),
            plain(&self.role),
            plain(&what),
            self.reason.as_deref().map_or_else(|| "-".to_owned(), plain),
        )
    }
}

impl From<outbox::admin::AuditEntry> for Entry {
    fn from(entry: outbox::admin::AuditEntry) -> Self {
        Entry {
            at: entry.at,
            who: entry.who,
            role: entry.role,
            action: entry.action,
            relay: entry.relay,
            replay: entry.replay,
            position: entry.position,
            consumer: None,
            hold: None,
            message_id: entry.message_id,
            kind: None,
            reason: entry.reason,
        }
    }
}

impl From<inbox::admin::AuditEntry> for Entry {
    fn from(entry: inbox::admin::AuditEntry) -> Self {
        Entry {
            at: entry.at,
            who: entry.who,
            role: entry.role,
            action: entry.action,
            relay: None,
            replay: None,
            position: None,
            consumer: Some(entry.consumer),
            hold: entry.hold,
            message_id: entry.message_id,
            kind: entry.kind,
            reason: entry.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_cannot_write_on_the_terminal() {
        let entry = Entry {
            at: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
            who: "ada\n".to_owned(),
            role: "orders".to_owned(),
            action: "skip".to_owned(),
            relay: Some("default".to_owned()),
            replay: None,
            position: Some(812),
            consumer: None,
            hold: None,
            message_id: Some(Uuid::from_u128(7)),
            kind: None,
            reason: Some("gone\u{1b}[2J".to_owned()),
        };
        let expected = r"2023-11-14 22:13:20 UTC  ada\u{a} (role orders): skip, relay default, position 812, message 00000000-0000-0000-0000-000000000007
  gone\u{1b}[2J
";
        assert_eq!(entry.text(), expected);
    }
}
