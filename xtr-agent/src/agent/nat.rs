//! Is there a NAT between us and the world, and where does it let us appear?
//!
//! After each registration the map server is asked where it sees us (Info-Request). If that is none of our addresses,
//! there is a NAT. Which port it gives our data interface only packets of that interface tell, so the map server
//! becomes a peer of it, without AllowedIPs: nothing but handshakes and keepalives passes. What the map server then sees is
//! registered in front of our own addresses, which those behind the same NAT use. A map server that sees a change
//! repeats its answer unasked.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lisp_proto::{
    EidPrefix, Info, Locator, Nonce, PublicKey, Rloc, Timestamp, encode_info_request, verify,
};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::choice::NOT_TO_BE_USED;
use super::config::Uplink;
use super::event::{DropReason, Event};
use super::install::What;
use super::limits::{
    INFO_RETRY, INFO_RETRY_MAX, INFO_TRIES, LOCATORS, LOOKOUT_PATIENCE, RELAY_PRIORITY,
};
use super::peers::PeerSpec;
use super::remove::Object;
use super::{Action, Actions, Agent, Change, Timer};

/// The map server that is asked: where there are several, all see the same.
const ASKED: usize = 0;
/// Priority of the locators under which everybody reaches us.
const FIRST: u8 = 1;
/// Weight of a locator of which nothing else is said.
const WEIGHT: u8 = 100;

/// What we know of a NAT.
#[derive(Debug, Default)]
pub(super) struct Nat {
    asked: Option<Asked>,
    /// How often it was asked since the last registration.
    tries: u32,
    found: Found,
    /// Since when.
    since: Timestamp,
    /// The address of the NAT, as far as it was told.
    address: Option<IpAddr>,
    /// Where our data interface appears; nowhere yet, or we are not behind a NAT.
    at: Option<SocketAddr>,
    /// Our own addresses when that was told.
    own: BTreeSet<IpAddr>,
    /// The map server as a peer of the data interface, and since when.
    lookout: Option<(PublicKey, Timestamp)>,
}

/// The latest question.
#[derive(Clone, Copy, Debug)]
struct Asked {
    nonce: Nonce,
    /// The first answer to it.
    answer: Option<SocketAddr>,
}

/// Whether there is a NAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Found {
    /// Nobody has told.
    #[default]
    Unknown,
    /// There is none.
    Direct,
    /// There is one.
    Behind,
}

/// Where a NAT lets us appear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// Address and port.
    pub endpoint: SocketAddr,
    /// Our own addresses behind it.
    pub behind: BTreeSet<IpAddr>,
}

impl Nat {
    /// Whether there is a NAT.
    pub(super) const fn found(&self) -> Found {
        self.found
    }

    /// Whether we are behind a NAT.
    pub(super) fn is_behind(&self) -> bool {
        self.found == Found::Behind
    }

    /// Where our data interface appears, if there is a NAT.
    pub(super) const fn at(&self) -> Option<SocketAddr> {
        self.at
    }

    /// The address of the NAT, as far as it was told.
    pub(super) const fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Since when that is known.
    pub(super) const fn since(&self) -> Timestamp {
        self.since
    }

    fn is(&mut self, found: Found, now: Timestamp) {
        if self.found != found {
            self.found = found;
            self.since = now;
        }
    }
}

impl Agent {
    /// A map server has acknowledged our registration, and so knows the key that it is asked about.
    pub(super) fn ask_where_we_are(&mut self, now: Timestamp, index: usize, actions: &mut Actions) {
        if index == ASKED {
            self.ask_where_we_are_now(now, actions);
        }
    }

    fn ask_where_we_are_now(&mut self, now: Timestamp, actions: &mut Actions) {
        self.nat.tries = 0;
        self.send_info_request(now, actions);
    }

    /// There was no answer in time, or none that says it all.
    pub(super) fn info_due(&mut self, now: Timestamp, actions: &mut Actions) {
        if self.nat.tries < INFO_TRIES || self.nat.is_behind() && self.nat.at.is_none() {
            self.send_info_request(now, actions);
        }
    }

    fn send_info_request(&mut self, now: Timestamp, actions: &mut Actions) {
        let own = self.config.registered().next().copied();
        let Some(server) = self.config.map_servers.get(ASKED) else {
            return;
        };
        let (Some(own), Some(_)) = (own, server.outer) else {
            return;
        };
        if self.is_leaving() {
            return;
        }
        let nonce = Nonce(self.rng.random());
        let mut bytes = Vec::new();
        encode_info_request(nonce, self.eid(own), &server.key, &mut bytes);
        actions.push(Action::Send {
            dst: server.address,
            bytes: bytes.into(),
        });
        let answer = None;
        self.nat.asked = Some(Asked { nonce, answer });
        let wait = INFO_RETRY.saturating_mul(1 << self.nat.tries.min(10));
        self.nat.tries = self.nat.tries.saturating_add(1);
        let wait = self.retry_in(wait.min(INFO_RETRY_MAX));
        self.deadlines.set(Timer::Info, now + wait);
    }

    /// The map server says where it sees us: for the first time, or elsewhere than before.
    pub(super) fn info_reply(
        &mut self,
        now: Timestamp,
        index: usize,
        info: &Info<'_>,
        bytes: &[u8],
        actions: &mut Actions,
    ) {
        let server = self.config.map_servers.get(index);
        let Some(server) = server.filter(|_| info.reply) else {
            return actions.count(DropReason::UnexpectedMessage);
        };
        if verify(&server.key, bytes).is_err() {
            return actions.count(DropReason::BadAuthentication);
        }
        let asked = self.nat.asked.as_mut();
        let Some(asked) = asked.filter(|it| index == ASKED && it.nonce == info.nonce) else {
            return actions.count(DropReason::UnknownNonce);
        };
        let is_ours = |eid: &EidPrefix| self.config.registers(eid);
        let Some(seen) = info
            .seen()
            .filter(|_| info.eid().as_ref().is_some_and(is_ours))
        else {
            return actions.count(DropReason::UnexpectedMessage);
        };
        let before = asked.answer.replace(seen);
        if let Some(server) = self.servers.get_mut(index) {
            server.heard(now);
        }
        if self.is_leaving() || before == Some(seen) {
            return;
        }
        if before.is_some() {
            // Something has changed. Which of the two holds, their order does not tell: only a question does.
            self.ask_where_we_are_now(now, actions);
        } else if self.config.addresses().any(|own| own == seen.ip()) {
            self.not_behind(now, actions);
        } else {
            self.behind(now, seen, actions);
        }
    }

    /// We are where we think that we are.
    fn not_behind(&mut self, now: Timestamp, actions: &mut Actions) {
        self.deadlines.cancel(&Timer::Info);
        let before = self.nat.found;
        self.nat.is(Found::Direct, now);
        self.nat.address = None;
        if before != Found::Behind {
            return;
        }
        self.keep_ways_open(false, actions);
        self.dismiss_lookout(actions);
        actions.event(Event::NotBehindNat);
        if self.nat.at.take().is_some() {
            self.register_afresh(now, actions);
        }
    }

    /// There is a NAT, which lets us appear at `seen`; with port 0 only the address is known.
    fn behind(&mut self, now: Timestamp, seen: SocketAddr, actions: &mut Actions) {
        if !self.nat.is_behind() {
            self.nat.is(Found::Behind, now);
            self.keep_ways_open(true, actions);
            actions.event(Event::BehindNat { address: seen.ip() });
        }
        self.nat.address = Some(seen.ip());
        if seen.port() == 0 {
            // One that has seen us before and restarted has lost its half of the session.
            let lookout = self.nat.lookout;
            let in_vain = lookout.is_some_and(|(_, since)| now - since >= LOOKOUT_PATIENCE);
            if lookout.is_none() || in_vain {
                self.post_lookout(now, actions);
            }
            // It is asked again when it was to be if it had not answered.
            return;
        }
        self.deadlines.cancel(&Timer::Info);
        if self.nat.lookout.is_none() {
            self.post_lookout(now, actions);
        }
        if self.nat.at != Some(seen) {
            self.nat.at = Some(seen);
            self.nat.since = now;
            self.nat.own = self.config.addresses().collect();
            actions.event(Event::SeenAt { endpoint: seen });
            self.register_afresh(now, actions);
        }
    }

    /// A NAT has come, or gone: peers get keepalives, or none any more.
    fn keep_ways_open(&mut self, keep_open: bool, actions: &mut Actions) {
        self.peers.keep_open(keep_open);
        let keys: Vec<_> = self.peers.each().map(|(key, _)| key).collect();
        for key in keys {
            // Peers roam: that they are kept open is no reason to send to where they were before.
            if let Some(spec) = self.peers.spec(&key) {
                self.change(What::Shrinking(key), Change::SetPeer(spec), actions);
            }
        }
    }

    /// We have another address, and a NAT may be another one: what it makes of our data interface, packets tell. If we have
    /// none of those left that we had, nobody finds us where we were seen.
    pub(super) fn look_out_anew(&mut self, now: Timestamp, actions: &mut Actions) {
        let own = &self.nat.own;
        if !self.config.addresses().any(|rloc| own.contains(&rloc)) {
            self.nat.at = None;
        }
        if self.nat.lookout.is_some() {
            self.post_lookout(now, actions);
        }
    }

    /// Makes the map server a peer of the data interface, anew if it is one.
    fn post_lookout(&mut self, now: Timestamp, actions: &mut Actions) {
        self.dismiss_lookout(actions);
        let server = self.config.map_servers.get(ASKED);
        let Some((key, endpoint)) = server.and_then(|server| server.outer) else {
            return;
        };
        self.nat.lookout = Some((key, now));
        let spec = PeerSpec {
            key,
            endpoint: Some(endpoint),
            allowed_ips: Vec::new(),
            keep_open: true,
        };
        self.change(What::Lookout, Change::SetPeer(spec), actions);
        // Not every data plane sends its first keepalive at once.
        actions.push(Action::Kick(key));
    }

    /// The map server is no peer of the data interface any more.
    fn dismiss_lookout(&mut self, actions: &mut Actions) {
        if let Some((key, _)) = self.nat.lookout.take() {
            let what = What::Removal(Object::Peer(key));
            self.change(what, Change::RemovePeer(key), actions);
        }
    }

    /// The data plane has taken the map server as a peer, or would not: then it is asked again.
    pub(super) fn lookout_posted(&mut self, ok: bool, actions: &mut Actions) {
        if !ok {
            self.nat.lookout = None;
            actions.event(Event::ChangeFailed { what: "peer" });
        }
    }

    /// The key of the map server, while it is a peer of the data interface.
    #[must_use]
    pub fn lookout(&self) -> Option<PublicKey> {
        self.nat.lookout.map(|(key, _)| key)
    }

    /// Other map servers take the place of those that there were: they will be asked.
    pub(super) fn ask_others_where_we_are(&mut self, now: Timestamp, actions: &mut Actions) {
        self.dismiss_lookout(actions);
        self.deadlines.cancel(&Timer::Info);
        self.nat.asked = None;
        if !self.may_ask_where_we_are() && self.nat.is_behind() {
            // Nobody would tell when that is no longer so.
            self.keep_ways_open(false, actions);
            (self.nat.address, self.nat.at) = (None, None);
            self.nat.is(Found::Unknown, now);
        }
    }

    /// Whether there is a map server that sees us.
    fn may_ask_where_we_are(&self) -> bool {
        let server = self.config.map_servers.get(ASKED);
        server.is_some_and(|server| server.outer.is_some())
    }

    /// Where a NAT lets us appear, as long as we have the addresses that we have now.
    pub(super) fn sighting(&self) -> Option<Sighting> {
        let endpoint = self.nat.at?;
        let behind = self.nat.own.clone();
        Some(Sighting { endpoint, behind })
    }

    /// An earlier run has found out where a NAT lets us appear. That holds until somebody says something else, unless
    /// we have moved.
    pub(super) fn believe_to_be_at(&mut self, now: Timestamp, sighting: &Sighting) {
        let at = sighting.endpoint;
        let own: BTreeSet<_> = self.config.addresses().collect();
        if own != sighting.behind || !self.may_ask_where_we_are() {
            return;
        }
        self.nat.is(Found::Behind, now);
        (self.nat.address, self.nat.at) = (Some(at.ip()), Some(at));
        self.nat.own = own;
        self.peers.keep_open(true);
    }

    /// The locators under which we are reached: where a NAT lets us appear, and behind that, for those behind the
    /// same NAT, our own addresses of that family. From these there is no way to others (R is clear, RFC 9301 5.4), who
    /// tell them from further uplinks by that: what is our own (L), a map server that answers for us does not say.
    pub(super) fn own_locators(&self) -> Vec<Locator> {
        let at = self.nat.at;
        let is_behind = |own: &Uplink| at.is_some_and(|at| at.is_ipv4() == own.address.is_ipv4());
        let mut uplinks: Vec<&Uplink> = self.config.rlocs.iter().collect();
        if at.is_some() {
            // What there is no room for is what is used last.
            uplinks.sort_by_key(|own| own.priority);
            uplinks.truncate(LOCATORS - 1);
        }
        let best = self.config.rlocs.iter().filter(|own| is_behind(own));
        let best = best.min_by_key(|own| (own.priority, Reverse(own.weight)));
        let own = uplinks.into_iter().map(|own| {
            let behind = is_behind(own);
            let rloc = match self.config.keyless {
                true => Rloc::Plain(own.address),
                false => self.reached_at(SocketAddr::new(own.address, self.config.listen_port)),
            };
            let priority = match (own.priority, behind) {
                (NOT_TO_BE_USED, _) => NOT_TO_BE_USED,
                (priority, false) => priority,
                // Behind the one that the NAT has given us, and before any relay.
                (priority, true) => (priority.max(FIRST) + 1).min(RELAY_PRIORITY - 1),
            };
            Locator {
                weight: own.weight,
                reachable: !behind,
                ..self.own_locator(rloc, priority, true)
            }
        });
        // The address is not ours. Packets to it arrive by an uplink that is.
        let seen = at.map(|at| {
            let (priority, weight) = match best.map(|own| (own.priority, own.weight)) {
                Some((NOT_TO_BE_USED, weight)) => (NOT_TO_BE_USED, weight),
                Some((priority, weight)) => (priority.clamp(FIRST, RELAY_PRIORITY - 2), weight),
                None => (FIRST, WEIGHT),
            };
            Locator {
                weight,
                ..self.own_locator(self.reached_at(at), priority, false)
            }
        });
        own.chain(seen).collect()
    }

    const fn reached_at(&self, endpoint: SocketAddr) -> Rloc {
        let key = self.config.public_key;
        Rloc::WireGuard { endpoint, key }
    }

    const fn own_locator(&self, rloc: Rloc, priority: u8, local: bool) -> Locator {
        Locator {
            priority: if self.draining {
                NOT_TO_BE_USED
            } else {
                priority
            },
            weight: WEIGHT,
            local,
            probed: false,
            reachable: true,
            rloc,
        }
    }
}
