//! From rows to one tree: each message once, under its cause, with everything that any database knows of it. Pure.
//!
//! The tree is a list in the order of its lines, each with its depth: a chain of ten thousand messages must not need a
//! stack of ten thousand frames, here or in whoever reads the JSON.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::rows::{Found, Holder, Said};

/// A workflow, as far as the given databases know it.
#[derive(Debug, Serialize)]
pub(super) struct Trace {
    /// What was asked for.
    pub(super) sought: Uuid,
    /// The workflows that it belongs to; usually one, none if only an inbox has heard of it.
    pub(super) workflows: Vec<Uuid>,
    pub(super) databases: Vec<Database>,
    /// Depth first, causes before what they caused.
    pub(super) messages: Vec<Node>,
    /// What cannot be told from the tables, or from these databases.
    pub(super) unknown: Vec<String>,
}

/// A database that was read.
#[derive(Debug, Serialize)]
pub(super) struct Database {
    pub(super) name: String,
    pub(super) outbox: bool,
    pub(super) inbox: bool,
}

/// How a message hangs in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Link {
    /// It has no cause: it began the workflow.
    Root,
    /// It stands under its cause.
    Child,
    /// No given database holds it; it stands here because others name it.
    Absent,
    /// It is, by way of its causes, its own cause.
    Circle,
}

/// One message and what became of it.
#[derive(Debug, Serialize)]
pub(super) struct Node {
    pub(super) id: Uuid,
    pub(super) depth: usize,
    pub(super) link: Link,
    pub(super) correlation: Option<Uuid>,
    pub(super) causation: Option<Uuid>,
    pub(super) source: Option<String>,
    pub(super) topic: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) key: Option<String>,
    pub(super) occurred_at: Option<DateTime<Utc>>,
    pub(super) enqueued_at: Option<DateTime<Utc>>,
    /// Where it stands in a log, oldest first: a log does not promise that ids are unique, and a broker's is one too.
    pub(super) logged: Vec<Copy>,
    pub(super) handled: Vec<Handled>,
    pub(super) held: Vec<Held>,
}

/// A row in a log.
#[derive(Debug, Serialize)]
pub(super) struct Copy {
    pub(super) database: String,
    pub(super) position: i64,
    pub(super) enqueued_at: Option<DateTime<Utc>>,
    pub(super) passed: Vec<String>,
    pub(super) pending: Vec<String>,
}

/// A consumer that has handled it.
#[derive(Debug, Serialize)]
pub(super) struct Handled {
    pub(super) consumer: String,
    pub(super) database: String,
    pub(super) received_at: DateTime<Utc>,
    pub(super) handled_at: DateTime<Utc>,
    pub(super) attempts: i32,
    /// Since it was enqueued, by two servers' clocks.
    pub(super) wait_ms: Option<i64>,
}

/// A relay or consumer that holds it back.
#[derive(Debug, Serialize)]
pub(super) struct Held {
    pub(super) by: Holder,
    pub(super) name: String,
    pub(super) database: String,
    pub(super) state: State,
    pub(super) attempts: i32,
    pub(super) next_attempt_at: Option<DateTime<Utc>>,
    pub(super) last_error: String,
    pub(super) held_at: DateTime<Utc>,
}

/// Why it is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Retrying,
    Parked,
    /// Behind an earlier message of its key.
    Waiting,
}

impl Node {
    fn absent(id: Uuid) -> Self {
        Node {
            id,
            depth: 0,
            link: Link::Absent,
            correlation: None,
            causation: None,
            source: None,
            topic: None,
            kind: None,
            key: None,
            occurred_at: None,
            enqueued_at: None,
            logged: Vec::new(),
            handled: Vec::new(),
            held: Vec::new(),
        }
    }

    /// Takes what a copy says and nobody has said before.
    fn hear(&mut self, said: &Said) {
        self.link = Link::Root;
        self.correlation = self.correlation.or(said.correlation);
        self.causation = self.causation.or(said.causation);
        self.occurred_at = self.occurred_at.or(said.occurred_at);
        for (mine, theirs) in [
            (&mut self.source, &said.source),
            (&mut self.topic, &said.topic),
            (&mut self.kind, &said.kind),
            (&mut self.key, &said.key),
        ] {
            if mine.is_none() {
                mine.clone_from(theirs);
            }
        }
        // A broker that is a log has a copy too, written later: the first is the producer's.
        self.enqueued_at = [self.enqueued_at, said.enqueued_at].into_iter().flatten().min();
    }

    /// When it stands among its siblings.
    fn rank(&self) -> (Option<DateTime<Utc>>, Uuid) {
        (self.enqueued_at.or(self.occurred_at), self.id)
    }
}

impl Trace {
    /// The tree of what was found; `None` if no database has heard of the message.
    pub(super) fn new(sought: Uuid, workflows: Vec<Uuid>, found: Vec<Found>) -> Option<Self> {
        let mut nodes = gather(&found);
        if nodes.is_empty() {
            return None;
        }
        // What others name as their cause stands in the tree even if nobody holds it.
        let causes: BTreeSet<Uuid> = nodes.values().filter_map(|node| node.causation).collect();
        for cause in causes {
            nodes.entry(cause).or_insert_with(|| Node::absent(cause));
        }
        for node in nodes.values_mut() {
            finish(node);
        }
        let messages = arrange(nodes);
        let unknown = super::unknown::list(&messages, &found);
        let databases = found
            .into_iter()
            .map(|found| Database { name: found.database, outbox: found.outbox, inbox: found.inbox })
            .collect();
        Some(Trace { sought, workflows, databases, messages, unknown })
    }

    /// When the first message was enqueued.
    pub(super) fn began(&self) -> Option<DateTime<Utc>> {
        self.messages.iter().filter_map(|node| node.enqueued_at).min()
    }

    /// When the last thing happened that anybody recorded.
    pub(super) fn ended(&self) -> Option<DateTime<Utc>> {
        let handled =
            self.messages.iter().flat_map(|node| node.handled.iter().map(|handled| handled.handled_at));
        self.messages.iter().filter_map(|node| node.enqueued_at).chain(handled).max()
    }
}

fn gather(found: &[Found]) -> BTreeMap<Uuid, Node> {
    let mut nodes = BTreeMap::new();
    fn node(nodes: &mut BTreeMap<Uuid, Node>, id: Uuid) -> &mut Node {
        nodes.entry(id).or_insert_with(|| Node::absent(id))
    }
    for Found { database, logged, held, handled, .. } in found {
        for row in logged {
            let node = node(&mut nodes, row.said.id);
            node.hear(&row.said);
            node.logged.push(Copy {
                database: database.clone(),
                position: row.position,
                enqueued_at: row.said.enqueued_at,
                passed: row.passed.clone(),
                pending: row.pending.clone(),
            });
        }
        for row in held {
            let node = node(&mut nodes, row.said.id);
            node.hear(&row.said);
            node.held.push(Held {
                by: row.by,
                name: row.name.clone(),
                database: database.clone(),
                state: match (row.behind, row.parked) {
                    (true, _) => State::Waiting,
                    (false, true) => State::Parked,
                    (false, false) => State::Retrying,
                },
                attempts: row.attempts,
                next_attempt_at: row.next_attempt_at,
                last_error: row.last_error.clone(),
                held_at: row.held_at,
            });
        }
        for row in handled {
            node(&mut nodes, row.id).handled.push(Handled {
                consumer: row.consumer.clone(),
                database: database.clone(),
                received_at: row.received_at,
                handled_at: row.handled_at,
                attempts: row.attempts,
                wait_ms: None,
            });
        }
    }
    nodes
}

/// What can be said of a message only once every database has spoken.
fn finish(node: &mut Node) {
    node.logged.sort_by_key(|copy| (copy.enqueued_at, copy.position));
    node.handled.sort_by(|a, b| (a.handled_at, &a.consumer).cmp(&(b.handled_at, &b.consumer)));
    node.held.sort_by(|a, b| (a.by, &a.name).cmp(&(b.by, &b.name)));
    for handled in &mut node.handled {
        handled.wait_ms = node.enqueued_at.map(|enqueued| (handled.handled_at - enqueued).num_milliseconds());
    }
}

/// Depth first: roots by time, children by time under their cause. Whatever no root leads to goes round in a circle,
/// which is cut at its earliest message.
fn arrange(mut nodes: BTreeMap<Uuid, Node>) -> Vec<Node> {
    let mut children: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
    for node in nodes.values() {
        if let Some(cause) = node.causation {
            children.entry(cause).or_default().push(node.id);
        }
    }
    for list in children.values_mut() {
        list.sort_by_key(|id| nodes.get(id).map(Node::rank));
    }
    let mut by_time: Vec<Uuid> = nodes.keys().copied().collect();
    by_time.sort_by_key(|id| match (nodes.get(id), children.get(id).and_then(|list| list.first())) {
        // Nobody knows when an absent message was enqueued: it stands where its first effect does.
        (Some(node), Some(first)) if node.link == Link::Absent => nodes.get(first).map(Node::rank),
        (node, _) => node.map(Node::rank),
    });
    let roots = by_time.iter().filter(|id| nodes.get(*id).is_some_and(|node| node.causation.is_none()));
    // After the roots everything once more: what is still there then belongs to a circle.
    let starts: Vec<Uuid> = roots.chain(&by_time).copied().collect();

    let mut lines = Vec::with_capacity(nodes.len());
    for start in starts {
        let mut open = vec![(start, 0)];
        while let Some((id, depth)) = open.pop() {
            let Some(mut node) = nodes.remove(&id) else { continue };
            node.depth = depth;
            node.link = match (node.link, depth, node.causation) {
                (Link::Absent, ..) => Link::Absent,
                (_, 0, Some(_)) => Link::Circle,
                (_, 0, None) => Link::Root,
                _ => Link::Child,
            };
            lines.push(node);
            // The last one pushed is the first one taken.
            open.extend(children.remove(&id).into_iter().flatten().rev().map(|child| (child, depth + 1)));
        }
    }
    lines
}

impl Handled {
    /// How long it took since the message was enqueued.
    pub(super) fn wait(&self) -> Option<TimeDelta> {
        self.wait_ms.map(TimeDelta::milliseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{self, handled, id, logged, said};
    use super::*;

    fn tree(messages: Vec<Said>) -> Vec<(usize, u128, Link)> {
        let logged = messages.into_iter().zip(1..).map(|(said, position)| logged(said, position)).collect();
        let found = Found { database: "a".to_owned(), outbox: true, inbox: true, logged, ..Found::default() };
        let trace = Trace::new(id(1), vec![id(1)], vec![found]).unwrap();
        trace.messages.iter().map(|node| (node.depth, node.id.as_u128() & 0xffff, node.link)).collect()
    }

    #[test]
    fn each_message_stands_once_under_its_cause() {
        let trace = sample::trace();
        let lines: Vec<_> = trace
            .messages
            .iter()
            .map(|node| (node.depth, node.id.as_u128() & 0xff, node.logged.len()))
            .collect();
        assert_eq!(lines, [(0, 1, 2), (1, 2, 1), (2, 3, 1), (3, 6, 2), (1, 5, 1), (0, 7, 0), (1, 8, 1)]);
        assert_eq!(trace.messages[5].link, Link::Absent);
    }

    #[test]
    fn the_copy_in_a_brokers_log_is_not_the_one_that_was_enqueued() {
        let first = &sample::trace().messages[0];
        assert_eq!((first.logged[0].database.as_str(), first.enqueued_at), ("orders", Some(sample::at(0))));
        assert_eq!(first.handled[0].wait_ms, Some(12));
    }

    #[test]
    fn an_absent_cause_holds_its_effects_together() {
        let orphans = tree(vec![said(3, Some(9), "b", 2), said(2, Some(9), "a", 1)]);
        assert_eq!(orphans, [(0, 9, Link::Absent), (1, 2, Link::Child), (1, 3, Link::Child)]);
    }

    #[test]
    fn a_circle_of_causes_is_cut_and_not_walked_for_ever() {
        let own = tree(vec![said(1, Some(1), "a", 0)]);
        assert_eq!(own, [(0, 1, Link::Circle)]);
        let three = tree(vec![
            said(1, None, "root", 0),
            said(2, Some(4), "b", 1),
            said(3, Some(2), "c", 2),
            said(4, Some(3), "d", 3),
            said(5, Some(4), "beside", 4),
        ]);
        let expected = [
            (0, 1, Link::Root),
            (0, 2, Link::Circle),
            (1, 3, Link::Child),
            (2, 4, Link::Child),
            (3, 5, Link::Child),
        ];
        assert_eq!(three, expected);
    }

    #[test]
    fn a_chain_of_fifty_thousand_messages_needs_no_stack() {
        let chain = (1..=50_000).map(|n| said(n, (n > 1).then(|| n - 1), "a", n as i64)).collect();
        let lines = tree(chain);
        assert_eq!(lines.last().map(|line| line.0), Some(49_999));
    }

    #[test]
    fn a_message_that_only_an_inbox_knows_is_shown() {
        let found = Found { inbox: true, handled: vec![handled(9, "stock", 0, 1)], ..Found::default() };
        let trace = Trace::new(id(9), Vec::new(), vec![found]).unwrap();
        assert_eq!((trace.messages[0].link, trace.messages[0].handled.len()), (Link::Absent, 1));
        assert!(Trace::new(id(9), Vec::new(), vec![Found::default()]).is_none());
    }
}
