//! Whose fault an error of the database is, for a consumer. Pure; what each SQLSTATE means stands in
//! [`message::sqlstate`].

use std::io;

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

/// Whether the connection that it came from is gone.
pub(crate) fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            let answer = error.try_downcast_ref::<PgDatabaseError>();
            matches!(answer.map(PgDatabaseError::severity), Some(PgSeverity::Fatal | PgSeverity::Panic))
        }
        // A time-out may be our own: that says nothing of the connection.
        sqlx::Error::Io(error) => error.kind() != io::ErrorKind::TimedOut,
        sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// Whether an error with this SQLSTATE says that there is no session, or one that cannot write at all. Then no transaction
/// stands in it.
pub(crate) fn is_of_session(code: &str) -> bool {
    matches!(code, "53300" | sqlstate::READ_ONLY)
        || (matches!(code.get(..2), Some("08" | "28" | "3D" | "57")) && code != "57014")
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
        for (code, of_session) in [
            ("57P01", true),
            ("3D000", true),
            ("53300", true),
            ("25006", true),
            ("53100", false),
            ("57014", false),
        ] {
            assert_eq!(is_of_session(code), of_session, "{code}");
        }
        assert!(is_lost(&sqlx::Error::WorkerCrashed) && !is_lost(&sqlx::Error::PoolTimedOut));
        assert!(!is_lost(&sqlx::Error::Io(io::ErrorKind::TimedOut.into())));
        assert_eq!(blame(&sqlx::Error::PoolTimedOut), Blame::Database);
        assert_eq!(blame(&sqlx::Error::RowNotFound), Blame::Handler);
        assert_eq!(fault(&sqlx::Error::Encode("too long".into())), Fault::Value);
    }
}
