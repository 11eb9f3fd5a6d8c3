//! The tree as a Mermaid flowchart, for a page that renders one: boxes are messages, rounded ones who handled them.

use super::rows::Holder;
use super::tree::{Link, Node, State, Trace};
use crate::duration::passed;
use crate::output::plain;

/// The whole trace.
pub(super) fn render(trace: &Trace) -> String {
    let mut text = "flowchart TD\n".to_owned();
    // The index of the last message at each depth: the cause of what comes one level deeper.
    let mut path: Vec<usize> = Vec::new();
    for (index, node) in trace.messages.iter().enumerate() {
        message(&mut text, index, node);
        path.truncate(node.depth);
        if let Some(&cause) = path.last() {
            let from = handler_in(&trace.messages[cause], node)
                .map_or_else(|| format!("m{cause}"), |n| format!("h{cause}_{n}"));
            text.push_str(&format!("  {from} --> m{index}\n"));
        }
        path.push(index);
    }
    text.push_str("  classDef parked stroke:#c00,stroke-width:2px\n");
    text.push_str("  classDef absent stroke-dasharray:4\n");
    for doubt in &trace.unknown {
        text.push_str(&format!("  %% cannot tell: {}\n", plain(doubt).replace(['{', '}'], "")));
    }
    text
}

/// The handler that enqueued `child`: the only one in the database that `child` was enqueued in.
fn handler_in(cause: &Node, child: &Node) -> Option<usize> {
    let home = &child.logged.first()?.database;
    let mut there = cause.handled.iter().enumerate().filter(|(_, handled)| handled.database == *home);
    match (there.next(), there.next()) {
        (Some((index, _)), None) => Some(index),
        _ => None,
    }
}

fn message(text: &mut String, index: usize, node: &Node) {
    let mut label = vec![node.kind.clone().unwrap_or_else(|| "unknown message".to_owned())];
    label.extend(node.key.as_ref().map(|key| format!("key {key}")));
    label.extend(node.source.as_ref().map(|source| format!("from {source}")));
    if node.logged.len() > 1 {
        label.push(format!("{} rows in logs", node.logged.len()));
    }
    if node.kind.is_none() {
        label.push(node.id.to_string());
    }
    let class = if node.link == Link::Absent { ":::absent" } else { "" };
    text.push_str(&format!("  m{index}[\"{}\"]{class}\n", lines(&label)));
    for (n, handled) in node.handled.iter().enumerate() {
        let mut label = vec![format!("{} in {}", handled.consumer, handled.database)];
        label.extend(handled.wait().map(|wait| format!("after {}", passed(wait))));
        if handled.attempts > 1 {
            label.push(format!("attempt {}", handled.attempts));
        }
        text.push_str(&format!("  m{index} --> h{index}_{n}([\"{}\"])\n", lines(&label)));
    }
    for (n, held) in node.held.iter().enumerate() {
        let (word, class) = match held.state {
            State::Parked => ("parked by", ":::parked"),
            State::Retrying => ("retried by", ""),
            State::Waiting => ("waits in", ""),
        };
        let by = match held.by {
            Holder::Relay => "relay",
            Holder::Consumer => "consumer",
        };
        let mut label = vec![format!("{word} {by} {} in {}", held.name, held.database)];
        if held.state != State::Waiting {
            label.push(format!("attempts: {}", held.attempts));
        }
        text.push_str(&format!("  m{index} -.-> x{index}_{n}{{{{\"{}\"}}}}{class}\n", lines(&label)));
    }
}

fn lines(parts: &[String]) -> String {
    parts.iter().map(|part| escaped(part)).collect::<Vec<_>>().join("<br/>")
}

/// Nothing in a label may end it, or be read as markup: Mermaid knows numbered entities with `#` instead of `&`.
fn escaped(text: &str) -> String {
    plain(text)
        .chars()
        .map(|char| match char {
            '"' | '#' | '&' | ';' | '<' | '>' | '`' => format!("#{};", u32::from(char)),
            char => char.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::sample::{self, id, logged, said};
    use super::super::tree::Trace;
    use super::*;
    use crate::trace::rows::Found;

    #[test]
    fn a_page_can_render_the_tree() {
        let rendered = render(&sample::trace());
        let (chart, doubts) = rendered.split_once("  %%").unwrap();
        assert_eq!(chart, CHART);
        assert!(doubts.contains("the log does not store it"));
    }

    #[test]
    fn nothing_in_a_label_ends_it_or_is_read_as_markup() {
        let mut said = said(1, None, "a\"];click(<b>`x`)#1&amp;", 0);
        said.key = None;
        said.source = None;
        let found = Found { outbox: true, logged: vec![logged(said, 1)], ..Found::default() };
        let rendered = render(&Trace::new(id(1), vec![id(1)], vec![found]).unwrap());
        let label = rendered.lines().nth(1).unwrap();
        assert_eq!(label, "  m0[\"a#34;]#59;click(#60;b#62;#96;x#96;)#35;1#38;amp#59;\"]");
    }

    const CHART: &str = r#"flowchart TD
  m0["order.placed<br/>key order-7<br/>from /orders<br/>2 rows in logs"]
  m0 --> h0_0(["stock in stock<br/>after 12ms"])
  m1["stock.reserved<br/>key order-7<br/>from /orders"]
  m1 --> h1_0(["payment in orders<br/>after 23ms<br/>attempt 3"])
  h0_0 --> m1
  m2["payment.refused<br/>key order-7<br/>from /orders"]
  m2 -.-> x2_0{{"retried by relay partners in orders<br/>attempts: 2"}}
  h1_0 --> m2
  m3["order.cancelled<br/>key order-7<br/>from /orders<br/>2 rows in logs"]
  m3 -.-> x3_0{{"waits in relay partners in orders"}}
  m2 --> m3
  m4["invoice.wanted<br/>key order-7<br/>from /orders"]
  m4 -.-> x4_0{{"parked by consumer invoices in orders<br/>attempts: 5"}}:::parked
  m0 --> m4
  m5["unknown message<br/>0193b5a0-0000-7000-8000-000000000007"]:::absent
  m5 --> h5_0(["stock in stock"])
  m6["parcel.returned<br/>key order-7<br/>from /orders"]
  m5 --> m6
  classDef parked stroke:#c00,stroke-width:2px
  classDef absent stroke-dasharray:4
"#;
}
