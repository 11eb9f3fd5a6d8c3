//! Where a value was given, and which of several wins: a flag beats the environment, the environment beats the file.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::settings::{SETTINGS, by_key};
use crate::exit::Failure;
use crate::{database, duration, suggest};

/// A value as somebody wrote it. Not printed: it may hold a password.
#[derive(Clone)]
pub(super) struct Given {
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// Who gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    File(String),
    Environment,
    Flag,
}

/// The values of one origin, or of all together.
#[derive(Default)]
pub(super) struct Layer(BTreeMap<&'static str, Given>);

impl Layer {
    pub(super) fn insert(&mut self, key: &'static str, given: Given) {
        self.0.insert(key, given);
    }

    pub(super) fn get(&self, key: &str) -> Option<&Given> {
        self.0.get(key)
    }

    /// With another layer on top of it.
    pub(super) fn under(mut self, upper: Layer) -> Self {
        self.0.extend(upper.0);
        self
    }

    /// What the environment gives. A variable that is almost a setting's is refused; others that begin with `OUTBOX_`
    /// are not ours: Kubernetes makes some for a service called outbox.
    pub(super) fn from_environment(
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Failure> {
        let mut layer = Layer::default();
        for (name, text) in variables {
            if let Some(setting) = SETTINGS.iter().find(|setting| setting.variable == name) {
                if !text.is_empty() {
                    layer.insert(setting.key, Given { text, origin: Origin::Environment });
                }
            } else if name.starts_with("OUTBOX_") {
                let names = SETTINGS.iter().map(|setting| setting.variable);
                if let Some(meant) =
                    suggest::nearest(&name, names).filter(|meant| strsim::levenshtein(&name, meant) <= 2)
                {
                    return Err(Failure::usage(format!("unknown variable {name}; did you mean {meant}?")));
                }
            }
        }
        Ok(layer)
    }

    /// What the flags give.
    pub(super) fn from_flags<'a>(flags: impl IntoIterator<Item = (&'static str, Option<&'a str>)>) -> Self {
        let mut layer = Layer::default();
        for (key, text) in flags {
            if let Some(text) = text {
                layer.insert(key, Given { text: text.to_owned(), origin: Origin::Flag });
            }
        }
        layer
    }

    /// A setting that is one of a few words, or anything that `parse` takes.
    pub(super) fn text<T>(
        &self,
        key: &'static str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let Some(given) = self.get(key) else { return Ok(None) };
        parse(&given.text).map(Some).ok_or_else(|| fault(key, given, wanted))
    }

    /// A whole number within bounds.
    pub(super) fn count(
        &self,
        key: &'static str,
        bounds: std::ops::RangeInclusive<u32>,
    ) -> Result<Option<u32>, Failure> {
        let wanted = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        // `parse` alone would take "+5".
        let digits =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
        self.text(key, &wanted, |text| digits(text).filter(|number| bounds.contains(number)))
    }

    /// On or off.
    pub(super) fn switch(&self, key: &'static str) -> Result<Option<bool>, Failure> {
        self.text(key, "true or false", |text| text.parse().ok())
    }

    /// A duration of at least `least`.
    pub(super) fn duration(&self, key: &'static str, least: Duration) -> Result<Option<Duration>, Failure> {
        let wanted = format!(
            "{}; at least {}, at most {}",
            duration::GRAMMAR,
            duration::show(least),
            duration::show(duration::LONGEST)
        );
        self.text(key, &wanted, |text| duration::parse(text).filter(|duration| *duration >= least))
    }

    /// A URL that may hold a secret: not on the command line.
    pub(super) fn url(&self, key: &'static str) -> Result<Option<crate::secret::SecretUrl>, Failure> {
        let Some(given) = self.get(key) else { return Ok(None) };
        let name = name(key, given);
        match given.origin {
            Origin::Flag => database::from_argument(&name, &given.text).map(Some),
            _ => Ok(Some(crate::secret::SecretUrl::new(given.text.clone()))),
        }
    }
}

fn fault(key: &str, given: &Given, wanted: &str) -> Failure {
    Failure::usage(format!("{}: must be {wanted}", name(key, given)))
}

/// The setting as whoever gave it wrote it.
fn name(key: &str, given: &Given) -> String {
    let setting = by_key(key);
    match (&given.origin, setting) {
        (Origin::File(path), _) => format!("{path}: {key}"),
        (Origin::Environment, Some(setting)) => setting.variable.to_owned(),
        (Origin::Flag, Some(setting)) => setting.flag.to_owned(),
        (_, None) => key.to_owned(),
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Given by {:?}", self.origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Result<Layer, Failure> {
        Layer::from_environment(pairs.iter().map(|(name, text)| (name.to_string(), text.to_string())))
    }

    fn given(text: &str, origin: Origin) -> Layer {
        let mut layer = Layer::default();
        layer.insert("lease", Given { text: text.to_owned(), origin });
        layer
    }

    #[test]
    fn a_flag_beats_the_environment_and_that_beats_the_file() {
        let lease = |layer: &Layer| layer.duration("lease", Duration::ZERO).unwrap().unwrap().as_secs();
        let file = || given("1s", Origin::File("f".to_owned()));
        assert_eq!(lease(&file()), 1);
        let both = file().under(environment(&[("OUTBOX_LEASE", "2s")]).unwrap());
        assert_eq!(lease(&both), 2);
        assert_eq!(lease(&both.under(Layer::from_flags([("lease", Some("3s")), ("drain", None)]))), 3);
    }

    #[test]
    fn a_fault_names_the_place_where_the_value_stands() {
        let fault = |layer: &Layer| layer.duration("lease", Duration::from_secs(1)).unwrap_err().to_string();
        let wanted = "must be a whole number and a unit: 250ms, 30s, 5m, 2h; at least 1s, at most 24000h";
        assert_eq!(
            fault(&given("5m30", Origin::File("r.toml".to_owned()))),
            format!("r.toml: lease: {wanted}")
        );
        assert_eq!(fault(&given("0s", Origin::Flag)), format!("--lease: {wanted}"));
        let layer = environment(&[("OUTBOX_LEASE", "1 day")]).unwrap();
        assert_eq!(fault(&layer), format!("OUTBOX_LEASE: {wanted}"));
    }

    #[test]
    fn a_number_is_digits_within_bounds() {
        for text in ["", "0", "-1", "+5", "1e3", "NaN", "1001", "18446744073709551616"] {
            let layer = Layer::from_flags([("batch", Some(text))]);
            let fault = layer.count("batch", 1..=1000).unwrap_err().to_string();
            assert_eq!(fault, "--batch: must be a whole number from 1 to 1000", "{text}");
        }
        let layer = Layer::from_flags([("batch", Some("1000"))]);
        assert_eq!(layer.count("batch", 1..=1000).unwrap(), Some(1000));
    }

    #[test]
    fn a_misspelt_variable_is_refused_and_a_foreign_one_is_not() {
        let fault = environment(&[("OUTBOX_LEESE", "m4rker")]).err().unwrap().to_string();
        assert_eq!(fault, "unknown variable OUTBOX_LEESE; did you mean OUTBOX_LEASE?");
        assert!(environment(&[("OUTBOX_SERVICE_HOST", "10.0.0.1"), ("OUTBOX_PORT", "tcp://x")]).is_ok());
    }

    #[test]
    fn no_value_is_printed_by_debug() {
        assert_eq!(
            format!("{:?}", Given { text: "m4rker".to_owned(), origin: Origin::Flag }),
            "Given by Flag"
        );
    }
}
