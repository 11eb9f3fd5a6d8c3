//! What is said of topics, pattern by pattern: where they go, and what becomes of a key whose last attempt fails. Lists, so
//! they have no variable: a flag replaces what the file says.

use outbox::{Pattern, Policies, Policy, Routes};

use crate::exit::Failure;

/// One entry of a list: a pattern of topics and what is said of them.
#[derive(Debug, Clone)]
pub(super) struct ByTopic {
    pub(super) topic: String,
    pub(super) value: String,
    /// Where it was written, for the message about it.
    pub(super) origin: String,
}

/// The lists, each in its order.
#[derive(Debug, Clone, Default)]
pub(super) struct Topics {
    pub(super) routes: Vec<ByTopic>,
    pub(super) policies: Vec<ByTopic>,
}

/// The flags of the lists, as they were given.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TopicFlags<'a> {
    pub(crate) routes: &'a [String],
    pub(crate) policies: &'a [String],
}

impl Topics {
    /// With the flags in place of the file's lists, each if it was given at all.
    pub(super) fn under(mut self, flags: TopicFlags<'_>) -> Result<Self, Failure> {
        for (list, given, flag, form) in [
            (&mut self.routes, flags.routes, "--route", "PATTERN=DESTINATION, like 'orders.>=shop.{topic}'"),
            (
                &mut self.policies,
                flags.policies,
                "--policy",
                "PATTERN=park or PATTERN=skip, like 'metrics.>=skip'",
            ),
        ] {
            if !given.is_empty() {
                *list = given.iter().map(|text| from_flag(text, flag, form)).collect::<Result<_, _>>()?;
            }
        }
        Ok(self)
    }

    pub(super) fn routes(&self) -> Result<Routes, Failure> {
        self.routes.iter().try_fold(Routes::default(), |built, route| {
            built.with(&route.topic, &route.value).map_err(|error| fault(route, &error))
        })
    }

    pub(super) fn policies(&self) -> Result<Policies, Failure> {
        self.policies.iter().try_fold(Policies::default(), |built, entry| {
            let pattern: Pattern = entry.topic.parse().map_err(|error| fault(entry, &error))?;
            let policy = match entry.value.as_str() {
                "park" => Policy::Park,
                "skip" => Policy::Skip,
                _ => return Err(fault(entry, &"policy: must be park or skip")),
            };
            Ok(built.with(pattern, policy))
        })
    }
}

fn from_flag(text: &str, flag: &str, form: &str) -> Result<ByTopic, Failure> {
    let (topic, value) =
        text.split_once('=').ok_or_else(|| Failure::usage(format!("{flag}: must be {form}")))?;
    Ok(ByTopic { topic: topic.to_owned(), value: value.to_owned(), origin: flag.to_owned() })
}

fn fault(entry: &ByTopic, reason: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!("{}: {reason}", entry.origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_replaces_the_files_list_and_what_is_wrong_is_named() {
        let entry = |value: &str| ByTopic {
            topic: "orders".to_owned(),
            value: value.to_owned(),
            origin: "relay.toml: policy 1".to_owned(),
        };
        let file = |value| Topics { policies: vec![entry(value)], ..Topics::default() };
        let of = |topics: Topics, flags: &[&str]| {
            let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
            let policies =
                topics.under(TopicFlags { policies: &flags, ..TopicFlags::default() })?.policies()?;
            Ok(policies.of("orders"))
        };
        let text = |result: Result<Policy, Failure>| result.map_err(|failure| failure.to_string());
        assert_eq!(text(of(file("skip"), &[])), Ok(Policy::Skip));
        assert_eq!(text(of(file("skip"), &["*=park"])), Ok(Policy::Park));
        assert_eq!(
            text(of(file("drop"), &[])),
            Err("relay.toml: policy 1: policy: must be park or skip".to_owned())
        );
        assert!(text(of(file("skip"), &["a..b=skip"])).unwrap_err().starts_with("--policy: route pattern"));
        assert!(
            text(of(file("skip"), &["orders"])).unwrap_err().starts_with("--policy: must be PATTERN=park")
        );
    }
}
