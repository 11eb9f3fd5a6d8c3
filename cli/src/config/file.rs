//! The configuration file: TOML whose every key is a setting. What is wrong is said in one line, with the path.

use std::path::Path;

use toml::{Table, Value};

use super::layers::{Given, Layer, Origin};
use super::settings::{Kind, SETTINGS, by_key};
use super::topics::{ByTopic, Topics};
use crate::exit::Failure;
use crate::{suggest, text_file};

/// No configuration is longer; a file that is was named by mistake.
const BYTES: usize = 1 << 20;

/// The lists: their name, and what an entry says of its topic.
const ROUTE: (&str, &str) = ("route", "destination");
const POLICY: (&str, &str) = ("policy", "policy");

/// Reads the file.
pub(super) fn read(path: &Path) -> Result<(Layer, Topics), Failure> {
    let text = text_file::read(path, BYTES)?;
    parse(&path.display().to_string(), &text)
}

/// Takes every key of the text, and refuses what is none.
pub(super) fn parse(path: &str, text: &str) -> Result<(Layer, Topics), Failure> {
    let table: Table = toml::from_str(text).map_err(|error| syntax(path, text, &error))?;
    let mut layer = Layer::default();
    let mut topics = Topics::default();
    for (key, value) in table {
        match value {
            value if key == ROUTE.0 => topics.routes = list(path, value, ROUTE)?,
            value if key == POLICY.0 => topics.policies = list(path, value, POLICY)?,
            Value::Table(table) if by_key(&key).is_none() => {
                if table.is_empty() {
                    return Err(unknown(path, &key));
                }
                for (name, value) in table {
                    take(path, &mut layer, &format!("{key}.{name}"), value)?;
                }
            }
            value => take(path, &mut layer, &key, value)?,
        }
    }
    Ok((layer, topics))
}

fn take(path: &str, layer: &mut Layer, key: &str, value: Value) -> Result<(), Failure> {
    let setting = by_key(key).ok_or_else(|| unknown(path, key))?;
    let (wanted, text) = match (setting.kind, value) {
        (Kind::Text, Value::String(text)) => ("", Some(text)),
        (Kind::Duration, Value::String(text)) => ("", Some(text)),
        (Kind::Count, Value::Integer(number)) => ("", Some(number.to_string())),
        (Kind::Switch, Value::Boolean(switch)) => ("", Some(switch.to_string())),
        (Kind::Text, _) => ("text in quotes", None),
        (Kind::Duration, _) => ("a duration in quotes, like \"30s\"", None),
        (Kind::Count, _) => ("a whole number without quotes", None),
        (Kind::Switch, _) => ("true or false without quotes", None),
    };
    let Some(text) = text else {
        return Err(Failure::usage(format!("{path}: {key}: must be {wanted}")));
    };
    layer.insert(setting.key, Given { text, origin: Origin::File(path.to_owned()) });
    Ok(())
}

fn list(path: &str, value: Value, (name, says): (&str, &str)) -> Result<Vec<ByTopic>, Failure> {
    let shape =
        || Failure::usage(format!("{path}: {name}: must be written [[{name}]], with topic and {says}"));
    let Value::Array(entries) = value else { return Err(shape()) };
    let mut list = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let Value::Table(mut table) = entry else { return Err(shape()) };
        let at = format!("{path}: {name} {}", index + 1);
        let keys = ["topic", says];
        if let Some(key) = table.keys().find(|key| !keys.contains(&key.as_str())) {
            return Err(Failure::usage(format!("{at}: unknown key {key}{}", suggest::hint(key, keys))));
        }
        let mut text = |key: &str| match table.remove(key) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(Failure::usage(format!("{at}: {key}: must be text in quotes"))),
            None => Err(Failure::usage(format!("{at}: {key} is missing"))),
        };
        list.push(ByTopic { topic: text("topic")?, value: text(says)?, origin: at.clone() });
    }
    Ok(list)
}

fn unknown(path: &str, key: &str) -> Failure {
    let inside: Vec<&str> =
        SETTINGS.iter().filter_map(|setting| setting.key.strip_prefix(key)?.strip_prefix('.')).collect();
    if !inside.is_empty() {
        return Failure::usage(format!("{path}: {key}: must be a table, [{key}] with {}", inside.join(", ")));
    }
    let names = SETTINGS.iter().map(|setting| setting.key).chain([ROUTE.0, POLICY.0]);
    // `first` at the top level is `retry.first` without its table.
    let hint = match SETTINGS
        .iter()
        .find(|setting| setting.key.split_once('.').is_some_and(|(_, name)| name == key))
    {
        Some(setting) => format!("; did you mean {}?", setting.key),
        None => suggest::hint(key, names),
    };
    Failure::usage(format!("{path}: unknown key {key}{hint}"))
}

/// The parser's own message shows the line, which may be the one with the password.
fn syntax(path: &str, text: &str, error: &toml::de::Error) -> Failure {
    let line =
        error.span().map(|span| text.get(..span.start).map_or(0, |before| before.matches('\n').count()) + 1);
    let place = line.map_or_else(|| path.to_owned(), |line| format!("{path}:{line}"));
    Failure::usage(format!("{place}: {}", error.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        parse("relay.toml", text).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_without_the_value() {
        for (text, expected) in [
            ("leese = \"30s\"", "relay.toml: unknown key leese; did you mean lease?"),
            ("kafka = 1", "relay.toml: unknown key kafka"),
            ("[retry]\nfrist = \"1s\"", "relay.toml: unknown key retry.frist; did you mean retry.first?"),
            ("max_attempts = 3", "relay.toml: unknown key max_attempts; did you mean retry.max_attempts?"),
            ("[rety]", "relay.toml: unknown key rety; did you mean relay?"),
            ("lease = 30", "relay.toml: lease: must be a duration in quotes, like \"30s\""),
            ("batch = \"m4rker\"", "relay.toml: batch: must be a whole number without quotes"),
            ("batch = 1.5", "relay.toml: batch: must be a whole number without quotes"),
            ("doorbell = \"true\"", "relay.toml: doorbell: must be true or false without quotes"),
            ("broker = 7", "relay.toml: broker: must be text in quotes"),
            ("[broker]\nurl = \"m4rker\"", "relay.toml: broker: must be text in quotes"),
            ("retry = 3", "relay.toml: retry: must be a table, [retry] with max_attempts, first, ceiling"),
            (
                "[route]\ntopic = \"a\"",
                "relay.toml: route: must be written [[route]], with topic and destination",
            ),
            ("[[route]]\ntopic = \"a\"", "relay.toml: route 1: destination is missing"),
            (
                "[policy]\ntopic = \"a\"",
                "relay.toml: policy: must be written [[policy]], with topic and policy",
            ),
            (
                "[[route]]\ntopic = \"a\"\ndestination = \"b\"\n[[route]]\ntopik = 1",
                "relay.toml: route 2: unknown key topik; did you mean topic?",
            ),
            ("lease = \"1s\"\nlease = \"m4rker\"", "relay.toml:2: duplicate key"),
            ("database = \"m4rker", "relay.toml:1: invalid basic string, expected `\"`"),
            ("database = m4rker", "relay.toml:1: string values must be quoted, expected literal string"),
        ] {
            assert_eq!(fault(text), expected, "{text}");
        }
    }

    #[test]
    fn carriage_returns_end_lines_too() {
        let (layer, topics) =
            parse("f", "lease = \"30s\"\r\n[[route]]\r\ntopic = \"a\"\r\ndestination = \"b\"\r\n").unwrap();
        assert_eq!(layer.get("lease").map(|given| given.text.as_str()), Some("30s"));
        assert_eq!(topics.routes.len(), 1);
    }

    #[test]
    fn a_switch_is_true_or_false() {
        for on in [true, false] {
            let (layer, _) = parse("f", &format!("doorbell = {on}")).unwrap();
            assert_eq!(layer.switch("doorbell").unwrap(), Some(on));
        }
    }
}
