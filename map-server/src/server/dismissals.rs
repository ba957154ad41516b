//! Who has not heard yet that clients have left it?
//!
//! An owner that was dead when it lost its clients still knows them when it is back: what an agent
//! knows outlives it. So what it is to forget is remembered, also in the store, until it has
//! acknowledged that. Before, it gets no answer about these clients either: it would ask for what it
//! takes for its own, and both ends were told of each other once more.

use std::collections::{BTreeMap, BTreeSet};

use lisp_proto::{EidPrefix, InstanceId, Record, Timestamp};

use super::actions::Actions;
use super::counters::DropReason;
use super::mappings::Found;
use super::publish::{parcels, withdrawal};
use super::sites::{Registrant, XtrIndex};
use super::{MapServer, limits};
use crate::config::XtrName;
use crate::store_event::StoreEvent;

/// What owners are to forget, and have not acknowledged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dismissals {
    by_owner: BTreeMap<XtrIndex, BTreeSet<EidPrefix>>,
    len: usize,
}

impl Dismissals {
    /// Returns how many there are.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Whether `owner` is to forget `eid`.
    fn contains(&self, owner: XtrIndex, eid: &EidPrefix) -> bool {
        let known = self.by_owner.get(&owner);
        known.is_some_and(|known| known.contains(eid))
    }

    /// Lists what `owner` is to forget.
    fn of(&self, owner: XtrIndex) -> impl Iterator<Item = EidPrefix> {
        self.by_owner.get(&owner).into_iter().flatten().copied()
    }

    /// Remembers that `owner` is to forget `eid`; returns whether that is news.
    ///
    /// # Errors
    /// There is no room.
    fn add(&mut self, owner: XtrIndex, eid: EidPrefix) -> Result<bool, ()> {
        if self.contains(owner, &eid) {
            return Ok(false);
        }
        if self.len >= limits::DISMISSALS {
            return Err(());
        }
        self.len += 1;
        Ok(self.by_owner.entry(owner).or_default().insert(eid))
    }

    /// Ends that; returns whether it was so.
    fn remove(&mut self, owner: XtrIndex, eid: &EidPrefix) -> bool {
        let Some(known) = self.by_owner.get_mut(&owner) else {
            return false;
        };
        let was_known = known.remove(eid);
        if known.is_empty() {
            self.by_owner.remove(&owner);
        }
        self.len -= usize::from(was_known);
        was_known
    }
}

impl MapServer {
    /// Remembers that `owner` is to forget `eids`.
    pub(super) fn note_dismissed(
        &mut self,
        owner: XtrIndex,
        mut eids: Vec<EidPrefix>,
        actions: &mut Actions,
    ) {
        let dismissals = &mut self.state.dismissals;
        eids.retain(|eid| match dismissals.add(owner, *eid) {
            Ok(is_news) => is_news,
            Err(()) => {
                actions.count(DropReason::DismissalOverflow);
                false
            }
        });
        if !eids.is_empty() {
            let xtr = self.sites.site(owner).name.clone();
            actions.persist(StoreEvent::Dismissed { xtr, eids });
        }
    }

    /// `owner` has forgotten `eids`, or shall know them again.
    pub(super) fn dismissal_over(
        &mut self,
        owner: XtrIndex,
        eids: impl IntoIterator<Item = EidPrefix>,
        actions: &mut Actions,
    ) {
        let mut over: Vec<_> = eids.into_iter().collect();
        over.retain(|eid| self.state.dismissals.remove(owner, eid));
        if !over.is_empty() {
            let xtr = self.sites.site(owner).name.clone();
            actions.persist(StoreEvent::Forgotten { xtr, eids: over });
        }
    }

    /// What `receiver` is told, except what it is to forget, it shall know.
    pub(super) fn acquaint(
        &mut self,
        receiver: XtrIndex,
        records: &[Record],
        actions: &mut Actions,
    ) {
        let known = records.iter().filter(|it| !it.ttl.is_withdrawal());
        let known: Vec<_> = known.map(|record| record.eid).collect();
        self.dismissal_over(receiver, known, actions);
    }

    /// `owner` has left an instance, and knows nobody there any more.
    pub(super) fn forget_dismissals(
        &mut self,
        owner: XtrIndex,
        iid: InstanceId,
        actions: &mut Actions,
    ) {
        let all = self.state.dismissals.of(owner);
        let all: Vec<_> = all.filter(|eid| eid.iid() == iid).collect();
        self.dismissal_over(owner, all, actions);
    }

    /// Tells `owner`, which has just registered, what it is to forget and is not being told.
    pub(super) fn dismiss_again(&mut self, now: Timestamp, owner: XtrIndex, actions: &mut Actions) {
        let receiver = Registrant::any(owner);
        let notifier = &self.state.notifier;
        let untold = self.state.dismissals.of(owner).map(withdrawal);
        let untold = untold.filter(|it| {
            notifier
                .telling(receiver, std::slice::from_ref(it))
                .is_none()
        });
        let untold = untold.take(limits::DISMISSED_AT_ONCE).collect();
        for parcel in parcels(untold) {
            self.tell(now, now, owner, parcel, actions);
        }
    }

    /// Whether `xtr` asks for a client that has left it before it has acknowledged that.
    pub(super) fn is_dismissed(&self, xtr: XtrIndex, asked: &[EidPrefix]) -> bool {
        asked.iter().any(|eid| match self.state.mappings.find(eid) {
            Found::Registered(mapping) => self.state.dismissals.contains(xtr, &mapping.eid()),
            Found::Unregistered(_) | Found::Unknown => false,
        })
    }

    /// Lists what must survive a restart.
    pub(super) fn dismissal_facts(&self) -> impl Iterator<Item = StoreEvent> {
        let all = self.state.dismissals.by_owner.iter();
        all.map(|(owner, eids)| StoreEvent::Dismissed {
            xtr: self.sites.site(*owner).name.clone(),
            eids: eids.iter().copied().collect(),
        })
    }

    /// Takes over from an earlier run that an xTR is to forget `eids`, or has.
    pub(super) fn restore_dismissals(
        &mut self,
        xtr: &XtrName,
        eids: &[EidPrefix],
        is_over: bool,
    ) -> Option<()> {
        let owner = self.sites.by_name(xtr)?;
        for eid in eids {
            match is_over {
                true => {
                    self.state.dismissals.remove(owner, eid);
                }
                false if !self.sites.is_in(owner, eid.iid()) => return None,
                false => {
                    self.state.dismissals.add(owner, *eid).ok()?;
                }
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
