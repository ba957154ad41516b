//! Which of several owners of a prefix does an agent use?
//!
//! Agents may register the same prefix with the merge bit: proxies do. Whoever is told of such a
//! prefix is a client of one of its owners. It gets the record that all get, with the locators of
//! that owner first, and only that owner is told of the client.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

use lisp_proto::{EidPrefix, InstanceId, Record};

use super::actions::Actions;
use super::counters::DropReason;
use super::mappings::{Found, Mapping};
use super::preference::{locators_for, offer, score};
use super::sites::XtrIndex;
use super::{MapServer, limits};
use crate::store_event::StoreEvent;

/// Where one client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) owner: XtrIndex,
    /// Parts of the prefix that the client was told of.
    pub(crate) parts: BTreeSet<EidPrefix>,
}

/// Where all clients are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Assignments {
    by_prefix: BTreeMap<EidPrefix, BTreeMap<XtrIndex, Assignment>>,
    by_client: BTreeMap<XtrIndex, BTreeSet<EidPrefix>>,
    draining: BTreeSet<XtrIndex>,
    len: usize,
}

impl Assignments {
    /// Returns how many there are.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Returns where `client` is with `eid`.
    pub(crate) fn get(&self, eid: &EidPrefix, client: XtrIndex) -> Option<&Assignment> {
        self.by_prefix.get(eid)?.get(&client)
    }

    /// Lists the clients of `eid`, with their owners.
    pub(crate) fn clients(&self, eid: &EidPrefix) -> impl Iterator<Item = (XtrIndex, XtrIndex)> {
        let clients = self.by_prefix.get(eid).into_iter().flatten();
        clients.map(|(client, at)| (*client, at.owner))
    }

    /// Lists the prefixes of one instance of which `client` is one.
    pub(crate) fn of(&self, client: XtrIndex, iid: InstanceId) -> Vec<EidPrefix> {
        let eids = self.by_client.get(&client).into_iter().flatten();
        eids.filter(|eid| eid.iid() == iid).copied().collect()
    }

    /// Lists those after the one of this client of this prefix, or all: prefix, client, and where it is.
    pub(crate) fn iter_after(
        &self,
        last: Option<(EidPrefix, XtrIndex)>,
    ) -> impl Iterator<Item = (EidPrefix, XtrIndex, &Assignment)> {
        let first = last.map_or(Unbounded, |(eid, _)| Included(eid));
        let all = self.by_prefix.range((first, Unbounded));
        all.flat_map(move |(eid, clients)| {
            let passed = last.filter(|(last, _)| last == eid);
            let first = passed.map_or(Unbounded, |(_, client)| Excluded(client));
            let clients = clients.range((first, Unbounded));
            clients.map(|(client, at)| (*eid, *client, at))
        })
    }

    /// Remembers that `client` is with `owner`, and that it was told of `parts` of the prefix.
    /// Returns whether that is news; nothing is remembered if there are too many.
    ///
    /// # Errors
    /// There is no room.
    pub(crate) fn set(
        &mut self,
        eid: EidPrefix,
        client: XtrIndex,
        owner: XtrIndex,
        parts: impl IntoIterator<Item = EidPrefix>,
    ) -> Result<bool, ()> {
        let clients = self.by_prefix.entry(eid).or_default();
        let mut is_news = false;
        let at = match clients.get_mut(&client) {
            Some(at) => at,
            None if self.len >= limits::ASSIGNMENTS => return Err(()),
            None => {
                self.len += 1;
                is_news = true;
                self.by_client.entry(client).or_default().insert(eid);
                let parts = BTreeSet::new();
                clients.entry(client).or_insert(Assignment { owner, parts })
            }
        };
        is_news |= at.owner != owner;
        at.owner = owner;
        for part in parts {
            if at.parts.len() < limits::PARTS_PER_ASSIGNMENT {
                is_news |= at.parts.insert(part);
            }
        }
        Ok(is_news)
    }

    /// Forgets where `client` is; returns whether that was known.
    pub(crate) fn remove(&mut self, eid: &EidPrefix, client: XtrIndex) -> bool {
        let Some(clients) = self.by_prefix.get_mut(eid) else {
            return false;
        };
        let known = clients.remove(&client).is_some();
        if clients.is_empty() {
            self.by_prefix.remove(eid);
        }
        if let Some(eids) = self.by_client.get_mut(&client) {
            eids.remove(eid);
            if eids.is_empty() {
                self.by_client.remove(&client);
            }
        }
        self.len -= usize::from(known);
        known
    }

    /// Decides whether `owner` may get new clients; returns whether that is news.
    pub(crate) fn drain(&mut self, owner: XtrIndex, draining: bool) -> bool {
        match draining {
            true => self.draining.insert(owner),
            false => self.draining.remove(&owner),
        }
    }

    /// Whether `owner` is to get no new clients.
    pub(crate) fn is_draining(&self, owner: XtrIndex) -> bool {
        self.draining.contains(&owner)
    }

    /// Lists the owners that are to get no new clients.
    pub(crate) fn draining(&self) -> impl Iterator<Item = XtrIndex> {
        self.draining.iter().copied()
    }
}

impl MapServer {
    /// Whether agents that are told of `mapping` are clients of one of its owners: these let others
    /// register it, and there are others that may. They are all agents themselves.
    pub(super) fn is_shared(&self, mapping: Mapping<'_>) -> bool {
        mapping.is_merged() && self.sites.may_share(&mapping.eid())
    }

    /// Returns the owner that `client` uses, or would if it were told of `mapping` now; `None` if it
    /// is no client.
    pub(super) fn owner_of(&self, mapping: Mapping<'_>, client: XtrIndex) -> Option<XtrIndex> {
        self.owner_or(mapping, client, None)
    }

    /// The same; a client that is not assigned yet would get `preferred`, unless that is drained.
    fn owner_or(
        &self,
        mapping: Mapping<'_>,
        client: XtrIndex,
        preferred: Option<XtrIndex>,
    ) -> Option<XtrIndex> {
        let is_client = self.is_agent(client) && !mapping.is_registered_by(client);
        if !is_client || !self.is_shared(mapping) {
            return None;
        }
        let assignments = &self.state.assignments;
        let known = assignments.get(&mapping.eid(), client);
        let known = known.filter(|at| mapping.is_registered_by(at.owner));
        // Who knows nothing any more is a new client.
        let known = known.filter(|at| !self.leaves(mapping, at.owner) || self.uses(at, client));
        let preferred = preferred
            .filter(|owner| mapping.is_registered_by(*owner) && !self.leaves(mapping, *owner));
        let known = known.map(|at| at.owner).or(preferred);
        known.or_else(|| self.best_owner(mapping, client, |_| false))
    }

    /// Whether `owner` is to get no new clients of `mapping`: an operator has said so, or it does itself.
    pub(super) fn leaves(&self, mapping: Mapping<'_>, owner: XtrIndex) -> bool {
        self.state.assignments.is_draining(owner) || offer(mapping, owner).0 == u8::MAX
    }

    /// Whether `client` is still told what becomes of some part.
    fn uses(&self, at: &Assignment, client: XtrIndex) -> bool {
        let mut parts = at.parts.iter();
        parts.any(|part| self.state.subscribers.contains(part, client))
    }

    /// Returns the owner that suits `client` best and is not excluded: one that is not drained if
    /// possible, of those with the lowest priority number the one that its name and the weights
    /// choose, the same each time.
    pub(super) fn best_owner(
        &self,
        mapping: Mapping<'_>,
        client: XtrIndex,
        is_excluded: impl Fn(XtrIndex) -> bool,
    ) -> Option<XtrIndex> {
        let client = &self.sites.site(client).name;
        let owners: BTreeSet<_> = mapping.owners().collect();
        let owners = owners.into_iter().filter(|owner| !is_excluded(*owner));
        owners.min_by_key(|owner| {
            let (priority, weight) = offer(mapping, *owner);
            let leaves = self.leaves(mapping, *owner);
            let score = score(client, &self.sites.site(*owner).name, weight);
            (leaves, priority, Reverse(score))
        })
    }

    /// Makes `client` a client of one of the owners of what covers `part`, if these share it, and
    /// remembers that it is told of that part.
    pub(super) fn note_client(&mut self, part: EidPrefix, client: XtrIndex, actions: &mut Actions) {
        let Found::Registered(mapping) = self.state.mappings.find(&part) else {
            return;
        };
        let eid = mapping.eid();
        if let Some(owner) = self.owner_of(mapping, client) {
            self.place(eid, client, owner, Some(part), actions);
        }
    }

    /// Puts `client` on `owner`.
    pub(super) fn place(
        &mut self,
        eid: EidPrefix,
        client: XtrIndex,
        owner: XtrIndex,
        part: Option<EidPrefix>,
        actions: &mut Actions,
    ) {
        match self.state.assignments.set(eid, client, owner, part) {
            Ok(true) => actions.persist(self.assigned(eid, client, owner)),
            Ok(false) => {}
            Err(()) => actions.count(DropReason::AssignmentOverflow),
        }
    }

    /// Says where `client` is, for the store.
    pub(super) fn assigned(&self, eid: EidPrefix, client: XtrIndex, owner: XtrIndex) -> StoreEvent {
        let known = self.state.assignments.get(&eid, client);
        let parts = known.map(|at| at.parts.iter().copied().collect());
        StoreEvent::Assigned {
            eid,
            client: self.sites.site(client).name.clone(),
            owner: self.sites.site(owner).name.clone(),
            parts: parts.unwrap_or_default(),
        }
    }

    /// Lists what must survive a restart.
    pub(super) fn assignment_facts(&self) -> impl Iterator<Item = StoreEvent> {
        let assignments = &self.state.assignments;
        let all = assignments.iter_after(None);
        all.map(|(eid, client, at)| self.assigned(eid, client, at.owner))
    }

    /// Lists the same of owners that are to get no new clients.
    pub(super) fn draining_facts(&self) -> impl Iterator<Item = StoreEvent> {
        let draining = self.state.assignments.draining();
        draining.map(|xtr| StoreEvent::Draining {
            xtr: self.sites.site(xtr).name.clone(),
            draining: true,
        })
    }

    /// Takes away where `client` is.
    pub(super) fn unplace(&mut self, eid: EidPrefix, client: XtrIndex, actions: &mut Actions) {
        if self.state.assignments.remove(&eid, client) {
            let client = self.sites.site(client).name.clone();
            actions.persist(StoreEvent::Unassigned { eid, client });
        }
    }

    /// Returns the record of `mapping` as `receiver` is told it.
    pub(super) fn record_for(&self, mapping: Mapping<'_>, receiver: Option<XtrIndex>) -> Record {
        if let Some(record) = receiver.and_then(|receiver| self.relayed(mapping, receiver)) {
            return record;
        }
        let owner = receiver.and_then(|client| self.owner_of(mapping, client));
        let told_apart = |own: &XtrIndex| {
            let alone = mapping.owners().all(|other| other == *own);
            !alone || offer(mapping, *own).0 == u8::MAX
        };
        let Some(owner) = owner.filter(told_apart) else {
            return mapping.record();
        };
        let draining = |owner| self.state.assignments.is_draining(owner);
        Record {
            locators: locators_for(mapping, owner, draining),
            ..mapping.record()
        }
    }

    /// Returns `records` of `owner` as `receiver` is told them. Of those that `owner` shares with
    /// others only what the receiver uses it for: it is no far end of the clients of the others.
    pub(super) fn as_told(
        &mut self,
        records: Vec<Record>,
        owner: XtrIndex,
        receiver: XtrIndex,
        actions: &mut Actions,
    ) -> Vec<Record> {
        let mut told = Vec::with_capacity(records.len());
        for record in records {
            let Found::Registered(mapping) = self.state.mappings.find(&record.eid) else {
                continue;
            };
            let assigned = self.owner_or(mapping, receiver, Some(owner));
            let eid = mapping.eid();
            match assigned {
                None => told.push(self.over_relay(record, owner, receiver)),
                Some(assigned) if assigned != owner => {}
                Some(_) => {
                    self.place(eid, receiver, owner, Some(record.eid), actions);
                    if let Some(mapping) = self.state.mappings.exact(&eid) {
                        let eid = record.eid;
                        let record = self.record_for(mapping, Some(receiver));
                        told.push(Record { eid, ..record });
                    }
                }
            }
        }
        told
    }

    /// Whether what `xtr` has registered around `eid` is what `client` uses there.
    pub(super) fn serves(&self, xtr: XtrIndex, eid: &EidPrefix, client: XtrIndex) -> bool {
        let Found::Registered(mapping) = self.state.mappings.find(eid) else {
            return true;
        };
        let owner = self.owner_of(mapping, client);
        owner.is_none_or(|owner| owner == xtr)
    }
}

#[cfg(test)]
mod tests;
