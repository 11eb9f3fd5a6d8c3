//! The two schemas as SQL files, and what brings a database up to them.
//!
//! [`Schema::migrate`] is for a service's start: safe when many processes do it at once, nothing to do the second time.
//! Whoever uses another migration tool takes the [scripts](Schema::sql); [`Schema::check`] answers either way whether
//! this build can work with that database. [`roles`] are the least privileges of those who work there.

mod check;
mod migrate;
mod schema;

pub use check::SchemaError;
pub use migrate::MigrateError;
pub use schema::{Schema, Script};

/// Least-privilege roles for both schemas (`roles.sql`), to be run by a superuser or the schemas' owner after the
/// migrations; again after a later one. It says in its comments what each role may do.
pub fn roles() -> &'static str {
    include_str!("../roles.sql")
}
