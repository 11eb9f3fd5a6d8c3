//! Held keys of a session: each tried by itself, and let go when nothing of it is held, as `holds.rs` does it.

use super::database::{Database, Row, message};
use super::plant::Plant;
use super::session::{Sent, Session, item, name};

impl Session {
    /// The holds of which a message could be tried now, or which could be let go.
    pub(super) fn holds_at_rest(&self) -> impl Iterator<Item = i64> {
        let tried = |hold: &i64| self.on_wire.iter().any(|sent| sent.hold == Some(*hold));
        // A session that ends begins no attempt, and lets go of what it is about to.
        let begins = |hold: &i64| self.ending.is_none() || self.releasing.contains(hold);
        self.held.keys().copied().filter(move |hold| begins(hold) && !tried(hold))
    }

    /// A held message is tried by itself (`begin_attempts.sql`), or the key is about to be let go, or is. Whether anything
    /// could be done.
    pub(super) fn try_hold(&mut self, database: &mut Database, hold: i64, plant: Option<Plant>) -> bool {
        let of_all = i16::try_from(database.cursors.len()).unwrap_or(1);
        let Some(key) = self.held.get(&hold).copied() else { return false };
        if !database.held_keys.contains_key(&hold)
            || database.parked.contains(&hold)
            || !self.owns(database, key % of_all)
        {
            return false;
        }
        if let Some(position) = database.first_held(hold) {
            let log = message(&Row { position, key, tx: 0 });
            self.on_wire.push(Sent { item: item(log, 0), kept: false, hold: Some(hold) });
            return true;
        }
        if self.releasing.contains(&hold) {
            // And the notice that the key went.
            let settled = database.release_key(hold, plant);
            self.releasing.remove(&hold);
            if plant != Some(Plant::SkipUnheard) {
                self.settled.extend(settled);
            }
            // As one that takes what waits at a destination for not read yet.
            if plant != Some(Plant::SettledAtDestination) || self.closed().is_none() {
                for item in self.lanes.take_settled(hold, |position| self.settled.contains(position)) {
                    self.pass(&item.log, item.window, of_all);
                }
            }
            self.held.remove(&hold);
            self.lanes.release(&name(key));
            return true;
        }
        let on_the_way =
            self.copies.iter().any(|(of, _)| *of == hold) || self.lanes.copied_to().any(|of| of == hold);
        if on_the_way && plant != Some(Plant::ReleasedTooEarly) {
            return false;
        }
        self.releasing.insert(hold)
    }
}
