//! The arrows between the rooms, and the SQL in them: what the design says of the whole and no room can hold by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use sqlx::{AssertSqlSafe, Executor, SqlSafeStr};
use tests::Database;
use tests::source::{files, root};

const ROOMS: [&str; 6] = ["message", "migrations", "outbox", "inbox", "brokers", "servers"];

/// The crates that a file names in its code.
fn named_in(file: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut named = BTreeSet::new();
    for line in code {
        for (at, _) in line.match_indices("::") {
            let before = &line[..at];
            let name: String =
                before.chars().rev().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
            let name: String = name.chars().rev().collect();
            // Part of a longer path, or of a module's own.
            if !before[..before.len() - name.len()].ends_with("::") {
                named.insert(name);
            }
        }
    }
    named
}

#[test]
fn rooms_know_only_those_that_the_design_lets_them_know() {
    for (room, allowed) in [
        ("message", &[][..]),
        ("migrations", &[][..]),
        ("outbox", &["message", "migrations"][..]),
        ("inbox", &["message", "migrations"][..]),
        ("brokers", &["message"][..]),
        ("servers", &[][..]),
    ] {
        for file in files(&root().join(room).join("src"), ".rs") {
            let postgres = file.strip_prefix(root()).unwrap().starts_with("brokers/src/postgres");
            for name in named_in(&file) {
                let known =
                    !ROOMS.contains(&name.as_str()) || name == room || allowed.contains(&name.as_str());
                // The PostgreSQL broker appends to and reads a log of the same kind; a module may bear a room's name.
                assert!(known || (postgres && name == "outbox"), "{} names {name}", file.display());
                assert!(!["clap", "axum"].contains(&name.as_str()), "{} names {name}", file.display());
            }
        }
    }
}

#[test]
fn each_file_of_sql_says_first_what_it_promises() {
    for room in ["outbox", "inbox", "migrations", "brokers", "cli"] {
        for file in files(&root().join(room), ".sql") {
            let text = std::fs::read_to_string(&file).unwrap();
            assert!(text.starts_with("-- "), "{}", file.display());
        }
    }
}

/// A driver's error says what it is about in its causes, and names no row in its chain.
#[test]
fn errors_of_the_database_are_logged_as_a_chain() {
    // A message's outcome, a task that panicked, a subscriber: none of them carries an error of the driver.
    let others = [
        "outbox/src/relay/session/publish.rs",
        "outbox/src/relay/session.rs",
        "outbox/src/replay/run.rs",
        "outbox/src/fleet/mod.rs",
        "inbox/src/outage.rs",
        "inbox/src/apply.rs",
        "inbox/src/waiting.rs",
    ];
    let mut found = Vec::new();
    for room in ["outbox/src", "inbox/src", "brokers/src/postgres", "example-services/src"] {
        for file in files(&root().join(room), ".rs") {
            let name = file.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&file).unwrap();
            if (text.contains("%error") || text.contains("cause = %")) && !others.contains(&&*name) {
                found.push(name);
            }
        }
    }
    assert_eq!(found, [""; 0]);
}

/// A database of another encoding refuses a statement that has other characters, in a comment too, before it can be asked
/// what its encoding is.
#[test]
fn each_file_of_sql_is_ascii() {
    let rooms = ["migrations", "outbox", "inbox", "brokers", "cli", "example-services"];
    for file in rooms.iter().flat_map(|room| files(&root().join(room), ".sql")) {
        assert!(std::fs::read_to_string(&file).unwrap().is_ascii(), "{}", file.display());
    }
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The items of its lists, each on a line.
fn items(page: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for line in page.lines() {
        match items.last_mut() {
            Some(item) if line.starts_with("  ") => item.push_str(line),
            _ => items.push(line.to_owned()),
        }
    }
    items.retain(|item| item.starts_with("- ") || item.starts_with("| "));
    items
}

/// Tests are named after the file in which they are: `file`: `test`, `test`; `crate` (`path`): `test`.
#[test]
fn every_test_that_a_page_names_stands_where_it_says() {
    for page in ["docs/guarantees.md", "docs/faults.md"] {
        let found = named_tests(page);
        assert!(found > 80, "only {found} tests are named: {page} is not what it was");
    }
}

/// How many tests a page names, each of which stands where the page says.
fn named_tests(page: &str) -> usize {
    let page = std::fs::read_to_string(root().join(page)).unwrap();
    let mut found = 0;
    for item in items(&page) {
        for part in item.split([';', '|']) {
            let names = quoted(part);
            let Some((file, rest)) = names.split_first() else { continue };
            let path = rest.first().filter(|path| path.contains('/'));
            let tests: Vec<&&str> = rest.iter().filter(|name| name.matches('_').count() > 2).collect();
            if tests.is_empty() {
                continue;
            }
            let place = match path {
                Some(path) => root().join(file).join(path),
                None => root().join("tests/tests").join(format!("{file}.rs")),
            };
            // A file of tests may have a folder of its own.
            let folder = place.with_extension("");
            let mut files = if folder.is_dir() { files(&folder, ".rs") } else { Vec::new() };
            files.extend(place.is_file().then_some(place));
            let code: String = files
                .iter()
                .map(|file| std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{part}: {error}")))
                .collect();
            for test in tests {
                assert!(code.contains(&format!("fn {test}(")), "{test} is not in {files:?}");
                found += 1;
            }
        }
    }
    found
}

#[tokio::test]
async fn every_statement_of_the_outbox_is_valid_in_the_migrated_schema() {
    let database = Database::new("statements").await;
    let mut connection = database.connect().await;
    let statements = files(&root().join("outbox/src"), ".sql");
    assert!(statements.len() > 30, "{statements:?}");
    for file in statements {
        let sql =
            std::fs::read_to_string(&file).unwrap().replace("/*leaf*/", "3").replace("/*leaves*/", "3, 4");
        let prepared = (&mut connection).prepare(AssertSqlSafe(sql).into_sql_str()).await;
        assert!(prepared.is_ok(), "{}: {}", file.display(), prepared.unwrap_err());
    }
}
