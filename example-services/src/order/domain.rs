//! What an order may be, and how it moves. No I/O.

use serde::{Deserialize, Serialize};

use crate::events::{Line, Reason};
use crate::http::Fault;

/// What a customer asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceOrder {
    /// Chosen by the customer's side: the same key again is the same order, not another.
    pub idempotency_key: String,
    /// Who pays.
    pub customer: String,
    /// Where it goes: a destination code.
    pub destination: String,
    /// What goes there.
    pub lines: Vec<Line>,
}

/// Most lines of an order.
pub const LINES: usize = 50;
/// Most pieces of a line.
pub const PIECES: i32 = 1_000;

impl PlaceOrder {
    /// Every field that is not as it must be.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, field: String, must: &'static str| {
            if !holds {
                faults.push(Fault { field, must });
            }
        };
        check(
            (1..=100).contains(&self.idempotency_key.len()) && printable(&self.idempotency_key),
            "idempotency_key".into(),
            "be 1 to 100 printable ASCII characters",
        );
        check(code(&self.customer), "customer".into(), "be 1 to 40 of a-z A-Z 0-9 -");
        check(code(&self.destination), "destination".into(), "be 1 to 40 of a-z A-Z 0-9 -");
        check((1..=LINES).contains(&self.lines.len()), "lines".into(), "have 1 to 50 lines");
        for (index, line) in self.lines.iter().enumerate().take(LINES) {
            check(code(&line.article), format!("lines[{index}].article"), "be 1 to 40 of a-z A-Z 0-9 -");
            let first = self.lines[..index].iter().all(|other| other.article != line.article);
            check(first, format!("lines[{index}].article"), "differ from the articles of the other lines");
            let pieces = (1..=PIECES).contains(&line.quantity);
            check(pieces, format!("lines[{index}].quantity"), "be 1 to 1000");
        }
        faults
    }
}

fn printable(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

fn code(text: &str) -> bool {
    (1..=40).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// How far an order is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Written down; stock has not answered.
    Placed,
    /// The goods are set aside.
    Reserved,
    /// The goods are paid for.
    Paid,
    /// The goods are on their way.
    Completed,
    /// Somebody refused.
    Cancelled,
}

impl State {
    /// As it stands in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Placed => "placed",
            State::Reserved => "reserved",
            State::Paid => "paid",
            State::Completed => "completed",
            State::Cancelled => "cancelled",
        }
    }

    /// From the table.
    pub fn parse(text: &str) -> Option<State> {
        [State::Placed, State::Reserved, State::Paid, State::Completed, State::Cancelled]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// What another service told about an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The goods are set aside and cost so much.
    Reserved(i64),
    /// The goods are paid for.
    Paid,
    /// The goods are on their way.
    Dispatched,
    /// A step was refused.
    Refused(Reason),
}

/// The state after the news; `None`: it stays.
///
/// News from two services may arrive in any order (order holds per key on one topic, and they use two), so a state never
/// moves backwards, and an order that has ended stays ended.
pub fn after(state: State, news: News) -> Option<State> {
    let next = match news {
        News::Reserved(_) => State::Reserved,
        News::Paid => State::Paid,
        News::Dispatched => State::Completed,
        News::Refused(_) => State::Cancelled,
    };
    (state < State::Completed && next > state).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> PlaceOrder {
        PlaceOrder {
            idempotency_key: "cart 1".into(),
            customer: "ada".into(),
            destination: "DE".into(),
            lines: vec![Line { article: "lamp".into(), quantity: 1 }],
        }
    }

    #[test]
    fn a_fault_names_its_field() {
        assert_eq!(order().faults(), []);
        let line = |article: &str, quantity| Line { article: article.into(), quantity };
        let lines = vec![line("lamp", 0), line("lamp", 1001), line("", 1000)];
        let faulty = PlaceOrder { idempotency_key: "\n".into(), customer: "a b".into(), lines, ..order() };
        let fields: Vec<String> = faulty.faults().into_iter().map(|fault| fault.field).collect();
        assert_eq!(
            fields,
            [
                "idempotency_key",
                "customer",
                "lines[0].quantity",
                "lines[1].article",
                "lines[1].quantity",
                "lines[2].article"
            ]
        );
        assert_eq!(PlaceOrder { lines: Vec::new(), ..order() }.faults()[0].field, "lines");
    }

    #[test]
    fn news_that_arrives_late_moves_nothing_backwards() {
        assert_eq!(after(State::Placed, News::Reserved(5)), Some(State::Reserved));
        assert_eq!(after(State::Placed, News::Paid), Some(State::Paid));
        assert_eq!(after(State::Paid, News::Reserved(5)), None);
        assert_eq!(after(State::Paid, News::Dispatched), Some(State::Completed));
        assert_eq!(after(State::Reserved, News::Refused(Reason::AboveLimit)), Some(State::Cancelled));
    }

    #[test]
    fn an_order_that_has_ended_stays_ended() {
        for state in [State::Completed, State::Cancelled] {
            for news in [News::Reserved(5), News::Paid, News::Dispatched, News::Refused(Reason::Unserved)] {
                assert_eq!(after(state, news), None);
            }
        }
    }
}
