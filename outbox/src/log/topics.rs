//! The topics of a consumer group. What the owner of a shard passes over is passed for the whole group, so each of its
//! processes reads what any of them has asked for: an older build, which asks for less, must not pass what a newer one
//! handles.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool};

use super::store::Store;
use crate::statement;

/// What the processes of a group have asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupTopics {
    /// Patterns of topics.
    pub patterns: Vec<String>,
    /// One of them is registered only now, and others were before: processes at work may not know it yet.
    pub is_news: bool,
}

impl Store {
    /// Registers the patterns of topics that this process asks for, for good. Returns all of its group.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn ask_topics(
        &self,
        connection: &mut PgConnection,
        patterns: &[String],
    ) -> Result<GroupTopics, sqlx::Error> {
        let query = sqlx::query(include_str!("sql/ask_topics.sql")).bind(self.relay()).bind(patterns);
        let rows = statement::rows(connection, query).await?;
        let (mut topics, mut new, mut known) = (GroupTopics::default(), false, false);
        for row in &rows {
            let is_new: bool = row.try_get("is_new")?;
            (new, known) = (new || is_new, known || !is_new);
            topics.patterns.push(row.try_get("pattern")?);
        }
        topics.is_news = new && known;
        Ok(topics)
    }
}

/// The patterns of topics that processes of a group have asked for.
///
/// # Errors
/// The database does not answer.
pub async fn group_topics(pool: &PgPool, group: &str) -> Result<Vec<String>, sqlx::Error> {
    let query = sqlx::query(include_str!("sql/group_topics.sql")).bind(group);
    statement::rows(pool, query).await?.iter().map(|row| row.try_get("pattern")).collect()
}
