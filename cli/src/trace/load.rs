//! Reads a workflow's rows from every database given: never a payload, never a header, nothing is written.

use std::collections::BTreeSet;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Executor, Row};
use uuid::Uuid;

use super::rows::{Found, HandledRow, HeldRow, Holder, Logged, Said};
use crate::database;
use crate::exit::Failure;
use crate::schema::{self, Present};
use crate::secret::SecretUrl;

/// What the databases hold of a workflow.
pub(super) struct Loaded {
    /// The workflows that the id belongs to; usually one.
    pub(super) workflows: Vec<Uuid>,
    pub(super) found: Vec<Found>,
}

struct Source {
    connection: PgConnection,
    found: Found,
}

/// Finds the workflows of `sought` in any of the databases, then all their messages in all of them. At most `limit`
/// messages of each database.
pub(super) async fn load(urls: &[SecretUrl], sought: Uuid, limit: i64) -> Result<Loaded, Failure> {
    let mut sources = open(urls).await?;
    let mut workflows = BTreeSet::new();
    for source in &mut sources {
        let found = source.workflows(sought).await;
        workflows.extend(found.map_err(|error| source.failed(&error))?);
    }
    let workflows: Vec<Uuid> = workflows.into_iter().collect();

    let mut ids = BTreeSet::from([sought]);
    for source in &mut sources {
        source.outbox(&workflows, limit).await.map_err(|error| source.failed(&error))?;
        ids.extend(source.found.said().flat_map(|said| [Some(said.id), said.causation]).flatten());
    }
    for source in &mut sources {
        let known: Vec<Uuid> = ids.iter().copied().collect();
        source.held_in_inbox(&workflows, &known, limit).await.map_err(|error| source.failed(&error))?;
        ids.extend(source.found.said().flat_map(|said| [Some(said.id), said.causation]).flatten());
    }
    let ids: Vec<Uuid> = ids.into_iter().collect();
    for source in &mut sources {
        source.handled(&ids).await.map_err(|error| source.failed(&error))?;
    }

    let mut found = Vec::new();
    for source in sources {
        found.push(source.found);
        // Everything has been read; a connection that does not close politely is none of the reader's business.
        let _ = source.connection.close().await;
    }
    Ok(Loaded { workflows, found })
}

/// Connects to each database once, however often it was given, and gives each a name of its own.
async fn open(urls: &[SecretUrl]) -> Result<Vec<Source>, Failure> {
    let mut places = Vec::new();
    let mut sources: Vec<Source> = Vec::new();
    for url in urls {
        let options = database::options(url, "trace")?;
        let server = format!("{}:{}", options.get_host(), options.get_port());
        let mut connection = database::connect(url, "trace").await?;
        let name: Result<String, _> =
            sqlx::query_scalar(include_str!("sql/database.sql")).fetch_one(&mut connection).await;
        let name = name.map_err(|error| database::failed(&format!("database {url}"), &error))?;
        let place = (server, name);
        if places.contains(&place) {
            continue;
        }
        let Present { outbox, inbox } = schema::present(&mut connection, url).await?;
        for sql in [database::BEGIN_READING, include_str!("sql/path.sql")] {
            let begun = connection.execute(sql).await;
            begun.map_err(|error| database::failed(&format!("database {url}"), &error))?;
        }
        let found = Found { outbox, inbox, ..Found::default() };
        sources.push(Source { connection, found });
        places.push(place);
    }
    for (index, (server, name)) in places.iter().enumerate() {
        let alone = places.iter().filter(|(_, other)| other == name).count() == 1;
        sources[index].found.database = if alone { name.clone() } else { format!("{name} at {server}") };
    }
    Ok(sources)
}

impl Source {
    async fn workflows(&mut self, sought: Uuid) -> Result<Vec<Uuid>, sqlx::Error> {
        let mut workflows: Vec<Uuid> = Vec::new();
        if self.found.outbox {
            let sql = include_str!("sql/outbox_workflows.sql");
            workflows.extend(
                sqlx::query_scalar::<_, Uuid>(sql).bind(sought).fetch_all(&mut self.connection).await?,
            );
        }
        if self.found.inbox {
            let sql = include_str!("sql/inbox_workflows.sql");
            workflows.extend(
                sqlx::query_scalar::<_, Uuid>(sql).bind(sought).fetch_all(&mut self.connection).await?,
            );
        }
        Ok(workflows)
    }

    async fn outbox(&mut self, workflows: &[Uuid], limit: i64) -> Result<(), sqlx::Error> {
        if !self.found.outbox {
            return Ok(());
        }
        for workflow in workflows {
            let rows = sqlx::query(include_str!("sql/logged.sql"))
                .bind(workflow)
                .bind(limit)
                .fetch_all(&mut self.connection)
                .await?;
            self.found.cut |= rows.len() as i64 == limit;
            for row in &rows {
                self.found.logged.push(logged(row)?);
            }
        }
        let sql = include_str!("sql/outbox_held.sql");
        let rows = sqlx::query(sql).bind(workflows).bind(limit).fetch_all(&mut self.connection).await?;
        self.hold(&rows, Holder::Relay, limit)
    }

    async fn held_in_inbox(
        &mut self,
        workflows: &[Uuid],
        ids: &[Uuid],
        limit: i64,
    ) -> Result<(), sqlx::Error> {
        if !self.found.inbox {
            return Ok(());
        }
        let rows = sqlx::query(include_str!("sql/inbox_held.sql"))
            .bind(workflows)
            .bind(ids)
            .bind(limit)
            .fetch_all(&mut self.connection)
            .await?;
        self.hold(&rows, Holder::Consumer, limit)
    }

    fn hold(&mut self, rows: &[PgRow], by: Holder, limit: i64) -> Result<(), sqlx::Error> {
        self.found.cut |= rows.len() as i64 == limit;
        for row in rows {
            self.found.held.push(held(row, by)?);
        }
        Ok(())
    }

    async fn handled(&mut self, ids: &[Uuid]) -> Result<(), sqlx::Error> {
        if !self.found.inbox {
            return Ok(());
        }
        let rows =
            sqlx::query(include_str!("sql/handled.sql")).bind(ids).fetch_all(&mut self.connection).await?;
        for row in &rows {
            self.found.handled.push(HandledRow {
                id: row.try_get("message_id")?,
                consumer: row.try_get("consumer")?,
                received_at: row.try_get("received_at")?,
                handled_at: row.try_get("handled_at")?,
                attempts: row.try_get("attempts")?,
            });
        }
        Ok(())
    }

    fn failed(&self, error: &sqlx::Error) -> Failure {
        database::failed(&format!("database {}", self.found.database), error)
    }
}

impl Found {
    fn said(&self) -> impl Iterator<Item = &Said> {
        self.logged.iter().map(|row| &row.said).chain(self.held.iter().map(|row| &row.said))
    }
}

fn said(row: &PgRow) -> Result<Said, sqlx::Error> {
    Ok(Said {
        id: row.try_get("id")?,
        correlation: row.try_get("correlation")?,
        causation: row.try_get("causation")?,
        source: row.try_get("source")?,
        topic: row.try_get("topic")?,
        kind: row.try_get("kind")?,
        key: row.try_get("key")?,
        occurred_at: row.try_get("occurred_at")?,
        enqueued_at: row.try_get("enqueued_at")?,
    })
}

fn logged(row: &PgRow) -> Result<Logged, sqlx::Error> {
    Ok(Logged {
        said: said(row)?,
        position: row.try_get("position")?,
        passed: row.try_get("passed")?,
        pending: row.try_get("pending")?,
    })
}

fn held(row: &PgRow, by: Holder) -> Result<HeldRow, sqlx::Error> {
    Ok(HeldRow {
        said: said(row)?,
        by,
        name: row.try_get("name")?,
        parked: row.try_get("parked")?,
        behind: row.try_get("behind")?,
        attempts: row.try_get("attempts")?,
        next_attempt_at: row.try_get("next_attempt_at")?,
        last_error: row.try_get("last_error")?,
        held_at: row.try_get("held_at")?,
    })
}
