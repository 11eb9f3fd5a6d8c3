//! What a trace cannot know, said in the trace: an absent line must not be read as an absent message.

use super::rows::{Found, Holder};
use super::tree::{Link, Node};

/// Every doubt that applies to these messages in these databases.
pub(super) fn list(messages: &[Node], found: &[Found]) -> Vec<String> {
    let mut unknown = vec!["when a message was published: the log does not store it".to_owned()];
    let mut doubt = |applies: bool, text: String| {
        if applies {
            unknown.push(text);
        }
    };
    let silent = messages.iter().filter(|node| node.link != Link::Absent && !heard_of(node)).count();
    doubt(
        silent > 0,
        format!(
            "what became of {} without an inbox row: not published yet, on its way, handled in a database that was \
             not given, of a kind that no handler asked for, or handled longer ago than the inbox remembers",
            messages_text(silent)
        ),
    );
    let absent = messages.iter().filter(|node| node.link == Link::Absent).count();
    doubt(
        absent > 0,
        format!(
            "what {} said that no given log holds: another database's, or no longer kept",
            messages_text(absent)
        ),
    );
    doubt(
        messages.iter().any(|node| node.logged.iter().any(|copy| !copy.passed.is_empty())),
        "whether a relay that has passed a message published it: a person may have skipped it, or the relay was \
         started after it"
            .to_owned(),
    );
    let crossing = |node: &Node| {
        let home = node.logged.first().map(|copy| &copy.database);
        node.handled.iter().any(|handled| home.is_some_and(|home| *home != handled.database))
    };
    doubt(
        messages.iter().any(crossing),
        "how far two servers' clocks differ: a wait from one database to another contains that".to_owned(),
    );
    for database in found {
        let name = &database.database;
        doubt(database.cut, format!("the rest of database {name}, if it has more messages than --limit"));
        doubt(!database.outbox, format!("what {name} enqueued: it has no outbox"));
        doubt(!database.inbox, format!("what {name} handled: it has no inbox"));
    }
    unknown
}

/// Whether any given inbox has a row for it, handled or held.
pub(super) fn heard_of(node: &Node) -> bool {
    !node.handled.is_empty() || node.held.iter().any(|held| held.by == Holder::Consumer)
}

fn messages_text(count: usize) -> String {
    if count == 1 { "1 message".to_owned() } else { format!("{count} messages") }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{self, id};
    use super::super::tree::Trace;
    use super::*;

    fn doubts(found: Vec<Found>) -> String {
        Trace::new(id(1), vec![id(1)], found).unwrap().unknown.join("\n")
    }

    #[test]
    fn what_applies_is_said_and_what_does_not_is_not() {
        let all = doubts(sample::found());
        for words in ["published: the log", "of 3 messages without an inbox row", "1 message said", "clocks"]
        {
            assert!(all.contains(words), "{words}: {all}");
        }
        let mut one = sample::found();
        one.truncate(1);
        one[0].logged.truncate(1);
        one[0].held.clear();
        one[0].handled = vec![sample::handled(1, "audit", 3, 1)];
        let few = doubts(one.clone());
        assert_eq!(few.lines().count(), 2, "{few}");
        one[0].cut = true;
        one[0].inbox = false;
        let more = doubts(one);
        assert!(more.contains("--limit") && more.contains("it has no inbox"), "{more}");
    }
}
