//! A relay's end of the doorbell: whether it can hear it, and each ring.

use std::convert::Infallible;

use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use sqlx::{Acquire, Connection, Executor, Row};
use tokio::sync::watch;
use uuid::Uuid;

use super::{ANSWER, NOTIFY, QUIET};
use crate::relay::{Backoff, chain, chance};
use crate::statement::within;

const MARKED: &str = include_str!("sql/marked.sql");
const CHANNEL: &str = "outbox_doorbell";
/// A setting that the listening session is asked for at its start, which a pooler refuses or does not pass on.
const MARK: &str = "outbox.doorbell";
/// How they refuse: as a violation of the protocol (PgBouncer), as not supported (RDS Proxy).
const REFUSED: [&str; 2] = ["08P01", "0A000"];
/// A pooler is tried now and then, since it may be taken away.
const LISTEN_AGAIN: Backoff =
    Backoff { first: std::time::Duration::from_millis(50), ceiling: std::time::Duration::from_secs(30) };

/// Why no ring is heard.
#[derive(Debug, thiserror::Error)]
enum Deaf {
    #[error("the database refused or did not answer")]
    Database(#[from] sqlx::Error),
    /// The operator's. A pooler would give the session that listens to others, too, and rings with it, for which the driver
    /// fails whatever they are about.
    #[error(
        "a pooler stands before the database, and passes no ring on: the relay needs a direct connection"
    )]
    Pooled(#[source] Option<sqlx::Error>),
    #[error("a ring of its own was not heard")]
    Unheard,
    #[error("the connection was lost")]
    Lost,
}

/// Listens for as long as it is polled. `heard` changes at every ring, and is true while rings would be heard.
pub(crate) async fn listen(pool: PgPool, relay: String, heard: watch::Sender<bool>) {
    let (mut failures, mut said) = (0, String::new());
    loop {
        let Err(error) = listen_on_one_connection(&pool, &relay, &heard, &mut failures).await;
        // At once, before anything else is tried: from here on it is the poll's ceiling that finds messages.
        heard.send_if_modified(std::mem::take);
        failures += 1;
        let pause = LISTEN_AGAIN.after(failures, chance());
        let error = chain(&error);
        // Another reason than before is news: a pooler may have been slow at first.
        if failures == 1 || error != said {
            tracing::warn!(relay, error, ?pause, "the doorbell is not heard: polling as without it");
            said = error;
        } else {
            tracing::debug!(relay, error, ?pause, "the doorbell is not heard still");
        }
        tokio::time::sleep(pause).await;
    }
}

async fn listen_on_one_connection(
    pool: &PgPool,
    relay: &str,
    heard: &watch::Sender<bool>,
    failures: &mut u32,
) -> Result<Infallible, Deaf> {
    let mark = Uuid::new_v4().to_string();
    let options = (*pool.connect_options()).clone().application_name("outbox doorbell, listening");
    let options = options.options([(MARK, &mark)]);
    // The driver's listener takes its connection from a pool; none of the relay's, which count on theirs.
    #[expect(clippy::disallowed_methods, reason = "nothing begins a transaction here")]
    let own = PgPoolOptions::new().max_connections(1).acquire_timeout(ANSWER).connect_lazy_with(options);
    let mut listener = PgListener::connect_with(&own).await.map_err(|error| match &error {
        sqlx::Error::Database(refused) if refused.code().is_some_and(|code| REFUSED.contains(&&*code)) => {
            Deaf::Pooled(Some(error))
        }
        _ => Deaf::Database(error),
    })?;
    // Else the driver would connect again by itself, and meanwhile nobody would know that rings are lost.
    listener.eager_reconnect(false);
    let marked =
        within(ANSWER, async { listener.acquire().await?.fetch_one(sqlx::raw_sql(MARKED)).await }).await?;
    if marked.try_get::<Option<&str>, _>(0)? != Some(&mark) {
        return Err(Deaf::Pooled(None));
    }
    within(ANSWER, listener.listen(CHANNEL)).await?;
    // Whatever stands in between: rings come if this one does, which another connection sends.
    within(ANSWER, pool.execute(sqlx::raw_sql(NOTIFY))).await?;
    match tokio::time::timeout(ANSWER, listener.try_recv()).await {
        Ok(ring) => ring?.ok_or(Deaf::Lost)?,
        Err(_) => return Err(Deaf::Unheard),
    };
    let again = if std::mem::take(failures) > 0 { " again" } else { "" };
    tracing::info!(relay, "the doorbell is heard{again}");
    // A look is due now: rings before this one may have been lost.
    heard.send_replace(true);
    loop {
        match tokio::time::timeout(QUIET, listener.try_recv()).await {
            Ok(ring) => {
                ring?.ok_or(Deaf::Lost)?;
                heard.send_replace(true);
            }
            Err(_) => within(ANSWER, async { listener.acquire().await?.ping().await }).await?,
        }
    }
}
