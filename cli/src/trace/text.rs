//! The tree for a person at a terminal, in 80 columns.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::rows::Holder;
use super::tree::{Held, Link, Node, State, Trace};
use super::unknown::heard_of;
use crate::duration::passed;
use crate::output::plain;

/// Columns of the narrowest terminal that anybody uses.
const WIDTH: usize = 80;
/// Deeper levels are no longer indented; a number says how deep they are.
const DEEPEST: usize = 10;
/// Most characters of an error; the whole of it is in `--output json` and in `outbox parked`.
const ERROR: usize = 240;

/// The whole trace.
pub(super) fn render(trace: &Trace) -> String {
    let mut text = String::new();
    head(&mut text, trace);
    let guides = guides(&trace.messages);
    for (index, node) in trace.messages.iter().enumerate() {
        let deeper = trace.messages.get(index + 1).is_some_and(|next| next.depth > node.depth);
        if node.depth == 0 {
            text.push('\n');
        }
        message(&mut text, trace, node, &guides[index], deeper);
    }
    text.push_str("\nwhat this cannot tell\n");
    for doubt in &trace.unknown {
        wrap(&mut text, "  ", "- ", "  ", doubt);
    }
    text
}

fn head(text: &mut String, trace: &Trace) {
    for workflow in &trace.workflows {
        text.push_str(&format!("workflow {workflow}\n"));
    }
    if trace.workflows.is_empty() {
        text.push_str(&format!("message {}, of a workflow unknown here\n", trace.sought));
    }
    let mut parts = Vec::new();
    if let (Some(began), Some(ended)) = (trace.began(), trace.ended()) {
        parts.push(format!(
            "began {} UTC, last news {} later",
            began.format("%Y-%m-%d %H:%M:%S%.3f"),
            passed(ended - began)
        ));
    }
    let known = trace.messages.iter().filter(|node| node.link != Link::Absent).count();
    parts.push(format!("{known} {}", if known == 1 { "message" } else { "messages" }));
    let names: Vec<String> = trace.databases.iter().map(|database| plain(&database.name)).collect();
    parts.push(format!("in {}", names.join(", ")));
    wrap(text, "", "", "", &parts.join("; "));
}

/// Per message what stands in front of its lines: whether each of its ancestors has a later sibling.
fn guides(messages: &[Node]) -> Vec<Vec<bool>> {
    let mut guides: Vec<Vec<bool>> = Vec::with_capacity(messages.len());
    // From the end: a message has a later sibling if its depth was met before anything shallower.
    let mut met: Vec<bool> = Vec::new();
    for node in messages.iter().rev() {
        let level = node.depth.min(DEEPEST);
        met.resize(met.len().max(level + 1), false);
        let guide = (1..=level).map(|depth| met[depth]).collect();
        guides.push(guide);
        met.truncate(level + 1);
        met[level] = true;
    }
    guides.reverse();
    guides
}

fn message(text: &mut String, trace: &Trace, node: &Node, guide: &[bool], deeper: bool) {
    let bar = |more: &bool| if *more { "│  " } else { "   " };
    let (own, above) = match guide.split_last() {
        Some((last, above)) => (Some(*last), above),
        None => (None, guide),
    };
    let above: String = above.iter().map(bar).collect();
    let (branch, below) = match own {
        None => (String::new(), String::new()),
        Some(true) => (format!("{above}├─ "), format!("{above}│  ")),
        Some(false) => (format!("{above}└─ "), format!("{above}   ")),
    };
    let below = format!("{below}{}", if deeper && node.depth < DEEPEST { "│  " } else { "   " });

    wrap_first(text, &branch, &below, &title(node));
    let mut line = |mark: &str, rest: &str| wrap(text, &below, mark, "  ", rest);
    line("", &format!("id {}{}", node.id, if node.id == trace.sought { "  <- asked for" } else { "" }));
    if node.link == Link::Absent {
        line("", "in no log given here");
    }
    if node.link == Link::Circle {
        line("! ", "its causes lead back to it: one of them is wrong");
    }
    if let Some(emitted) = emitted(trace, node) {
        line("", &emitted);
    }
    for handled in &node.handled {
        line("✓ ", &handled_text(handled));
    }
    for held in &node.held {
        line(if held.state == State::Parked { "✗ " } else { "… " }, &held_text(held, trace.began()));
    }
    let pending: BTreeSet<(&String, &String)> = (node.logged.iter())
        .flat_map(|copy| copy.pending.iter().map(|relay| (relay, &copy.database)))
        .collect();
    for (relay, database) in pending {
        line(
            "… ",
            &format!("relay {} in {} has not recorded it as published", plain(relay), plain(database)),
        );
    }
    if node.link != Link::Absent && !heard_of(node) {
        let passed: BTreeSet<&String> = node.logged.iter().flat_map(|copy| &copy.passed).collect();
        let passed: Vec<String> = passed.into_iter().map(|relay| format!("relay {}", plain(relay))).collect();
        let relays =
            if passed.is_empty() { String::new() } else { format!("; passed by {}", passed.join(", ")) };
        line("? ", &format!("no inbox row here{relays}"));
    }
}

fn title(node: &Node) -> String {
    let mut title = node.kind.as_deref().map_or_else(|| "(unknown message)".to_owned(), plain);
    if node.depth > DEEPEST {
        title = format!("[{} deep] {title}", node.depth);
    }
    if let Some(key) = &node.key {
        title.push_str(&format!("  key {}", plain(key)));
    }
    if let Some(source) = &node.source {
        title.push_str(&format!("  from {}", plain(source)));
    }
    title
}

fn emitted(trace: &Trace, node: &Node) -> Option<String> {
    let first = node.logged.first()?;
    let after =
        trace.began().zip(first.enqueued_at).map(|(began, at)| format!(" at +{}", passed(at - began)));
    let mut text = format!("enqueued in {}{}", plain(&first.database), after.unwrap_or_default());
    let same = node.logged.iter().filter(|copy| copy.database == first.database).count();
    if same > 1 {
        text.push_str(&format!(", {same} times: the log holds {same} rows of this id"));
    }
    let mut others: Vec<String> = Vec::new();
    for copy in node.logged.iter().filter(|copy| copy.database != first.database) {
        let name = plain(&copy.database);
        if !others.contains(&name) {
            others.push(name);
        }
    }
    if !others.is_empty() {
        text.push_str(&format!("; also in the log of {}", others.join(", ")));
    }
    Some(text)
}

fn handled_text(handled: &super::tree::Handled) -> String {
    let wait = handled.wait().map_or_else(
        || format!("at {} UTC", handled.handled_at.format("%Y-%m-%d %H:%M:%S%.3f")),
        |wait| format!("{} after it was enqueued", passed(wait)),
    );
    let attempts =
        if handled.attempts == 1 { String::new() } else { format!(", at attempt {}", handled.attempts) };
    format!("handled by {} in {}, {wait}{attempts}", plain(&handled.consumer), plain(&handled.database))
}

fn held_text(held: &Held, began: Option<DateTime<Utc>>) -> String {
    let who = match held.by {
        Holder::Relay => "relay",
        Holder::Consumer => "consumer",
    };
    let place = format!("{who} {} in {}", plain(&held.name), plain(&held.database));
    let since = match began {
        Some(began) => format!("+{}", passed(held.held_at - began)),
        None => format!("{} UTC", held.held_at.format("%Y-%m-%d %H:%M:%S")),
    };
    let attempts = format!("{} {}", held.attempts, if held.attempts == 1 { "attempt" } else { "attempts" });
    let error = shortened(&plain(&held.last_error));
    match held.state {
        State::Waiting => format!("waits in {place} behind an earlier message of its key"),
        State::Parked => format!("parked by {place} at {since} after {attempts}: {error}"),
        State::Retrying => {
            let next = held.next_attempt_at.map(|at| format!(", next at {} UTC", at.format("%H:%M:%S")));
            format!(
                "retried by {place} since {since}, {attempts} so far{}: {error}",
                next.unwrap_or_default()
            )
        }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(ERROR) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Lines of at most [`WIDTH`] columns: `prefix` before each, `mark` before the first, `indent` before the others.
fn wrap(text: &mut String, prefix: &str, mark: &str, indent: &str, rest: &str) {
    wrap_first(text, &format!("{prefix}{mark}"), &format!("{prefix}{indent}"), rest);
}

fn wrap_first(text: &mut String, first: &str, others: &str, rest: &str) {
    let mut prefix = first;
    let mut line = String::new();
    let mut flush = |line: &mut String, prefix: &str| {
        text.push_str(format!("{prefix}{line}").trim_end());
        text.push('\n');
        line.clear();
    };
    let room = |prefix: &str| WIDTH.saturating_sub(prefix.chars().count()).max(20);
    for word in rest.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        if !line.is_empty() && line.chars().count() + 1 + word.len() > room(prefix) {
            flush(&mut line, prefix);
            prefix = others;
        }
        // A word longer than a line is cut where the line ends.
        while word.len() > room(prefix) {
            let tail = word.split_off(room(prefix));
            line.extend(std::mem::replace(&mut word, tail));
            flush(&mut line, prefix);
            prefix = others;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word);
    }
    flush(&mut line, prefix);
}

#[cfg(test)]
mod tests {
    use super::super::sample::{self, id, logged, said};
    use super::super::tree::Trace;
    use super::*;
    use crate::trace::rows::Found;

    #[test]
    fn a_terminal_shows_the_tree() {
        assert_eq!(render(&sample::trace()), TEXT);
    }

    #[test]
    fn no_line_is_wider_than_a_terminal_whatever_the_names_and_however_deep() {
        let deep = (1..=30).map(|n| {
            let mut said = said(n, (n > 1).then(|| n - 1), &"kind".repeat(50), n as i64);
            said.key = Some(format!("{} \u{202e}{}", "schlüssel ".repeat(20), "x".repeat(300)));
            logged(said, n as i64)
        });
        let found =
            Found { database: "d".repeat(63), outbox: true, logged: deep.collect(), ..Found::default() };
        let text = render(&Trace::new(id(1), vec![id(1)], vec![found]).unwrap());
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(WIDTH), "{text}");
        assert!(text.contains("[29 deep]") && text.contains(r"\u{202e}"), "{text}");
    }

    const TEXT: &str = "\
workflow 0193b5a0-0000-7000-8000-000000000001
began 2023-11-14 22:13:20.000 UTC, last news 1m30s later; 6 messages; in orders,
stock

order.placed  key order-7  from /orders
│  id 0193b5a0-0000-7000-8000-000000000001
│  enqueued in orders at +0ms; also in the log of stock
│  ✓ handled by stock in stock, 12ms after it was enqueued
├─ stock.reserved  key order-7  from /orders
│  │  id 0193b5a0-0000-7000-8000-000000000002  <- asked for
│  │  enqueued in stock at +12ms
│  │  ✓ handled by payment in orders, 23ms after it was enqueued, at attempt 3
│  └─ payment.refused  key order-7  from /orders
│     │  id 0193b5a0-0000-7000-8000-000000000003
│     │  enqueued in orders at +40ms
│     │  … retried by relay partners in orders since +2.0s, 2 attempts so far,
│     │    next at 22:13:29 UTC: broker unavailable: connection refused
│     │  … relay default in orders has not recorded it as published
│     │  ? no inbox row here
│     └─ order.cancelled  key order-7  from /orders
│           id 0193b5a0-0000-7000-8000-000000000006
│           enqueued in orders at +60ms, 2 times: the log holds 2 rows of this
│             id
│           … waits in relay partners in orders behind an earlier message of its
│             key
│           ? no inbox row here; passed by relay default
└─ invoice.wanted  key order-7  from /orders
      id 0193b5a0-0000-7000-8000-000000000005
      enqueued in orders at +30ms
      ✗ parked by consumer invoices in orders at +2.0s after 5 attempts: no
        address\\u{1b}[2J for customer \"7\"; the handler gave up after the last of
        its attempts

(unknown message)
│  id 0193b5a0-0000-7000-8000-000000000007
│  in no log given here
│  ✓ handled by stock in stock, at 2023-11-14 22:14:40.000 UTC
└─ parcel.returned  key order-7  from /orders
      id 0193b5a0-0000-7000-8000-000000000008
      enqueued in orders at +1m30s
      ? no inbox row here; passed by relay default

what this cannot tell
  - when a message was published: the log does not store it
  - what became of 3 messages without an inbox row: not published yet, on its
    way, handled in a database that was not given, of a kind that no handler
    asked for, or handled longer ago than the inbox remembers
  - what 1 message said that no given log holds: another database's, or no
    longer kept
  - whether a relay that has passed a message published it: a person may have
    skipped it, or the relay was started after it
  - how far two servers' clocks differ: a wait from one database to another
    contains that
";
}
