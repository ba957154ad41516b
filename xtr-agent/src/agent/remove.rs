//! The way of a mapping out of the data plane: route, then peer, and again if that is refused. What
//! the data plane would not take in for a far end is asked for again, too.

use std::collections::BTreeMap;

use ipnet::IpNet;
use lisp_proto::{PublicKey, RequestFlags, Timestamp};

use super::event::{DropReason, Event};
use super::install::What;
use super::ip_header::Unreachable;
use super::limits::{REPAIR_QUESTIONS, REPAIR_RETRY, REPAIR_RETRY_MAX};
use super::peers::Remaining;
use super::{Actions, Agent, Change, Timer};

/// Something in the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    /// A peer.
    Peer(PublicKey),
    /// A route past the agent.
    Route(IpNet),
    /// A mapping that the map server has told of: its owner relies on us.
    Mapping(IpNet),
}

/// What the data plane did not take out, or in, with how often it refused.
pub(super) type Repairs = BTreeMap<Object, u32>;

impl Agent {
    /// The data plane refused the peer: tells those who waited.
    pub(super) fn lose(&mut self, prefix: IpNet, actions: &mut Actions) {
        self.absorb_pending(prefix, actions);
        self.forget(prefix, actions);
    }

    /// Removes a mapping and whatever it put into the data plane.
    pub(super) fn forget(&mut self, prefix: IpNet, actions: &mut Actions) {
        let Some(mut entry) = self.cache.remove(&prefix) else {
            return;
        };
        self.deadlines.cancel(&Timer::Entry(prefix));
        self.deadlines.cancel(&Timer::Refresh(prefix));
        self.deadlines.cancel(&Timer::Apart(prefix));
        self.apart.forget(&prefix);
        self.opening.remove(&prefix);
        self.refresh_checks.remove(&prefix);
        self.resolver.refreshed(&prefix);
        self.gaps.forget(&prefix);
        self.end_handover(prefix, actions);
        for packet in entry.held.take(&mut self.budget) {
            let (why, reason) = (Unreachable::Host, DropReason::MappingLost);
            self.refusals.refuse(&packet, why, reason, actions);
        }
        self.release_routes(prefix, actions);
        if let Some(chosen) = entry.chosen {
            self.drop_prefix(prefix, chosen.key, actions);
            self.give_back(&prefix, actions);
        }
    }

    /// Takes a prefix from a peer, and the peer out with its last one.
    pub(super) fn drop_prefix(&mut self, prefix: IpNet, key: PublicKey, actions: &mut Actions) {
        match self.peers.remove(&key, &prefix) {
            Some(Remaining::Peer(spec)) => {
                self.change(What::Shrinking(key), Change::SetPeer(spec), actions);
            }
            Some(Remaining::Nothing) => self.peer_unwanted(key, actions),
            None => {}
        }
    }

    /// No mapping needs the peer any more.
    pub(super) fn peer_unwanted(&mut self, key: PublicKey, actions: &mut Actions) {
        self.watches.remove(&key, &mut self.budget);
        self.liveness.forget(&key);
        self.take_out(Object::Peer(key), actions);
    }

    fn take_out(&mut self, object: Object, actions: &mut Actions) {
        let change = match object {
            Object::Peer(key) => Change::RemovePeer(key),
            Object::Route(route) => Change::RemoveRoute(route),
            Object::Mapping(_) => return,
        };
        self.change(What::Removal(object), change, actions);
    }

    /// The data plane has taken something out, or would not.
    pub(super) fn removed(
        &mut self,
        now: Timestamp,
        object: Object,
        ok: bool,
        actions: &mut Actions,
    ) {
        match object {
            Object::Peer(key) if ok => actions.event(Event::PeerRemoved { key }),
            Object::Peer(_) | Object::Route(_) | Object::Mapping(_) => {}
        }
        if !ok {
            actions.event(Event::ChangeFailed { what: "removal" });
        }
        self.repair_unless(ok, now, object);
    }

    /// The data plane has taken prefixes from a peer that keeps others, or would not.
    pub(super) fn shrunk(
        &mut self,
        now: Timestamp,
        key: PublicKey,
        ok: bool,
        actions: &mut Actions,
    ) {
        if !ok {
            actions.event(Event::ChangeFailed { what: "removal" });
        }
        self.repair_unless(ok, now, Object::Peer(key));
        if ok && self.watches.is_out(&key) {
            self.rekindled(now, key, true, actions);
        }
    }

    /// Tries what was refused again, later and later.
    pub(super) fn repair_unless(&mut self, ok: bool, now: Timestamp, object: Object) {
        if ok {
            self.repairs.remove(&object);
            self.deadlines.cancel(&Timer::Repair(object));
            return;
        }
        let tries = self.repairs.entry(object).or_default();
        let wait = REPAIR_RETRY.saturating_mul(1 << (*tries).min(10));
        *tries = tries.saturating_add(1);
        let again = now + wait.min(REPAIR_RETRY_MAX);
        self.deadlines.set(Timer::Repair(object), again);
    }

    /// Makes the data plane what it should be by now, which may be something else than what it
    /// refused.
    pub(super) fn repair_due(&mut self, now: Timestamp, object: Object, actions: &mut Actions) {
        match object {
            Object::Mapping(prefix) => {
                let tries = self.repairs.get(&object).copied().unwrap_or(0);
                if tries >= REPAIR_QUESTIONS || self.cache.get(&prefix).is_some() {
                    self.repairs.remove(&object);
                } else {
                    self.ask_again(now, prefix, RequestFlags::default(), actions);
                }
            }
            // It is one for another reason by now.
            Object::Peer(key) if self.lookout() == Some(key) => {
                self.repairs.remove(&object);
            }
            Object::Peer(key) => match self.peers.spec(&key) {
                Some(spec) => {
                    self.change(What::Shrinking(key), Change::SetPeer(spec), actions);
                }
                None => self.take_out(object, actions),
            },
            Object::Route(route) if self.routes.wanted(&route) => {
                self.change(What::RouteAgain(route), Change::AddRoute(route), actions);
            }
            Object::Route(_) => self.take_out(object, actions),
        }
    }
}
