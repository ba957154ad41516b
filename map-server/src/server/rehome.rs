//! What happens to the clients of an owner whose registration ends, and to an owner whom they left?
//!
//! They go to the next best of those who share the prefix. That one is told of them first; they hear
//! of it when it has acknowledged them. Whom they have left forgets them, unless the two need each
//! other for something else.

use std::collections::{BTreeMap, BTreeSet};

use lisp_proto::{EidPrefix, InstanceId, Record, Timestamp};

use super::actions::Actions;
use super::mappings::Found;
use super::notify::NotifyKey;
use super::publish::{Changed, parcels, withdrawal};
use super::sites::XtrIndex;
use super::{MapServer, limits};
use crate::config::ReplyAfter;

/// A client that has lost its owner.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rehomed {
    pub(super) client: XtrIndex,
    pub(super) eid: EidPrefix,
    pub(super) from: XtrIndex,
    /// Who has taken it over, if anybody could.
    pub(super) to: Option<XtrIndex>,
}

impl Rehomed {
    /// Returns who has nothing to do with each other any more.
    pub(super) const fn ties(&self) -> Ties {
        Ties {
            owner: self.from,
            client: self.client,
            iid: self.eid.iid(),
        }
    }
}

/// An owner and a client in one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ties {
    pub(crate) owner: XtrIndex,
    pub(crate) client: XtrIndex,
    pub(crate) iid: InstanceId,
}

impl MapServer {
    /// Assigns the clients of those who have not registered what has changed any more; who finds
    /// nobody is a client no longer. Returns them all.
    pub(super) fn rehome(&mut self, changes: &[Changed], actions: &mut Actions) -> Vec<Rehomed> {
        let mut rehomed = Vec::new();
        for eid in changes.iter().map(|changed| changed.eid) {
            let clients: Vec<_> = self.state.assignments.clients(&eid).collect();
            for (client, from) in clients {
                let mapping = self.state.mappings.exact(&eid);
                let mapping = mapping.filter(|mapping| self.is_shared(*mapping));
                if mapping.is_some_and(|mapping| mapping.is_registered_by(from)) {
                    continue;
                }
                let to = mapping.and_then(|it| self.best_owner(it, client, |_| false));
                match to {
                    Some(to) => self.place(eid, client, to, None, actions),
                    None => self.unplace(eid, client, actions),
                }
                rehomed.push(Rehomed {
                    client,
                    eid,
                    from,
                    to,
                });
            }
        }
        rehomed
    }

    /// Tells the new owners of the clients that they have got; returns what they have to acknowledge
    /// before the clients hear of them.
    pub(super) fn hand_over(
        &mut self,
        now: Timestamp,
        rehomed: &[Rehomed],
        actions: &mut Actions,
    ) -> BTreeMap<XtrIndex, NotifyKey> {
        let mut by_owner: BTreeMap<_, BTreeSet<XtrIndex>> = BTreeMap::new();
        for one in rehomed {
            if let Some(to) = one.to {
                let clients = by_owner.entry((to, one.eid.iid())).or_default();
                clients.insert(one.client);
            }
        }
        self.present_all(now, by_owner, actions)
    }

    /// Tells each of several about others in one instance; returns what has to be acknowledged about whom.
    pub(super) fn present_all(
        &mut self,
        now: Timestamp,
        by_receiver: BTreeMap<(XtrIndex, InstanceId), BTreeSet<XtrIndex>>,
        actions: &mut Actions,
    ) -> BTreeMap<XtrIndex, NotifyKey> {
        let mut awaited = BTreeMap::new();
        for ((receiver, iid), clients) in by_receiver {
            let mut about = Vec::new();
            for client in clients {
                let theirs = self.whole_records(client, iid);
                let theirs = self.as_told(theirs, client, receiver, actions);
                about.extend(theirs.into_iter().map(|record| (client, record)));
            }
            awaited.extend(self.present(now, receiver, about, actions));
        }
        awaited
    }

    /// Tells `receiver` about mappings of others, and subscribes it to them. Returns what it has to
    /// acknowledge about whom, if anybody is to wait for that.
    pub(super) fn present(
        &mut self,
        now: Timestamp,
        receiver: XtrIndex,
        about: Vec<(XtrIndex, Record)>,
        actions: &mut Actions,
    ) -> BTreeMap<XtrIndex, NotifyKey> {
        let (owners, records): (Vec<_>, Vec<_>) = about.into_iter().unzip();
        for record in &records {
            self.subscribe_besides(now, record.eid, receiver, record.ttl, actions);
        }
        let mut awaited = BTreeMap::new();
        let mut owners = owners.into_iter();
        for (position, parcel) in (0..).zip(parcels(records)) {
            let about: Vec<_> = owners.by_ref().take(parcel.len()).collect();
            let late = u32::saturating_sub(position, limits::NOTIFIES_AT_ONCE);
            let at = now + limits::NOTIFY_SPACING * late;
            let key = self.tell(now, at, receiver, parcel, actions);
            if self.options.reply_after == ReplyAfter::Ack {
                awaited.extend(about.into_iter().map(|owner| (owner, key)));
            }
        }
        awaited
    }

    /// Lets an owner and a client that has left it forget each other, unless one of the two has asked for something else of the other. If it is not `mutual`, the client was not
    /// told of the owner. Returns what the owner is told to forget.
    pub(super) fn dismiss(
        &mut self,
        now: Timestamp,
        Ties { owner, client, iid }: Ties,
        mutual: bool,
        actions: &mut Actions,
    ) -> Vec<EidPrefix> {
        if self.need_each_other(owner, client, iid) {
            return Vec::new();
        }
        let most = limits::RECORDS_PER_XTR;
        let theirs = self.state.mappings.registered_by(client, iid, most);
        self.note_dismissed(now, owner, theirs.clone(), actions);
        let mappings = &self.state.mappings;
        if !mappings.has_registered(owner, iid) {
            // It is told when it is back.
            return Vec::new();
        }
        let own = mappings.registered_by(owner, iid, most).into_iter();
        let own = own.filter(|eid| {
            let mapping = mappings.exact(eid);
            mapping.is_some_and(|mapping| self.owner_of(mapping, client).is_none())
        });
        let own: Vec<_> = own.collect();
        let client_too = mutual.then_some((client, &own));
        for (receiver, eids) in [(owner, &theirs)].into_iter().chain(client_too) {
            let mut forgotten: BTreeSet<_> = eids.iter().copied().collect();
            for eid in eids {
                forgotten.extend(self.state.subscribers.parts(eid, receiver));
                self.state.subscribers.leave_inside(eid, receiver);
            }
            let withdrawals = forgotten.into_iter().map(withdrawal).collect();
            for parcel in parcels(withdrawals) {
                self.tell(now, now, receiver, parcel, actions);
            }
        }
        theirs
    }

    /// Whether an owner and somebody who is no client of it (any more) are a pair for another reason.
    fn need_each_other(&self, owner: XtrIndex, client: XtrIndex, iid: InstanceId) -> bool {
        if self.state.relays.carries(owner, client, iid) {
            return true;
        }
        let subscribers = &self.state.subscribers;
        let needed = subscribers.needed_by(client);
        let mut needed = needed.filter(|eid| eid.iid() == iid);
        let own = self.state.mappings.registered_by(client, iid, usize::MAX);
        let mut own = own.into_iter();
        needed.any(|eid| {
            let found = self.state.mappings.find(eid);
            self.owners_to_tell(&found, client).contains(&owner)
        }) || own.any(|eid| subscribers.needs(owner, &eid))
    }

    /// Forgets of whom `client` was one in an instance that it has left.
    pub(super) fn forget_client(
        &mut self,
        client: XtrIndex,
        iid: InstanceId,
        actions: &mut Actions,
    ) {
        for eid in self.state.assignments.of(client, iid) {
            self.unplace(eid, client, actions);
        }
    }

    /// Makes those who know a mapping clients of its owner, which has begun to share it.
    pub(super) fn note_clients(&mut self, eid: EidPrefix, actions: &mut Actions) {
        let subscribers = &self.state.subscribers;
        let around = subscribers.around(&eid).into_iter();
        let mut clients: Vec<_> = around.map(|client| (eid, client)).collect();
        for (part, xtrs) in subscribers.strictly_inside(eid) {
            let found = self.state.mappings.find(&part);
            if matches!(found, Found::Registered(mapping) if mapping.eid() == eid) {
                clients.extend(xtrs.iter().map(|client| (part, *client)));
            }
        }
        for (part, client) in clients {
            self.note_client(part, client, actions);
        }
    }
}
