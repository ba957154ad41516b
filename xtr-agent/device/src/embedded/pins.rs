//! From which of our addresses does a packet of the embedded data plane leave?
//!
//! A far end is answered from the address at which it reaches us, as the kernel's WireGuard does it.
//! Only what was authenticated may change that, and gotatun alone knows what was: it keeps the address
//! of the sender. So our own address is made a part of that, in a field of IPv6 socket addresses that
//! means nothing in UDP (`flowinfo`), where IPv4 addresses are written as IPv6 ones (RFC 4291 2.5.5.2).
//! An endpoint that was not learnt from a packet says nothing, and routes decide. So they do where
//! somebody has chosen an uplink, and an address with it. Routes are for all interfaces of this host, and
//! so what was chosen is.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, PoisonError, RwLock};

/// Our addresses that packets of tunnels leave from, for all interfaces that are made with it: far ends are
/// answered from where they reach us, unless something else was chosen for where they are. The kernel's
/// data plane needs none of that, and goes by routes where something was chosen.
#[derive(Clone, Debug, Default)]
pub struct Sources(pub(super) Arc<Pins>);

impl Sources {
    /// From now on these are our addresses at which far ends reach us.
    pub fn set(&self, ours: &[IpAddr]) {
        self.0.set(ours);
    }

    /// From now on packets to `to` leave from `from`, to whose uplink a route leads them; `None`: from
    /// where the far end reaches us.
    pub fn choose(&self, to: IpAddr, from: Option<IpAddr>) {
        self.0.choose(to, from);
    }
}

/// From where packets leave.
#[derive(Debug, Default)]
pub(super) struct Pins(RwLock<Addresses>);

#[derive(Debug, Default)]
struct Addresses {
    /// Addresses of ours, each with a number from 1: numbers stay, addresses come and go.
    known: Vec<(IpAddr, bool)>,
    /// From where packets leave, by where they go.
    chosen: BTreeMap<IpAddr, IpAddr>,
}

/// Most addresses that get a number; others are like those of which nothing is known.
const MOST: usize = 64;

impl Pins {
    /// From now on these are ours; packets that were to leave from others leave from any.
    pub(super) fn set(&self, ours: &[IpAddr]) {
        let mut addresses = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = &mut addresses.known;
        for (address, is_ours) in known.iter_mut() {
            *is_ours = ours.contains(address);
        }
        for address in ours {
            if known.iter().any(|(it, _)| it == address) {
                continue;
            }
            if known.len() < MOST {
                known.push((*address, true));
            } else {
                tracing::warn!(%address, "who reaches it is answered from any address");
            }
        }
    }

    /// From now on packets to `to` leave from `from`, or from where its owner has reached us.
    pub(super) fn choose(&self, to: IpAddr, from: Option<IpAddr>) {
        let mut addresses = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match from {
            Some(from) => addresses.chosen.insert(to, from),
            None => addresses.chosen.remove(&to),
        };
    }

    /// Notes that a packet from `sender` has come to our address `to`.
    pub(super) fn pinned(&self, sender: SocketAddr, to: IpAddr) -> SocketAddr {
        let addresses = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let place = addresses
            .known
            .iter()
            .position(|(it, is_ours)| *is_ours && *it == to);
        let Some(number) = place.and_then(|place| u32::try_from(place + 1).ok()) else {
            return sender;
        };
        let (ip, scope) = match sender {
            SocketAddr::V4(sender) => (sender.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(sender) => (*sender.ip(), sender.scope_id()),
        };
        SocketAddrV6::new(ip, sender.port(), number, scope).into()
    }

    /// Where a packet goes, and from which address.
    pub(super) fn split(&self, destination: SocketAddr) -> (SocketAddr, Option<IpAddr>) {
        let plain = plain(destination);
        let addresses = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let is_ours = |chosen: &IpAddr| addresses.known.contains(&(*chosen, true));
        let chosen = addresses.chosen.get(&plain.ip()).copied();
        let chosen = chosen.filter(is_ours);
        let SocketAddr::V6(pinned) = destination else {
            return (plain, chosen);
        };
        let place = usize::try_from(pinned.flowinfo()).ok();
        let place = place.and_then(|number| number.checked_sub(1));
        let from = place.and_then(|place| addresses.known.get(place));
        let from = from.filter(|(_, is_ours)| *is_ours);
        let reached = from.map(|(address, _)| *address);
        (plain, chosen.or(reached))
    }
}

/// The address of a far end, without ours.
pub(super) fn plain(pinned: SocketAddr) -> SocketAddr {
    let SocketAddr::V6(pinned) = pinned else {
        return pinned;
    };
    match pinned.ip().to_ipv4_mapped() {
        Some(ip) => SocketAddr::new(ip.into(), pinned.port()),
        None => SocketAddrV6::new(*pinned.ip(), pinned.port(), 0, pinned.scope_id()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [IpAddr; 2] = [
        IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)),
    ];

    #[test]
    fn whoever_has_come_to_an_address_is_answered_from_it() {
        let pins = Pins::default();
        pins.set(&OURS);
        for sender in ["203.0.113.9:51820", "[2001:db8::9]:51820", "[fe80::1%3]:9"] {
            let sender: SocketAddr = sender.parse().unwrap();
            for ours in OURS {
                let pinned = pins.pinned(sender, ours);
                assert_eq!(plain(pinned), sender);
                assert_eq!(pins.split(pinned), (sender, Some(ours)));
            }
            assert_eq!(pins.pinned(sender, sender.ip()), sender, "not one of ours");
            assert_eq!(pins.split(sender), (sender, None));
        }
    }

    #[test]
    fn an_address_that_is_gone_is_none_and_one_that_is_back_is_what_it_was() {
        let pins = Pins::default();
        pins.set(&OURS);
        let sender = "203.0.113.9:51820".parse().unwrap();
        let pinned = pins.pinned(sender, OURS[1]);
        pins.set(&OURS[..1]);
        assert_eq!(pins.split(pinned), (sender, None));
        assert_eq!(pins.pinned(sender, OURS[1]), sender);
        pins.set(&OURS);
        assert_eq!(pins.split(pinned), (sender, Some(OURS[1])));
    }

    #[test]
    fn what_was_chosen_counts_more_than_where_a_packet_has_come_to() {
        let pins = Pins::default();
        pins.set(&OURS);
        let sender: SocketAddr = "203.0.113.9:51820".parse().unwrap();
        let pinned = pins.pinned(sender, OURS[0]);
        pins.choose(sender.ip(), Some(OURS[1]));
        for destination in [sender, pinned] {
            assert_eq!(pins.split(destination), (sender, Some(OURS[1])));
        }
        pins.set(&OURS[..1]);
        assert_eq!(pins.split(pinned), (sender, Some(OURS[0])), "it is gone");
        pins.set(&OURS);
        pins.choose(sender.ip(), None);
        assert_eq!(pins.split(pinned), (sender, Some(OURS[0])));
    }

    #[test]
    fn what_has_a_number_has_a_bound() {
        let pins = Pins::default();
        for number in 0..=u8::MAX {
            pins.set(&[[192, 0, 2, number].into()]);
        }
        assert_eq!(pins.0.read().unwrap().known.len(), MOST);
    }
}
