//! Who has not heard yet that clients have left it?
//!
//! An owner that was dead when it lost its clients still knows them when it is back: what an agent
//! knows outlives it. So what it is to forget is remembered, also in the store, until it has
//! acknowledged that. Before, it gets no answer about these clients either: it would ask for what it
//! takes for its own, and both ends were told of each other once more.
//!
//! Who is told of somebody for another reason does not forget it. An owner that comes back with an
//! address of its own, inside what it shares, is a far end of whoever hears of that address: both are
//! told, and what the client uses its new owner for stays there.

use std::collections::BTreeMap;
use std::iter::{repeat, successors};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::time::Duration;

use lisp_proto::{Deadlines, EidPrefix, Record, Timestamp};

use super::actions::Actions;
use super::counters::DropReason;
use super::mappings::Found;
use super::publish::{parcels, withdrawal};
use super::sites::{Registrant, XtrIndex};
use super::{MapServer, limits};
use crate::config::XtrName;
use crate::store_event::{StoreEvent, whole_seconds};

/// What owners are to forget, and have not acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Dismissals {
    by_owner: BTreeMap<XtrIndex, BTreeMap<EidPrefix, Timestamp>>,
    expiry: Deadlines<(XtrIndex, EidPrefix)>,
    len: usize,
}

impl Dismissals {
    pub(crate) const fn new() -> Self {
        Self {
            by_owner: BTreeMap::new(),
            expiry: Deadlines::new(),
            len: 0,
        }
    }

    /// Returns how many there are.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Whether `owner` is to forget `eid`.
    fn contains(&self, owner: XtrIndex, eid: &EidPrefix) -> bool {
        let known = self.by_owner.get(&owner);
        known.is_some_and(|known| known.contains_key(eid))
    }

    /// Lists what `owner` is to forget.
    fn of(&self, owner: XtrIndex) -> impl Iterator<Item = EidPrefix> {
        let known = self.by_owner.get(&owner).into_iter();
        known.flat_map(BTreeMap::keys).copied()
    }

    /// Remembers until `until` that `owner` is to forget `eid`.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn add(
        &mut self,
        owner: XtrIndex,
        eid: EidPrefix,
        until: Timestamp,
    ) -> Result<(), ()> {
        let is_full = self.len >= limits::DISMISSALS;
        let known = self.by_owner.get(&owner);
        let is_news = known.is_none_or(|known| !known.contains_key(&eid));
        let own = known.map_or(0, BTreeMap::len);
        if is_news && (is_full || own >= limits::DISMISSALS_PER_OWNER) {
            return Err(());
        }
        self.len += usize::from(is_news);
        self.by_owner.entry(owner).or_default().insert(eid, until);
        self.expiry.set((owner, eid), until);
        Ok(())
    }

    /// Ends that; returns whether it was so.
    fn remove(&mut self, owner: XtrIndex, eid: &EidPrefix) -> bool {
        let Some(known) = self.by_owner.get_mut(&owner) else {
            return false;
        };
        let was_known = known.remove(eid).is_some();
        if known.is_empty() {
            self.by_owner.remove(&owner);
        }
        self.expiry.cancel(&(owner, *eid));
        self.len -= usize::from(was_known);
        was_known
    }

    /// Returns when the next one is of no use any more.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.expiry.next()
    }
}

impl MapServer {
    /// Remembers that `owner` is to forget `eids`.
    pub(super) fn note_dismissed(
        &mut self,
        now: Timestamp,
        owner: XtrIndex,
        mut eids: Vec<EidPrefix>,
        actions: &mut Actions,
    ) {
        let until = now + limits::DISMISSAL_LIFETIME;
        let dismissals = &mut self.state.dismissals;
        eids.retain(|eid| match dismissals.add(owner, *eid, until) {
            Ok(()) => true,
            Err(()) => {
                actions.count(DropReason::DismissalOverflow);
                false
            }
        });
        if !eids.is_empty() {
            let xtr = self.sites.site(owner).name.clone();
            let left_s = Vec::new();
            actions.persist(StoreEvent::Dismissed { xtr, eids, left_s });
        }
    }

    /// Ends what owners have had so much time to hear that they have forgotten it by themselves.
    pub(super) fn expire_dismissals(&mut self, now: Timestamp, actions: &mut Actions) {
        while let Some((owner, eid)) = self.state.dismissals.expiry.pop_due(now) {
            self.dismissal_over(owner, [eid], actions);
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

    /// Tells `owner`, which has just registered, what it is to forget and is not being told.
    pub(super) fn dismiss_again(&mut self, now: Timestamp, owner: XtrIndex, actions: &mut Actions) {
        if self.state.dismissals.len() == 0 {
            return;
        }
        let receiver = Registrant::any(owner);
        let notifier = &self.state.notifier;
        let mappings = &self.state.mappings;
        let untold = self.state.dismissals.of(owner);
        // Who has left an instance hears nothing there before it is back.
        let untold = untold.filter(|eid| mappings.has_registered(owner, eid.iid()));
        let untold = untold.map(withdrawal);
        let untold = untold.filter(|it| {
            notifier
                .telling(receiver, std::slice::from_ref(it))
                .is_none()
        });
        let untold = untold.take(limits::DISMISSED_AT_ONCE).collect();
        for (position, parcel) in (0..).zip(parcels(untold)) {
            let late = u32::saturating_sub(position, limits::NOTIFIES_AT_ONCE);
            let at = now + limits::NOTIFY_SPACING * late;
            self.tell(now, at, owner, parcel, actions);
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
    pub(super) fn dismissal_facts(&self, now: Timestamp) -> impl Iterator<Item = StoreEvent> {
        let first = self.dismissal_after(now, None);
        let all = successors(first, move |(_, last)| {
            self.dismissal_after(now, Some(*last))
        });
        all.map(|(fact, _)| fact)
    }

    /// Returns the next fact of those, about prefixes after this one of this owner, and the last in it.
    pub(super) fn dismissal_after(
        &self,
        now: Timestamp,
        last: Option<(XtrIndex, EidPrefix)>,
    ) -> Option<(StoreEvent, (XtrIndex, EidPrefix))> {
        let first = last.map_or(Unbounded, |(owner, _)| Included(owner));
        let mut owners = self.state.dismissals.by_owner.range((first, Unbounded));
        owners.find_map(|(owner, eids)| {
            let passed = last.filter(|(last, _)| last == owner);
            let first = passed.map_or(Unbounded, |(_, eid)| Excluded(eid));
            let some = eids.range((first, Unbounded));
            let some = some.take(limits::DISMISSALS_PER_FACT);
            let some = some.map(|(eid, until)| (*eid, whole_seconds(*until - now)));
            let (eids, left_s): (Vec<_>, Vec<_>) = some.unzip();
            let last = *eids.last()?;
            let xtr = self.sites.site(*owner).name.clone();
            let fact = StoreEvent::Dismissed { xtr, eids, left_s };
            Some((fact, (*owner, last)))
        })
    }

    /// Takes over from an earlier run that an xTR is to forget `eids`, for so many seconds each.
    pub(super) fn restore_dismissed(
        &mut self,
        now: Timestamp,
        xtr: &XtrName,
        eids: &[EidPrefix],
        left_s: &[u32],
    ) -> Option<()> {
        let owner = self.sites.by_name(xtr)?;
        let left = left_s
            .iter()
            .map(|left| Duration::from_secs((*left).into()));
        let left = left.chain(repeat(limits::DISMISSAL_LIFETIME));
        for (eid, left) in eids.iter().zip(left) {
            if !self.sites.is_in(owner, eid.iid()) {
                return None;
            }
            if left.is_zero() {
                self.state.dismissals.remove(owner, eid);
                continue;
            }
            self.state.dismissals.add(owner, *eid, now + left).ok()?;
        }
        Some(())
    }

    /// Takes over from an earlier run that an xTR has forgotten `eids`.
    pub(super) fn restore_forgotten(&mut self, xtr: &XtrName, eids: &[EidPrefix]) -> Option<()> {
        let owner = self.sites.by_name(xtr)?;
        for eid in eids {
            self.state.dismissals.remove(owner, eid);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
