//! What the server spends: CPU time of its processes, as far as this machine tells, and WAL.

use sqlx::postgres::PgPool;

use crate::database;
use crate::exit::Failure;

/// What was spent up to a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent {
    /// Nanoseconds of CPU, of all processes of the server; `None`: it is not on this machine, or this is not Linux.
    cpu: Option<u64>,
    /// Bytes of WAL.
    wal: i64,
}

impl Spent {
    /// Up to now.
    pub(super) async fn now(pool: &PgPool) -> Result<(Self, String), Failure> {
        let row: (i32, i64, bool, String) = sqlx::query_as(include_str!("sql/backend.sql"))
            .fetch_one(pool)
            .await
            .map_err(|error| database::failed("bench", &error))?;
        let (backend, wal, local, version) = row;
        let cpu = local.then(|| parent(backend).and_then(cpu_of_family)).flatten();
        Ok((Spent { cpu, wal }, version))
    }

    /// Microseconds of CPU for each of `count`, since `earlier`.
    pub(super) fn cpu_each(&self, earlier: &Spent, count: u64) -> Option<f64> {
        let spent = self.cpu?.checked_sub(earlier.cpu?)?;
        Some(super::round(spent as f64 / 1000.0 / count as f64))
    }

    /// Bytes of WAL for each of `count`, since `earlier`.
    pub(super) fn wal_each(&self, earlier: &Spent, count: u64) -> f64 {
        super::round((self.wal - earlier.wal) as f64 / count as f64)
    }
}

/// The parent of a process: the fourth field of its status, the second being a name in parentheses.
fn parent(process: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// CPU time of the processes that have this parent. One that ended meanwhile is not counted, so connections are kept.
fn cpu_of_family(parent_of_all: i32) -> Option<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if parent(process) != Some(parent_of_all) {
            continue;
        }
        let schedstat = std::fs::read_to_string(format!("/proc/{process}/schedstat")).unwrap_or_default();
        total += schedstat.split_whitespace().next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0);
    }
    Some(total)
}
