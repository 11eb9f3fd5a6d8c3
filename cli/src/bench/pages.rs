//! What one page costs: over a short backlog, over a long one, and while somebody holds a transaction open.

use std::time::Instant;

use outbox::log::{Eras, LogConnection, LogError, Reading};
use sqlx::postgres::PgPool;

use crate::exit::{Failure, chain};

const PAGE: usize = 1000;
const SHARDS: i16 = 16;

/// The median time of a full page of 1,000 messages, in milliseconds, over the whole log, `passes` times.
pub(super) async fn cost(pool: &PgPool, passes: usize) -> Result<f64, Failure> {
    measure(pool, passes).await.map_err(|error| Failure::failed(format!("bench: {}", chain(&error))))
}

async fn measure(pool: &PgPool, passes: usize) -> Result<f64, LogError> {
    let mut log = LogConnection::open(pool).await?;
    let mut times = Vec::new();
    for _ in 0..passes {
        let eras = Eras::default();
        let mut reading = Reading::new((0..SHARDS).collect(), eras.beginning());
        let look = log.look("bench").await?;
        reading.advance(1, &look, 0, &eras);
        while let (Some(window), Some(range)) = (reading.window().cloned(), reading.page()) {
            let began = Instant::now();
            let (messages, full) =
                log.page(&window, &range, PAGE, usize::MAX, SHARDS, &reading.shards).await?;
            if full {
                times.push(began.elapsed().as_secs_f64() * 1000.0);
            }
            let full = messages.last().filter(|_| full);
            reading.read(full.map_or(range.to, |message| message.position));
        }
    }
    Ok(super::median(times))
}
