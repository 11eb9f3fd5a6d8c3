//! Where goods can go. No I/O.

use crate::events::Reason;

/// A destination as the table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Somebody carries goods there.
    Served,
    /// Nobody does.
    Unserved,
    /// There is none of that code.
    Unknown,
}

/// Whether goods leave the house for there.
///
/// # Errors
/// Why not.
pub fn dispatch(destination: &Destination) -> Result<(), Reason> {
    match destination {
        Destination::Served => Ok(()),
        Destination::Unserved => Err(Reason::Unserved),
        Destination::Unknown => Err(Reason::UnknownDestination),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goods_go_where_somebody_carries_them_and_nowhere_else() {
        assert_eq!(dispatch(&Destination::Served), Ok(()));
        assert_eq!(dispatch(&Destination::Unserved), Err(Reason::Unserved));
        assert_eq!(dispatch(&Destination::Unknown), Err(Reason::UnknownDestination));
    }
}
