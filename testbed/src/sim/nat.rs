//! What does a home router let through? It gives a host behind it an outer port, the same one towards
//! everybody (a cone) or another one for each destination, and inbound only from whom a datagram was sent to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lisp_proto::Timestamp;
use serde::{Deserialize, Serialize};

/// Silence after which a mapping is gone (RFC 4787 REQ-5: two minutes at least).
pub(super) const IDLE: Duration = Duration::from_secs(120);
/// First outer port.
const FIRST_PORT: u16 = 20_000;

/// Which outer ports a NAT gives (RFC 4787 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ports {
    /// The inner one, if nobody else has that; the same towards everybody.
    Kept,
    /// Another one than inside; the same towards everybody.
    Changed,
    /// Another one for each destination ("symmetric").
    Scattered,
}

/// A NAT.
#[derive(Debug)]
pub(super) struct Nat {
    public: IpAddr,
    ports: Ports,
    /// Silence after which a mapping is gone.
    forgets: Duration,
    /// Whether what comes in keeps a mapping as well (RFC 4787 REQ-6 leaves that open).
    renews_inbound: bool,
    mappings: BTreeMap<(SocketAddr, Option<SocketAddr>), Mapping>,
    next_port: u16,
}

#[derive(Debug, Default)]
struct Mapping {
    outside: u16,
    /// Whom the host has sent to, and when last.
    opened: BTreeMap<SocketAddr, Timestamp>,
}

impl Nat {
    /// A cone that changes ports, and that only what goes out keeps open.
    pub(super) const fn plain(public: IpAddr) -> Self {
        let mut nat = Self::new(public, Ports::Changed, IDLE);
        nat.renews_inbound = false;
        nat
    }

    /// A NAT that forgets a mapping over which nothing has passed for `forgets`.
    pub(super) const fn new(public: IpAddr, ports: Ports, forgets: Duration) -> Self {
        Self {
            public,
            ports,
            forgets,
            renews_inbound: true,
            mappings: BTreeMap::new(),
            next_port: FIRST_PORT,
        }
    }

    /// The source that a datagram from `inside` to `remote` gets.
    pub(super) fn outbound(
        &mut self,
        now: Timestamp,
        inside: SocketAddr,
        remote: SocketAddr,
    ) -> SocketAddr {
        let destination = (self.ports == Ports::Scattered).then_some(remote);
        let forgets = self.forgets;
        let mut mapping = self.mappings.remove(&(inside, destination));
        if let Some(mapping) = &mut mapping {
            mapping.opened.retain(|_, last| now - *last < forgets);
        }
        let mut mapping = mapping.unwrap_or_default();
        if mapping.opened.is_empty() {
            mapping.outside = self.new_port(now, inside.port());
        }
        mapping.opened.insert(remote, now);
        let outside = mapping.outside;
        self.mappings.insert((inside, destination), mapping);
        SocketAddr::new(self.public, outside)
    }

    /// Where a datagram from `remote` to `outside` goes.
    pub(super) fn inbound(
        &mut self,
        now: Timestamp,
        outside: u16,
        remote: SocketAddr,
    ) -> Option<SocketAddr> {
        let (forgets, renews) = (self.forgets, self.renews_inbound);
        self.mappings.iter_mut().find_map(|((inside, _), mapping)| {
            let last = mapping.opened.get_mut(&remote);
            let last = last.filter(|last| mapping.outside == outside && now - **last < forgets)?;
            if renews {
                *last = now;
            }
            Some(*inside)
        })
    }

    /// Who has the port `outside`, whether he hears its sender or not.
    pub(super) fn holder(&self, outside: u16) -> Option<SocketAddr> {
        let mut mappings = self.mappings.iter();
        let found = mappings.find(|(_, mapping)| mapping.outside == outside);
        found.map(|((inside, _), _)| *inside)
    }

    /// Forgets all mappings; the ports that it chose itself are not used again soon.
    pub(super) fn forget(&mut self) {
        self.mappings.clear();
    }

    /// Gets another address, and forgets all mappings. Returns the one that it had.
    pub(super) fn renumber(&mut self, public: IpAddr) -> IpAddr {
        self.forget();
        std::mem::replace(&mut self.public, public)
    }

    pub(super) const fn public(&self) -> IpAddr {
        self.public
    }

    fn new_port(&mut self, now: Timestamp, inside: u16) -> u16 {
        let forgets = self.forgets;
        let mut others = self.mappings.values();
        let is_taken = others.any(|mapping| {
            let mut opened = mapping.opened.values();
            mapping.outside == inside && opened.any(|last| now - *last < forgets)
        });
        if self.ports == Ports::Kept && !is_taken {
            return inside;
        }
        let port = self.next_port;
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
        port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets<const N: usize>(texts: [&str; N]) -> [SocketAddr; N] {
        texts.map(|text| text.parse().unwrap())
    }

    #[test]
    fn only_answers_come_in_and_only_for_a_while() {
        let [friend, stranger, inside] = sockets(["192.0.2.1:9", "192.0.2.2:9", "10.0.0.1:51821"]);
        let mut nat = Nat::plain("198.51.100.1".parse().unwrap());
        let outside = nat.outbound(Timestamp::ZERO, inside, friend);
        assert_eq!(
            nat.outbound(Timestamp::ZERO, inside, stranger),
            outside,
            "a cone"
        );
        let port = outside.port();
        nat.forget();
        let outside = nat.outbound(Timestamp::ZERO, inside, friend);
        assert_ne!(outside.port(), port);
        let port = outside.port();
        assert_eq!(nat.inbound(Timestamp::ZERO, port, friend), Some(inside));
        assert_eq!(nat.inbound(Timestamp::ZERO, port, stranger), None);
        assert_eq!(nat.holder(port), Some(inside));
        let later = Timestamp::ZERO + IDLE;
        assert_eq!(nat.inbound(later, port, friend), None);
        assert_ne!(nat.outbound(later, inside, friend).port(), port);
    }

    #[test]
    fn ports_are_kept_changed_or_scattered() {
        let [one, other, inside, beside] = sockets([
            "192.0.2.1:9",
            "192.0.2.2:9",
            "10.0.0.1:51821",
            "10.0.0.2:51821",
        ]);
        let outside = |ports| {
            let mut nat = Nat::new("198.51.100.1".parse().unwrap(), ports, IDLE);
            let ways = [(inside, one), (inside, other), (beside, one)];
            ways.map(|(from, to)| nat.outbound(Timestamp::ZERO, from, to).port())
        };
        let [first, second, third] = outside(Ports::Kept);
        assert_eq!([first, second], [51_821; 2]);
        assert_ne!(third, 51_821, "somebody else has it");
        let [first, second, third] = outside(Ports::Changed);
        assert!(first == second && first != 51_821 && third != first);
        let [first, second, third] = outside(Ports::Scattered);
        assert!(first != second && second != third && third != first);
    }

    #[test]
    fn what_comes_in_keeps_a_mapping_of_most() {
        let [friend, inside] = sockets(["192.0.2.1:9", "10.0.0.1:51821"]);
        let public = "198.51.100.1".parse().unwrap();
        for (mut nat, renews) in [
            (Nat::new(public, Ports::Kept, IDLE), true),
            (Nat::plain(public), false),
        ] {
            let port = nat.outbound(Timestamp::ZERO, inside, friend).port();
            let soon = Timestamp::ZERO + IDLE / 2;
            assert_eq!(nat.inbound(soon, port, friend), Some(inside));
            let later = Timestamp::ZERO + IDLE;
            assert_eq!(nat.inbound(later, port, friend).is_some(), renews);
        }
    }
}
