//! Messages out of a file of CloudEvents, one a line.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use message::{Malformed, Message, wire};

/// The messages in the file at `path`, in its order. Empty lines are passed over.
///
/// # Errors
/// The file cannot be opened.
pub fn read(path: impl AsRef<Path>) -> io::Result<Messages> {
    let path = path.as_ref();
    Ok(Messages { lines: BufReader::new(File::open(path)?), name: path.display().to_string() })
}

/// Iterates over the messages of a file; made by [`read`].
pub struct Messages {
    lines: BufReader<File>,
    name: String,
}

/// One line is not a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The line could not be understood; the next one may be.
    #[error("line is malformed: {}", .0.reason)]
    Malformed(Malformed),
    /// The file could not be read further.
    #[error("file cannot be read")]
    Io(#[source] io::Error),
}

impl Iterator for Messages {
    type Item = Result<Message, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        loop {
            line.clear();
            match self.lines.read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(ReadError::Io(error))),
            }
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            if !text.is_empty() {
                return Some(wire::structured::decode(text, &self.name).map_err(ReadError::Malformed));
            }
        }
    }
}
