//! The sessions of a peer, and which of them is used.

use std::time::Duration;

use lisp_proto::Timestamp;

use crate::sim::seeds::mix;

/// An initiator replaces a session of this age.
pub(super) const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Nobody uses a session of this age.
pub(super) const REJECT_AFTER: Duration = Duration::from_secs(180);

/// One side of a session.
#[derive(Debug)]
pub(super) struct Session {
    /// What both sides know and nobody else.
    pub(super) secret: u64,
    /// How the other side names it to us.
    pub(super) local: u32,
    /// How we name it to the other side.
    pub(super) remote: u32,
    pub(super) born: Timestamp,
    pub(super) initiator: bool,
    pub(super) sent: u64,
    window: Window,
}

impl Session {
    pub(super) const fn new(
        secret: u64,
        local: u32,
        remote: u32,
        born: Timestamp,
        initiator: bool,
    ) -> Self {
        Self {
            secret,
            local,
            remote,
            born,
            initiator,
            sent: 0,
            window: Window { next: 0, seen: 0 },
        }
    }

    fn is_valid(&self, now: Timestamp) -> bool {
        now - self.born < REJECT_AFTER
    }
}

/// What both ephemeral keys together stand for.
pub(super) const fn secret(initiator: u64, responder: u64) -> u64 {
    mix(mix(initiator).wrapping_add(responder))
}

/// The three sessions that a peer may have at once.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    current: Option<Session>,
    previous: Option<Session>,
    /// Made as a responder and not confirmed yet: good for receiving only.
    next: Option<Session>,
}

/// What a datagram of a known session is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// It was seen before, or is too old.
    Refused,
    /// It is new.
    Accepted,
    /// It is new and confirms the session: handshake complete.
    Confirmed,
}

impl Sessions {
    /// The session to send with.
    pub(super) fn sending(&mut self, now: Timestamp) -> Option<&mut Session> {
        self.current
            .as_mut()
            .filter(|session| session.is_valid(now))
    }

    /// Puts a new session in its place; returns the names of those that had to go.
    pub(super) fn add(&mut self, session: Session) -> Vec<u32> {
        let gone = if session.initiator {
            let (gone, previous) = match self.next.take() {
                Some(next) => (self.current.take(), Some(next)),
                None => (None, self.current.take()),
            };
            let older = std::mem::replace(&mut self.previous, previous);
            self.current = Some(session);
            [gone, older]
        } else {
            [self.next.replace(session), self.previous.take()]
        };
        gone.into_iter()
            .flatten()
            .map(|session| session.local)
            .collect()
    }

    /// Takes a datagram in, and a session that it confirms into use.
    pub(super) fn receive(
        &mut self,
        now: Timestamp,
        local: u32,
        secret: u64,
        counter: u64,
    ) -> (Received, Option<u32>) {
        let slots = [&mut self.current, &mut self.previous, &mut self.next];
        let found = slots
            .into_iter()
            .flatten()
            .find(|session| session.local == local && session.secret == secret);
        let Some(session) = found.filter(|session| session.is_valid(now)) else {
            return (Received::Refused, None);
        };
        if !session.window.accept(counter) {
            return (Received::Refused, None);
        }
        if self.next.as_ref().is_none_or(|next| next.local != local) {
            return (Received::Accepted, None);
        }
        let old = std::mem::replace(&mut self.current, self.next.take());
        let gone = std::mem::replace(&mut self.previous, old);
        (Received::Confirmed, gone.map(|session| session.local))
    }

    /// The names of all sessions.
    pub(super) fn names(&self) -> impl Iterator<Item = u32> {
        [&self.current, &self.previous, &self.next]
            .into_iter()
            .flatten()
            .map(|session| session.local)
    }
}

/// Counters that were seen: a sliding window.
#[derive(Debug)]
struct Window {
    /// One above the highest counter seen.
    next: u64,
    /// Bit n: `next - 1 - n` was seen.
    seen: u128,
}

impl Window {
    fn accept(&mut self, counter: u64) -> bool {
        if counter >= self.next {
            let shift = counter - self.next + 1;
            let kept = u32::try_from(shift)
                .ok()
                .and_then(|shift| self.seen.checked_shl(shift));
            self.seen = kept.unwrap_or(0) | 1;
            self.next = counter + 1;
            return true;
        }
        let age = self.next - 1 - counter;
        let bit = u32::try_from(age)
            .ok()
            .and_then(|age| 1u128.checked_shl(age));
        match bit {
            Some(bit) if self.seen & bit == 0 => {
                self.seen |= bit;
                true
            }
            Some(_) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(local: u32, initiator: bool) -> Session {
        Session::new(u64::from(local), local, 0, Timestamp::ZERO, initiator)
    }

    #[test]
    fn a_responder_sends_only_after_the_initiator_has() {
        let mut sessions = Sessions::default();
        sessions.add(session(1, false));
        assert!(sessions.sending(Timestamp::ZERO).is_none());
        assert_eq!(
            sessions.receive(Timestamp::ZERO, 1, 1, 0),
            (Received::Confirmed, None)
        );
        assert!(sessions.sending(Timestamp::ZERO).is_some());
        assert_eq!(
            sessions.receive(Timestamp::ZERO, 1, 1, 1).0,
            Received::Accepted
        );
    }

    #[test]
    fn replays_old_sessions_and_strangers_are_refused() {
        let mut sessions = Sessions::default();
        sessions.add(session(1, true));
        assert_eq!(
            sessions.receive(Timestamp::ZERO, 1, 1, 5).0,
            Received::Accepted
        );
        assert_eq!(
            sessions.receive(Timestamp::ZERO, 1, 1, 5).0,
            Received::Refused
        );
        assert_eq!(
            sessions.receive(Timestamp::ZERO, 1, 1, 4).0,
            Received::Accepted
        );
        assert_eq!(
            sessions.receive(Timestamp::ZERO, 1, 9, 6).0,
            Received::Refused
        );
        let late = Timestamp::ZERO + REJECT_AFTER;
        assert_eq!(sessions.receive(late, 1, 1, 7).0, Received::Refused);
    }

    #[test]
    fn the_window_forgets_what_is_far_behind() {
        let mut window = Window { next: 0, seen: 0 };
        assert!(window.accept(0) && window.accept(200) && window.accept(100));
        assert!(!window.accept(0) && !window.accept(100) && !window.accept(200));
        assert!(window.accept(u64::from(u32::MAX) * 2));
    }

    #[test]
    fn an_initiators_session_replaces_the_current_one() {
        let mut sessions = Sessions::default();
        assert!(sessions.add(session(1, true)).is_empty());
        assert!(sessions.add(session(2, true)).is_empty());
        assert_eq!(sessions.add(session(3, true)), [1]);
        assert_eq!(sessions.add(session(4, false)), [2]);
        assert_eq!(sessions.names().collect::<Vec<_>>(), [3, 4]);
    }
}
