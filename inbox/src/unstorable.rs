//! A message that the inbox's tables do not take: a value of it breaks a rule of the database, or does not fit its
//! encoding. It is parked in a form that any database stores, so that it is neither lost nor tried without end.

use std::time::Instant;

use tracing::warn;

use crate::apply::Applied;
use crate::attempt::Setback;
use crate::consumer::Core;
use crate::hold::{Hold, hold};
use crate::measure;
use crate::patience::{self, Patience};
use crate::report::bounded;
use crate::stored::Body;

/// Parks what could not be stored, behind its key if the key can be stored, otherwise alone.
pub(crate) async fn park(
    core: &Core,
    key: Option<&str>,
    body: Body<'_>,
    error: &str,
    received: Instant,
) -> Applied {
    measure::count(&core.name, measure::UNSTORABLE);
    let error = plain(&format!("the inbox cannot store it as a message: {error}"));
    warn!(consumer = %core.name, message = body.id(), error, "message parked in plain form");
    let mut keys = [key, None].into_iter();
    let mut held = Hold { key: keys.next().flatten(), attempts: 0, delay: None, error: &error };
    let mut patience = Patience::default();
    loop {
        let setback = match core.in_time(hold(core, &held, body.plain(), received)).await {
            Ok(_) => return Applied::Done,
            Err(Setback::Unstorable(refused)) => match keys.next() {
                Some(key) => {
                    held.key = key;
                    continue;
                }
                // It holds nothing of the message now but bytes: the database refuses every message.
                None => Setback::Database(refused),
            },
            Err(setback) => setback,
        };
        patience::count(core, &setback);
        if !patience.wait(core, &setback).await {
            return Applied::GivenUp;
        }
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
