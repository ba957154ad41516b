//! What do the registrations of one registrant have in common?
//!
//! Who it is, where it registers from, and how: stored once for all of them.

use std::hash::BuildHasher;
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::super::contacts::Contact;
use super::super::prefix_table::{Slab, SlotId};
use super::super::sites::Registrant;
use super::Said;

/// What holds for many registrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Terms {
    pub(super) registrant: Registrant,
    pub(super) contact: Contact,
    pub(super) merge: bool,
    pub(super) want_notify: bool,
    pub(super) lifetime: Duration,
}

impl Terms {
    pub(super) const fn of(registrant: Registrant, said: Said<'_>) -> Self {
        Self {
            registrant,
            contact: said.contact,
            merge: said.merge,
            want_notify: said.want_notify,
            lifetime: said.lifetime,
        }
    }
}

/// All terms in use, each once.
#[derive(Clone, Debug)]
pub(super) struct AllTerms {
    /// With the number of registrations.
    slots: Slab<(Terms, u32)>,
    /// Never iterated: nothing depends on its order.
    index: HashTable<SlotId>,
    hasher: DefaultHashBuilder,
}

impl AllTerms {
    pub(super) fn new() -> Self {
        Self {
            slots: Slab::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    pub(super) fn get(&self, id: SlotId) -> Option<&Terms> {
        self.slots.get(id).map(|(terms, _)| terms)
    }

    /// Counts one registration more, and returns the number of its terms.
    pub(super) fn hold(&mut self, terms: Terms) -> SlotId {
        let Self {
            slots,
            index,
            hasher,
        } = self;
        let hash = hasher.hash_one(terms);
        let is_it = |id: &SlotId| slots.get(*id).is_some_and(|(other, _)| *other == terms);
        if let Some(id) = index.find(hash, is_it).copied() {
            if let Some((_, count)) = slots.get_mut(id) {
                *count += 1;
            }
            return id;
        }
        let id = slots.insert((terms, 1));
        index.insert_unique(hash, id, |id| {
            slots
                .get(*id)
                .map_or(0, |(terms, _)| hasher.hash_one(terms))
        });
        id
    }

    /// Counts one registration less.
    pub(super) fn release(&mut self, id: SlotId) {
        let Self {
            slots,
            index,
            hasher,
        } = self;
        let Some((terms, count)) = slots.get_mut(id) else {
            return;
        };
        *count -= 1;
        if *count > 0 {
            return;
        }
        let hash = hasher.hash_one(*terms);
        if let Ok(entry) = index.find_entry(hash, |other| *other == id) {
            entry.remove();
        }
        slots.remove(id);
        if index.len() * 8 < index.capacity() {
            index.shrink_to(index.len() * 2, |id| {
                slots
                    .get(*id)
                    .map_or(0, |(terms, _)| hasher.hash_one(terms))
            });
        }
    }
}
