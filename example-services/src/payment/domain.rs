//! Who may pay how much. No I/O.

use crate::events::Reason;

/// Whether an order of that amount is charged, to a customer with that limit (`None`: no such customer).
///
/// # Errors
/// Why not.
pub fn charge(limit_cents: Option<i64>, amount_cents: i64) -> Result<(), Reason> {
    match limit_cents {
        None => Err(Reason::UnknownCustomer),
        Some(limit) if amount_cents > limit => Err(Reason::AboveLimit),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_itself_may_be_spent_and_not_a_cent_more() {
        assert_eq!(charge(Some(100), 100), Ok(()));
        assert_eq!(charge(Some(100), 101), Err(Reason::AboveLimit));
        assert_eq!(charge(None, 1), Err(Reason::UnknownCustomer));
    }
}
