//! An error and its causes in one line for a person, without what a setting holds: a password may be a part of one.

use std::borrow::Cow;
use std::error::Error;

/// What the PostgreSQL driver puts in front of an error about its own settings, and before the setting's value or a part of it.
const SETTING: &str = "error with configuration: ";

/// What may follow: texts that hold nothing of a setting.
const PLAIN: [&str; 14] = [
    "empty host",
    "invalid international domain name",
    "invalid port number",
    "invalid IPv4 address",
    "invalid IPv6 address",
    "invalid domain character",
    "relative URL without a base",
    "invalid IP address syntax",
    "invalid digit found in string",
    "number too large to fit in target type",
    "cannot parse integer from empty string",
    "no keys found pem file",
    "user auth key and certs must be given together",
    "URLs more than 4 GB are not supported",
];

/// An error and what caused it, in one line. What the PostgreSQL driver says of a setting that it cannot use, which may be a
/// password, is replaced by the setting's name.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = error.to_string();
        let shown = without_settings(&part);
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&shown);
        // Its causes would tell it again.
        next = error.source().filter(|_| matches!(shown, Cow::Borrowed(_)));
    }
    text
}

/// The text of an error, in which the PostgreSQL driver may say what is wrong with a setting: then without the setting's value.
pub fn without_settings(text: &str) -> Cow<'_, str> {
    let Some((before, said)) = text.split_once(SETTING) else { return Cow::Borrowed(text) };
    let plain = PLAIN.iter().find(|plain| said.starts_with(**plain));
    let shown = match plain {
        Some(plain) => *plain,
        None if said.contains("saslprep password") => {
            "the password holds a character that the driver cannot send to a server with SCRAM authentication (RFC 4013)"
        }
        None if said.contains("saslprep username") => {
            "the user's name holds a character that the driver cannot send to a server with SCRAM authentication (RFC 4013)"
        }
        None if said.contains("for `ssl_mode`") || said.contains("ssl_mode") => "sslmode: unknown value",
        None if said.starts_with("invalid utf-8") => "a part of the URL is not UTF-8",
        None => "a setting of the connection cannot be used",
    };
    Cow::Owned(format!("{before}{shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Link(&'static str, Option<Box<Link>>);

    impl std::fmt::Display for Link {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Link {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|link| link as _)
        }
    }

    #[test]
    fn a_chain_names_a_setting_and_shows_nothing_of_it() {
        let saslprep = "Failed to saslprep password: ProhibitedCharacter('m4rker')";
        let driver = Link(
            "error with configuration: Failed to saslprep password: ProhibitedCharacter('m4rker')",
            Some(Box::new(Link(saslprep, None))),
        );
        let text = error_chain(&Link("the database did not answer", Some(Box::new(driver))));
        assert!(text.starts_with("the database did not answer: the password holds a character"), "{text}");
        assert!(!text.contains("m4rker"), "{text}");
        for said in
            ["unknown value \"m4rker\" for `ssl_mode`", "m4rker", "Failed to saslprep username: m4rker"]
        {
            let text = format!("postgres: {SETTING}{said}");
            let shown = without_settings(&text);
            assert!(shown.starts_with("postgres: ") && !shown.contains("m4rker"), "{shown}");
        }
    }

    #[test]
    fn other_errors_are_told_with_their_causes() {
        let broken = Link("broken", Some(Box::new(Link("connection refused", None))));
        assert_eq!(error_chain(&broken), "broken: connection refused");
        let port = without_settings("error with configuration: invalid port number");
        assert_eq!(port, "invalid port number");
    }
}
