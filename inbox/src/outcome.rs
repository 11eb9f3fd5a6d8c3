//! Whose fault an error of the database is, for a consumer. Pure; what each SQLSTATE means stands in
//! [`message::sqlstate`].

use message::sqlstate::{self, Fault};
use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// What follows from an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// Two transactions met: tried again soon, nothing counted.
    Contention,
    /// The database's: tried again later, nothing counted.
    Database,
    /// The message's or its handler's: counted.
    Handler,
}

/// Whose fault is it if a handler's statement, or its COMMIT, ends with this error?
pub(crate) fn blame(error: &sqlx::Error) -> Blame {
    of_fault(fault(error))
}

/// Whose fault it is if a handler's error has this SQLSTATE.
pub(crate) fn of_sqlstate(code: &str) -> Blame {
    of_fault(sqlstate::fault(code))
}

fn of_fault(fault: Fault) -> Blame {
    match fault {
        Fault::Contention => Blame::Contention,
        Fault::Outage => Blame::Database,
        Fault::Value | Fault::Statement => Blame::Handler,
    }
}

/// Whose fault an error of the driver's is: by the server's SQLSTATE, or because there was no answer.
pub(crate) fn fault(error: &sqlx::Error) -> Fault {
    match error {
        sqlx::Error::Database(error) => {
            let fault = error.code().map_or(Fault::Statement, |code| sqlstate::fault(&code));
            let answer = error.try_downcast_ref::<PgDatabaseError>();
            match answer.map(PgDatabaseError::severity) {
                // A setting that the server does not take at the start of a session has the code of a value.
                Some(PgSeverity::Fatal | PgSeverity::Panic) if fault == Fault::Value => Fault::Outage,
                _ => fault,
            }
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Fault::Outage,
        // A value that the driver cannot send.
        sqlx::Error::Encode(_) => Fault::Value,
        _ => Fault::Statement,
    }
}

/// Whether the transaction is aborted: a statement failed in it and was passed over.
pub(crate) fn is_aborted(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().is_some_and(|code| code == sqlstate::ABORTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_answers_for_what_no_other_has_caused() {
        for (code, blame) in [
            ("40001", Blame::Contention),
            ("55P03", Blame::Contention),
            ("57P01", Blame::Database),
            ("25006", Blame::Database),
            ("57014", Blame::Handler),
            ("23505", Blame::Handler),
            ("22P05", Blame::Handler),
            ("25P02", Blame::Handler),
            ("25P03", Blame::Handler),
            ("42P01", Blame::Handler),
            ("P0001", Blame::Handler),
        ] {
            assert_eq!(of_sqlstate(code), blame, "{code}");
        }
        assert_eq!(blame(&sqlx::Error::PoolTimedOut), Blame::Database);
        assert_eq!(blame(&sqlx::Error::RowNotFound), Blame::Handler);
        assert_eq!(fault(&sqlx::Error::Encode("too long".into())), Fault::Value);
    }
}
