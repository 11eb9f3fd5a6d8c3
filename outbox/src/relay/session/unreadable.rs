//! A row of the log that is no message: it is never sent, and its key waits for a person, as with one that no broker takes.

use std::collections::HashSet;
use std::sync::Arc;

use message::Publisher;

use super::super::lanes::{After, Item};
use super::Session;

impl<P: Publisher + 'static> Session<'_, P> {
    /// Takes out of a batch what cannot be read, which is parked, and what is behind it of its key, which waits for it.
    pub(super) fn without_unreadable(&mut self, batch: Vec<Item>) -> Vec<Item> {
        if batch.iter().all(|item| item.log.fault.is_none()) {
            return batch;
        }
        let mut waiting: HashSet<Arc<str>> = HashSet::new();
        let (mut sent, mut kept) = (Vec::with_capacity(batch.len()), Vec::new());
        for item in batch {
            let key = item.log.message.key.as_ref();
            if item.log.fault.is_some() {
                waiting.extend(key.cloned());
                kept.push(item);
            } else if key.is_some_and(|key| waiting.contains(key)) {
                kept.push(item);
            } else {
                sent.push(item);
            }
        }
        for item in kept {
            let after = match item.log.fault.clone() {
                Some(fault) => {
                    let (position, id) = (item.log.position, item.log.message.id);
                    tracing::error!(
                        relay = self.relay.name, position, %id, %fault,
                        "parked: a row of the log cannot be read as a message; it waits for a person"
                    );
                    self.lanes.reject(item, format!("the row cannot be read as a message: {fault}"))
                }
                None => self.lanes.fail(item),
            };
            // Its key is held as soon as nothing of it is on the wire.
            if let After::Held { items, cause } = after {
                self.hold_for(items, &cause);
            }
        }
        sent
    }
}
