//! A process's lease on its shards, renewed for as long as it works.

use std::time::Duration;

use sqlx::postgres::PgPool;
use tokio::time::Instant;
use uuid::Uuid;

use super::store::heartbeat;

/// Renews a process's lease four times while it lasts. Returns `Ok` when the process was taken for dead, and an error
/// when the lease could not be renewed for so long that somebody may soon think so.
///
/// # Errors
/// The database has not answered for half the lease.
pub async fn keep_lease(pool: PgPool, process: Uuid, lease: Duration) -> Result<(), sqlx::Error> {
    let mut renewed = Instant::now();
    loop {
        tokio::time::sleep(lease / 4).await;
        let began = Instant::now();
        match tokio::time::timeout(lease / 4, heartbeat(&pool, process, lease)).await {
            Ok(Ok(true)) => renewed = began,
            Ok(Ok(false)) => return Ok(()),
            // The local clock's patience is shorter than the lease by the database's.
            Ok(Err(error)) if renewed.elapsed() >= lease / 2 => return Err(error),
            Err(_) if renewed.elapsed() >= lease / 2 => return Err(sqlx::Error::PoolTimedOut),
            _ => {}
        }
    }
}
