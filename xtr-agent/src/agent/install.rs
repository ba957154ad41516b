//! The way of a mapping into the data plane.
//!
//! Peer, then held packets, then the route that takes later packets past the
//! agent; out again it goes the other way round (`remove`). A moment without a
//! route is a captured packet; a moment without a peer would be a lost one.

use ipnet::IpNet;
use lisp_proto::{Nonce, PublicKey, Record, Timestamp};

use super::armed::Word;
use super::event::{Cause, DropReason, Event};
use super::hold::Held;
use super::ip_header::Unreachable;
use super::limits::{
    CHANGES_IN_FLIGHT, MAP_CACHE_ENTRIES, REPAIRS, UNSPECIFIED_TTL, refresh_after,
};
use super::map_cache::{Chosen, Entry, State};
use super::remove::Object;
use super::{Action, Actions, Agent, Change, ChangeId, Timer};

/// A change that the data plane has not reported back yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    what: What,
    /// The peer whose endpoint it names.
    places: Option<PublicKey>,
    /// The Map-Notifies that are acknowledged after it.
    pub(super) acks: Vec<(usize, Nonce)>,
}

/// What a change is part of.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// The mapping of this prefix gets its peer.
    Peer(IpNet),
    /// The mapping of this prefix has its next peer installed, without the prefix.
    Arming(IpNet),
    /// The mapping of this prefix gets this route.
    Route(IpNet, IpNet),
    /// This route was refused, and is set once more.
    RouteAgain(IpNet),
    /// This peer is taken out to be put back at once.
    Rekindling(PublicKey),
    /// This peer is put back, so that it starts a handshake.
    Rekindled(PublicKey),
    /// A mapping is gone, and with it this.
    Removal(Object),
    /// The map server becomes a peer, to see where we are.
    Lookout,
    /// A mapping is gone, or its installation failed, and this peer keeps others; or a NAT has come or gone.
    Shrinking(PublicKey),
}

impl Agent {
    /// Takes in a mapping with a locator we can use, as far as it is used here;
    /// `region` is what the owner has registered. Says whether there was room.
    pub(super) fn positive(
        &mut self,
        now: Timestamp,
        record: &Record,
        region: IpNet,
        chosen: Chosen,
        cause: Cause,
        actions: &mut Actions,
    ) -> bool {
        let prefix = record.eid.net();
        let ttl = record.ttl.duration().unwrap_or(UNSPECIFIED_TTL);
        let expires = now + ttl;
        if self.routes_for(&prefix).is_empty() {
            return false;
        }
        self.note_alternatives(now, prefix, record);
        self.note_way(prefix, record, chosen);
        self.note_locators(now, record, chosen, actions);
        let refresh = now + refresh_after(ttl);
        let word = Word {
            to: chosen,
            region,
            expires,
            refresh,
        };
        if self.hands_over(now, prefix, word, actions) {
            self.apart.told(&prefix);
            self.resolver.refreshed(&prefix);
            return true;
        }
        let pending = !self.resolver.within(&prefix).is_empty();
        let waiting = self.take_over(&prefix, &chosen);
        match self.cache.get_mut(&prefix) {
            Some(entry) if entry.chosen.is_some() => {
                entry.expires = expires;
                entry.stale = None;
                self.apart.told(&prefix);
                self.resolver.refreshed(&prefix);
                let before = entry.chosen.replace(chosen);
                if before == Some(chosen) {
                    if !matches!(entry.state, State::Awaiting(_)) {
                        self.deadlines.set(Timer::Entry(prefix), expires);
                    }
                    self.deadlines.set(Timer::Refresh(prefix), refresh);
                    self.cache.set_region(prefix, region);
                    if cause == Cause::Reply {
                        self.confirmed(now, prefix, chosen);
                    }
                    return true;
                }
                if matches!(entry.state, State::Awaiting(_) | State::Opening) {
                    // What was awaited was a handshake with another locator.
                    entry.state = State::Installing;
                }
                if let Some(before) = before {
                    self.replace(now, prefix, before, chosen, actions);
                }
            }
            Some(_) | None => {
                let state = State::Installing;
                let mut entry = Entry::new(prefix, state, Some(chosen), now, expires);
                entry.cause = cause;
                entry.mutual = cause == Cause::Push && pending;
                if !self.begin(now, prefix, chosen, entry, actions) {
                    return false;
                }
            }
        }
        self.cache.set_region(prefix, region);
        self.deadlines.set(Timer::Entry(prefix), expires);
        self.deadlines.set(Timer::Refresh(prefix), refresh);
        self.send_first(now, waiting.into(), actions);
        true
    }

    /// Begins with a mapping that there was not, if there is room.
    fn begin(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        chosen: Chosen,
        entry: Entry,
        actions: &mut Actions,
    ) -> bool {
        let is_new = !self.peers.contains(&chosen.key);
        if is_new && !self.has_room_for_peer(now, actions) {
            actions.count(DropReason::TooManyPeers);
            return false;
        }
        if self.cache.len() >= MAP_CACHE_ENTRIES {
            actions.count(DropReason::MapCacheFull);
            return false;
        }
        self.cache.insert(prefix, entry);
        self.set_peer(now, prefix, chosen, actions);
        true
    }

    /// Moves a prefix to another locator. Giving the AllowedIPs to the new
    /// key takes them from the old one in the same step.
    pub(super) fn replace(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        before: Chosen,
        after: Chosen,
        actions: &mut Actions,
    ) {
        self.set_peer(now, prefix, after, actions);
        if before.key != after.key {
            let stranded = self.stranded(&prefix, &before.key, &after);
            self.drop_prefix(prefix, before.key, actions);
            self.gap_moved(now, prefix, [before.key, after.key]);
            self.send_first(now, stranded, actions);
        }
    }

    fn set_peer(&mut self, now: Timestamp, prefix: IpNet, chosen: Chosen, actions: &mut Actions) {
        let spec = self.peers.install(chosen.key, chosen.endpoint, prefix);
        self.watch_liveness(now, chosen.key);
        let id = self.change(What::Peer(prefix), Change::SetPeer(spec), actions);
        if let Some(entry) = self.cache.get_mut(&prefix) {
            entry.change = Some(id);
        }
    }

    pub(super) fn change(
        &mut self,
        what: What,
        mut change: Change,
        actions: &mut Actions,
    ) -> ChangeId {
        if let Change::SetPeer(spec) = &mut change {
            spec.allowed_ips = self.allowed(&spec.key, &spec.allowed_ips);
        }
        let id = ChangeId(self.next_change);
        self.next_change += 1;
        let places = match &change {
            Change::SetPeer(spec) => spec.endpoint.map(|_| spec.key),
            Change::RemovePeer(_) | Change::AddRoute(_) | Change::RemoveRoute(_) => None,
        };
        self.changes.insert(
            id,
            Pending {
                what,
                places,
                acks: Vec::new(),
            },
        );
        actions.push(Action::Apply { id, change });
        id
    }

    /// Makes the acknowledgement `ack` wait for the removals since `before`,
    /// and for the installation of `prefix` if it is still on its way. Says how
    /// many those are.
    pub(super) fn await_changes(
        &mut self,
        before: u64,
        prefix: IpNet,
        ack: (usize, Nonce),
    ) -> usize {
        // Earlier installations of the prefix are done before the latest.
        let entry = self.cache.get(&prefix);
        let installing = entry.and_then(|entry| entry.change);
        let installing = installing.filter(|id| *id < ChangeId(before));
        let mut count = 0;
        let mut wait_for = |pending: &mut Pending| {
            if !pending.acks.contains(&ack) {
                pending.acks.push(ack);
                count += 1;
            }
        };
        if let Some(pending) = installing.and_then(|id| self.changes.get_mut(&id)) {
            wait_for(pending);
        }
        for (_, pending) in self.changes.range_mut(ChangeId(before)..) {
            match pending.what {
                What::Peer(_) | What::Removal(_) | What::Shrinking(_) => wait_for(pending),
                What::Arming(_)
                | What::Lookout
                | What::Route(..)
                | What::RouteAgain(_)
                | What::Rekindling(_)
                | What::Rekindled(_) => {}
            }
        }
        count
    }

    /// Whether the data plane is so far behind that nothing new is taken on.
    pub(super) fn overloaded(&self) -> bool {
        self.changes.len() >= CHANGES_IN_FLIGHT
    }

    /// An answer came for `prefix`: what waited for addresses within it now
    /// waits for its installation, or goes.
    pub(super) fn release_resolved(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        actions: &mut Actions,
    ) {
        self.absorb_pending(prefix, actions);
        let own_key = self.config.public_key;
        let Some(entry) = self.cache.get_mut(&prefix) else {
            return;
        };
        match entry.state {
            State::Awaiting(_) => {
                // Both ends were told of each other. The one with the smaller
                // key starts the handshake; the other one waits for it.
                entry.mutual = false;
                let key = entry.chosen.map(|chosen| chosen.key);
                let first = key.is_some_and(|key| own_key < key);
                if first || key.is_some_and(|key| self.peers.handshake_seen(&key)) {
                    self.fire(now, prefix, actions);
                } else {
                    self.await_handshake(now, prefix, actions);
                }
            }
            State::Active | State::Routing => {
                for packet in entry.held.take(&mut self.budget) {
                    actions.push(Action::Reinject(packet));
                }
            }
            State::Opening => self.pump(now, prefix, actions),
            State::Installing => entry.cause = Cause::Reply,
            State::Dozing if entry.held.is_empty() => {}
            State::Dozing => self.look_at_dozing(now, prefix, actions),
            State::Negative(_) => {}
        }
    }

    /// Puts the packets that wait for addresses within `prefix` in front of
    /// the later ones that wait for `prefix` itself.
    pub(super) fn absorb_pending(&mut self, prefix: IpNet, actions: &mut Actions) {
        let mut waiting = Held::default();
        for dst in self.resolver.within(&prefix) {
            self.deadlines.cancel(&Timer::Request(dst));
            if let Some(pending) = self.resolver.finish(&dst) {
                waiting.append(pending.held);
            }
        }
        if let Some(entry) = self.cache.get_mut(&prefix) {
            waiting.append(std::mem::take(&mut entry.held));
            entry.held = waiting;
            return;
        }
        // There was an answer, and no room for it.
        for packet in waiting.take(&mut self.budget) {
            let (why, reason) = (Unreachable::Host, DropReason::MapCacheFull);
            self.refusals.refuse(&packet, why, reason, actions);
        }
    }

    pub(super) fn applied(
        &mut self,
        now: Timestamp,
        id: ChangeId,
        ok: bool,
        actions: &mut Actions,
    ) {
        let Some(pending) = self.changes.remove(&id) else {
            return;
        };
        if let Some(key) = pending.places {
            self.peers.endpoint_told(&key, ok);
        }
        match pending.what {
            What::Peer(prefix) => {
                let entry = self.cache.get(&prefix);
                if entry.is_none_or(|entry| entry.change != Some(id)) {
                    // A later change of the same prefix has taken its place.
                    if !ok && let Some(spec) = pending.places.and_then(|key| self.peers.spec(&key))
                    {
                        self.change(What::Shrinking(spec.key), Change::SetPeer(spec), actions);
                    }
                    return self.acknowledge_all(&pending.acks, true, actions);
                }
                let pushed = entry.is_some_and(|entry| entry.cause == Cause::Push);
                let object = Object::Mapping(prefix);
                if ok {
                    self.repair_unless(true, now, object);
                    self.peer_ready(now, prefix, actions);
                } else {
                    // Its owner relies on us, and the map server may forget to say it again.
                    let is_new = pushed && self.repairs.len() < REPAIRS;
                    if is_new || self.repairs.contains_key(&object) {
                        self.repair_unless(false, now, object);
                    }
                    actions.event(Event::ChangeFailed { what: "peer" });
                    self.traces.lost(now, prefix, DropReason::MappingLost);
                    self.lose(prefix, actions);
                }
            }
            What::Arming(prefix) => self.armed(now, prefix, id, ok, actions),
            What::Route(prefix, route) => {
                self.repair_unless(ok, now, Object::Route(route));
                self.route_set(prefix, ok, actions);
            }
            What::RouteAgain(route) => {
                if !ok {
                    actions.event(Event::ChangeFailed { what: "route" });
                }
                self.repair_unless(ok, now, Object::Route(route));
            }
            What::Rekindling(key) if ok => {
                self.watches.taken_out(now, &key, &mut self.budget);
            }
            What::Rekindling(_) => {}
            What::Rekindled(key) => self.rekindled(now, key, ok, actions),
            What::Removal(object) => self.removed(now, object, ok, actions),
            What::Shrinking(key) => self.shrunk(now, key, ok, actions),
            What::Lookout => self.lookout_posted(ok, actions),
        }
        self.acknowledge_all(&pending.acks, ok, actions);
    }

    /// Without its route a mapping still works, packet by packet through the
    /// agent; it is tried again later.
    fn route_set(&mut self, prefix: IpNet, ok: bool, actions: &mut Actions) {
        let eid = self.eid(prefix);
        if let Some(entry) = self.cache.get_mut(&prefix)
            && entry.state == State::Routing
        {
            entry.state = State::Active;
            actions.event(if ok {
                Event::RouteInstalled { eid }
            } else {
                Event::ChangeFailed { what: "route" }
            });
        }
    }

    fn acknowledge_all(&mut self, acks: &[(usize, Nonce)], ok: bool, actions: &mut Actions) {
        for ack in acks {
            self.change_done(*ack, ok, actions);
        }
    }
}
