//! What has each xTR registered?

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use lisp_proto::{EidPrefix, InstanceId};

use super::super::prefix_table::SlotId;
use super::super::sites::{Registrant, XtrIndex};
use crate::store_event::XtrIds;

/// What each xTR has registered in each instance: most of it as lists that go through the mappings
/// themselves, the rest by name.
#[derive(Clone, Debug)]
pub(super) struct Owners {
    lists: BTreeMap<(XtrIndex, InstanceId), List>,
    shared: BTreeSet<(XtrIndex, EidPrefix)>,
    /// How many registrations each registrant has.
    registrants: BTreeMap<Registrant, usize>,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: Option<SlotId>,
    len: usize,
}

impl Owners {
    pub(super) const fn new() -> Self {
        Self {
            lists: BTreeMap::new(),
            shared: BTreeSet::new(),
            registrants: BTreeMap::new(),
        }
    }

    /// Counts one registration more.
    pub(super) fn count(&mut self, registrant: Registrant) {
        *self.registrants.entry(registrant).or_default() += 1;
    }

    /// Counts one registration less.
    pub(super) fn uncount(&mut self, registrant: Registrant) {
        if let Some(count) = self.registrants.get_mut(&registrant) {
            *count -= 1;
            if *count == 0 {
                self.registrants.remove(&registrant);
            }
        }
    }

    /// Takes in that a mapping at `id` is the first of a list; returns the one that was.
    pub(super) fn push(&mut self, xtr: XtrIndex, iid: InstanceId, id: SlotId) -> Option<SlotId> {
        let none = List {
            first: None,
            len: 0,
        };
        let list = self.lists.entry((xtr, iid)).or_insert(none);
        list.len += 1;
        list.first.replace(id)
    }

    /// Takes in that a mapping has left its list; `first` is what follows if it was the first.
    pub(super) fn pop(&mut self, xtr: XtrIndex, iid: InstanceId, first: Option<Option<SlotId>>) {
        let Some(list) = self.lists.get_mut(&(xtr, iid)) else {
            return;
        };
        list.len -= 1;
        list.first = first.unwrap_or(list.first);
        if list.len == 0 {
            self.lists.remove(&(xtr, iid));
        }
    }

    /// Takes in that `xtr` is among those who registered `eid`.
    pub(super) fn share(&mut self, xtr: XtrIndex, eid: EidPrefix) {
        self.shared.insert((xtr, eid));
    }

    /// Takes in that `xtr` is no more among those who registered `eid`.
    pub(super) fn unshare(&mut self, xtr: XtrIndex, eid: EidPrefix) {
        self.shared.remove(&(xtr, eid));
    }

    /// Returns the first mapping of a list.
    pub(super) fn first(&self, xtr: XtrIndex, iid: InstanceId) -> Option<SlotId> {
        self.lists.get(&(xtr, iid))?.first
    }

    /// Lists what is in no list.
    pub(super) fn shared(&self, xtr: XtrIndex, iid: InstanceId) -> impl Iterator<Item = EidPrefix> {
        let first = EidPrefix::new(iid, IpNet::default());
        let all = self.shared.range((xtr, first)..);
        let all = all.take_while(move |(owner, eid)| *owner == xtr && eid.iid() == iid);
        all.map(|(_, eid)| *eid)
    }

    /// Lists the instances of which `xtr` has registered something.
    pub(super) fn instances(&self, xtr: XtrIndex) -> BTreeSet<InstanceId> {
        let lists = self
            .lists
            .range((xtr, InstanceId(0))..=(xtr, InstanceId(u32::MAX)));
        let shared = self
            .shared
            .range((xtr, EidPrefix::new(InstanceId(0), IpNet::default()))..);
        let shared = shared.take_while(|(owner, _)| *owner == xtr);
        let lists = lists.map(|((_, iid), _)| *iid);
        lists.chain(shared.map(|(_, eid)| eid.iid())).collect()
    }

    /// Whether `xtr` has registered anything of this instance-id.
    pub(super) fn has_any(&self, xtr: XtrIndex, iid: InstanceId) -> bool {
        self.lists.contains_key(&(xtr, iid)) || self.shared(xtr, iid).next().is_some()
    }

    /// Whether `ids` are among those with which `xtr` has registered; so are any if it registers
    /// without.
    pub(super) fn registers_as(&self, xtr: XtrIndex, ids: XtrIds) -> bool {
        let known = Registrant {
            xtr,
            ids: Some(ids),
        };
        if self.registrants.contains_key(&known) {
            return true;
        }
        let all = self.registrants.range(Registrant::any(xtr)..);
        let mut all = all.take_while(|(registrant, _)| registrant.xtr == xtr);
        all.all(|(registrant, _)| registrant.ids.is_none())
    }
}
