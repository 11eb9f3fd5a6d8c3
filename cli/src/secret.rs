//! URLs that may hold a password. No way of printing one shows it: not `Display`, not `Debug`, not an error.

use std::fmt;

/// A database's or broker's URL. Only [`expose`](Self::expose) gives the whole of it away, to the driver.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretUrl(String);

impl SecretUrl {
    pub(crate) fn new(url: impl Into<String>) -> Self {
        SecretUrl(url.into())
    }

    /// With the password. For the driver, never for a person.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it holds a secret. In a NATS URL a name alone is one: it is a token.
    pub(crate) fn holds_secret(&self) -> bool {
        let Some((scheme, rest)) = self.0.split_once("://") else { return false };
        let in_user = rest
            .rsplit_once('@')
            .is_some_and(|(user, _)| scheme != "postgres" && scheme != "postgresql" || user.contains(':'));
        let secret = |name: String| {
            let name = name.to_ascii_lowercase();
            ["pass", "pw", "token", "secret"].iter().any(|word| name.contains(word))
        };
        in_user || query_keys(rest).any(secret)
    }

    /// The names of its query parameters.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = String> {
        query_keys(&self.0)
    }
}

/// Percent-decoded, as the driver reads them: `pass%77ord` is one way to write `password`.
fn query_keys(url: &str) -> impl Iterator<Item = String> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let key = pair.split('=').next().unwrap_or_default();
        percent_decoded(key)
    })
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.filter(|_| byte == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &tail[2..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.0))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.0))
    }
}

/// What may be shown of a URL: scheme, host and path. The query is left out whole, and a user name with it, since no
/// reader needs them and every exception is a hole. A password may hold any character when nobody encoded it, so that
/// everything up to the last `@` counts as one.
fn shown(url: &str) -> String {
    // A file, standard output, memory: nothing to hide. Anything else without a scheme may be a bare secret.
    let Some((scheme, rest)) = url.split_once("://") else {
        let plain = ["file:", "memory:"].iter().any(|scheme| url.starts_with(scheme));
        return if plain { url.to_owned() } else { "(no URL)".to_owned() };
    };
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let rest = rest.split_once(['?', '#']).map_or(rest, |(rest, _)| rest);
    format!("{scheme}://{rest}")
}

/// Hides what the URLs inside a library's message should not show. It rather takes too much: a password that nobody
/// encoded may hold blanks and quotes, so that everything from the first `://` to the last `@` goes.
pub(crate) fn redact(text: &str) -> String {
    let Some((head, rest)) = text.split_once("://") else { return text.to_owned() };
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let end = rest.find([' ', '\'', '"', '`']).unwrap_or(rest.len());
    let (url, tail) = rest.split_at(end);
    let url = url.split_once(['?', '#']).map_or(url, |(url, _)| url);
    format!("{head}://{url}{}", redact(tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_way_of_printing_shows_the_password() {
        for url in [
            "postgres://app:m4rker@host:5432/orders",
            "postgres://app:m4rker@host/orders?sslmode=require",
            "postgres://app:p@m4rker@host/orders",
            "postgres://app:p/m4rker@host/orders",
            "postgres://app:p?m4rker@host/orders",
            "postgres://app:p#m4rker@host/orders",
            "postgres://app:p ' m4rker@host/orders",
            "postgres://app@host/orders?password=m4rker",
            "postgres://app@host/orders?%70assword=m4rker",
            "nats://m4rker@host:4222",
            "host=db password=m4rker",
            "m4rker",
        ] {
            let secret = SecretUrl::new(url);
            assert!(!format!("{secret} {secret:?}").contains("m4rker"), "{url}");
            if url.contains("://") {
                assert!(!redact(&format!("cannot use '{url}' here")).contains("m4rker"), "{url}");
            }
        }
        let shown = SecretUrl::new("postgres://app:m4rker@[::1]:5432/orders?sslmode=require").to_string();
        assert_eq!(shown, "postgres://[::1]:5432/orders");
        assert_eq!(SecretUrl::new("file:/var/stream.jsonl").to_string(), "file:/var/stream.jsonl");
    }

    #[test]
    fn a_secret_is_known_as_one_wherever_it_stands() {
        let holds = |url: &str| SecretUrl::new(url).holds_secret();
        assert!(holds("postgres://app:pw@host/db"));
        assert!(holds("postgresql://app@host/db?password=pw"));
        assert!(holds("postgresql://app@host/db?sslmode=require&%70%61%73sword=pw"));
        assert!(holds("nats://token@host"));
        assert!(!holds("postgres://app@host/db"));
        assert!(!holds("postgres://host:5432/db?sslmode=require"));
        assert!(!holds("nats://host:4222"));
    }
}
