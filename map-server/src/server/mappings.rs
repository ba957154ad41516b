//! Which mapping answers for an EID, who registered it, and until when?
//!
//! The mapping database. Configured prefixes are entries too: they bound what surrounds them,
//! registered or not.

mod book;
mod expiry;
mod form;
mod owners;
mod said;
mod terms;
mod view;

use std::time::Duration;

use lisp_proto::{EidPrefix, InstanceId, Locator, Timestamp, Ttl};

use self::book::Book;
use self::expiry::{Expiry, Millis};
use self::form::{Form, Lean, Many, Slot};
pub(crate) use self::said::Said;
pub(crate) use self::view::Mapping;
use super::contacts::Contact;
use super::limits;
use super::prefix_table::{PrefixTable, SlotId};
use super::sites::{Registrant, XtrIndex};
use crate::store_event::XtrIds;

/// What one registrant said about a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) ttl: Ttl,
    pub(crate) locators: Vec<Locator>,
    /// Whether it stands beside those of other registrants (the `a` bit, RFC 9301 §5.6).
    pub(crate) merge: bool,
    /// Whether its registrant wants to be told how it was understood (the M bit).
    pub(crate) want_notify: bool,
    /// Where it came from.
    pub(crate) contact: Contact,
    /// How long it lasts without a refresh.
    pub(crate) lifetime: Duration,
}

/// What the database knows about an EID.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found<'a> {
    /// A mapping covers it.
    Registered(Mapping<'a>),
    /// This configured prefix covers it, and nobody has registered it.
    Unregistered(EidPrefix),
    /// No configured prefix covers it.
    Unknown,
}

/// What a registration or its end did to the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The record reads as before.
    None,
    /// The record is new or reads differently.
    Updated,
    /// There is no mapping of this prefix any more.
    Removed,
}

/// There is no room for the registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// What a registration did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) change: Change,
    /// Those whose registration of the same prefix gave way.
    pub(crate) replaced: Vec<Registrant>,
}

/// What a registration did that took the place of an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Renewed {
    pub(crate) change: Change,
    /// Whether it says the same.
    pub(crate) is_known: bool,
}

/// The mapping database.
#[derive(Clone)]
pub(crate) struct Mappings {
    table: PrefixTable<Slot>,
    book: Book,
    expiry: Expiry,
}

impl Mappings {
    /// Builds a database without mappings, with the configured prefixes `boundaries`.
    pub(crate) fn new(boundaries: impl Iterator<Item = EidPrefix>) -> Self {
        let mut table = PrefixTable::new();
        for eid in boundaries {
            table.insert(eid, Slot::boundary());
        }
        Self {
            table,
            book: Book::new(),
            expiry: Expiry::new(),
        }
    }

    /// Returns how many prefixes are registered or configured.
    pub(crate) const fn len(&self) -> usize {
        self.table.len()
    }

    /// Finds what answers for `asked`.
    pub(crate) fn find(&self, asked: &EidPrefix) -> Found<'_> {
        let found = self.table.longest_match(asked);
        found.map_or(Found::Unknown, |(eid, slot)| self.found(eid, slot))
    }

    /// Prepares the processor for lookups of all of `eids`.
    pub(crate) fn expect(&self, eids: &[EidPrefix]) {
        self.table.expect(eids);
    }

    /// Prepares the processor for registrations of all of `eids`.
    pub(crate) fn expect_exact(&self, eids: &[EidPrefix]) {
        self.table.expect_exact(eids);
    }

    /// Finds what answers for `asked`, and whether nothing else is inside it.
    pub(crate) fn find_whole(&self, asked: &EidPrefix) -> (Found<'_>, bool) {
        match self.table.longest_whole(asked) {
            Some((eid, slot, is_whole)) => (self.found(eid, slot), is_whole),
            None => (Found::Unknown, false),
        }
    }

    fn found<'a>(&'a self, eid: EidPrefix, slot: &'a Slot) -> Found<'a> {
        let mapping = self.mapping(eid, slot);
        mapping.map_or(Found::Unregistered(eid), Found::Registered)
    }

    fn mapping<'a>(&'a self, eid: EidPrefix, slot: &'a Slot) -> Option<Mapping<'a>> {
        let held = self.book.read(&slot.form)?;
        Some(Mapping::new(eid, held))
    }

    /// Returns the mapping of exactly `eid`.
    pub(crate) fn exact(&self, eid: &EidPrefix) -> Option<Mapping<'_>> {
        self.mapping(*eid, self.table.exact(eid)?)
    }

    /// Returns the shortest prefix that covers `asked`, is at least `shortest` bits long and has
    /// at most `most` mappings or configured prefixes strictly inside.
    pub(crate) fn region(&self, asked: &EidPrefix, shortest: u8, most: usize) -> Option<EidPrefix> {
        self.table.region(asked, shortest, most)
    }

    /// Whether no mapping and no configured prefix is strictly inside `region`.
    pub(crate) fn is_whole(&self, region: &EidPrefix) -> bool {
        self.table.has_at_most(region, 0)
    }

    /// Lists what is strictly inside `region`: mappings, and configured prefixes without one.
    pub(crate) fn strictly_inside(&self, region: EidPrefix) -> impl Iterator<Item = Found<'_>> {
        let inside = self.table.inside(&region);
        let inside = inside.filter(move |(eid, _)| *eid != region);
        inside.map(|(eid, slot)| self.found(eid, slot))
    }

    /// Returns what `registrant` has registered as exactly `eid`.
    pub(crate) fn registration(
        &self,
        eid: &EidPrefix,
        registrant: &Registrant,
    ) -> Option<Registration> {
        let mut all = self.exact(eid)?.registrations();
        all.find_map(|(other, registration)| (other == *registrant).then_some(registration))
    }

    /// Lists everything registered.
    pub(crate) fn registrations(
        &self,
    ) -> impl Iterator<Item = (EidPrefix, Registrant, Registration)> {
        self.registrations_after(None)
    }

    /// Lists what is registered for prefixes after `last`.
    pub(crate) fn registrations_after(
        &self,
        last: Option<EidPrefix>,
    ) -> impl Iterator<Item = (EidPrefix, Registrant, Registration)> {
        let mappings = self.table.iter_after(last);
        let mappings = mappings.filter_map(|(eid, slot)| self.mapping(eid, slot));
        mappings.flat_map(|mapping| {
            let all = mapping.registrations();
            all.map(move |(registrant, registration)| (mapping.eid(), registrant, registration))
        })
    }

    /// Whether `xtr` has registered anything of this instance-id.
    pub(crate) fn has_registered(&self, xtr: XtrIndex, iid: InstanceId) -> bool {
        self.book.owners.has_any(xtr, iid)
    }

    /// Whether `ids` are among those with which `xtr` has registered; so are any if it registers
    /// without.
    pub(crate) fn registers_as(&self, xtr: XtrIndex, ids: XtrIds) -> bool {
        self.book.owners.registers_as(xtr, ids)
    }

    /// Lists prefixes of one instance-id that `xtr` has registered, in their order: all of them, or
    /// `most` of them if there are more.
    pub(crate) fn registered_by(
        &self,
        xtr: XtrIndex,
        iid: InstanceId,
        most: usize,
    ) -> Vec<EidPrefix> {
        let owners = &self.book.owners;
        let shared = owners.shared(xtr, iid).take(most);
        let mut eids: Vec<_> = shared.collect();
        let mut at = owners.first(xtr, iid);
        while let Some((eid, slot)) = at.and_then(|id| self.table.at(id))
            && eids.len() < most
        {
            eids.push(eid);
            at = slot.next();
        }
        eids.sort_unstable();
        eids
    }

    /// Lists the prefixes of all instances that `xtr` has registered.
    pub(crate) fn all_registered_by(&self, xtr: XtrIndex) -> Vec<EidPrefix> {
        let iids = self.book.owners.instances(xtr).into_iter();
        iids.flat_map(|iid| self.registered_by(xtr, iid, usize::MAX))
            .collect()
    }

    /// Stores a registration for its lifetime. Without the merge bit it takes the place of all
    /// others, and those without the merge bit give way to it.
    ///
    /// # Errors
    /// There are too many mappings, or too many registrations of this one; nothing is changed.
    pub(crate) fn store(
        &mut self,
        eid: EidPrefix,
        registrant: Registrant,
        registration: Registration,
        now: Timestamp,
    ) -> Result<Stored, Full> {
        if let Some(renewed) = self.renew(&eid, registrant, registration.said(), now) {
            let (change, replaced) = (renewed.change, Vec::new());
            return Ok(Stored { change, replaced });
        }
        let expires = Millis::of(now + registration.lifetime);
        let id = match self.table.id_of(&eid) {
            Some(id) => id,
            None if self.table.len() >= limits::MAPPINGS => return Err(Full),
            None => self.table.add(eid, Slot::vacant()),
        };
        if self.begin(id, eid, registrant, registration.said(), expires) {
            let (change, replaced) = (Change::Updated, Vec::new());
            return Ok(Stored { change, replaced });
        }
        let (mut many, known) = self.take_out(id, eid);
        let stored = many.store(registrant, registration, expires);
        let change = match &stored {
            Ok(stored) if known => stored.change,
            Ok(_) => Change::Updated,
            Err(Full) => Change::None,
        };
        self.put_back(id, eid, many);
        self.arm(id, expires);
        stored.map(|stored| Stored { change, ..stored })
    }

    /// Stores a registration in the place of an earlier one of the same registrant, if that is the only one, both are
    /// such as mostly are, and neither has the merge bit or both say the same. Returns what that did, and whether the
    /// later one says what the earlier one said.
    pub(crate) fn renew(
        &mut self,
        eid: &EidPrefix,
        registrant: Registrant,
        said: Said<'_>,
        now: Timestamp,
    ) -> Option<Renewed> {
        let id = self.table.id_of(eid)?;
        let expires = Millis::of(now + said.lifetime);
        let slot = self.table.at_mut(id)?;
        let Form::Lean(lean) = &mut slot.form else {
            return None;
        };
        let renewed = self.book.renew(lean, registrant, said, expires)?;
        self.expiry.arm(&mut slot.timer, id, expires);
        Some(renewed)
    }

    /// Stores the first registration of a mapping, if it is such as mostly are; returns whether it was stored.
    fn begin(
        &mut self,
        id: SlotId,
        eid: EidPrefix,
        registrant: Registrant,
        said: Said<'_>,
        expires: Millis,
    ) -> bool {
        let slot = self.table.at(id).map(|(_, slot)| &slot.form);
        if !matches!(slot, Some(Form::Vacant)) {
            return false;
        }
        let Some(mut lean) = self.book.put_single(registrant, said, expires) else {
            return false;
        };
        self.link(id, eid, &mut lean);
        if let Some(slot) = self.table.at_mut(id) {
            slot.form = Form::Lean(lean);
            self.expiry.arm(&mut slot.timer, id, expires);
        }
        true
    }

    /// Takes a mapping out of its place, to be changed; returns whether there was one.
    fn take_out(&mut self, id: SlotId, eid: EidPrefix) -> (Many, bool) {
        let vacant = (Many::new(eid), false);
        let Some(slot) = self.table.at_mut(id) else {
            return vacant;
        };
        let form = std::mem::replace(&mut slot.form, Form::Vacant);
        if let Form::Lean(lean) = &form {
            self.unlink(eid, lean);
        }
        self.book
            .take(eid, form)
            .map_or(vacant, |many| (many, true))
    }

    /// Puts a mapping in its place; the place goes with the last registration.
    fn put_back(&mut self, id: SlotId, eid: EidPrefix, many: Many) {
        let mut form = self.book.put(many);
        if let Form::Lean(lean) = &mut form {
            self.link(id, eid, lean);
        }
        let Some(slot) = self.table.at_mut(id) else {
            return;
        };
        let is_vacant = matches!(form, Form::Vacant);
        slot.form = form;
        if is_vacant {
            self.expiry.disarm(&mut slot.timer);
            if !slot.is_boundary {
                self.table.remove(&eid);
            }
            self.tidy();
        }
    }

    /// Puts `lean` at the head of what its owner has registered.
    fn link(&mut self, id: SlotId, eid: EidPrefix, lean: &mut Lean) {
        let Some(xtr) = self.book.owner(lean) else {
            return;
        };
        let next = self.book.owners.push(xtr, eid.iid(), id);
        lean.set_links(None, next);
        self.relink(next, |lean| lean.set_prev(Some(id)));
    }

    /// Takes `lean` out of what its owner has registered.
    fn unlink(&mut self, eid: EidPrefix, lean: &Lean) {
        let (prev, next) = lean.links();
        if let Some(xtr) = self.book.owner(lean) {
            let first = prev.is_none().then_some(next);
            self.book.owners.pop(xtr, eid.iid(), first);
        }
        self.relink(prev, |lean| lean.set_next(next));
        self.relink(next, |lean| lean.set_prev(prev));
    }

    fn relink(&mut self, id: Option<SlotId>, change: impl FnOnce(&mut Lean)) {
        let slot = id.and_then(|id| self.table.at_mut(id));
        if let Some(Form::Lean(lean)) = slot.map(|slot| &mut slot.form) {
            change(lean);
        }
    }

    /// Ends a registration; nothing happens if there is none.
    pub(crate) fn withdraw(&mut self, eid: &EidPrefix, registrant: &Registrant) -> Change {
        let Some(id) = self.table.id_of(eid) else {
            return Change::None;
        };
        let is_registered = self.exact(eid).is_some_and(|mapping| {
            let mut registrants = mapping.registrants();
            registrants.any(|other| other == *registrant)
        });
        if !is_registered {
            return Change::None;
        }
        let (mut many, _) = self.take_out(id, *eid);
        let change = many.withdraw(registrant);
        self.put_back(id, *eid, many);
        change
    }

    /// Takes one registration out whose time is over.
    pub(crate) fn expire(&mut self, now: Timestamp) -> Option<(EidPrefix, Registrant, Change)> {
        let now = Millis::passed(now);
        loop {
            let table = &self.table;
            let id = self
                .expiry
                .pop_due(now, |id| table.at(id).map(|(eid, _)| eid))?;
            let Some((eid, slot)) = self.table.at(id) else {
                continue;
            };
            let Some((registrant, expires)) = self.book.first_to_expire(&slot.form) else {
                continue;
            };
            let armed = self.table.at_mut(id).map(|slot| &mut slot.timer);
            if !armed.is_some_and(|timer| self.expiry.fired(timer)) {
                continue;
            }
            // It was refreshed since, or there are more registrations.
            if expires > now {
                self.arm(id, expires);
                continue;
            }
            self.arm(id, now);
            let change = self.withdraw(&eid, &registrant);
            return Some((eid, registrant, change));
        }
    }

    /// Makes sure that a look is taken at a mapping no later than `at`.
    fn arm(&mut self, id: SlotId, at: Millis) {
        if let Some(slot) = self.table.at_mut(id) {
            self.expiry.arm(&mut slot.timer, id, at);
        }
    }

    /// Forgets timers of mappings that are no more, once those are most.
    fn tidy(&mut self) {
        let table = &self.table;
        self.expiry
            .tidy(|id| table.at(id).map(|(_, slot)| &slot.timer));
    }

    /// Returns when the next registration may expire.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.expiry.next()
    }
}

impl std::fmt::Debug for Mappings {
    /// Writes what is registered until when, not how it has come there.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.table.iter().map(|(eid, slot)| {
            let mapping = self.mapping(eid, slot);
            let expiry = self.book.expiries(&slot.form);
            (
                eid,
                (
                    slot.is_boundary,
                    mapping.map(|it| it.registrations().collect::<Vec<_>>()),
                    expiry,
                ),
            )
        });
        f.debug_map().entries(entries).finish()
    }
}

#[cfg(test)]
mod tests;
