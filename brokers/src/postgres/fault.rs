//! Whose fault an error of the broker database is. No I/O, and no word of what a message holds.

use message::sqlstate::{self, fault};
use message::{PublishError, error_chain};
use sqlx::Error;

/// What came of appending a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Some message of the batch is at fault, and none was appended.
    Message(String),
    /// None was appended, or whether they were is unknown.
    Batch(PublishError),
}

/// Why appending failed, once the statement was sent.
pub(super) fn of(error: &Error) -> Fault {
    let Some(answer) = error.as_database_error() else {
        // A lost connection, a torn answer: the commit may have gone through.
        return Fault::Batch(PublishError::Unknown(format!("postgres: {}", error_chain(error))));
    };
    let code = answer.code().unwrap_or_default();
    match fault(&code) {
        // The server's own words may repeat the value.
        sqlstate::Fault::Value => Fault::Message(match answer.constraint() {
            Some(constraint) => format!("the broker database refuses it: {constraint}"),
            None => format!("the broker database refuses it: SQLSTATE {code}"),
        }),
        sqlstate::Fault::Contention | sqlstate::Fault::Outage | sqlstate::Fault::Statement => {
            Fault::Batch(unavailable(error))
        }
    }
}

/// Nothing was sent, or the server says that it did nothing.
pub(super) fn unavailable(error: &Error) -> PublishError {
    PublishError::Unavailable(format!("postgres: {}", error_chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_is_unknown() {
        let torn = Error::Io(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        assert!(matches!(of(&torn), Fault::Batch(PublishError::Unknown(_))));
    }
}
