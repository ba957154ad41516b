//! How does WireGuard behave? A model of one interface, without ciphers.
//!
//! What matters for a control plane is kept: handshakes that need both sides to know each other,
//! crossing initiations that cancel each other out, sessions that a responder may not use before
//! the initiator has, timers, roaming, AllowedIPs. Numbers and rules are those of the kernel's
//! implementation; [`Backend`] says what ours does differently.

mod handshake;
mod peer;
mod session;
mod table;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{Deadlines, PublicKey, Timestamp};
use rand::Rng;
use rand::rngs::StdRng;

pub(super) use peer::Backend;
pub(super) use table::CryptokeyTable;
pub(super) use wire::{Inner, Lost, Out, Wire};

use peer::{Peer, STAGED, Timer};
use session::{REJECT_AFTER, REKEY_AFTER, Received};

/// Silence after which the receiver of data says that it is there.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which the sender of data makes a new session, less the time of an initiation.
const NO_ANSWER: Duration = Duration::from_secs(15);
/// Jitter of [`NO_ANSWER`].
const NO_ANSWER_JITTER: Duration = Duration::from_millis(333);

/// An agent that takes a peer out has read its counters no longer ago than this, and cannot know
/// what has left since: an eighth of the time for which it awaits a handshake, which is 3 s at most.
const JUST_NOW: Duration = Duration::from_millis(375);

/// The world around an interface, for the length of one call.
pub(super) struct Context<'a> {
    pub(super) now: Timestamp,
    /// The wall clock of the host, in microseconds.
    pub(super) wall_us: u64,
    pub(super) rng: &'a mut StdRng,
    /// What the interface does.
    pub(super) out: &'a mut Vec<Out>,
}

/// A peer as it is configured.
#[derive(Clone, Debug)]
pub(super) struct PeerSpec {
    pub(super) key: PublicKey,
    /// `None` keeps the one that is there.
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) allowed_ips: Vec<IpNet>,
    pub(super) keepalive: Option<Duration>,
}

/// What an interface says of a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stats {
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) handshake_seen: bool,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
}

/// Where a peer is that has shaken hands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    pub(super) key: PublicKey,
    pub(super) endpoint: SocketAddr,
    /// When it has last done so.
    pub(super) shaken: Timestamp,
    /// Bytes that have come from it.
    pub(super) received: u64,
}

/// One WireGuard interface.
#[derive(Debug)]
pub(super) struct Interface {
    key: PublicKey,
    backend: Backend,
    table: CryptokeyTable,
    peers: BTreeMap<PublicKey, Peer>,
    /// Names of our sessions and initiations, and whose they are.
    names: BTreeMap<u32, PublicKey>,
    timers: Deadlines<(PublicKey, Timer)>,
    /// When the interface was made, and the wall clock then, in microseconds.
    made: (Timestamp, u64),
}

impl Interface {
    pub(super) fn new(key: PublicKey, backend: Backend, now: Timestamp, wall_us: u64) -> Self {
        Self {
            key,
            backend,
            table: CryptokeyTable::default(),
            peers: BTreeMap::new(),
            names: BTreeMap::new(),
            timers: Deadlines::new(),
            made: (now, wall_us),
        }
    }

    /// Makes the peer exactly so; its sessions stay.
    pub(super) fn set_peer(&mut self, spec: &PeerSpec, cx: &mut Context<'_>) {
        let peer = self.peers.entry(spec.key).or_default();
        peer.endpoint = spec.endpoint.or(peer.endpoint);
        let starts = peer.keepalive.is_none() && spec.keepalive.is_some();
        peer.keepalive = spec.keepalive;
        self.table.replace(spec.key, &spec.allowed_ips);
        if starts {
            self.say_hello(spec.key, cx);
        }
        self.flush(spec.key, cx);
    }

    /// Removes the peer with everything that belongs to it.
    pub(super) fn remove_peer(&mut self, key: &PublicKey, cx: &mut Context<'_>) {
        let Some(peer) = self.peers.remove(key) else {
            return;
        };
        let initiated = peer.initiated.map(|initiated| initiated.index);
        for name in peer.sessions.names().chain(initiated) {
            self.names.remove(&name);
        }
        for timer in Timer::ALL {
            self.timers.cancel(&(*key, timer));
        }
        self.table.remove(key);
        lose(peer.staged, Lost::PeerRemoved, cx);
        let sent = peer.sent.into_iter();
        let just = sent.filter(|(at, _)| cx.now - *at <= JUST_NOW);
        let just: Vec<Inner> = just.map(|(_, inner)| inner).collect();
        lose(just, Lost::JustSent, cx);
    }

    /// Sends a packet into the tunnel that its destination belongs to.
    pub(super) fn send(&mut self, inner: Inner, cx: &mut Context<'_>) {
        let Some(key) = self.table.lookup(inner.dst) else {
            return lose([inner], Lost::NoPeer, cx);
        };
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.staged.push_back(inner);
        if peer.staged.len() > STAGED {
            lose(peer.staged.pop_front(), Lost::QueueFull, cx);
        }
        self.flush(key, cx);
    }

    /// Starts a handshake if there is no session, unless one was started just now; in a session the
    /// kernel says hello, and gotatun nothing.
    pub(super) fn kick(&mut self, key: &PublicKey, cx: &mut Context<'_>) {
        match self.backend {
            Backend::Kernel => self.say_hello(*key, cx),
            Backend::Embedded => {
                let peer = self.peers.get_mut(key);
                if peer.is_some_and(|peer| peer.sessions.sending(cx.now).is_none()) {
                    self.initiate(*key, false, cx);
                }
            }
        }
    }

    /// Takes in a message that came from `src`.
    pub(super) fn receive(&mut self, src: SocketAddr, wire: Wire, cx: &mut Context<'_>) {
        let is_keepalive = matches!(wire, Wire::Data { inner: None, .. });
        let length = match self.backend {
            Backend::Embedded if is_keepalive => 0,
            Backend::Embedded | Backend::Kernel => u64::try_from(wire.len()).unwrap_or(u64::MAX),
        };
        let sender = match wire {
            Wire::Init {
                to,
                from,
                sender,
                ephemeral,
                stamp,
            } => {
                if to != self.key {
                    return;
                }
                self.initiation(src, from, sender, ephemeral, stamp, cx)
            }
            Wire::Response {
                sender,
                receiver,
                answers,
                ephemeral,
            } => self.response(src, sender, receiver, answers, ephemeral, cx),
            Wire::Data {
                receiver,
                session,
                counter,
                inner,
            } => self.data(src, receiver, session, counter, inner, cx),
        };
        if let Some(peer) = sender.and_then(|key| self.peers.get_mut(&key)) {
            peer.rx_bytes = peer.rx_bytes.saturating_add(length);
        }
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, cx: &mut Context<'_>) {
        while let Some((key, timer)) = self.timers.pop_due(cx.now) {
            self.timer(key, timer, cx);
        }
    }

    /// When [`Self::tick`] is wanted next.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.timers.next()
    }

    /// What is known of a peer.
    pub(super) fn stats(&self, key: &PublicKey) -> Option<Stats> {
        self.peers.get(key).map(|peer| Stats {
            endpoint: peer.endpoint,
            handshake_seen: peer.last_handshake.is_some(),
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
        })
    }

    /// Whether there is a session with a peer.
    pub(super) fn has_session(&mut self, key: &PublicKey, now: Timestamp) -> bool {
        let peer = self.peers.get_mut(key);
        peer.is_some_and(|peer| peer.sessions.sending(now).is_some())
    }

    /// Whether a packet waits for a session.
    pub(super) fn holds(&self, is_it: impl Fn(&Inner) -> bool) -> bool {
        let mut staged = self.peers.values().flat_map(|peer| &peer.staged);
        staged.any(is_it)
    }

    /// When a peer last answered an initiation of ours; `None` if it never did, or is not there.
    pub(super) fn answered(&self, key: &PublicKey) -> Option<Timestamp> {
        self.peers.get(key)?.answered
    }

    /// Where the peers are, as far as is known.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = (PublicKey, SocketAddr)> {
        let peers = self.peers.iter();
        peers.filter_map(|(key, peer)| Some((*key, peer.endpoint?)))
    }

    /// Where the peers are, as far as a handshake vouches for it.
    pub(super) fn sights(&self) -> impl Iterator<Item = Sight> {
        let peers = self.peers.iter();
        peers.filter_map(|(key, peer)| {
            Some(Sight {
                key: *key,
                endpoint: peer.endpoint?,
                shaken: peer.last_handshake?,
                received: peer.rx_bytes,
            })
        })
    }

    /// The cryptokey routing table.
    pub(super) const fn table(&self) -> &CryptokeyTable {
        &self.table
    }

    /// Sends what waits, or starts the handshake that it waits for.
    fn flush(&mut self, key: PublicKey, cx: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.staged.is_empty() {
            return;
        }
        if peer.sessions.sending(cx.now).is_none() {
            return self.initiate(key, false, cx);
        }
        for inner in std::mem::take(&mut peer.staged) {
            self.emit(key, Some(inner), cx);
        }
    }

    /// Sends a keepalive, for which a session is made if there is none.
    fn say_hello(&mut self, key: PublicKey, cx: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.sessions.sending(cx.now).is_none() {
            self.initiate(key, false, cx);
        } else if peer.staged.is_empty() {
            self.emit(key, None, cx);
        } else {
            self.flush(key, cx);
        }
    }

    /// Sends one packet, or a keepalive, in the present session.
    fn emit(&mut self, key: PublicKey, inner: Option<Inner>, cx: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(session) = peer.sessions.sending(cx.now) else {
            return;
        };
        let wire = Wire::Data {
            receiver: session.remote,
            session: session.secret,
            counter: session.sent,
            inner: inner.clone(),
        };
        session.sent += 1;
        let old = |sent: &mut (Timestamp, Inner)| cx.now - sent.0 > JUST_NOW;
        while peer.sent.pop_front_if(old).is_some() {}
        peer.sent.extend(inner.map(|inner| (cx.now, inner)));
        let stale = session.initiator && cx.now - session.born >= REKEY_AFTER;
        let is_data = !matches!(wire, Wire::Data { inner: None, .. });
        self.transmit(key, wire, cx);
        if is_data {
            self.expect_answer(key, cx);
        }
        if stale {
            self.initiate(key, false, cx);
        }
    }

    fn data(
        &mut self,
        src: SocketAddr,
        receiver: u32,
        session: u64,
        counter: u64,
        inner: Option<Inner>,
        cx: &mut Context<'_>,
    ) -> Option<PublicKey> {
        let key = *self.names.get(&receiver)?;
        let peer = self.peers.get_mut(&key)?;
        let (received, gone) = peer.sessions.receive(cx.now, receiver, session, counter);
        if received == Received::Refused {
            return None;
        }
        peer.endpoint = Some(src);
        if let Some(gone) = gone {
            self.names.remove(&gone);
        }
        if received == Received::Confirmed {
            self.complete(key, cx);
            self.flush(key, cx);
        }
        self.renew_late(key, cx);
        self.heard(key, cx);
        if let Some(inner) = inner {
            self.owe_keepalive(key, cx);
            if self.table.lookup(inner.src) == Some(key) {
                cx.out.push(Out::Receive { inner });
            } else {
                lose([inner], Lost::WrongSource, cx);
            }
        }
        Some(key)
    }

    /// Replaces a session in which only the other side talks before it ends.
    fn renew_late(&mut self, key: PublicKey, cx: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let late = REJECT_AFTER - NO_ANSWER;
        let session = peer.sessions.sending(cx.now);
        let due = session.is_some_and(|session| session.initiator && cx.now - session.born >= late);
        if due && !std::mem::replace(&mut peer.renewed_late, true) {
            self.initiate(key, false, cx);
        }
    }
}

/// Up to `most` more.
fn jitter(rng: &mut StdRng, most: Duration) -> Duration {
    rng.random_range(Duration::ZERO..most)
}

fn lose(packets: impl IntoIterator<Item = Inner>, why: Lost, cx: &mut Context<'_>) {
    cx.out
        .extend(packets.into_iter().map(|inner| Out::Lost { inner, why }));
}
