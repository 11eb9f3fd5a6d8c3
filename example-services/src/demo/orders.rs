//! The orders that the demo places, each with the end it must come to: from `orders.csv`, or made from a seed.

use serde::Deserialize;

use crate::events::Line;
use crate::order::domain::PlaceOrder;

/// An order, and how it must end: `completed`, or the reason for which it is cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) order: PlaceOrder,
    pub(super) ends: String,
}

/// Why there are no orders to place.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrdersError {
    #[error("orders.csv is not readable")]
    Csv(#[from] csv::Error),
    #[error("orders.csv: row {row}: lines are words like lamp*2")]
    Lines { row: usize },
}

/// A row of `orders.csv`.
#[derive(Deserialize)]
struct Row {
    customer: String,
    destination: String,
    lines: String,
    ends: String,
}

/// The orders of `orders.csv`.
pub(super) fn from_csv() -> Result<Vec<Planned>, OrdersError> {
    let mut reader = csv::Reader::from_reader(include_str!("../../orders.csv").as_bytes());
    let rows = reader.deserialize::<Row>().collect::<Result<Vec<_>, _>>()?;
    rows.into_iter()
        .enumerate()
        .map(|(index, row)| {
            let lines = row.lines.split(' ').map(line).collect::<Option<Vec<_>>>();
            let lines = lines.ok_or(OrdersError::Lines { row: index + 1 })?;
            Ok(planned(index, row.customer, row.destination, lines, row.ends))
        })
        .collect()
}

fn line(word: &str) -> Option<Line> {
    let (article, quantity) = word.split_once('*')?;
    Some(Line { article: article.to_owned(), quantity: quantity.parse().ok()? })
}

fn planned(index: usize, customer: String, destination: String, lines: Vec<Line>, ends: String) -> Planned {
    let idempotency_key = format!("demo-{index}");
    Planned { order: PlaceOrder { idempotency_key, customer, destination, lines }, ends }
}

const CUSTOMERS: [&str; 7] = ["ada", "bert", "clara", "dora", "emil", "frida", "gus"];
const DESTINATIONS: [&str; 5] = ["DE", "FR", "IT", "PL", "SE"];
/// Six pieces of the dearest stay below every customer's limit.
const ARTICLES: [&str; 5] = ["lamp", "mug", "plant", "shelf", "chair"];

/// `count` orders, the same for the same seed: two in three complete, the others end in each way in turn.
pub(super) fn generate(count: usize, seed: u64) -> Vec<Planned> {
    let mut dice = Dice(seed);
    (0..count)
        .map(|index| {
            let mut customer = dice.pick(&CUSTOMERS);
            let mut destination = dice.pick(&DESTINATIONS);
            let mut lines = vec![piece(dice.pick(&ARTICLES), 1 + dice.below(3))];
            let ends = if index % 3 != 1 {
                "completed"
            } else {
                match index / 3 % 6 {
                    0 => {
                        lines = vec![piece("sofa", 2)];
                        "above_limit"
                    }
                    1 => {
                        destination = "AQ";
                        "unserved"
                    }
                    2 => {
                        lines.push(piece("unicorn", 1));
                        "unknown_article"
                    }
                    3 => {
                        lines.push(piece("last-clock", 3));
                        "not_enough"
                    }
                    4 => {
                        customer = "nemo";
                        "unknown_customer"
                    }
                    _ => {
                        destination = "XX";
                        "unknown_destination"
                    }
                }
            };
            planned(index, customer.to_owned(), destination.to_owned(), lines, ends.to_owned())
        })
        .collect()
}

fn piece(article: &str, quantity: usize) -> Line {
    Line { article: article.to_owned(), quantity: i32::try_from(quantity).unwrap_or(i32::MAX) }
}

/// SplitMix64: enough to look arbitrary, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides.max(1) as u64) as usize
    }

    fn pick<'t>(&mut self, from: &[&'t str]) -> &'t str {
        from[self.below(from.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_csv_holds_about_three_hundred_valid_orders_of_every_end() {
        let orders = from_csv().unwrap();
        assert!(orders.len() >= 300);
        assert_eq!(orders.iter().flat_map(|planned| planned.order.faults()).count(), 0);
        let ends: BTreeSet<&str> = orders.iter().map(|planned| planned.ends.as_str()).collect();
        assert_eq!(ends.len(), 7, "{ends:?}");
    }

    #[test]
    fn the_same_seed_makes_the_same_orders_and_another_seed_makes_others() {
        assert_eq!(generate(60, 1), generate(60, 1));
        assert_ne!(generate(60, 1), generate(60, 2));
        let ends: BTreeSet<String> = generate(18, 1).into_iter().map(|planned| planned.ends).collect();
        assert_eq!(ends.len(), 7, "{ends:?}");
        assert_eq!(generate(60, 1).iter().flat_map(|planned| planned.order.faults()).count(), 0);
    }
}
