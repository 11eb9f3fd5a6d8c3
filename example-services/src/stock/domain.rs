//! Which pieces an order gets: all of them, or none. No I/O.

use crate::events::{Line, Reason};

/// An article as it is for sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Article {
    /// Its code.
    pub code: String,
    /// What a piece costs.
    pub price_cents: i64,
    /// Pieces that are not set aside.
    pub free: i32,
}

/// Pieces to set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    /// The article.
    pub article: String,
    /// How many pieces.
    pub quantity: i32,
    /// What each costs.
    pub price_cents: i64,
}

/// Why none are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The first article, in the order's lines, that cannot be had.
    pub article: String,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What to set aside for `lines`, out of `articles`: a line each, or what is missing.
///
/// # Errors
/// The first line that cannot be had.
pub fn reserve(lines: &[Line], articles: &[Article]) -> Result<Vec<Reserved>, Missing> {
    lines
        .iter()
        .map(|line| {
            let missing = |reason| Missing { article: line.article.clone(), reason };
            let article = articles.iter().find(|article| article.code == line.article);
            let article = article.ok_or_else(|| missing(Reason::UnknownArticle))?;
            if line.quantity > article.free {
                return Err(missing(Reason::NotEnough));
            }
            Ok(Reserved {
                article: line.article.clone(),
                quantity: line.quantity,
                price_cents: article.price_cents,
            })
        })
        .collect()
}

/// What it costs.
pub fn amount_cents(reserved: &[Reserved]) -> i64 {
    reserved.iter().map(|line| i64::from(line.quantity) * line.price_cents).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(article: &str, quantity: i32) -> Line {
        Line { article: article.into(), quantity }
    }

    fn shop() -> Vec<Article> {
        vec![
            Article { code: "lamp".into(), price_cents: 300, free: 5 },
            Article { code: "mug".into(), price_cents: 7, free: 2 },
        ]
    }

    #[test]
    fn the_last_piece_is_sold_and_not_one_more() {
        assert!(reserve(&[line("mug", 2)], &shop()).is_ok());
        let missing = Missing { article: "mug".into(), reason: Reason::NotEnough };
        assert_eq!(reserve(&[line("mug", 3)], &shop()), Err(missing));
    }

    #[test]
    fn one_missing_line_leaves_nothing_reserved() {
        let missing = Missing { article: "throne".into(), reason: Reason::UnknownArticle };
        assert_eq!(reserve(&[line("lamp", 1), line("throne", 1), line("mug", 9)], &shop()), Err(missing));
    }

    #[test]
    fn an_order_costs_the_sum_of_its_pieces() {
        let reserved = reserve(&[line("lamp", 2), line("mug", 1)], &shop()).unwrap();
        assert_eq!(amount_cents(&reserved), 607);
    }
}
