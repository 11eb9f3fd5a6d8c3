//! Which broker a URL means. No I/O.

use std::path::PathBuf;

use crate::exit::Failure;
use crate::secret::SecretUrl;

/// What a broker URL may be.
pub(crate) const FORMS: &str =
    "file:/PATH, file:- (standard output), nats://HOST, postgres://HOST/DATABASE, or memory:";

/// A broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Broker {
    /// JSON lines in a file.
    File(PathBuf),
    /// JSON lines on standard output.
    StandardOutput,
    /// NATS JetStream, one address or several joined by commas.
    Nats(SecretUrl),
    /// Another PostgreSQL log.
    Postgres(SecretUrl),
    /// Confirms everything, keeps nothing.
    Memory,
}

impl Broker {
    /// Reads the URL.
    pub(crate) fn parse(url: &SecretUrl) -> Result<Self, Failure> {
        let text = url.expose();
        if let Some(path) = text.strip_prefix("file:") {
            // `file:///var/x` is the long way to write `file:/var/x`.
            let path = path.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(path);
            return match path {
                "" => Err(Failure::usage("broker file: names no file (file:- is standard output)")),
                "-" => Ok(Broker::StandardOutput),
                path if path.ends_with('/') => {
                    Err(Failure::usage(format!("broker file:{path}: is a directory")))
                }
                path if path.starts_with("//") || text.starts_with("file://") && !path.starts_with('/') => {
                    Err(Failure::usage(
                        "broker file: another host's files are out of reach; write file:/PATH",
                    ))
                }
                path => Ok(Broker::File(PathBuf::from(path))),
            };
        }
        match text.split_once(':') {
            Some(("memory", "")) => Ok(Broker::Memory),
            Some(("nats" | "tls", rest)) if rest.starts_with("//") => Ok(Broker::Nats(url.clone())),
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => {
                Ok(Broker::Postgres(url.clone()))
            }
            _ => Err(Failure::usage(format!("broker {url}: must be {FORMS}"))),
        }
    }
}

impl std::fmt::Display for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broker::File(path) => write!(f, "file:{}", path.display()),
            Broker::StandardOutput => f.write_str("standard output"),
            Broker::Nats(url) | Broker::Postgres(url) => write!(f, "{url}"),
            Broker::Memory => f.write_str("memory, where nothing is kept"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_means_its_broker_and_nothing_else_does() {
        let parse = |url: &str| Broker::parse(&SecretUrl::new(url));
        let file = |path: &str| Broker::File(PathBuf::from(path));
        assert_eq!(parse("file:/var/x.jsonl").unwrap(), file("/var/x.jsonl"));
        assert_eq!(parse("file:///var/x.jsonl").unwrap(), file("/var/x.jsonl"));
        assert_eq!(parse("file:x.jsonl").unwrap(), file("x.jsonl"));
        assert_eq!(parse("file:-").unwrap(), Broker::StandardOutput);
        assert_eq!(parse("memory:").unwrap(), Broker::Memory);
        assert!(matches!(parse("nats://a:4222,nats://b:4222").unwrap(), Broker::Nats(_)));
        assert!(matches!(parse("postgresql:///log?host=/run/pg").unwrap(), Broker::Postgres(_)));
        for url in [
            "",
            "file:",
            "file:/var/",
            "file://host/x",
            "kafka://m4rker@h",
            "m4rker",
            "nats:m4rker",
            "memory:m4rker",
        ] {
            let failure = parse(url).unwrap_err().to_string();
            assert!(!failure.contains("m4rker@") && failure.starts_with("broker "), "{url}: {failure}");
        }
    }
}
