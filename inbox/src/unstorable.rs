//! A message that the inbox's tables do not take: a value of it breaks a rule of the database, or does not fit its
//! encoding. It is parked in a form that any database stores, so that it is neither lost nor tried without end.

use std::time::Instant;

use tracing::warn;

use crate::apply::Applied;
use crate::attempt::Setback;
use crate::consumer::Core;
use crate::hold::{Found, Hold, hold};
use crate::horizon::Refusal;
use crate::measure;
use crate::patience::{self, Patience};
use crate::report::bounded;
use crate::stored::Body;

/// Parks what could not be stored as `held`: behind its key if the key can be stored, otherwise alone; alone, too, if its
/// id is known from another source.
pub(crate) async fn park(
    core: &Core,
    held: &Hold<'_>,
    body: Body<'_>,
    error: &str,
    received: Instant,
) -> Applied {
    measure::count(&core.name, measure::UNSTORABLE);
    let (why, another) = (text(held.error, error), text(&Refusal::AnotherSource.to_string(), error));
    warn!(consumer = %core.name, message = body.id(), error = why, "message parked in plain form");
    let mut held = Hold { attempts: 0, delay: None, error: &why, ..*held };
    // Each leaves out what the database may have refused in the one before it.
    let forms = [(held.key, body.plain()), (None, body.plain()), (None, body.without_source())];
    let mut form = 0;
    let mut patience = Patience::default();
    loop {
        let (key, body) = forms[form];
        held.key = key.filter(|_| !held.another_source);
        let setback = match core.in_time(hold(core, &held, body, received)).await {
            Ok(Found::AnotherSource) => {
                (held.another_source, held.error) = (true, &another);
                continue;
            }
            Ok(Found::Held | Found::Handled) => return Applied::Done,
            Err(Setback::Unstorable(_)) if form + 1 < forms.len() => {
                form += 1;
                continue;
            }
            // It holds nothing of the message now but bytes: the database refuses every message.
            Err(Setback::Unstorable(refused)) => Setback::Database(refused),
            Err(setback) => setback,
        };
        patience::count(core, &setback);
        if !patience.wait(core, &setback).await {
            return Applied::GivenUp;
        }
    }
}

/// Why it is held, if it was held for a reason, and that it could not be.
fn text(reason: &str, error: &str) -> String {
    const CANNOT: &str = "the inbox cannot store it as a message";
    if reason.is_empty() {
        plain(&format!("{CANNOT}: {error}"))
    } else {
        plain(&format!("{reason}; {CANNOT}: {error}"))
    }
}

/// In ASCII, which every encoding of a database holds.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            ' '..='~' => plain.push(char),
            char => plain.extend(char.escape_default()),
        }
    }
    bounded(&plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_text_is_short_and_ascii() {
        assert_eq!(plain("orders: 😀\0\n"), r"orders: \u{1f600}\u{0}\n");
        let long = plain(&"é".repeat(4_000));
        assert!(long.is_ascii() && long.len() == 4_096);
    }
}
