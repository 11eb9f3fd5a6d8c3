//! Messages of held keys that are done with, published or given up, while the cursor has not passed them. No I/O.
//!
//! A key that is held lets its cursor move on, so its messages may be done with before those that lie before them in the
//! log. The copy that was held is gone then, and perhaps the hold: whoever reads the message again, after a stop or a
//! takeover, or because a window is opened again, would publish it. So its position is kept until the cursor has passed it.

use std::collections::BTreeMap;

use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};

use crate::log::{CursorRecord, Eras};
use crate::statement;

/// A message that is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SettledMessage {
    pub(super) position: i64,
    pub(super) slot: i16,
    /// The transaction that wrote it.
    pub(super) tx: u64,
}

impl SettledMessage {
    /// From the columns `position`, `slot` and `tx`; `None`: they are null.
    pub(super) fn from_row(row: &PgRow) -> Result<Option<Self>, sqlx::Error> {
        let Some(position) = row.try_get("position")? else { return Ok(None) };
        let tx: &str = row.try_get("tx")?;
        let tx = tx.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        Ok(Some(SettledMessage { position, slot: row.try_get("slot")?, tx }))
    }
}

/// The messages that are settled in the shards of a session, as far as it knows.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
pub(super) struct Settled {
    shards: i16,
    messages: BTreeMap<i64, SettledMessage>,
}

impl Settled {
    /// Of a relay with so many shards.
    pub(super) fn new(shards: i16) -> Self {
        Settled { shards, messages: BTreeMap::new() }
    }

    /// What was settled before in some shards. After the held keys are loaded: a hold goes after its messages are settled.
    pub(super) async fn load(
        pool: &PgPool,
        relay: &str,
        shards: i16,
        owned: &[i16],
    ) -> Result<Self, sqlx::Error> {
        let query = sqlx::query(include_str!("sql/settled.sql")).bind(relay).bind(shards).bind(owned);
        let mut settled = Settled::new(shards);
        for row in &statement::rows(pool, query).await? {
            settled.extend(SettledMessage::from_row(row)?);
        }
        Ok(settled)
    }

    /// Takes in more of them.
    pub(super) fn extend(&mut self, messages: impl IntoIterator<Item = SettledMessage>) {
        self.messages.extend(messages.into_iter().map(|message| (message.position, message)));
    }

    /// Whether the message at a position is done with.
    pub(super) fn contains(&self, position: i64) -> bool {
        self.messages.contains_key(&position)
    }

    /// Takes out those that cursors have passed, by shard and position. `cursor` answers where a shard's stands; `None`: the
    /// shard is another's.
    pub(super) fn take_passed(
        &mut self,
        cursor: impl Fn(i16) -> Option<CursorRecord>,
        eras: &Eras,
    ) -> Vec<(i16, i64)> {
        if self.messages.is_empty() {
            return Vec::new();
        }
        let cursors: BTreeMap<i16, CursorRecord> =
            (0..self.shards).filter_map(|shard| Some((shard, cursor(shard)?))).collect();
        let shards = self.shards;
        let passed = |message: &SettledMessage| {
            let cursor = cursors.get(&(message.slot % shards));
            cursor.is_some_and(|cursor| cursor.has_passed(message.position, message.tx, eras))
        };
        let mut forgotten = Vec::new();
        self.messages.retain(|position, message| {
            let passed = passed(message);
            if passed {
                forgotten.push((message.slot % shards, *position));
            }
            !passed
        });
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Seen;

    #[test]
    fn what_a_cursor_has_passed_is_forgotten_and_nothing_else() {
        let mut settled = Settled::new(2);
        settled.extend([(4, 0, 7), (5, 1, 7), (9, 2, 12)].map(|(position, slot, tx)| SettledMessage {
            position,
            slot,
            tx,
        }));
        let seen = Seen { era: 1, snapshot: "10:10:".parse().unwrap(), bound: 0 };
        let cursor = |shard| CursorRecord { shard, seen: seen.clone(), until: None, after: 0 };
        let first = |shard| (shard == 0).then(|| cursor(shard));
        assert_eq!(settled.take_passed(first, &Eras::default()), [(0, 4)]);
        assert!(!settled.contains(4) && settled.contains(5) && settled.contains(9));
        assert_eq!(settled.take_passed(|shard| Some(cursor(shard)), &Eras::default()), [(1, 5)]);
    }
}
