//! Changes to a PostgreSQL address that keep the rest of it.

/// The same server, with `database` in place of the one named.
pub(crate) fn with_database(url: &str, database: &str) -> String {
    let (address, query) = match url.split_once('?') {
        Some((address, query)) => (address, format!("?{query}")),
        None => (url, String::new()),
    };
    let authority = address.find("://").map_or(0, |at| at + "://".len());
    let end = address[authority..].find('/').map_or(address.len(), |at| authority + at);
    format!("{}/{}{query}", &address[..end], encoded(database))
}

/// Another server, with the same user, password, database and options.
pub(crate) fn with_address(url: &str, server: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (user, _) = rest[..end].rsplit_once('@')?;
    Some(format!("{scheme}://{user}@{server}{}", &rest[end..]))
}

/// Where a server listens, and who may log in.
#[derive(PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Of an address that names all of it but the port.
    pub(crate) fn of(url: &str) -> Option<Address> {
        let (_, rest) = url.split_once("://")?;
        let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
        let (user, server) = authority.rsplit_once('@')?;
        let (user, password) = user.split_once(':')?;
        let (host, port) = match server.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
            _ => (server, 5432),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        (!host.is_empty()).then_some(Address {
            user: decoded(user)?,
            password: decoded(password)?,
            host,
            port,
        })
    }
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// The address for people to read.
pub(super) fn without_password(url: &str) -> String {
    let address = url.split_once('?').map_or(url, |(address, _)| address);
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.rsplit_once('@').map_or(rest, |(_, server)| server).to_owned()
}

fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_database_changes() {
        assert_eq!(
            with_database("postgres://u:p@h:1/old?sslmode=require", "new"),
            "postgres://u:p@h:1/new?sslmode=require"
        );
        assert_eq!(with_database("postgres://h", "new"), "postgres://h/new");
        assert_eq!(with_database("postgres:///old?host=/run/pg", "new"), "postgres:///new?host=/run/pg");
        assert_eq!(with_database("postgres://h/old", "a b/ö"), "postgres://h/a%20b%2F%C3%B6");
    }

    #[test]
    fn an_address_is_read_and_changed_as_a_whole() {
        let address = Address::of("postgres://u%40x:p%3Aw@[::1]:7/d?sslmode=disable").unwrap();
        assert_eq!((address.user.as_str(), address.password.as_str()), ("u@x", "p:w"));
        assert_eq!((address.host.as_str(), address.port), ("::1", 7));
        assert_eq!(Address::of("postgres://u:p@h/").unwrap().port, 5432);
        assert!(Address::of("postgres:///d?host=/run/pg").is_none());
        assert_eq!(with_address("postgres://u:p@h:1/d?x=y", "l:2").unwrap(), "postgres://u:p@l:2/d?x=y");
    }

    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(without_password("postgres://u:p@h:1/d?password=p"), "h:1/d");
    }
}
