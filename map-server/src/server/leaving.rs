//! Has a client left the owner that it could not use?
//!
//! It has got another one, but until it has moved there the old one may still get its packets
//! through. So that one is told to forget the client only when that has acknowledged where it is, and
//! what was on its way has passed.

use std::collections::{BTreeMap, BTreeSet};

use lisp_proto::{Deadlines, EidPrefix, InstanceId, Timestamp};

use super::actions::Actions;
use super::publish::parcels;
use super::rehome::Ties;
use super::sites::XtrIndex;
use super::{MapServer, limits};
use crate::config::XtrName;
use crate::store_event::StoreEvent;

/// Clients that are to leave an owner.
#[derive(Clone, Debug)]
pub(crate) struct Leavings {
    /// What each still has to acknowledge.
    all: BTreeMap<Ties, BTreeSet<EidPrefix>>,
    by_news: BTreeMap<(XtrIndex, EidPrefix), BTreeSet<Ties>>,
    timers: Deadlines<Ties>,
    /// Those of an earlier run, that have to be told again where they are.
    restored: BTreeSet<Ties>,
}

impl Leavings {
    pub(crate) const fn new() -> Self {
        Self {
            all: BTreeMap::new(),
            by_news: BTreeMap::new(),
            timers: Deadlines::new(),
            restored: BTreeSet::new(),
        }
    }

    /// Returns how many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Waits until the client has acknowledged what it is told of all that is `awaited`, at the latest
    /// until `until`.
    fn begin(
        &mut self,
        ties: Ties,
        awaited: impl IntoIterator<Item = EidPrefix>,
        until: Timestamp,
    ) {
        self.end(&ties);
        let awaited: BTreeSet<_> = awaited.into_iter().collect();
        for eid in &awaited {
            let waiting = self.by_news.entry((ties.client, *eid)).or_default();
            waiting.insert(ties);
        }
        self.all.insert(ties, awaited);
        self.timers.set(ties, until);
    }

    /// Takes in that `client` has acknowledged what it was told of `eid`.
    pub(crate) fn acknowledged(&mut self, now: Timestamp, client: XtrIndex, eid: EidPrefix) {
        for ties in self.by_news.remove(&(client, eid)).unwrap_or_default() {
            let Some(awaited) = self.all.get_mut(&ties) else {
                continue;
            };
            awaited.remove(&eid);
            if awaited.is_empty() {
                self.timers.set(ties, now + limits::MIGRATION_LINGER);
            }
        }
    }

    fn end(&mut self, ties: &Ties) {
        self.timers.cancel(ties);
        for eid in self.all.remove(ties).into_iter().flatten() {
            let key = (ties.client, eid);
            if let Some(waiting) = self.by_news.get_mut(&key) {
                waiting.remove(ties);
                if waiting.is_empty() {
                    self.by_news.remove(&key);
                }
            }
        }
    }

    /// Takes one out that is over by `now`.
    fn pop_due(&mut self, now: Timestamp) -> Option<Ties> {
        let ties = self.timers.pop_due(now)?;
        self.end(&ties);
        Some(ties)
    }

    /// Returns when the next one is over.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        let at_once = self.restored.first().map(|_| Timestamp::ZERO);
        at_once.or_else(|| self.timers.next())
    }
}

impl MapServer {
    /// Lets an owner forget a client when that has moved with `eids` to others, of which it is being told.
    pub(super) fn leave_when_moved(
        &mut self,
        now: Timestamp,
        ties: Ties,
        eids: &[EidPrefix],
        actions: &mut Actions,
    ) {
        let news = eids.iter().flat_map(|eid| self.news_for(*eid, ties.client));
        let news: Vec<_> = news.map(|record| record.eid).collect();
        let until = match news.is_empty() {
            true => limits::MIGRATION_LINGER,
            false => limits::LEAVING,
        };
        if self.state.leavings.len() >= limits::LEAVINGS
            && let Some(oldest) = self.state.leavings.pop_due(Timestamp(u64::MAX))
        {
            self.leave(now, oldest, actions);
        }
        if !self.state.leavings.all.contains_key(&ties) {
            let (client, owner) = self.names_of(&ties);
            let iid = ties.iid;
            actions.persist(StoreEvent::Leaving { client, owner, iid });
        }
        self.state.leavings.begin(ties, news, now + until);
    }

    /// Tells owners to forget clients that have left them, or do not say so.
    pub(super) fn leave_overdue(&mut self, now: Timestamp, actions: &mut Actions) {
        while let Some(ties) = self.state.leavings.restored.pop_first() {
            self.resume_leaving(now, ties, actions);
        }
        while let Some(ties) = self.state.leavings.pop_due(now) {
            self.leave(now, ties, actions);
        }
    }

    fn leave(&mut self, now: Timestamp, ties: Ties, actions: &mut Actions) {
        self.dismiss(now, ties, true, actions);
        let (client, owner) = self.names_of(&ties);
        let iid = ties.iid;
        actions.persist(StoreEvent::Left { client, owner, iid });
    }

    /// Tells a client again where it is: nobody knows any more whether it has acknowledged that.
    fn resume_leaving(&mut self, now: Timestamp, ties: Ties, actions: &mut Actions) {
        let assignments = &self.state.assignments;
        let mut eids = assignments.of(ties.client, ties.iid);
        eids.retain(|eid| {
            let at = assignments.get(eid, ties.client);
            at.is_some_and(|at| at.owner != ties.owner)
        });
        for eid in &eids {
            for parcel in parcels(self.news_for(*eid, ties.client)) {
                self.tell(now, now, ties.client, parcel, actions);
            }
        }
        self.leave_when_moved(now, ties, &eids, actions);
    }

    fn names_of(&self, ties: &Ties) -> (XtrName, XtrName) {
        let name = |xtr| self.sites.site(xtr).name.clone();
        (name(ties.client), name(ties.owner))
    }

    /// Lists what must survive a restart.
    pub(super) fn leaving_facts(&self) -> impl Iterator<Item = StoreEvent> {
        let leavings = &self.state.leavings;
        let all = leavings.all.keys().chain(&leavings.restored);
        all.map(|ties| {
            let (client, owner) = self.names_of(ties);
            let iid = ties.iid;
            StoreEvent::Leaving { client, owner, iid }
        })
    }

    /// Takes over from an earlier run that a client is to leave an owner.
    pub(super) fn restore_leaving(
        &mut self,
        client: &XtrName,
        owner: &XtrName,
        iid: InstanceId,
    ) -> Option<()> {
        let ties = self.ties(client, owner, iid)?;
        let restored = &mut self.state.leavings.restored;
        if restored.len() < limits::LEAVINGS {
            restored.insert(ties);
        }
        Some(())
    }

    /// Takes over from an earlier run that a client has left an owner.
    pub(super) fn restore_left(
        &mut self,
        client: &XtrName,
        owner: &XtrName,
        iid: InstanceId,
    ) -> Option<()> {
        let ties = self.ties(client, owner, iid)?;
        self.state.leavings.restored.remove(&ties);
        Some(())
    }

    fn ties(&self, client: &XtrName, owner: &XtrName, iid: InstanceId) -> Option<Ties> {
        let client = self.sites.by_name(client)?;
        let owner = self.sites.by_name(owner)?;
        Some(Ties { owner, client, iid })
    }
}
