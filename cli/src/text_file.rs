//! A small text file that a person wrote, or one line that says what is wrong with it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::exit::Failure;

/// Reads at most `limit` bytes of UTF-8, and something.
pub(crate) fn read(path: &Path, limit: usize) -> Result<String, Failure> {
    let fault = |reason: &str| Failure::usage(format!("{}: {reason}", path.display()));
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => fault("no such file"),
        std::io::ErrorKind::IsADirectory => fault("is a directory"),
        std::io::ErrorKind::PermissionDenied => fault("permission denied"),
        _ => fault(&error.to_string()),
    };
    let mut bytes = Vec::new();
    // One byte more than the limit: enough to know, whatever the file's length says (a pipe's says nothing).
    File::open(path)
        .and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() > limit {
        return Err(fault(&format!("longer than {limit} bytes")));
    }
    if bytes.starts_with(&[0xef, 0xbb, 0xbf]) {
        return Err(fault("begins with a byte order mark; save it as UTF-8 without one"));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| fault(&format!("not UTF-8, at byte {}", error.utf8_error().valid_up_to() + 1)))?;
    if text.trim().is_empty() {
        return Err(fault("is empty"));
    }
    Ok(text)
}
