//! Who has which address, key and name?
//!
//! Everything follows from the number of a host, so that nothing has to be stored or looked up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lisp_proto::{Algorithm, AuthKey, PublicKey, SiteId, XtrId};

use super::seeds;

/// The control port, inside the control tunnels.
pub(super) const CONTROL_PORT: u16 = 4342;
/// The UDP port of control tunnels.
pub(super) const CONTROL_TUNNEL_PORT: u16 = 51_820;
/// The UDP port of data interfaces.
pub(super) const DATA_PORT: u16 = 51_821;

/// One agent in so many has a whole prefix instead of an address.
const SITE_EVERY: u32 = 8;
/// Addresses of such a prefix.
const SITE_SIZE: u32 = 16;
/// Key id of every shared secret.
const KEY_ID: u8 = 1;

/// What is looked up.
pub(super) fn overlay() -> [IpNet; 2] {
    let v4 = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8);
    let v6 = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0), 48);
    [v4.into(), v6.into()]
}

/// The EID-prefixes of an agent: an IPv4 and an IPv6 one.
pub(super) fn eid_prefixes(agent: u32) -> [IpNet; 2] {
    let v4_len = if is_site(agent) { 28 } else { 32 };
    let v4 = Ipv4Net::new_assert(eid_v4(agent), v4_len);
    [v4.into(), IpNet::from(eid(agent, true, 0))]
}

/// An EID of an agent; sites have several IPv4 ones.
pub(super) fn eid(agent: u32, ipv6: bool, host: u32) -> IpAddr {
    if ipv6 {
        let [_, b1, b2, b3] = (agent + 1).to_be_bytes();
        let tail = [u16::from(b1), u16::from_be_bytes([b2, b3])];
        return Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, tail[0], tail[1]).into();
    }
    let host = if is_site(agent) { host % SITE_SIZE } else { 0 };
    Ipv4Addr::from(u32::from(eid_v4(agent)) + host).into()
}

/// The agent that owns an address, if any of `agents` does.
pub(super) fn owner(address: IpAddr, agents: u32) -> Option<u32> {
    let agent = place(address)?;
    let owns = |prefix: &IpNet| prefix.contains(&address);
    (agent < agents && eid_prefixes(agent).iter().any(owns)).then_some(agent)
}

/// The agents that may have an EID inside a prefix of the overlay.
pub(super) fn owners(prefix: &IpNet, agents: u32) -> Range<u32> {
    let first = place(prefix.network()).unwrap_or(0);
    let last = place(prefix.broadcast()).unwrap_or(0);
    first..agents.min(last.saturating_add(1))
}

/// The agent in whose part of the overlay an address is.
fn place(address: IpAddr) -> Option<u32> {
    match address {
        IpAddr::V4(address) => Some((u32::from(address) & 0x00ff_ffff) / SITE_SIZE),
        IpAddr::V6(address) => {
            let [.., b1, b2, b3] = address.octets();
            u32::from_be_bytes([0, b1, b2, b3]).checked_sub(1)
        }
    }
}

/// An EID inside the overlay that nobody has.
pub(super) fn unassigned(number: u32, ipv6: bool) -> IpAddr {
    if ipv6 {
        let [high, low] =
            [number >> 16, number & 0xffff].map(|half| u16::try_from(half).unwrap_or(0));
        return Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0xdead, high, low).into();
    }
    Ipv4Addr::from(0x0af0_0000 | (number & 0xf_ffff)).into()
}

/// Where an agent is inside the control tunnels.
pub(super) fn control(agent: u32) -> SocketAddr {
    let [high, low] = [agent >> 16, agent & 0xffff].map(|half| u16::try_from(half).unwrap_or(0));
    let address = Ipv6Addr::new(0xfd4c, 1, 0, 0, 0, 0xa, high, low);
    SocketAddr::new(address.into(), CONTROL_PORT)
}

/// The agent that owns an address inside the control tunnels.
pub(super) fn control_owner(address: IpAddr) -> Option<u32> {
    let IpAddr::V6(address) = address else {
        return None;
    };
    let [.., kind, high, low] = address.segments();
    (kind == 0xa).then_some(u32::from(high) << 16 | u32::from(low))
}

/// Where a map server is inside the control tunnels.
pub(super) fn server(server: u32) -> SocketAddr {
    let low = u16::try_from(server + 1).unwrap_or(0);
    SocketAddr::new(
        Ipv6Addr::new(0xfd4c, 1, 0, 0, 0, 0, 0, low).into(),
        CONTROL_PORT,
    )
}

/// An underlay address that nobody else has.
pub(super) fn rloc(number: u32, ipv6: bool) -> IpAddr {
    if ipv6 {
        let [high, low] =
            [number >> 16, number & 0xffff].map(|half| u16::try_from(half).unwrap_or(0));
        return Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, high, low).into();
    }
    Ipv4Addr::from(0xc612_0000 + number).into()
}

/// What an agent behind a NAT thinks its address is.
pub(super) fn private_rloc(agent: u32, ipv6: bool) -> IpAddr {
    if ipv6 {
        let [high, low] =
            [agent >> 16, agent & 0xffff].map(|half| u16::try_from(half).unwrap_or(0));
        return Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, high, low).into();
    }
    Ipv4Addr::from(0xc0a8_0000 | (agent & 0xffff)).into()
}

/// The address of the host number `number` behind a NAT; they are the same behind each.
pub(super) fn inner_rloc(number: usize, ipv6: bool) -> IpAddr {
    let low = u8::try_from(number).unwrap_or(u8::MAX).saturating_add(10);
    if ipv6 {
        return Ipv6Addr::new(0xfdaa, 1, 0, 0, 0, 0, 0, low.into()).into();
    }
    Ipv4Addr::new(192, 168, 1, low).into()
}

/// A public key: the same for the same arguments, and in no order that means anything.
pub(super) fn key(seed: u64, role: Role, number: u32, generation: u32) -> PublicKey {
    let concern = match role {
        Role::Data => "data key",
        Role::Control => "control key",
        Role::Server => "server key",
        Role::Attacker => "attacker key",
    };
    let which = u64::from(number) << 32 | u64::from(generation);
    PublicKey(seeds::bytes(seeds::mix(seed) ^ seeds::mix(which), concern))
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The data interface of an agent.
    Data,
    /// The control interface of an agent.
    Control,
    /// The control interface of a map server.
    Server,
    /// Somebody who belongs to nobody.
    Attacker,
}

/// The secret that an agent shares with a map server.
pub(super) fn secret(seed: u64, agent: u32, server: u32) -> AuthKey {
    let which = u64::from(agent) << 32 | u64::from(server);
    let secret = seeds::bytes(seeds::mix(seed) ^ seeds::mix(which), "secret");
    AuthKey::new(KEY_ID, Algorithm::Sha256_128Hkdf, &secret)
}

/// The identity of an agent, and of its site.
pub(super) fn ids(agent: u32) -> (XtrId, SiteId) {
    (XtrId((u128::from(agent) + 1).to_be_bytes()), SiteId([0; 8]))
}

fn eid_v4(agent: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + agent * SITE_SIZE)
}

const fn is_site(agent: u32) -> bool {
    agent % SITE_EVERY == 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_leads_back_to_its_owner() {
        for agent in [0, 1, 3, 11, 255, 9_999, 50_000] {
            for (ipv6, host) in [(false, 0), (false, 15), (true, 0)] {
                let address = eid(agent, ipv6, host);
                assert_eq!(owner(address, 100_000), Some(agent), "{address}");
                assert_eq!(owner(address, agent), None, "{address}");
                assert!(overlay().iter().any(|net| net.contains(&address)));
            }
            assert_eq!(control_owner(control(agent).ip()), Some(agent));
            assert_eq!(control_owner(server(agent % 100).ip()), None);
        }
        assert_eq!(
            owner("10.0.0.1".parse().unwrap(), 9),
            None,
            "inside no prefix of agent 0"
        );
    }

    #[test]
    fn all_who_own_something_inside_a_prefix_are_found() {
        let wide: IpNet = "10.0.1.0/24".parse().unwrap();
        assert_eq!(owners(&wide, 100), 16..32);
        assert_eq!(owners(&wide, 20), 16..20);
        for agent in [0, 3, 300] {
            for prefix in eid_prefixes(agent) {
                assert_eq!(owners(&prefix, 1_000), agent..agent + 1);
            }
        }
    }

    #[test]
    fn unassigned_addresses_belong_to_nobody() {
        for number in [0, 1, 77_777] {
            for ipv6 in [false, true] {
                let address = unassigned(number, ipv6);
                assert_eq!(owner(address, 50_000), None, "{address}");
                assert!(overlay().iter().any(|net| net.contains(&address)));
            }
        }
    }

    #[test]
    fn keys_differ_by_everything() {
        let keys = [
            key(1, Role::Data, 0, 0),
            key(2, Role::Data, 0, 0),
            key(1, Role::Control, 0, 0),
            key(1, Role::Data, 1, 0),
            key(1, Role::Data, 0, 1),
        ];
        for (n, key) in keys.iter().enumerate() {
            assert!(!keys.iter().skip(n + 1).any(|other| other == key));
        }
    }
}
