//! Whose fault an error of the database is. Pure.

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
    match error {
        sqlx::Error::Database(error) => error.code().map_or(Blame::Handler, |code| of_sqlstate(&code)),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Blame::Database,
        _ => Blame::Handler,
    }
}

/// Whether the transaction is aborted: a statement failed in it and was passed over.
pub(crate) fn is_aborted(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().is_some_and(|code| code == "25P02"))
}

/// Whose fault it is by the server's own word.
pub(crate) fn of_sqlstate(code: &str) -> Blame {
    match code {
        // serialization_failure, deadlock_detected
        "40001" | "40P01" => Blame::Contention,
        // idle_in_transaction_session_timeout and its kin: the handler kept the transaction waiting.
        "25P03" | "25P04" => Blame::Handler,
        // statement_completion_unknown, read_only_sql_transaction (a failover), the server going away or coming up.
        "40003" | "25006" | "57P01" | "57P02" | "57P03" | "57P05" => Blame::Database,
        // Connections; too little of disk, memory or connections; the system below.
        code if ["08", "53", "58"].iter().any(|class| code.starts_with(class)) => Blame::Database,
        _ => Blame::Handler,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sqlstate_blames_the_right_one() {
        for (code, blame) in [
            ("40001", Blame::Contention),
            ("40P01", Blame::Contention),
            ("57P01", Blame::Database),
            ("08006", Blame::Database),
            ("53300", Blame::Database),
            ("25006", Blame::Database),
            ("40002", Blame::Handler),
            ("57014", Blame::Handler),
            ("55P03", Blame::Handler),
            ("23505", Blame::Handler),
            ("25P02", Blame::Handler),
            ("P0001", Blame::Handler),
        ] {
            assert_eq!(of_sqlstate(code), blame, "{code}");
        }
        assert_eq!(blame(&sqlx::Error::PoolTimedOut), Blame::Database);
        assert_eq!(blame(&sqlx::Error::RowNotFound), Blame::Handler);
    }
}
