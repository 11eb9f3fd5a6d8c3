//! Changes to a PostgreSQL address that keep the rest of it.

/// The same server, with `database` in place of the one named.
pub(super) fn with_database(url: &str, database: &str) -> String {
    let (address, query) = match url.split_once('?') {
        Some((address, query)) => (address, format!("?{query}")),
        None => (url, String::new()),
    };
    let authority = address.find("://").map_or(0, |at| at + "://".len());
    let end = address[authority..].find('/').map_or(address.len(), |at| authority + at);
    format!("{}/{}{query}", &address[..end], encoded(database))
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
    fn a_password_is_not_shown() {
        assert_eq!(without_password("postgres://u:p@h:1/d?password=p"), "h:1/d");
    }
}
