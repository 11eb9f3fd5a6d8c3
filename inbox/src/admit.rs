//! Admission: the first copy of a message counts, a later one is a repeat, one past the horizon is refused.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use message::{InvalidMessage, Message, MessageId, limits};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgTransaction, Row};
use uuid::Uuid;

use crate::day::{self, ByDay, UNDATED};
use crate::horizon::{Horizon, Refusal};
use crate::statement::is_named;

static ADMIT: LazyLock<ByDay> = LazyLock::new(|| ByDay::new(include_str!("sql/admit.sql")));
static KNOWN_SOURCE: LazyLock<ByDay> = LazyLock::new(|| ByDay::new(include_str!("sql/known_source.sql")));

/// Whether this is the first copy of a message that a consumer admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Handle it, in this transaction.
    First,
    /// It was handled, in a transaction that has committed: do nothing.
    Repeat,
}

/// Why a message is neither admitted nor a repeat.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdmitError {
    /// The message's: it cannot be told whether it is a repeat, or it is another message than the one of its id. Park it;
    /// never handle it. The transaction goes on.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Another transaction's, above read committed: the inbox has changed since this one began. Roll it back and try again.
    #[error("transaction is too old to admit a message: must be rolled back and tried again")]
    Serialization(#[source] sqlx::Error),
    /// The caller's. The transaction goes on.
    #[error("consumer: must be 1 to 100 bytes without NUL")]
    Consumer,
    /// The message's: its source breaks a limit, so it was not checked where it came from. Park it. The transaction goes on.
    #[error("message is not valid: {0}")]
    Invalid(InvalidMessage),
    /// The database's, or the transaction's: it is aborted now.
    #[error("message cannot be admitted")]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for AdmitError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code());
        if code.is_some_and(|code| code == "40001") {
            return AdmitError::Serialization(error);
        }
        AdmitError::Database(error)
    }
}

/// Admits a message to `consumer` with the default [`Horizon`]. The effect belongs in the same transaction, and happens
/// once for each consumer and message id, however many copies arrive at once.
///
/// Two transactions that admit the same message wait for each other, so that one of them is told
/// [`Repeat`](Admission::Repeat). One that admits several takes them in the order of their ids, or uses [`admit_all`].
///
/// The transaction may be of any isolation level. Above read committed it keeps rows from being pruned until it ends, and
/// ends with [`Serialization`](AdmitError::Serialization) if some were since it began.
///
/// A message without a source is a copy of any message with its id.
///
/// ```no_run
/// # async fn example(pool: sqlx::PgPool, message: message::Message) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = pool.begin().await?;
/// if inbox::admit(&mut tx, "shipping", &message).await? == inbox::Admission::First {
///     sqlx::query("insert into shipment (message) values ($1)").bind(message.id.as_uuid()).execute(&mut *tx).await?;
/// }
/// tx.commit().await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// The message's id is refused, the consumer's name is not a name, or the statement failed.
pub async fn admit(
    tx: &mut PgTransaction<'_>,
    consumer: &str,
    message: &Message,
) -> Result<Admission, AdmitError> {
    admit_within(tx, consumer, message, Horizon::default()).await
}

/// Like [`admit`], with another horizon.
///
/// # Errors
/// Like [`admit`].
pub async fn admit_within(
    tx: &mut PgTransaction<'_>,
    consumer: &str,
    message: &Message,
    horizon: Horizon,
) -> Result<Admission, AdmitError> {
    check_consumer(consumer)?;
    check_source(message)?;
    let made_at = horizon.date(message.id, Utc::now())?;
    let row = sqlx::query(ADMIT.of(made_at))
        .bind(consumer)
        .bind(message.id.as_uuid())
        .bind(made_at)
        .bind(message.source.as_deref())
        .persistent(is_named(tx))
        .fetch_one(&mut **tx)
        .await?;
    refused(&row)?;
    if row.try_get("first")? {
        return Ok(Admission::First);
    }
    if comes_from_another_source(tx, consumer, message).await? {
        return Err(Refusal::AnotherSource.into());
    }
    Ok(Admission::Repeat)
}

/// Admits several messages in one statement: an answer for each, in the order given. If one is refused, none is admitted.
///
/// # Errors
/// Like [`admit`].
pub async fn admit_all(
    tx: &mut PgTransaction<'_>,
    consumer: &str,
    messages: &[Message],
    horizon: Horizon,
) -> Result<Vec<Admission>, AdmitError> {
    check_consumer(consumer)?;
    messages.iter().try_for_each(check_source)?;
    let batch = Batch::new(messages, horizon, Utc::now())?;
    let rows = sqlx::query(AssertSqlSafe(include_str!("sql/admit_all.sql").replace("{days}", &batch.days())))
        .bind(consumer)
        .bind(&batch.ids)
        .bind(&batch.sources)
        .bind(batch.oldest)
        // Each set of days is another statement.
        .persistent(is_named(tx) && batch.tables.len() < 3)
        .fetch_all(&mut **tx)
        .await?;
    rows.first().map_or(Ok(()), refused)?;
    let mut first = HashSet::new();
    for row in &rows {
        first.extend(row.try_get::<Option<Uuid>, _>("message_id")?);
    }
    if first.len() < batch.ids.len() && batch.is_of_other_sources(tx, consumer, &first).await? {
        batch.take_back(tx, consumer, first).await?;
        return Err(Refusal::AnotherSource.into());
    }
    // Of two copies in one batch, one is the first.
    let answer = |message: &Message| match first.remove(message.id.as_uuid()) {
        true => Admission::First,
        false => Admission::Repeat,
    };
    Ok(messages.iter().map(answer).collect())
}

/// What a batch of messages asks for: each id once, in order.
struct Batch {
    ids: Vec<Uuid>,
    sources: Vec<Option<String>>,
    oldest: Option<DateTime<Utc>>,
    /// The partitions of their days.
    tables: BTreeSet<String>,
}

impl Batch {
    fn new(messages: &[Message], horizon: Horizon, now: DateTime<Utc>) -> Result<Self, Refusal> {
        let mut sources: BTreeMap<MessageId, Option<&str>> = BTreeMap::new();
        let (mut tables, mut dates) = (BTreeSet::new(), BTreeSet::new());
        for message in messages {
            let made_at = horizon.date(message.id, now)?;
            tables.insert(day::table(made_at));
            dates.extend(made_at);
            let source = sources.entry(message.id).or_default();
            match (*source, message.source.as_deref()) {
                (Some(known), Some(other)) if known != other => return Err(Refusal::AnotherSource),
                (known, other) => *source = known.or(other),
            }
        }
        Ok(Batch {
            ids: sources.keys().map(|id| *id.as_uuid()).collect(),
            sources: sources.into_values().map(|source| source.map(str::to_owned)).collect(),
            oldest: dates.first().copied(),
            tables,
        })
    }

    fn days(&self) -> String {
        let days: Vec<&str> = self.tables.iter().map(String::as_str).collect();
        if days.is_empty() { day::table(None) } else { days.join(", ") }
    }

    /// Whether one that is not a first copy was admitted for another source.
    async fn is_of_other_sources(
        &self,
        tx: &mut PgTransaction<'_>,
        consumer: &str,
        first: &HashSet<Uuid>,
    ) -> Result<bool, AdmitError> {
        let repeats = self.ids.iter().zip(&self.sources).filter(|(id, _)| !first.contains(*id));
        let (ids, sources): (Vec<Uuid>, Vec<Option<&str>>) =
            repeats.map(|(id, source)| (*id, source.as_deref())).unzip();
        let query = sqlx::query_scalar(include_str!("sql/known_sources.sql"))
            .bind(consumer)
            .bind(ids)
            .bind(sources)
            .persistent(is_named(tx));
        Ok(query.fetch_one(&mut **tx).await?)
    }

    /// Leaves the caller's transaction as it was, since it may go on. Not a savepoint, which each batch would pay for.
    async fn take_back(
        &self,
        tx: &mut PgTransaction<'_>,
        consumer: &str,
        first: HashSet<Uuid>,
    ) -> Result<(), AdmitError> {
        let dated = |id: &Uuid| MessageId::try_from(*id).ok().and_then(|id| id.made_at()).map(day::slot);
        let slots: BTreeSet<usize> = first
            .iter()
            .flat_map(|id| match dated(id) {
                Some(slot) => slot..slot + 1,
                None => UNDATED,
            })
            .collect();
        let first: Vec<Uuid> = first.into_iter().collect();
        for slot in slots {
            let take_back = include_str!("sql/take_back.sql").replace("{slot}", &slot.to_string());
            let query = sqlx::query(AssertSqlSafe(take_back)).bind(consumer).bind(&first);
            query.persistent(false).execute(&mut **tx).await?;
        }
        Ok(())
    }
}

fn refused(row: &PgRow) -> Result<(), AdmitError> {
    if row.try_get("too_old")? {
        return Err(Refusal::TooOld.into());
    }
    Ok(())
}

/// Whether a message that is admitted already was another one, which came from another source with the same id. A look
/// after the admission that found it, since only that has waited for other transactions.
pub(crate) async fn comes_from_another_source(
    tx: &mut PgTransaction<'_>,
    consumer: &str,
    message: &Message,
) -> Result<bool, sqlx::Error> {
    let Some(source) = message.source.as_deref() else { return Ok(false) };
    let another = sqlx::query_scalar(KNOWN_SOURCE.of(message.id.made_at()))
        .bind(consumer)
        .bind(message.id.as_uuid())
        .bind(source)
        .persistent(is_named(tx))
        .fetch_optional(&mut **tx)
        .await?;
    Ok(another.unwrap_or(false))
}

/// The one text of a message that an admission sends: before the transaction is aborted by it.
fn check_source(message: &Message) -> Result<(), AdmitError> {
    message.source.as_deref().map_or(Ok(()), limits::source).map_err(AdmitError::Invalid)
}

pub(crate) fn check_consumer(name: &str) -> Result<(), AdmitError> {
    let valid = (1..=100).contains(&name.len()) && !name.contains('\0');
    if valid { Ok(()) } else { Err(AdmitError::Consumer) }
}
