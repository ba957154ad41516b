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

use super::event::{Cause, DropReason, Event};
use super::hold::Held;
use super::ip_header::{Unreachable, addresses, unreachable};
use super::limits::{
    NEGATIVE_ENTRIES, NEGATIVE_TTL_MAX, NO_ANSWER_HOLD_DOWN, OUTSTANDING_REQUESTS, REQUEST_RETRY,
    REQUEST_TRIES, UNSPECIFIED_TTL,
};
use super::map_cache::{Entry, Pending, Purpose, State};
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
        if !self.config.overlay.iter().any(|net| net.contains(&dst)) {
            actions.count(DropReason::NotOverlay);
            return;
        }
        if self.is_own(&EidPrefix::host(self.config.iid, dst)) {
            actions.count(DropReason::ToOurselves);
            return;
        }
        if !self.is_own(&EidPrefix::host(self.config.iid, src)) {
            // The far end would refuse it: its AllowedIPs name our EIDs only.
            refuse(
                packet,
                Unreachable::Prohibited,
                DropReason::SourceNotOurs,
                actions,
            );
            return;
        }
        if self.known(now, dst, packet, actions) {
            return;
        }
        if let Some(pending) = self.resolver.pending_mut(&dst) {
            let refused = pending.held.push(packet, &mut self.budget);
            overflowed(refused, packet, actions);
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
            self.forget(prefix, actions);
            return self.known(now, dst, packet, actions);
        }
        match entry.state {
            State::Routing | State::Active => {
                actions.push(Action::Reinject(Bytes::copy_from_slice(packet)));
            }
            State::Installing => {
                overflowed(entry.held.push(packet, &mut self.budget), packet, actions);
            }
            State::Awaiting(_) => {
                let first = entry.held.is_empty();
                overflowed(entry.held.push(packet, &mut self.budget), packet, actions);
                if first {
                    // Later ones are served by the regular look.
                    let key = entry.chosen.map(|chosen| chosen.key);
                    actions.push(Action::ReadPeerStats(key.into_iter().collect()));
                }
            }
            State::Negative(action) => {
                let why = match action {
                    MapAction::PolicyDenied | MapAction::AuthFailure => Unreachable::Prohibited,
                    MapAction::NoAction
                    | MapAction::NativelyForward
                    | MapAction::SendMapRequest
                    | MapAction::Drop => Unreachable::Host,
                };
                refuse(packet, why, DropReason::NegativeMapping, actions);
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
            refuse(
                packet,
                Unreachable::Host,
                DropReason::TooManyRequests,
                actions,
            );
            return;
        }
        let mut held = Held::default();
        if let Err((reason, _)) = held.push(packet, &mut self.budget) {
            refuse(packet, Unreachable::Host, reason, actions);
            return;
        }
        actions.event(Event::Caught { dst });
        self.start_request(now, src, dst, held, actions);
    }

    fn start_request(
        &mut self,
        now: Timestamp,
        source: IpAddr,
        dst: IpAddr,
        held: Held,
        actions: &mut Actions,
    ) {
        let nonce = Nonce(self.rng.random());
        self.resolver.start(
            dst,
            Pending {
                nonce,
                source,
                tries: 1,
                held,
            },
        );
        actions.event(Event::MapRequest { eid: dst, nonce });
        self.send_request(Question::first(source, dst, nonce), 0, actions);
        self.deadlines.set(Timer::Request(dst), now + REQUEST_RETRY);
    }

    /// Sends one Map-Request; each retry goes to the next map server.
    pub(super) fn send_request(&self, question: Question, tries: u32, actions: &mut Actions) {
        let Question {
            source,
            asked,
            nonce,
            flags,
        } = question;
        let servers = &self.config.map_servers;
        let turn = usize::try_from(tries).unwrap_or(0) % servers.len().max(1);
        let Some(server) = servers.get(turn) else {
            return;
        };
        let params = RequestParams {
            flags,
            nonce,
            source_eid: Some((self.config.iid, source)),
            itr_rlocs: &[self.config.control_address],
            eids: &[RequestedEid {
                subscribe: false,
                eid: EidPrefix::new(self.config.iid, asked),
            }],
            source_record: None,
            ids: None,
        };
        let dst = server.address;
        let mut bytes = Vec::new();
        if encode_map_request(&params, &mut bytes).is_err() {
            return;
        }
        if self.config.encapsulate_requests {
            let inner = std::mem::take(&mut bytes);
            let from = SocketAddr::new(source, dst.port());
            let to = SocketAddr::new(asked.addr(), dst.port());
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
        if pending.tries >= REQUEST_TRIES {
            self.give_up(now, dst, actions);
            return;
        }
        let (source, nonce, tries) = (pending.source, pending.nonce, pending.tries);
        pending.tries += 1;
        let wait = REQUEST_RETRY
            .saturating_mul(1 << tries)
            .min(self.config.hold);
        self.unanswered(now, tries, actions);
        self.send_request(Question::first(source, dst, nonce), tries, actions);
        self.deadlines.set(Timer::Request(dst), now + wait);
    }

    /// Nobody answered: tells the senders and refuses the destination for a moment.
    pub(super) fn give_up(&mut self, now: Timestamp, dst: IpAddr, actions: &mut Actions) {
        self.deadlines.cancel(&Timer::Request(dst));
        let Some(mut pending) = self.resolver.finish(&dst) else {
            return;
        };
        for packet in pending.held.take(&mut self.budget) {
            refuse(&packet, Unreachable::Host, DropReason::NoAnswer, actions);
        }
        let until = now + NO_ANSWER_HOLD_DOWN;
        self.insert_negative(IpNet::from(dst), MapAction::Drop, until, actions);
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
        let until = now + ttl.clamp(Duration::from_secs(1), NEGATIVE_TTL_MAX);
        let why = match record.action {
            MapAction::PolicyDenied | MapAction::AuthFailure => Unreachable::Prohibited,
            MapAction::NoAction
            | MapAction::NativelyForward
            | MapAction::SendMapRequest
            | MapAction::Drop => Unreachable::Host,
        };
        for dst in self.resolver.within(&prefix) {
            self.deadlines.cancel(&Timer::Request(dst));
            if let Some(mut pending) = self.resolver.finish(&dst) {
                for packet in pending.held.take(&mut self.budget) {
                    refuse(&packet, why, DropReason::NegativeMapping, actions);
                }
            }
        }
        self.insert_negative(prefix, record.action, until, actions);
    }

    fn insert_negative(
        &mut self,
        prefix: IpNet,
        action: MapAction,
        until: Timestamp,
        actions: &mut Actions,
    ) {
        if self
            .cache
            .get(&prefix)
            .is_some_and(|entry| entry.chosen.is_some())
        {
            return;
        }
        if self.cache.negatives() >= NEGATIVE_ENTRIES {
            actions.count(DropReason::MapCacheFull);
            return;
        }
        let entry = Entry {
            state: State::Negative(action),
            chosen: None,
            change: None,
            expires: until,
            stale: None,
            held: Held::default(),
            cause: Cause::Reply,
            notified: None,
            mutual: false,
            solicited: None,
            bytes_seen: 0,
        };
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

/// Drops a packet, counts it, and tells its sender.
pub(super) fn refuse(packet: &[u8], why: Unreachable, reason: DropReason, actions: &mut Actions) {
    actions.count(reason);
    if let Some(error) = unreachable(packet, why) {
        actions.push(Action::Deliver(error));
    }
}

/// Deals with a packet that a hold had no room for.
fn overflowed(
    result: Result<(), (DropReason, Option<Bytes>)>,
    packet: &[u8],
    actions: &mut Actions,
) {
    if let Err((reason, oldest)) = result {
        refuse(
            oldest.as_deref().unwrap_or(packet),
            Unreachable::Host,
            reason,
            actions,
        );
    }
}
