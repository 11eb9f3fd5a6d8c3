//! What must hold in every state, and what some state must show, so that the model is about something.

use stateright::Property;

use super::actions::Bounds;
use super::database::Database;
use super::session::Session;
use super::world::World;

/// A law of the design (§6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Law {
    /// What is published has committed.
    NoPhantom,
    /// What has committed is published, held, or will be read by whoever reads next.
    NoLoss,
    /// A message is first published after all of its key that committed at lower positions.
    Order,
    /// A message is published once, and once more for each crash, lost lease or missing answer so far.
    BoundedDuplicates,
    /// What a crash would repeat is counted, so that it can be bounded.
    Counted,
    /// What was recorded is not published again: a cursor never goes back.
    RecordedIsDone,
    /// A held message that was published, or skipped by a person, is not published again by who owns its shard.
    SettledIsDone,
    /// What is in a process's hands moves.
    NothingSticks,
}

impl Law {
    pub(super) const ALL: [Law; 8] = [
        Law::NoPhantom,
        Law::NoLoss,
        Law::Order,
        Law::BoundedDuplicates,
        Law::Counted,
        Law::RecordedIsDone,
        Law::SettledIsDone,
        Law::NothingSticks,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Law::NoPhantom => "no phantom",
            Law::NoLoss => "no loss",
            Law::Order => "first deliveries of a key in order of position",
            Law::BoundedDuplicates => "bounded duplicates",
            Law::Counted => "what a crash would repeat is counted",
            Law::RecordedIsDone => "what was recorded is done",
            Law::SettledIsDone => "what is settled is done",
            Law::NothingSticks => "nothing sticks",
        }
    }

    pub(super) fn property(self) -> Property<Bounds> {
        Property::always(
            self.name(),
            match self {
                Law::NoPhantom => |_: &Bounds, world: &World| !world.broken(Law::NoPhantom),
                Law::NoLoss => {
                    |_: &Bounds, world: &World| !world.broken(Law::NoLoss) && passed_is_safe(world)
                }
                Law::Order => |_: &Bounds, world: &World| !world.broken(Law::Order),
                Law::BoundedDuplicates => |_: &Bounds, world: &World| {
                    world.copies.iter().all(|copies| u32::from(*copies) <= 1 + u32::from(world.faults))
                },
                Law::Counted => {
                    |_: &Bounds, world: &World| world.sessions().all(|session| is_counted(world, session))
                }
                Law::RecordedIsDone => |_: &Bounds, world: &World| !world.broken(Law::RecordedIsDone),
                Law::SettledIsDone => |_: &Bounds, world: &World| !world.broken(Law::SettledIsDone),
                Law::NothingSticks => {
                    |_: &Bounds, world: &World| world.sessions().all(|session| !session.is_stuck())
                }
            },
        )
    }
}

/// What a recorded cursor has passed is published, or held where an operator sees it.
fn passed_is_safe(world: &World) -> bool {
    let database = &world.database;
    database.rows().iter().all(|row| {
        let cursor = &database.cursors[usize::from(row.key.unsigned_abs()) % database.cursors.len()];
        !Database::covers(&cursor.record, row) || world.is_safe(row.position)
    })
}

/// What a session has passed in the shards that are its own, and not recorded, is what it counts.
fn is_counted(world: &World, session: &Session) -> bool {
    let of_all = i16::try_from(world.database.cursors.len()).unwrap_or(1);
    session.epochs.keys().filter(|shard| session.owns(&world.database, **shard)).all(|shard| {
        let passed = session.passed.values().filter(|key| *key % of_all == *shard).count();
        passed == session.unrecorded(*shard)
    })
}

/// What some run must come to.
pub(super) fn sights(bounds: &Bounds) -> Vec<Property<Bounds>> {
    let mut sights: Vec<Property<Bounds>> =
        vec![Property::sometimes("all is published", |_: &Bounds, world: &World| {
            world.database.transactions.iter().all(|transaction| transaction.is_over())
                && world.database.rows().len() > 1
                && world.database.rows().iter().all(|row| world.is_done(row.position))
        })];
    if bounds.skips > 0 {
        sights.push(Property::sometimes(
            "a message is skipped, and what is settled is forgotten",
            |_: &Bounds, world: &World| {
                !world.database.skipped.is_empty()
                    && world.database.settled.is_empty()
                    && world.database.rows().iter().all(|row| {
                        let shard = usize::from(row.key.unsigned_abs()) % world.database.cursors.len();
                        Database::covers(&world.database.cursors[shard].record, row)
                    })
            },
        ));
    }
    if bounds.expiries > 0 {
        sights.push(Property::sometimes("a zombie publishes", |_: &Bounds, world: &World| {
            world.zombie_published
        }));
    }
    if bounds.crashes + bounds.expiries > 0 {
        sights.push(Property::sometimes("a message is published twice", |_: &Bounds, world: &World| {
            world.copies.iter().any(|copies| *copies > 1)
        }));
    }
    if bounds.rejections + bounds.outages + bounds.set_aside > 0 {
        sights.push(Property::sometimes(
            "a held message is published, and its key is free again",
            |_: &Bounds, world: &World| {
                world.rejected
                    && world.database.held_keys.is_empty()
                    && world.database.rows().iter().all(|row| world.is_done(row.position))
            },
        ));
    }
    sights
}
