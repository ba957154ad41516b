//! Handshakes, and the timers that start, repeat and end them.

use std::net::SocketAddr;
use std::time::Duration;

use lisp_proto::PublicKey;
use rand::Rng;

use super::peer::{Backend, Initiated, Timer};
use super::session::{Session, secret};
use super::{
    Context, Interface, KEEPALIVE_TIMEOUT, Lost, NO_ANSWER, NO_ANSWER_JITTER, Out, Wire, jitter,
    lose,
};

/// A peer may not initiate more often.
const INITIATION_GAP: Duration = Duration::from_millis(20);

impl Interface {
    /// Sends an initiation, unless a handshake message was sent just now.
    pub(super) fn initiate(&mut self, key: PublicKey, again: bool, cx: &mut Context<'_>) {
        let stamp = self.stamp(cx);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if !again {
            peer.attempts = 0;
        }
        let gap = self.backend.rekey_timeout();
        if peer.handshake_sent.is_some_and(|sent| cx.now - sent < gap) {
            return;
        }
        peer.handshake_sent = Some(cx.now);
        let index = cx.rng.random();
        let ephemeral = cx.rng.random();
        let before = peer.initiated.replace(Initiated { index, ephemeral });
        if let Some(before) = before {
            self.names.remove(&before.index);
        }
        self.names.insert(index, key);
        let wire = Wire::Init {
            to: key,
            from: self.key,
            sender: index,
            ephemeral,
            stamp,
        };
        self.transmit(key, wire, cx);
        let wait = gap + jitter(cx.rng, self.backend.jitter());
        self.timers.set((key, Timer::Retransmit), cx.now + wait);
    }

    /// Takes an initiation in; whatever we had started ourselves is forgotten.
    pub(super) fn initiation(
        &mut self,
        src: SocketAddr,
        from: PublicKey,
        sender: u32,
        ephemeral: u64,
        stamp: u64,
        cx: &mut Context<'_>,
    ) -> Option<PublicKey> {
        let peer = self.peers.get_mut(&from)?;
        let flooding = peer
            .initiation_seen
            .is_some_and(|seen| cx.now - seen < INITIATION_GAP);
        if stamp <= peer.latest_stamp || flooding {
            return None;
        }
        peer.latest_stamp = stamp;
        peer.initiation_seen = Some(cx.now);
        peer.endpoint = Some(src);
        peer.handshake_sent = Some(cx.now);
        let forgotten = peer.initiated.take();
        let (local, own): (u32, u64) = (cx.rng.random(), cx.rng.random());
        let session = Session::new(secret(ephemeral, own), local, sender, cx.now, false);
        let gone = peer.sessions.add(session);
        for name in gone
            .into_iter()
            .chain(forgotten.map(|initiated| initiated.index))
        {
            self.names.remove(&name);
        }
        self.names.insert(local, from);
        let wire = Wire::Response {
            sender: local,
            receiver: sender,
            answers: ephemeral,
            ephemeral: own,
        };
        self.transmit(from, wire, cx);
        self.heard(from, cx);
        Some(from)
    }

    /// Takes the response to our initiation in, and confirms the session.
    pub(super) fn response(
        &mut self,
        src: SocketAddr,
        sender: u32,
        receiver: u32,
        answers: u64,
        ephemeral: u64,
        cx: &mut Context<'_>,
    ) -> Option<PublicKey> {
        let key = *self.names.get(&receiver)?;
        let peer = self.peers.get_mut(&key)?;
        let ours = peer
            .initiated
            .take_if(|ours| ours.index == receiver && ours.ephemeral == answers)?;
        peer.endpoint = Some(src);
        peer.answered = Some(cx.now);
        let session = Session::new(
            secret(ours.ephemeral, ephemeral),
            receiver,
            sender,
            cx.now,
            true,
        );
        for name in peer.sessions.add(session) {
            self.names.remove(&name);
        }
        self.complete(key, cx);
        self.heard(key, cx);
        self.say_hello(key, cx);
        Some(key)
    }

    /// A session is ready for use on our side.
    pub(super) fn complete(&mut self, key: PublicKey, cx: &Context<'_>) {
        self.timers.cancel(&(key, Timer::Retransmit));
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.attempts = 0;
            peer.renewed_late = false;
            peer.last_handshake = Some(cx.now);
        }
    }

    pub(super) fn transmit(&mut self, key: PublicKey, wire: Wire, cx: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let length = u64::try_from(wire.len()).unwrap_or(u64::MAX);
        peer.tx_bytes = peer.tx_bytes.saturating_add(length);
        peer.armed.keepalive = false;
        self.timers.cancel(&(key, Timer::Keepalive));
        if let Some(dst) = peer.endpoint {
            cx.out.push(Out::Transmit { dst, wire });
        }
        self.restart_persistent(key, cx);
    }

    /// Something authentic came from the peer.
    pub(super) fn heard(&mut self, key: PublicKey, cx: &Context<'_>) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.armed.new_handshake = false;
            self.timers.cancel(&(key, Timer::NewHandshake));
        }
        self.restart_persistent(key, cx);
    }

    /// Data was sent: without any answer there will be a new handshake.
    pub(super) fn expect_answer(&mut self, key: PublicKey, cx: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if !std::mem::replace(&mut peer.armed.new_handshake, true) {
            let wait = NO_ANSWER + jitter(cx.rng, NO_ANSWER_JITTER);
            self.timers.set((key, Timer::NewHandshake), cx.now + wait);
        }
    }

    /// Data was received: without anything to send there will be a keepalive.
    pub(super) fn owe_keepalive(&mut self, key: PublicKey, cx: &Context<'_>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if std::mem::replace(&mut peer.armed.keepalive, true) {
            peer.another_keepalive = true;
        } else {
            self.timers
                .set((key, Timer::Keepalive), cx.now + KEEPALIVE_TIMEOUT);
        }
    }

    pub(super) fn timer(&mut self, key: PublicKey, timer: Timer, cx: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        match timer {
            Timer::Retransmit if peer.attempts > self.backend.attempts() => {
                let staged = std::mem::take(&mut peer.staged);
                peer.armed.keepalive = false;
                self.timers.cancel(&(key, Timer::Keepalive));
                lose(staged, Lost::NoHandshake, cx);
            }
            Timer::Retransmit => {
                peer.attempts += 1;
                self.initiate(key, true, cx);
            }
            Timer::Keepalive => {
                peer.armed.keepalive = false;
                let another = std::mem::take(&mut peer.another_keepalive);
                self.say_hello(key, cx);
                if another {
                    self.owe_keepalive(key, cx);
                }
            }
            Timer::NewHandshake => {
                peer.armed.new_handshake = false;
                self.initiate(key, false, cx);
            }
            Timer::Persistent => self.say_hello(key, cx),
        }
    }

    fn restart_persistent(&mut self, key: PublicKey, cx: &Context<'_>) {
        let keepalive = self.peers.get(&key).and_then(|peer| peer.keepalive);
        if let Some(keepalive) = keepalive {
            self.timers
                .set((key, Timer::Persistent), cx.now + keepalive);
        }
    }

    /// The time stamp of an initiation, in microseconds.
    fn stamp(&self, cx: &Context<'_>) -> u64 {
        let (made, wall_us) = self.made;
        match self.backend {
            Backend::Kernel => cx.wall_us,
            Backend::Embedded => {
                let since = u64::try_from((cx.now - made).as_micros()).unwrap_or(u64::MAX);
                wall_us.saturating_add(since)
            }
        }
    }
}
