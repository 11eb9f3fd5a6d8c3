//! Standard output is data. It is written in one go, and a reader that has gone away is no error.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use crate::exit::Failure;

/// How a command answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For a person
    Text,
    /// For a script: one JSON document
    Json,
}

/// Writes data for whoever reads standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    write(&mut std::io::stdout().lock(), text, "standard output")
}

/// Writes one JSON document.
pub(crate) fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
    print(&(text + "\n"))
}

/// Writes a line for the person at the terminal. If even that fails there is nobody left to tell.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn write(to: &mut impl Write, text: &str, name: &str) -> Result<(), Failure> {
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        // `outbox status | head -1`: the reader has what it wanted.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::failed(format!("cannot write to {name}: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Text from a row or a broker, with every character escaped that could move the cursor, recolour the terminal, begin
/// a line or turn the direction of writing.
pub(crate) fn plain(text: &str) -> String {
    let unsafe_char = |char: char| {
        char.is_control()
            || matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(unsafe_char) {
        return text.to_owned();
    }
    text.chars()
        .map(|char| if unsafe_char(char) { char.escape_unicode().to_string() } else { char.to_string() })
        .collect()
}

/// The state of a relay, for a person and for a script: one that should run and has no process is `stopped`.
pub(crate) fn state(relay: &outbox::admin::RelayStatus) -> String {
    if relay.is_stopped() { "stopped".to_owned() } else { relay.state.clone() }
}

/// Rows under a head, columns as wide as their widest entry.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |row: &Vec<String>| row.iter().map(|cell| plain(cell)).collect::<Vec<_>>();
    let rows: Vec<Vec<String>> = std::iter::once(head.iter().map(|&name| name.to_owned()).collect())
        .chain(rows.iter().map(cells))
        .collect();
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_cannot_be_broken_by_what_stands_in_a_cell() {
        let rows =
            vec![vec!["a\nb".to_owned(), "1".to_owned()], vec!["é".to_owned(), "\u{202e}2".to_owned()]];
        assert_eq!(table(&["key", "n"], &rows), "key      n\na\\u{a}b  1\né        \\u{202e}2\n");
    }

    struct Closed(ErrorKind);

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_failure_and_a_full_disk_is_one() {
        assert!(write(&mut Closed(ErrorKind::BrokenPipe), "x", "it").is_ok());
        assert!(write(&mut Closed(ErrorKind::StorageFull), "x", "it").is_err());
    }
}
