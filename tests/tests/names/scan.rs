//! What a statement's text calls.

use std::collections::BTreeSet;

/// Whether it can be a part of a function's body: no other statement calls anything.
pub(crate) fn is_query(sql: &str) -> bool {
    let code = code(sql);
    let first = code.split_whitespace().next().unwrap_or_default();
    ["select", "with", "insert", "update", "delete"].contains(&first)
}

/// The functions among `known` that it calls with arguments and without their schema.
pub(crate) fn unqualified_calls(sql: &str, known: &BTreeSet<String>) -> Vec<String> {
    let code = code(sql);
    let mut found = Vec::new();
    for (at, _) in code.match_indices('(') {
        let before = code[..at].trim_end();
        let start =
            before.rfind(|char: char| !char.is_ascii_alphanumeric() && char != '_').map_or(0, |at| at + 1);
        let (before, name) = before.split_at(start);
        let arguments = inside(&code[at + 1..]);
        let takes_none = ["", "*"].contains(&arguments.trim());
        // A list of columns: `as name (…)`. The parser itself knows `extract`, and `unnest` of several arrays.
        let columns = before.trim_end().ends_with(" as") || before.trim_end().ends_with('.');
        let of_the_parser = name == "extract" || name == "unnest" && has_several(arguments);
        if known.contains(name) && !takes_none && !columns && !of_the_parser {
            found.push(name.to_owned());
        }
    }
    found
}

/// Up to the parenthesis that closes.
fn inside(text: &str) -> &str {
    let mut depth = 0;
    for (at, char) in text.char_indices() {
        match char {
            '(' => depth += 1,
            ')' if depth == 0 => return &text[..at],
            ')' => depth -= 1,
            _ => {}
        }
    }
    text
}

fn has_several(arguments: &str) -> bool {
    let mut depth = 0;
    arguments.chars().any(|char| {
        match char {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            _ => {}
        }
        depth == 0 && char == ','
    })
}

/// Without comments and what stands in quotes.
fn code(sql: &str) -> String {
    let lines = sql.lines().map(|line| line.split_once("--").map_or(line, |(code, _)| code));
    let sql = lines.collect::<Vec<_>>().join("\n");
    sql.split('\'').step_by(2).collect::<Vec<_>>().join("''")
}
