//! What is said of NATS besides its address: a stream, and files that hold what lets the relay in. No I/O.

use std::path::PathBuf;

use super::layers::Layer;
use crate::exit::Failure;

/// A NATS stream, and the subjects it is created with if it is to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NatsStream {
    pub(crate) name: String,
    pub(crate) subjects: Vec<String>,
}

/// Files. The secrets are in them and not here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NatsAccess {
    pub(crate) credentials: Option<PathBuf>,
    pub(crate) nkey: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<(PathBuf, PathBuf)>,
}

/// The stream that is named.
pub(super) fn stream(layer: &Layer) -> Result<Option<NatsStream>, Failure> {
    let name = layer.text("nats.stream", "a stream's name without . * > / \\ or blanks", |text| {
        let valid = !text.is_empty()
            && !text.contains(['.', '*', '>', '/', '\\'])
            && !text.contains(char::is_whitespace);
        valid.then(|| text.to_owned())
    })?;
    let subjects = layer.text("nats.subjects", "subjects joined by commas", |text| {
        let subjects: Vec<String> = text.split(',').map(|subject| subject.trim().to_owned()).collect();
        subjects.iter().all(|subject| !subject.is_empty()).then_some(subjects)
    })?;
    match (name, subjects) {
        (None, Some(_)) => {
            Err(Failure::usage("nats.subjects are given without nats.stream: which stream takes them?"))
        }
        (None, None) => Ok(None),
        (Some(name), subjects) => Ok(Some(NatsStream { name, subjects: subjects.unwrap_or_default() })),
    }
}

/// The files that are named.
pub(super) fn access(layer: &Layer) -> Result<NatsAccess, Failure> {
    let file = |key| layer.text(key, "a file, not what is in it", path);
    let access = NatsAccess {
        credentials: file("nats.credentials")?,
        nkey: file("nats.nkey")?,
        ca: file("nats.ca")?,
        certificate: match (file("nats.certificate")?, file("nats.key")?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(Failure::usage("nats.certificate and nats.key belong together: give both")),
        },
    };
    if access.credentials.is_some() && access.nkey.is_some() {
        return Err(Failure::usage("nats.credentials and nats.nkey are both given: one of them"));
    }
    Ok(access)
}

/// A file's name. A seed or the text of a file is refused before any message repeats it.
fn path(text: &str) -> Option<PathBuf> {
    let is_seed =
        text.len() >= 50 && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    let valid = !text.is_empty() && !is_seed && !text.contains("-----") && !text.contains(['\n', '\r', '\0']);
    valid.then(|| PathBuf::from(text))
}
