//! Captured packets: find the mapping, or hold the packet and ask for one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use lisp_proto::{
    Action as MapAction, EidPrefix, Nonce, Record, RequestFlags, RequestParams, RequestedEid,
    Timestamp, encode_ecm, encode_map_request,
};
use rand::Rng;

use super::doubt::Doubt;
use super::event::{DropReason, Event};
use super::hold::Held;
use super::ip_header::{Unreachable, addresses};
use super::limits::{
    ASK_LATER, HELD_PER_DESTINATION, HELD_PER_MAPPING, LATE_ANSWER, NEGATIVE_ENTRIES,
    NEGATIVE_TTL_MAX, NO_ANSWER_HOLD_DOWN, OUTSTANDING_REQUESTS, PLAIN_NO_ANSWER_HOLD_DOWN,
    UNSPECIFIED_TTL,
};
use super::map_cache::{Entry, Pending, Purpose, State};
use super::storm::Place;
use super::{Action, Actions, Agent, Timer};

/// What a Map-Request asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    /// The EID it is asked on behalf of.
    pub(super) source: IpAddr,
    /// What it asks for.
    pub(super) asked: IpNet,
    /// What the answer must carry.
    pub(super) nonce: Nonce,
    /// How it is asked.
    pub(super) flags: RequestFlags,
}

impl Question {
    /// A question about one destination, for packets that wait.
    fn first(source: IpAddr, dst: IpAddr, nonce: Nonce) -> Self {
        Self {
            source,
            asked: IpNet::from(dst),
            nonce,
            flags: RequestFlags::default(),
        }
    }
}

impl Agent {
    pub(super) fn tun_packet(&mut self, now: Timestamp, packet: &[u8], actions: &mut Actions) {
        let Some((src, dst)) = addresses(packet) else {
            actions.count(DropReason::NotIp);
            return;
        };
        if dst.is_multicast() || !self.config.overlay.iter().any(|net| net.contains(&dst)) {
            actions.count(DropReason::NotOverlay);
            return;
        }
        if self.is_own(&EidPrefix::host(self.config.iid, dst)) {
            actions.count(DropReason::ToOurselves);
            return;
        }
        if !self.may_send_from(src) {
            // The far end would refuse it: its AllowedIPs name what we register only.
            let (why, reason) = (Unreachable::Prohibited, DropReason::SourceNotOurs);
            self.refusals.refuse(packet, why, reason, actions);
            return;
        }
        if self.known(now, dst, packet, actions) {
            return;
        }
        if let Some(pending) = self.resolver.pending_mut(&dst) {
            let refused = pending
                .held
                .push(packet, HELD_PER_DESTINATION, &mut self.budget);
            self.refusals.overflowed(refused, packet, actions);
            if pending.tries == 0
                && !pending.in_front
                && self.ration.is_wanted_again(now, packet, src, dst)
            {
                pending.in_front = true;
                self.ration.wait(Place::Front, dst);
            }
            return;
        }
        self.ask(now, src, dst, packet, actions);
    }

    /// Deals with a packet to a destination that the map-cache knows.
    fn known(&mut self, now: Timestamp, dst: IpAddr, packet: &[u8], actions: &mut Actions) -> bool {
        let Some((prefix, entry)) = self.cache.lookup(dst) else {
            return false;
        };
        if entry.expires <= now {
            if !self.keep_stale(now, prefix) {
                self.forget_and_ask_again(now, prefix, actions);
            }
            return self.known(now, dst, packet, actions);
        }
        let most = held_for(&prefix);
        match entry.state {
            State::Routing | State::Active => {
                actions.push(Action::Reinject(Bytes::copy_from_slice(packet)));
            }
            State::Installing => {
                let refused = entry.held.push(packet, most, &mut self.budget);
                self.refusals.overflowed(refused, packet, actions);
            }
            State::Dozing => {
                let first = entry.held.is_empty();
                let refused = entry.held.push(packet, most, &mut self.budget);
                self.refusals.overflowed(refused, packet, actions);
                if first {
                    self.look_at_dozing(now, prefix, actions);
                }
            }
            State::Opening => {
                let refused = entry.held.push(packet, most, &mut self.budget);
                self.refusals.overflowed(refused, packet, actions);
                self.pump(now, prefix, actions);
            }
            State::Awaiting(_) => {
                let first = entry.held.is_empty();
                let refused = entry.held.push(packet, most, &mut self.budget);
                self.refusals.overflowed(refused, packet, actions);
                if first {
                    // Later ones are served by the regular look.
                    let key = entry.chosen.map(|chosen| chosen.key);
                    actions.push(Action::ReadPeerStats(key.into_iter().collect()));
                }
            }
            State::Negative(action) => {
                if self.resolver.pending_mut(&dst).is_some() || self.doubts(now, dst) {
                    return false;
                }
                let (why, reason) = (unreachable_by(action), DropReason::NegativeMapping);
                self.refusals.refuse(packet, why, reason, actions);
            }
        }
        true
    }

    fn ask(
        &mut self,
        now: Timestamp,
        src: IpAddr,
        dst: IpAddr,
        packet: &[u8],
        actions: &mut Actions,
    ) {
        if self.resolver.len() >= OUTSTANDING_REQUESTS || self.overloaded() {
            return actions.count(DropReason::TooManyDestinations);
        }
        let at_once = self.ration.is_empty() && self.ration.take(now);
        let mut place = None;
        if at_once {
            self.ration.calm(now);
        } else {
            let Some((own, last)) = self.ration.place(now, packet, src, dst) else {
                return actions.count(DropReason::TooManyDestinations);
            };
            place = Some(own);
            if let Some(last) = last {
                self.make_way(now, last, actions);
            }
        }
        let mut held = Held::default();
        let refused = held.push(packet, HELD_PER_DESTINATION, &mut self.budget);
        if let Err((reason, _)) = refused {
            let why = Unreachable::Host;
            self.refusals.refuse(packet, why, reason, actions);
            return;
        }
        actions.event(Event::Caught { dst });
        self.traces.caught(now, dst);
        self.start_request(now, src, dst, held, place == Some(Place::Front));
        match place {
            Some(place) => {
                self.ration.wait(place, dst);
                self.deadlines.set(Timer::Ask, self.ration.next(now));
            }
            None => self.first_request(now, dst, actions),
        }
    }

    /// Asks for those whose turn it is, as far as that is allowed by now.
    pub(super) fn ask_next(&mut self, now: Timestamp, actions: &mut Actions) {
        while !self.ration.is_empty() {
            if !self.ration.take(now) {
                self.deadlines.set(Timer::Ask, self.ration.next(now));
                return;
            }
            let waits = |dst: &IpAddr| {
                let pending = self.resolver.pending_mut(dst);
                pending.is_some_and(|pending| pending.tries == 0)
            };
            match std::iter::from_fn(|| self.ration.pop()).find(waits) {
                Some(dst) => self.first_request(now, dst, actions),
                // All of them were answered together with others.
                None => self.ration.give_back(),
            }
        }
    }

    /// Asks for a destination that packets wait for, unless it was answered or given up.
    fn first_request(&mut self, now: Timestamp, dst: IpAddr, actions: &mut Actions) {
        let pending = self.resolver.pending_mut(&dst);
        let Some(pending) = pending.filter(|pending| pending.tries == 0) else {
            return;
        };
        pending.tries = 1;
        pending.since = now;
        let (nonce, source, until) = (pending.nonce, pending.source, pending.until);
        actions.event(Event::MapRequest { eid: dst, nonce });
        self.traces.asked(now, dst);
        self.send_request(Question::first(source, dst, nonce), 0, actions);
        let retry = (now + self.ask_again_in(0)).min(until);
        self.deadlines.set(Timer::Request(dst), retry);
    }

    /// Lets a packet wait for an answer about its destination.
    fn start_request(
        &mut self,
        now: Timestamp,
        source: IpAddr,
        dst: IpAddr,
        held: Held,
        in_front: bool,
    ) {
        let nonce = Nonce(self.rng.random());
        let until = now + self.config.hold;
        self.resolver.start(
            dst,
            Pending {
                nonce,
                source,
                tries: 0,
                since: now,
                until,
                held,
                in_front,
            },
        );
        self.deadlines.set(Timer::Request(dst), until);
    }

    /// Sends one Map-Request; each retry goes to the next map server. While the map servers are
    /// being left, those that take their place are asked instead, once they have.
    pub(super) fn send_request(&self, question: Question, tries: u32, actions: &mut Actions) {
        if self.leaving {
            return;
        }
        let Question {
            source,
            asked,
            nonce,
            flags,
        } = question;
        // One record says one thing only: an owner that others share the prefix with can be replaced.
        let said = self.unreachable_record(&asked);
        let said = said.or_else(|| self.apart_record(&asked));
        let params = RequestParams {
            flags,
            nonce,
            source_eid: Some((self.config.iid, source)),
            itr_rlocs: &[self.config.control_address],
            eids: &[RequestedEid {
                subscribe: false,
                eid: self.eid(asked),
            }],
            source_record: said.as_ref(),
            gap: None,
            ids: None,
        };
        self.send_map_request(self.turn(tries), source, &params, actions);
    }

    /// Sends a Map-Request on behalf of `source` to the map server at `index`.
    pub(super) fn send_map_request(
        &self,
        index: usize,
        source: IpAddr,
        params: &RequestParams<'_>,
        actions: &mut Actions,
    ) {
        let (Some(server), Some(asked)) = (self.config.map_servers.get(index), params.eids.first())
        else {
            return;
        };
        let dst = server.address;
        let mut bytes = Vec::new();
        if encode_map_request(params, &mut bytes).is_err() {
            return;
        }
        if self.config.encapsulate_requests {
            let inner = std::mem::take(&mut bytes);
            let from = SocketAddr::new(source, dst.port());
            let to = SocketAddr::new(asked.eid.net().addr(), dst.port());
            if encode_ecm(from, to, &inner, &mut bytes).is_err() {
                return;
            }
        }
        actions.push(Action::Send {
            dst,
            bytes: bytes.into(),
        });
    }

    pub(super) fn retry_request(&mut self, now: Timestamp, dst: IpAddr, actions: &mut Actions) {
        let Some(pending) = self.resolver.pending_mut(&dst) else {
            return;
        };
        let (source, nonce, tries, until) =
            (pending.source, pending.nonce, pending.tries, pending.until);
        if until <= now {
            self.give_up(now, dst, actions);
            return;
        }
        if !self.ration.take_again(now) {
            let later = (now + ASK_LATER).min(until);
            self.deadlines.set(Timer::Request(dst), later);
            return;
        }
        pending.tries += 1;
        self.traces.asked(now, dst);
        let silent = self.turn(tries.saturating_sub(1));
        let servers = u32::try_from(self.config.map_servers.len()).unwrap_or(1);
        let unanswered = tries.div_ceil(servers.max(1));
        let question = Question::first(source, dst, nonce);
        if self.unanswered(now, silent, unanswered, actions) && self.turn(tries) != silent {
            // The other one may have restarted as well.
            self.send_request(question, tries.saturating_sub(1), actions);
        }
        self.send_request(question, tries, actions);
        let retry = (now + self.ask_again_in(tries)).min(until);
        self.deadlines.set(Timer::Request(dst), retry);
    }

    /// Others take the place of `dst` in its lane: it goes, unless it was asked for or waits in front.
    fn make_way(&mut self, now: Timestamp, dst: IpAddr, actions: &mut Actions) {
        let pending = self.resolver.pending_mut(&dst);
        if pending.is_some_and(|pending| pending.tries == 0 && !pending.in_front) {
            self.give_up(now, dst, actions);
        }
    }

    /// Nobody answered: tells the senders and refuses the destination for a moment.
    pub(super) fn give_up(&mut self, now: Timestamp, dst: IpAddr, actions: &mut Actions) {
        self.deadlines.cancel(&Timer::Request(dst));
        let late = now + LATE_ANSWER;
        let Some(mut pending) = self.resolver.give_up(&dst, late) else {
            return;
        };
        let asked = pending.tries > 0;
        let reason = if asked {
            DropReason::NoAnswer
        } else {
            DropReason::TooManyRequests
        };
        for packet in pending.held.take(&mut self.budget) {
            let why = Unreachable::Host;
            self.refusals.refuse(&packet, why, reason, actions);
        }
        self.traces.failed(now, dst, reason);
        let ttl = if self.config.keyless {
            PLAIN_NO_ANSWER_HOLD_DOWN
        } else {
            NO_ANSWER_HOLD_DOWN
        };
        if asked && !self.is_refused(dst, now + ttl) {
            let prefix = IpNet::from(dst);
            self.insert_negative(now, prefix, MapAction::Drop, ttl, actions);
        }
    }

    /// Takes in a negative answer: refuses the destination while it is valid,
    /// whatever the answer says to do, because nothing of the overlay may
    /// leave in the clear.
    pub(super) fn negative(
        &mut self,
        now: Timestamp,
        record: &Record,
        purpose: Purpose,
        actions: &mut Actions,
    ) {
        actions.event(Event::Negative {
            eid: record.eid,
            action: record.action,
        });
        let prefix = record.eid.net();
        match purpose {
            Purpose::Refresh(refreshed) => self.forget(refreshed, actions),
            Purpose::Resolve(_) => {}
        }
        let ttl = record.ttl.duration().unwrap_or(UNSPECIFIED_TTL);
        let ttl = ttl.clamp(Duration::from_secs(1), NEGATIVE_TTL_MAX);
        let why = unreachable_by(record.action);
        for dst in self.resolver.within(&prefix) {
            self.deadlines.cancel(&Timer::Request(dst));
            self.traces.failed(now, dst, DropReason::NegativeMapping);
            if let Some(mut pending) = self.resolver.finish(&dst) {
                for packet in pending.held.take(&mut self.budget) {
                    let reason = DropReason::NegativeMapping;
                    self.refusals.refuse(&packet, why, reason, actions);
                }
            }
        }
        self.insert_negative(now, prefix, record.action, ttl, actions);
    }

    fn insert_negative(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        action: MapAction,
        ttl: Duration,
        actions: &mut Actions,
    ) {
        let before = self.cache.get(&prefix);
        if before.is_some_and(|entry| entry.chosen.is_some()) {
            return;
        }
        let doubt = Doubt::new(now, ttl, before.and_then(|entry| entry.doubt));
        let until = now + ttl;
        if self.cache.negatives() >= NEGATIVE_ENTRIES {
            actions.count(DropReason::MapCacheFull);
            return;
        }
        let state = State::Negative(action);
        let mut entry = Entry::new(prefix, state, None, now, until);
        entry.doubt = Some(doubt);
        self.cache.insert(prefix, entry);
        self.deadlines.set(Timer::Entry(prefix), until);
    }

    /// Drops a mapping that packets wait for and asks for their destinations anew.
    pub(super) fn forget_and_ask_again(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        actions: &mut Actions,
    ) {
        let Some(entry) = self.cache.get_mut(&prefix) else {
            return;
        };
        let waiting = entry.held.take(&mut self.budget);
        self.forget(prefix, actions);
        for packet in waiting {
            self.tun_packet(now, &packet, actions);
        }
    }
}

/// How many packets may wait for the mapping of `prefix`.
fn held_for(prefix: &IpNet) -> usize {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        HELD_PER_DESTINATION
    } else {
        HELD_PER_MAPPING
    }
}

/// What a sender is told when a negative answer says `action`.
const fn unreachable_by(action: MapAction) -> Unreachable {
    match action {
        MapAction::PolicyDenied | MapAction::AuthFailure => Unreachable::Prohibited,
        MapAction::NoAction
        | MapAction::NativelyForward
        | MapAction::SendMapRequest
        | MapAction::Drop => Unreachable::Host,
    }
}
