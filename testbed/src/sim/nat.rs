//! What does a home router let through? A cone NAT: one outer port per inner port, and inbound
//! only from whom a datagram was sent to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lisp_proto::Timestamp;

/// Silence after which a mapping is gone (RFC 4787 REQ-5: two minutes at least).
pub(super) const IDLE: Duration = Duration::from_secs(120);
/// First outer port.
const FIRST_PORT: u16 = 20_000;

/// A NAT with one host behind it.
#[derive(Debug)]
pub(super) struct Nat {
    public: IpAddr,
    by_inside: BTreeMap<u16, Mapping>,
    next_port: u16,
}

#[derive(Debug)]
struct Mapping {
    outside: u16,
    /// Whom the host has sent to, and when last.
    opened: BTreeMap<SocketAddr, Timestamp>,
}

impl Nat {
    pub(super) const fn new(public: IpAddr) -> Self {
        Self {
            public,
            by_inside: BTreeMap::new(),
            next_port: FIRST_PORT,
        }
    }

    /// The source that a datagram from `inside` to `remote` gets.
    pub(super) fn outbound(
        &mut self,
        now: Timestamp,
        inside: u16,
        remote: SocketAddr,
    ) -> SocketAddr {
        let known = self.by_inside.entry(inside).or_insert_with(|| Mapping {
            outside: 0,
            opened: BTreeMap::new(),
        });
        known.opened.retain(|_, last| now - *last < IDLE);
        if known.opened.is_empty() {
            known.outside = self.next_port;
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
        }
        known.opened.insert(remote, now);
        SocketAddr::new(self.public, known.outside)
    }

    /// The inner port that a datagram from `remote` to `outside` goes to.
    pub(super) fn inbound(&self, now: Timestamp, outside: u16, remote: SocketAddr) -> Option<u16> {
        let mut mappings = self.by_inside.iter();
        let (inside, mapping) = mappings.find(|(_, mapping)| mapping.outside == outside)?;
        let last = mapping.opened.get(&remote)?;
        (now - *last < IDLE).then_some(*inside)
    }

    /// Forgets all mappings; the ports are not used again soon.
    pub(super) fn forget(&mut self) {
        self.by_inside.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_come_in_and_only_for_a_while() {
        let [friend, stranger]: [SocketAddr; 2] =
            ["192.0.2.1:9", "192.0.2.2:9"].map(|text| text.parse().unwrap());
        let mut nat = Nat::new("198.51.100.1".parse().unwrap());
        let outside = nat.outbound(Timestamp::ZERO, 51_821, friend);
        assert_eq!(
            nat.outbound(Timestamp::ZERO, 51_821, stranger),
            outside,
            "a cone"
        );
        let port = outside.port();
        nat.forget();
        let outside = nat.outbound(Timestamp::ZERO, 51_821, friend);
        assert_ne!(outside.port(), port);
        let port = outside.port();
        assert_eq!(nat.inbound(Timestamp::ZERO, port, friend), Some(51_821));
        assert_eq!(nat.inbound(Timestamp::ZERO, port, stranger), None);
        let later = Timestamp::ZERO + IDLE;
        assert_eq!(nat.inbound(later, port, friend), None);
        assert_ne!(nat.outbound(later, 51_821, friend).port(), port);
    }
}
