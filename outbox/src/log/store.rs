//! What a reader of the log keeps in the database: its relay, its process, and its cursors, each under an epoch.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Executor, Row};
use uuid::Uuid;

use super::connection::LogConnection;
use super::eras::{Era, Eras};
use super::holding::{self, NewHold};
use super::progress::CursorRecord;
use super::row::LogMessage;
use super::snapshot::{NotSnapshot, column};
use super::window::Seen;
use super::{LogError, Refusal, Start};
use crate::statement;

macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!("sql/", $name, ".sql"))
    };
}

/// A shard's cursor as it was taken over.
#[derive(Debug, Clone)]
pub struct Cursor {
    /// The shard.
    pub shard: i16,
    /// Counts the owners.
    pub epoch: i64,
    /// Where the cursor stands.
    pub record: CursorRecord,
    /// Owners that died since it last moved.
    pub crashes: i32,
    /// Where its row lies (`ctid`).
    tid: String,
}

/// What is recorded in one transaction: cursors, and what they pass over because it is held.
#[derive(Debug, Default)]
pub struct Record {
    /// The cursors that have moved.
    pub cursors: Vec<CursorRecord>,
    /// Keys that are held from now on.
    pub holds: Vec<NewHold>,
    /// Messages of held keys, each with the position that names its hold.
    pub copies: Vec<(i64, LogMessage)>,
    /// Settled messages, by shard and position, that the cursors of this record have passed: they are forgotten.
    pub forgotten: Vec<(i16, i64)>,
    /// Messages that are published, by shard and position, though the cursors of this record have not passed them: they are
    /// settled, so that the next owner does not repeat them. Only of shards whose cursors are in this record.
    pub settled: Vec<(i16, i64)>,
}

impl Record {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.cursors.is_empty()
            && self.holds.is_empty()
            && self.copies.is_empty()
            && self.forgotten.is_empty()
            && self.settled.is_empty()
    }
}

/// One process's part in a relay: which shards it owns, at which epochs.
#[derive(Debug)]
pub struct Store {
    relay: String,
    process: Uuid,
    shards: i16,
    eras: Eras,
    owned: Vec<(i16, i64, String)>,
}

impl Store {
    /// Checks that the log can be read safely, makes the relay known, gives it cursors if it is new, and joins it as a
    /// process. A process that lost its connection joins again under its id. `shards` counts only for a new relay.
    ///
    /// # Errors
    /// The log must not be read, or the database does not answer.
    pub async fn join(
        connection: &mut LogConnection,
        relay: &str,
        process: Uuid,
        shards: i16,
        start: Start,
        lease: Duration,
    ) -> Result<Self, Refusal> {
        preflight(connection.connection()).await?;
        // A refused start leaves nothing behind of a relay without cursors, known or not: it is tried before anything is
        // written, and a relay that would not run has none.
        let known =
            statement::optional(connection.connection(), sqlx::query(sql!("relay")).bind(relay)).await?;
        let may_run = match known {
            Some(known) => known.try_get::<&str, _>("state")? == "running",
            None => true,
        };
        let begun = sqlx::query(sql!("has_cursors")).bind(relay);
        if may_run && !statement::row(connection.connection(), begun).await?.try_get::<bool, _>(0)? {
            let eras = eras(connection.connection()).await?;
            start.place(connection, relay, &eras).await?;
        }
        let query = sqlx::query(sql!("register")).bind(relay).bind(shards);
        statement::run(connection.connection(), query).await?;
        let row = statement::row(connection.connection(), sqlx::query(sql!("relay")).bind(relay)).await?;
        let shards: i16 = row.try_get("shards")?;
        match row.try_get::<&str, _>("state")? {
            "retired" => return Err(Refusal::Retired),
            "paused" => return Err(Refusal::Paused),
            _ => {}
        }
        let query = sqlx::query(sql!("join"))
            .bind(process)
            .bind(relay)
            .bind(format!("pid {}", std::process::id()))
            .bind(env!("CARGO_PKG_VERSION"))
            .bind(lease.as_secs_f64());
        statement::run(connection.connection(), query).await?;
        let query = sqlx::query(sql!("wake")).bind(relay).bind(process);
        statement::run(connection.connection(), query).await?;
        // From here on a repair finds this process alive, and ends no era while it is.
        let eras = eras(connection.connection()).await?;
        let query = sqlx::query(sql!("has_cursors")).bind(relay);
        if !statement::row(connection.connection(), query).await?.try_get::<bool, _>(0)? {
            let place = start.place(connection, relay, &eras).await?;
            let query = sqlx::query(sql!("create_cursors"))
                .bind(relay)
                .bind(i32::from(shards))
                .bind(place.seen.snapshot.to_string())
                .bind(place.seen.bound)
                .bind(place.until.as_ref().map(|until| until.snapshot.to_string()))
                .bind(place.until.as_ref().map(|until| until.bound))
                .bind(place.after)
                .bind(place.seen.era);
            statement::run(connection.connection(), query).await?;
        }
        Ok(Store { relay: relay.to_owned(), process, shards, eras, owned: Vec::new() })
    }

    /// The relay.
    pub fn relay(&self) -> &str {
        &self.relay
    }

    /// The number of shards of the relay.
    pub fn shards(&self) -> i16 {
        self.shards
    }

    /// The eras of the log.
    pub fn eras(&self) -> &Eras {
        &self.eras
    }

    /// This process.
    pub fn process(&self) -> Uuid {
        self.process
    }

    /// The epoch at which this process owns a shard.
    pub fn epoch(&self, shard: i16) -> Option<i64> {
        self.owned.iter().find(|owned| owned.0 == shard).map(|owned| owned.1)
    }

    /// Takes again the shards that this process owned before it lost sight of them, and of those that nobody alive owns
    /// as many as make up `most`. Answers the cursors of all that it owns then.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn acquire(
        &mut self,
        connection: &mut PgConnection,
        most: usize,
    ) -> Result<Vec<Cursor>, LogError> {
        let query = sqlx::query(sql!("acquire"))
            .bind(&self.relay)
            .bind(self.process)
            .bind(i64::try_from(most).unwrap_or(i64::MAX));
        let rows = statement::rows(&mut *connection, query).await?;
        let mut cursors = rows.iter().map(cursor).collect::<Result<Vec<_>, _>>()?;
        cursors.sort_by_key(|cursor| cursor.shard);
        self.owned = cursors.iter().map(|cursor| (cursor.shard, cursor.epoch, cursor.tid.clone())).collect();
        // Dead processes that own nothing any more are forgotten.
        statement::run(connection, sqlx::query(sql!("bury")).bind(&self.relay)).await?;
        Ok(cursors)
    }

    /// Hands over some of this process's shards, so that another takes them at once. What it has delivered of them must
    /// be recorded before.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn release(&mut self, connection: &mut PgConnection, shards: &[i16]) -> Result<(), LogError> {
        let query = sqlx::query(sql!("release")).bind(&self.relay).bind(self.process).bind(shards);
        statement::run(connection, query).await?;
        self.owned.retain(|owned| !shards.contains(&owned.0));
        Ok(())
    }

    /// Writes a record in a transaction ([`LogConnection::record`] opens it where its windows mean something). Answers the
    /// shards whose lease is lost: nothing is written of them, and everything of the others.
    ///
    /// # Errors
    /// The database does not answer.
    pub(super) async fn record(
        &mut self,
        connection: &mut PgConnection,
        mut record: Record,
    ) -> Result<Vec<i16>, LogError> {
        let mut lost = BTreeSet::new();
        loop {
            lost.extend(self.drop_unowned(&mut record));
            let now_lost = if record.holds.is_empty() && record.copies.is_empty() {
                // A lost record only repeats messages, as a crash a moment earlier would have.
                let lost = self.record_cursors(connection, &record.cursors, "off").await?;
                self.forget(connection, &record.forgotten, &lost).await?;
                self.settle(connection, &record.settled, &lost).await?;
                lost
            } else {
                let mut tx = connection.begin().await?;
                tx.execute(sqlx::raw_sql(statement::SPEECH)).await?;
                holding::hold(&mut tx, &self.relay, &record.holds).await?;
                holding::copy(&mut tx, &self.relay, &record.copies).await?;
                tx.execute(sqlx::raw_sql(statement::SILENCE)).await?;
                let lost = self.record_cursors(&mut tx, &record.cursors, "on").await?;
                self.forget(&mut tx, &record.forgotten, &lost).await?;
                self.settle(&mut tx, &record.settled, &lost).await?;
                // Holds and copies stand under their shards' epochs, or not at all.
                if lost.is_empty() {
                    tx.commit().await?
                } else {
                    tx.rollback().await?
                }
                lost
            };
            self.owned.retain(|owned| !now_lost.contains(&owned.0));
            if now_lost.is_empty() || (record.holds.is_empty() && record.copies.is_empty()) {
                lost.extend(now_lost);
                return Ok(lost.into_iter().collect());
            }
        }
    }

    /// Takes out of a record what belongs to shards that are not ours, and answers those.
    fn drop_unowned(&self, record: &mut Record) -> BTreeSet<i16> {
        let mut lost = BTreeSet::new();
        let mut ours = |shard: i16| {
            let ours = self.epoch(shard).is_some();
            if !ours {
                lost.insert(shard);
            }
            ours
        };
        record.cursors.retain(|cursor| ours(cursor.shard));
        record.forgotten.retain(|(shard, _)| ours(*shard));
        record.settled.retain(|(shard, _)| ours(*shard));
        record.holds.retain(|hold| ours(hold.slot % self.shards));
        record.copies.retain(|(_, copy)| ours(copy.slot % self.shards));
        lost
    }

    /// After the cursors were recorded, and in their transaction.
    async fn forget(
        &self,
        connection: &mut PgConnection,
        settled: &[(i16, i64)],
        lost: &[i16],
    ) -> Result<(), LogError> {
        let ours = settled.iter().filter(|(shard, _)| !lost.contains(shard));
        let positions: Vec<i64> = ours.map(|(_, position)| *position).collect();
        if positions.is_empty() {
            return Ok(());
        }
        let query = sqlx::query(sql!("forget_settled")).bind(&self.relay).bind(positions);
        query.persistent(false).execute(connection).await?;
        Ok(())
    }

    /// After the cursors were recorded, and in their transaction: it is our epoch under which they were.
    async fn settle(
        &self,
        connection: &mut PgConnection,
        delivered: &[(i16, i64)],
        lost: &[i16],
    ) -> Result<(), LogError> {
        let ours = delivered.iter().filter(|(shard, _)| !lost.contains(shard));
        let positions: Vec<i64> = ours.map(|(_, position)| *position).collect();
        if positions.is_empty() {
            return Ok(());
        }
        let query = sqlx::query(sql!("settle_delivered")).bind(&self.relay).bind(positions);
        query.persistent(false).execute(connection).await?;
        Ok(())
    }

    async fn record_cursors(
        &mut self,
        connection: &mut PgConnection,
        records: &[CursorRecord],
        synchronous_commit: &str,
    ) -> Result<Vec<i16>, LogError> {
        let mut lost: Vec<i16> = Vec::new();
        let mut known: Vec<(&CursorRecord, i64, String)> = Vec::with_capacity(records.len());
        for record in records {
            match self.owned.iter().find(|owned| owned.0 == record.shard) {
                Some((_, epoch, tid)) => known.push((record, *epoch, tid.clone())),
                None => lost.push(record.shard),
            }
        }
        let until = |record: &CursorRecord| record.until.clone();
        let rows = sqlx::query(sql!("record"))
            .bind(&self.relay)
            .bind(known.iter().map(|known| known.2.as_str()).collect::<Vec<_>>())
            .bind(known.iter().map(|known| known.0.shard).collect::<Vec<_>>())
            .bind(known.iter().map(|known| known.1).collect::<Vec<_>>())
            .bind(known.iter().map(|known| known.0.seen.snapshot.to_string()).collect::<Vec<_>>())
            .bind(known.iter().map(|known| known.0.seen.bound).collect::<Vec<_>>())
            .bind(
                known
                    .iter()
                    .map(|known| until(known.0).map(|seen| seen.snapshot.to_string()))
                    .collect::<Vec<_>>(),
            )
            .bind(known.iter().map(|known| until(known.0).map(|seen| seen.bound)).collect::<Vec<_>>())
            .bind(known.iter().map(|known| known.0.after).collect::<Vec<_>>())
            .bind(synchronous_commit)
            .bind(known.iter().map(|known| known.0.seen.era).collect::<Vec<_>>())
            // Planned for the table as it is: a plan kept from when it was two pages scans all of it later.
            .persistent(false)
            .fetch_all(&mut *connection)
            .await?;
        let mut written = rows.iter().map(written).collect::<Result<Vec<_>, _>>()?;
        for (record, epoch, _) in &known {
            if written.iter().any(|(shard, _)| *shard == record.shard) {
                continue;
            }
            // Somebody wrote the row since: under our epoch still, or the lease is lost.
            let row = sqlx::query(sql!("record_by_shard"))
                .bind(&self.relay)
                .bind(record.shard)
                .bind(epoch)
                .bind(record.seen.snapshot.to_string())
                .bind(record.seen.bound)
                .bind(until(record).map(|seen| seen.snapshot.to_string()))
                .bind(until(record).map(|seen| seen.bound))
                .bind(record.after)
                .bind(record.seen.era)
                .persistent(false)
                .fetch_optional(&mut *connection)
                .await?;
            match row {
                Some(row) => written.push(self::written(&row)?),
                None => lost.push(record.shard),
            }
        }
        for (shard, tid) in written {
            if let Some(owned) = self.owned.iter_mut().find(|owned| owned.0 == shard) {
                owned.2 = tid;
            }
        }
        Ok(lost)
    }

    /// Hands over every shard and leaves the relay.
    ///
    /// # Errors
    /// The database does not answer; the shards are then free when the lease ends.
    pub async fn leave(&mut self, connection: &mut PgConnection) -> Result<(), LogError> {
        let query = sqlx::query(sql!("leave")).bind(&self.relay).bind(self.process);
        statement::run(connection, query).await?;
        self.owned.clear();
        Ok(())
    }
}

async fn eras(connection: &mut PgConnection) -> Result<Eras, sqlx::Error> {
    let rows = statement::rows(connection, sqlx::query(sql!("eras"))).await?;
    let era =
        |row: &PgRow| Ok(Era { era: row.try_get("era")?, first_position: row.try_get("first_position")? });
    Ok(Eras::new(rows.iter().map(era).collect::<Result<_, sqlx::Error>>()?))
}

/// Whether the log can be read safely.
pub(crate) async fn preflight(connection: &mut PgConnection) -> Result<(), Refusal> {
    faults(connection).await?.into_iter().next().map_or(Ok(()), Err)
}

/// Everything for which it would be refused, but for a schema that does not fit, which is an error.
pub(crate) async fn faults(connection: &mut PgConnection) -> Result<Vec<Refusal>, Refusal> {
    migrations::Schema::Outbox.check(connection).await?;
    let row = statement::read_row(connection, sqlx::query(sql!("preflight"))).await?;
    let mut faults = Vec::new();
    for (fact, reason) in [
        ("replica", Refusal::Replica),
        ("other_encoding", Refusal::OtherEncoding),
        ("hidden_rows", Refusal::HiddenRows),
        ("cached_positions", Refusal::CachedPositions),
        ("unlogged", Refusal::Unlogged),
        ("other_cluster", Refusal::OtherCluster),
        ("ids_behind", Refusal::IdsBehind),
        ("positions_behind", Refusal::PositionsBehind),
    ] {
        if row.try_get::<bool, _>(fact)? {
            faults.push(reason);
        }
    }
    Ok(faults)
}

fn cursor(row: &PgRow) -> Result<Cursor, sqlx::Error> {
    let shard = row.try_get("shard")?;
    let seen = column(row, "seen")?.ok_or_else(|| sqlx::Error::Decode(NotSnapshot.into()))?;
    let until_bound: Option<i64> = row.try_get("until_l")?;
    let era = row.try_get("era")?;
    let record = CursorRecord {
        shard,
        seen: Seen { era, snapshot: seen, bound: row.try_get("seen_l")? },
        until: column(row, "until")?.zip(until_bound).map(|(snapshot, bound)| Seen { era, snapshot, bound }),
        after: row.try_get("after")?,
    };
    Ok(Cursor {
        shard,
        epoch: row.try_get("epoch")?,
        record,
        crashes: row.try_get("crashes")?,
        tid: row.try_get("ctid")?,
    })
}

fn written(row: &PgRow) -> Result<(i16, String), sqlx::Error> {
    Ok((row.try_get("shard")?, row.try_get("ctid")?))
}
