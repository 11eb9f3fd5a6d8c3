//! Whose fault an error of the broker database is. No I/O, and no word of what a message holds.

use message::sqlstate::{self, fault};
use message::{PublishError, error_chain};
use outbox::log::AppendError;
use sqlx::Error;

/// What came of appending a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Some message of the batch is at fault, and none was appended.
    Message(String),
    /// None was appended, or whether they were is unknown.
    Batch(PublishError),
}

/// Why appending failed.
pub(super) fn of(error: &AppendError) -> Fault {
    let error = match error {
        AppendError::NotAppended(error) => error,
        AppendError::Unknown(error) => {
            return Fault::Batch(PublishError::Unknown(format!("postgres: {}", error_chain(error))));
        }
        // Whatever it is, a second copy is no loss.
        error => return Fault::Batch(PublishError::Unknown(format!("postgres: {}", error_chain(error)))),
    };
    if let Error::Encode(_) = error {
        return Fault::Message("the driver cannot send it".to_owned());
    }
    let Some(answer) = error.as_database_error() else {
        return Fault::Batch(unavailable(error));
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
    fn a_lost_answer_to_a_commit_is_unknown_and_before_it_nothing_was_appended() {
        let torn = || Error::Io(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        let unknown = of(&AppendError::Unknown(torn()));
        assert!(matches!(unknown, Fault::Batch(PublishError::Unknown(_))));
        let lost = of(&AppendError::NotAppended(torn()));
        assert!(matches!(lost, Fault::Batch(PublishError::Unavailable(_))));
    }
}
