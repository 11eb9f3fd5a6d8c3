//! `outbox parked list`: what is held back and why.

use super::held::{self, Held, Holder};
use crate::exit::Failure;
use crate::output::{self, Format, plain};
use crate::{database, schema};

/// What to list.
#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// A URL without a password, @FILE, or env:NAME [default: env:DATABASE_URL]
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// Only this relay's
    #[arg(long, value_name = "NAME", conflicts_with = "consumer")]
    relay: Option<String>,
    /// Only this consumer's
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// Also what is still retried
    #[arg(long)]
    all: bool,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

/// Runs the command.
pub(super) async fn run(args: List) -> Result<(), Failure> {
    let url = database::named(args.database.as_deref())?;
    let pool = database::pool(&url, "parked").await?;
    let failed = |error: sqlx::Error| database::failed(&format!("database {url}"), &error);
    let mut connection = pool.acquire().await.map_err(failed)?;
    let holder = match (args.relay, args.consumer) {
        (Some(relay), _) => Some(Holder::Relay(relay)),
        (None, consumer) => consumer.map(Holder::Consumer),
    };
    let mut held = match holder {
        Some(holder) => {
            schema::check(holder.schema(), &mut connection, &url).await?;
            let held = held::of(&pool, &mut connection, &holder).await.map_err(failed)?;
            if held.is_empty() {
                holder.must_exist(&pool, &mut connection, &url).await?;
            }
            held
        }
        None => {
            let present = schema::present(&mut connection, &url).await?;
            held::of_all(&pool, &mut connection, present).await.map_err(failed)?
        }
    };
    held.retain(|held| held.parked || args.all);
    match args.output {
        Format::Json => output::print_json(&held),
        Format::Text => output::print(&text(&held, args.all)),
    }
}

fn text(held: &[Held], all: bool) -> String {
    if held.is_empty() {
        return if all { "nothing is held back\n" } else { "nothing is parked\n" }.to_owned();
    }
    held.iter().map(entry).collect::<Vec<_>>().join("\n")
}

/// Three lines: who and where, what, why.
fn entry(held: &Held) -> String {
    let number = match held.holder {
        Holder::Relay(_) => "position",
        Holder::Consumer(_) => "hold",
    };
    let state = match (&held.destination, held.next_attempt_at) {
        (Some(destination), Some(_)) if !held.parked => {
            format!("waits for destination {}", plain(destination))
        }
        (_, Some(at)) if !held.parked => format!("retried, next at {} UTC", at.format("%Y-%m-%d %H:%M:%S")),
        _ => "parked".to_owned(),
    };
    let key = held.key.as_deref().map_or_else(|| "no key".to_owned(), |key| format!("key {}", plain(key)));
    let first = match (&held.first_kind, held.first_id) {
        (Some(kind), Some(id)) => format!("{} {id}", plain(kind)),
        (_, Some(id)) => id.to_string(),
        (_, None) => "not understood".to_owned(),
    };
    let first = match (&held.holder, held.first) {
        (_, None) => first,
        (Holder::Relay(_), Some(position)) => format!("{first} at position {position}"),
        (Holder::Consumer(_), Some(number)) => format!("{first}, number {number}"),
    };
    let last = match held.last {
        Some(last) if held.last != held.first => format!(", the last number {last}"),
        _ => String::new(),
    };
    let attempts = if held.attempts == 1 { "attempt" } else { "attempts" };
    let messages = if held.messages == 1 { "message" } else { "messages" };
    format!(
        "{}, {number} {}: {state}, held since {} UTC, {} {attempts}\n  {key}, {} {messages}, the first {first}{last}\n  {}\n",
        plain(&held.holder.to_string()),
        held.number,
        held.held_at.format("%Y-%m-%d %H:%M:%S"),
        held.attempts,
        held.messages,
        plain(&held.last_error),
    )
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn an_error_from_a_broker_cannot_write_on_the_terminal() {
        let held = Held {
            holder: Holder::Relay("default".to_owned()),
            number: 812,
            first: Some(815),
            last: None,
            key: Some("order-7\n".to_owned()),
            parked: true,
            attempts: 10,
            messages: 1,
            first_id: Some(uuid::Uuid::from_u128(7)),
            first_kind: Some("order.placed".to_owned()),
            held_at: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
            next_attempt_at: None,
            last_error: "no\u{1b}[2J".to_owned(),
            destination: None,
        };
        let expected = r"relay default, position 812: parked, held since 2023-11-14 22:13:20 UTC, 10 attempts
  key order-7\u{a}, 1 message, the first order.placed 00000000-0000-0000-0000-000000000007 at position 815
  no\u{1b}[2J
";
        assert_eq!(text(&[held], false), expected);
        assert_eq!(text(&[], false), "nothing is parked\n");
    }
}
