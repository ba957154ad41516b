//! Datagrams from and to the map servers: registrations, and who is to deal with an answer.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lisp_proto::{
    EidPrefix, MapNotify, Message, Nonce, Record, RegisterFlags, RegisterParams, Timestamp, Ttl,
    decode, encode_map_register,
};

use super::config::Uplink;
use super::event::{DropReason, Event};
use super::limits::{FAREWELL_RETRY, RECORDS_PER_MESSAGE};
use super::{Action, Actions, Agent, Timer};

/// The port of a WireGuard locator that does not say one.
pub(super) const DEFAULT_PORT: u16 = 51820;

impl Agent {
    pub(super) fn register_all(&mut self, now: Timestamp, actions: &mut Actions) {
        for index in 0..self.config.map_servers.len() {
            self.register(now, index, actions);
        }
    }

    /// There is something new to tell all map servers, at once.
    pub(super) fn register_afresh(&mut self, now: Timestamp, actions: &mut Actions) {
        for server in &mut self.servers {
            server.registration.afresh();
        }
        self.register_all(now, actions);
    }

    /// This host is reached at other addresses from now on: tells the map
    /// servers at once.
    pub(super) fn local_rlocs(&mut self, now: Timestamp, rlocs: &[Uplink], actions: &mut Actions) {
        if self.stopping || self.config.rlocs == rlocs {
            return;
        }
        let control = self.config.control_address;
        let is_among = |rlocs: &[Uplink]| rlocs.iter().any(|rloc| rloc.address == control);
        // Without a control tunnel answers go to an RLOC.
        if is_among(&self.config.rlocs) && !is_among(rlocs) {
            let like_before = |rloc: &&Uplink| rloc.address.is_ipv4() == control.is_ipv4();
            let moved = rlocs.iter().find(like_before);
            self.config.control_address = moved.map_or(control, |rloc| rloc.address);
        }
        let before = std::mem::replace(&mut self.config.rlocs, rlocs.to_vec());
        self.look_out_anew(now, actions);
        self.uplinks_changed(now, &before, actions);
        self.register_afresh(now, actions);
    }

    /// The map servers are reached another way: whether they answer there shows at once.
    pub(super) fn other_way(&mut self, now: Timestamp, actions: &mut Actions) {
        if !self.is_leaving() {
            self.register_afresh(now, actions);
        }
    }

    /// Those who share our prefixes are to take our clients over, or these may come again: the map
    /// servers learn it from the priority of our locators, and move them.
    pub(super) fn drain(&mut self, now: Timestamp, draining: bool, actions: &mut Actions) {
        if self.stopping || self.draining == draining {
            return;
        }
        self.draining = draining;
        self.register_afresh(now, actions);
    }

    /// The next Map-Register is due, or the last one was not acknowledged.
    pub(super) fn register_due(&mut self, now: Timestamp, index: usize, actions: &mut Actions) {
        let server = self.servers.get(index);
        if server.is_some_and(|server| server.registration.unacknowledged()) {
            self.unanswered(now, index, 2, actions);
        }
        self.register(now, index, actions);
    }

    /// Registers all prefixes with one map server; a TTL of 0 withdraws them.
    fn register(&mut self, now: Timestamp, index: usize, actions: &mut Actions) {
        let own = self.config.registered();
        let mut records: Vec<Record> = own.map(|prefix| self.own_record(*prefix)).collect();
        if let Some(server) = self.servers.get(index) {
            let leaving = server.registration.leaving().iter();
            records.extend(leaving.map(|prefix| Record {
                ttl: Ttl::WITHDRAW,
                locators: Vec::new(),
                ..self.own_record(*prefix)
            }));
        }
        let nonce = self.register_nonce;
        self.register_nonce = Nonce(nonce.0.wrapping_add(1));
        let (Some(map_server), Some(server)) = (
            self.config.map_servers.get(index),
            self.servers.get_mut(index),
        ) else {
            return;
        };
        let params = RegisterParams {
            flags: RegisterFlags {
                proxy_reply: true,
                want_notify: true,
                merge: self.config.shared,
                ..RegisterFlags::default()
            },
            nonce,
            records: &records,
            ids: self.config.ids,
        };
        let mut bytes = Vec::new();
        // The configuration bounds the number of prefixes, so that they fit.
        if encode_map_register(&params, &map_server.key, &mut bytes).is_ok() {
            let dst = map_server.address;
            actions.push(Action::Send {
                dst,
                bytes: bytes.into(),
            });
        }
        let wait = server.registration.sent(nonce, now);
        let wait = if self.is_leaving() {
            // Nobody is left to say it later.
            FAREWELL_RETRY
        } else {
            self.retry_in(wait)
        };
        self.deadlines.set(Timer::Register(index), now + wait);
    }

    pub(super) fn own_record(&self, prefix: IpNet) -> Record {
        // A withdrawal names no locators: map servers that do not know TTL 0
        // then at least have none to hand out.
        let (ttl, locators) = if self.is_leaving() {
            (Ttl::WITHDRAW, Vec::new())
        } else {
            (self.config.ttl, self.own_locators())
        };
        Record {
            eid: self.eid(prefix),
            ttl,
            action: lisp_proto::Action::NoAction,
            authoritative: true,
            locators,
        }
    }

    pub(super) fn datagram(
        &mut self,
        now: Timestamp,
        src: SocketAddr,
        bytes: &[u8],
        actions: &mut Actions,
    ) {
        let Ok(message) = decode(bytes) else {
            return actions.count(DropReason::Malformed);
        };
        let servers = &self.config.map_servers;
        let index = servers.iter().position(|server| server.address == src);
        if let Message::MapRequest(request) = &message
            && (index.is_some() || self.config.keyless)
        {
            return self.map_request(now, src, request, bytes.len(), actions);
        }
        // Where there is a control tunnel nobody else has a say.
        let Some(index) = index else {
            return actions.count(DropReason::NotAMapServer);
        };
        match message {
            Message::MapReply(reply) => self.map_reply(now, index, &reply, actions),
            Message::MapNotify(notify) => self.map_notify(now, index, &notify, bytes, actions),
            Message::InfoRequest(info) => self.info_reply(now, index, &info, bytes, actions),
            Message::MapRequest(_)
            | Message::MapRegister(_)
            | Message::MapNotifyAck(_)
            | Message::MapReferral(_)
            | Message::Ecm(_) => actions.count(DropReason::UnexpectedMessage),
        }
    }

    /// A map server acknowledged our registration.
    pub(super) fn registered(
        &mut self,
        now: Timestamp,
        index: usize,
        notify: &MapNotify<'_>,
        actions: &mut Actions,
    ) {
        if self.is_leaving() {
            self.deadlines.cancel(&Timer::Register(index));
            return;
        }
        for record in notify.records().take(RECORDS_PER_MESSAGE) {
            if let Some(eid) = record.eid().filter(|eid| self.config.registers(eid)) {
                actions.event(Event::Registered { eid });
            }
        }
        self.refresh_restored(now);
        let next = self.jitter(self.config.register_interval);
        self.deadlines.set(Timer::Register(index), now + next);
        self.subscribe_first(now, index, actions);
        self.ask_where_we_are(now, index, actions);
    }

    /// Whether a mapping for `prefix` is any business of ours.
    pub(super) fn in_overlay(&self, prefix: &IpNet) -> bool {
        let overlaps = |net: &IpNet| net.contains(prefix) || prefix.contains(net);
        self.config.overlay.iter().any(overlaps)
    }

    /// The routes that send packets for `prefix` past the agent: never more
    /// than the overlay, whatever a mapping claims.
    pub(super) fn routes_for(&self, prefix: &IpNet) -> Vec<IpNet> {
        routes_within(&self.config.overlay, prefix)
    }

    /// Whether `eid` lives here.
    pub(super) fn is_own(&self, eid: &EidPrefix) -> bool {
        self.config.lives_here(&eid.net())
    }

    /// Whether packets from `src` may leave into the tunnels: far ends believe us what we register.
    pub(super) fn may_send_from(&self, src: IpAddr) -> bool {
        let src = IpNet::from(src);
        self.config.lives_here(&src) || self.config.serves.iter().any(|net| net.contains(&src))
    }

    /// Whether `asked` is a destination for which nothing more specific than what we serve
    /// ourselves is registered, when the best that there is for it is `region`. Another proxy that
    /// serves the same would only send its packets back.
    pub(super) fn serves_as_well(&self, asked: &IpNet, region: &IpNet) -> bool {
        let mut served = self.config.serves.iter();
        served.any(|net| net.contains(asked) && region.contains(net))
    }
}

/// What `overlay` and `prefix` have in common.
pub(super) fn routes_within(overlay: &[IpNet], prefix: &IpNet) -> Vec<IpNet> {
    if overlay.iter().any(|net| net.contains(prefix)) {
        return vec![*prefix];
    }
    let inside = overlay.iter().filter(|net| prefix.contains(*net));
    inside.copied().collect()
}
