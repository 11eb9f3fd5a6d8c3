//! Whose fault an error of PostgreSQL is, by its SQLSTATE: the one table of the workspace. Pure.
//!
//! The table says what a repetition of the same statement with the same values would meet. What follows from it depends
//! on whose statement it was: a handler's statement that fails by [`Fault::Statement`] counts against its message; one of
//! our own never does.
//!
//! | class | fault | why |
//! |---|---|---|
//! | 08 connection exception | outage | the connection; poolers also use 08P01 when they refuse work |
//! | 22 data exception | value | a value does not fit the type, the encoding or the function that takes it |
//! | 23 integrity constraint | value | a value breaks a rule of the table |
//! | 25 transaction state | statement | 25P02: an earlier statement failed; 25P03, 25P04: the client kept the transaction waiting |
//! | 25006 read-only transaction | outage | the server became a standby: a failover |
//! | 26 prepared statement name | outage | a pooler gave the session to another server connection; so do 42P05 and 34000 |
//! | 28 authorization | outage | no session without the operator: a password or `pg_hba.conf` |
//! | 3D database name | outage | no session without the operator: the database is missing |
//! | 3F schema name | statement | it names what is not there: a migration is missing |
//! | 40 rollback | contention | 40001, 40P01 and 40000: two transactions met |
//! | 40002 | value | an integrity constraint, like class 23 |
//! | 40003 | outage | whether the statement was done is unknown: like a lost connection |
//! | 42 syntax or access rule | statement | it is wrong, or what it names is missing or not granted |
//! | 44 check option | value | a value breaks a rule of the view |
//! | 53 resources | outage | disk, memory or connections are used up |
//! | 54 program limit | value | a value is too long for an index or nested too deeply |
//! | 55 object state | statement | it is not possible now with this object |
//! | 55P03 lock not available | contention | another transaction has the lock |
//! | 57014 query canceled | statement | it took longer than its time-out, or a person cancelled it |
//! | 57 operator intervention | outage | the server stops, starts, or drops the database |
//! | 58 system error | outage | the operating system below the server |
//! | 72 snapshot too old | contention | a new transaction has a new snapshot |
//! | P0001 raise exception | value | a rule that the database's owner wrote refuses the row |
//! | P0 other PL/pgSQL | statement | an error in a function |
//! | XX001, XX002 corruption | outage | the server's files; no message is to blame |
//! | XX000 internal error | statement | extensions report a caller's mistakes by it, too |
//! | others | statement | |

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nobody's: two transactions met. The same again soon can succeed.
    Contention,
    /// The server's, the network's or their operator's. The same again later can succeed.
    Outage,
    /// A value that the statement carries: the same again fails again.
    Value,
    /// The statement, or what it finds in the database: the same again fails until a person changes either.
    Statement,
}

/// in_failed_sql_transaction: an earlier statement of the transaction failed.
pub const ABORTED: &str = "25P02";
/// read_only_sql_transaction.
pub const READ_ONLY: &str = "25006";
/// lock_not_available.
pub const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Whose fault an error with this SQLSTATE is.
///
/// ```
/// use message::sqlstate::{Fault, fault};
/// assert_eq!(fault("40001"), Fault::Contention);
/// assert_eq!(fault("57P01"), Fault::Outage);
/// assert_eq!(fault("22P05"), Fault::Value);
/// assert_eq!(fault("42P01"), Fault::Statement);
/// ```
pub fn fault(code: &str) -> Fault {
    match code {
        "40002" | "P0001" => Fault::Value,
        "40003" | READ_ONLY | "42P05" | "34000" | "XX001" | "XX002" => Fault::Outage,
        LOCK_NOT_AVAILABLE => Fault::Contention,
        "57014" => Fault::Statement,
        code => match code.get(..2).unwrap_or_default() {
            "40" | "72" => Fault::Contention,
            "08" | "26" | "28" | "3D" | "53" | "57" | "58" => Fault::Outage,
            "22" | "23" | "44" | "54" => Fault::Value,
            _ => Fault::Statement,
        },
    }
}

/// Whether an error with this SQLSTATE, in answer to COMMIT, says that the transaction was rolled back. After an outage
/// that is unknown: the server may have committed before it went away.
pub fn is_rolled_back(code: &str) -> bool {
    // A commit fails by a deferred constraint or trigger, or by a serialization failure. A time-out or a cancellation can
    // also end the wait for a standby after the commit, so class 57 says nothing.
    matches!(code.get(..2).unwrap_or_default(), "22" | "23" | "25" | "40" | "42" | "44" | "P0")
        && code != "40003"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_blames_the_right_one() {
        for (fault_of, codes) in [
            (Fault::Contention, "40000 40001 40P01 55P03 72000"),
            (
                Fault::Outage,
                "08000 08001 08003 08004 08006 08007 08P01 25006 26000 28000 28P01 34000 3D000 40003 42P05 53000 53100 \
                 53200 53300 53400 57000 57P01 57P02 57P03 57P04 57P05 58000 58030 58P01 XX001 XX002",
            ),
            (
                Fault::Value,
                "22000 22001 22003 22007 22008 22021 22023 22P02 22P03 22P05 23000 23001 23502 23503 23505 23514 23P01 \
                 40002 44000 54000 54001 54023 P0001",
            ),
            (
                Fault::Statement,
                "0A000 21000 25000 25001 25P01 25P02 25P03 25P04 2BP01 3F000 42501 42601 42703 42883 42P01 55000 55006 \
                 55P02 55P04 57014 F0000 HV000 P0000 P0002 P0003 P0004 XX000",
            ),
        ] {
            for code in codes.split_whitespace() {
                assert_eq!(fault(code), fault_of, "{code}");
            }
        }
    }

    #[test]
    fn no_data_exception_is_an_outage() {
        let letters: Vec<char> = ('0'..='9').chain('A'..='Z').collect();
        for (a, b, c) in letters
            .iter()
            .flat_map(|a| letters.iter().flat_map(move |b| [('0', *a, *b), ('P', *a, *b), ('1', *a, *b)]))
        {
            assert_eq!(fault(&format!("22{a}{b}{c}")), Fault::Value);
        }
    }

    #[test]
    fn what_is_no_sqlstate_blames_the_statement() {
        for code in ["", "2", "é", "éé", "\u{1f600}", "225"] {
            let class_22 = code.starts_with("22");
            assert_eq!(fault(code) == Fault::Statement, !class_22, "{code}");
        }
    }

    #[test]
    fn a_commit_was_rolled_back_only_if_the_server_says_so() {
        for code in ["23505", "40001", "40P01", "P0001", "25P02", "22P05", "42501"] {
            assert!(is_rolled_back(code), "{code}");
        }
        for code in ["40003", "57014", "57P01", "08006", "53100", "XX000", ""] {
            assert!(!is_rolled_back(code), "{code}");
        }
    }
}
