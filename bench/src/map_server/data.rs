//! Mappings by number, and the messages about them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lisp_proto::{
    Action, Algorithm, AuthKey, EidPrefix, InstanceId, Locator, Nonce, PublicKey, Record,
    RegisterFlags, RegisterParams, RequestParams, RequestedEid, Rloc, Ttl, encode_ecm,
    encode_map_register, encode_map_request,
};
use serde::{Deserialize, Serialize};

/// One prefix in so many is shorter than a host.
const SHORTER: u32 = 16;
/// Instance-ids in use.
const INSTANCES: [u32; 4] = [0, 7, 1_000, 16_777_215];
/// Mappings whose numbers differ by this are of the same family and instance-id: messages about them are
/// of the same length.
pub(super) const KINDS: u32 = 8;
/// Mappings last for a day: no refresh is in the way of what is measured.
const TTL_MIN: u32 = 1_440;

/// Which mappings a map server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Plan {
    /// Host and shorter prefixes of both families in four instances.
    Mixed,
    /// IPv4 hosts of one instance.
    Hosts4,
    /// IPv6 hosts of one instance.
    Hosts6,
}

/// Who speaks to the map server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Dialect {
    /// Lispwire's.
    Ours,
    /// Open Overlay Router's.
    Oor,
}

impl Dialect {
    /// The secret of all Map-Registers.
    pub(super) fn key(self) -> AuthKey {
        match self {
            Self::Ours => AuthKey::new(1, Algorithm::Sha256_128, SECRET.as_bytes()),
            Self::Oor => AuthKey::new(0, Algorithm::Sha1_96, SECRET.as_bytes()).with_tag_len(true),
        }
    }
}

/// What both ends know.
pub(super) const SECRET: &str = "password";

/// The configured prefixes that contain all mappings.
pub(super) fn configured() -> Vec<EidPrefix> {
    let nets = ["10.0.0.0/8", "11.0.0.0/8", "fd00::/16", "fd01::/16"];
    let nets = nets.iter().filter_map(|net| net.parse::<IpNet>().ok());
    let all = nets.flat_map(|net| INSTANCES.map(|iid| EidPrefix::new(InstanceId(iid), net)));
    all.collect()
}

/// Spreads numbers over their range, each to another place.
const fn scatter(number: u32, bits: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b1) & (u32::MAX >> (32 - bits))
}

impl Plan {
    /// The prefix of mapping number `n`.
    pub(super) fn eid(self, n: u32) -> EidPrefix {
        let (iid, v6, number, shorter) = match self {
            Self::Hosts4 => (0, false, n, false),
            Self::Hosts6 => (0, true, n, false),
            Self::Mixed => {
                let iid = INSTANCES.get((n % 4) as usize).copied().unwrap_or(0);
                let number = n / KINDS;
                (
                    iid,
                    (n / 4) % 2 == 1,
                    number,
                    number.is_multiple_of(SHORTER),
                )
            }
        };
        let net = match (v6, shorter) {
            (false, false) => v4(0x0a00_0000 | scatter(number, 24), 32),
            (false, true) => v4(0x0b00_0000 | (scatter(number / SHORTER, 20) << 4), 28),
            (true, shorter) => {
                let high = u128::from(scatter(number, 31)) << 64;
                let low = u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let low = low & u128::from(u64::MAX);
                let base = if shorter { 0xfd01_u128 } else { 0xfd00 } << 112;
                match shorter {
                    true => v6_net(base | high, 64),
                    false => v6_net(base | high | low, 128),
                }
            }
        };
        EidPrefix::new(InstanceId(iid), net)
    }

    /// An address in mapping number `n`.
    pub(super) fn host(self, n: u32) -> EidPrefix {
        let eid = self.eid(n);
        let address = match eid.net() {
            IpNet::V4(net) if net.prefix_len() < 32 => {
                IpAddr::from(Ipv4Addr::from(net.addr().to_bits() | 5))
            }
            IpNet::V6(net) if net.prefix_len() < 128 => {
                Ipv6Addr::from(net.addr().to_bits() | 5).into()
            }
            net @ (IpNet::V4(_) | IpNet::V6(_)) => net.addr(),
        };
        EidPrefix::host(eid.iid(), address)
    }

    /// Mapping number `n`, after `changes` changes: to a WireGuard endpoint with its key, or to an address
    /// alone, as gear without WireGuard registers it.
    pub(super) fn record(self, n: u32, changes: u16, keyed: bool) -> Record {
        let eid = self.eid(n);
        let address: IpAddr = match eid.net() {
            IpNet::V4(_) => Ipv4Addr::from(0xc000_0200 | (n & 0xff)).into(),
            IpNet::V6(_) => Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(n)).into(),
        };
        let rloc = match keyed {
            false => Rloc::Plain(address),
            true => {
                let mut key = [0x5a; 32];
                for (to, from) in key.iter_mut().zip(n.to_be_bytes()) {
                    *to = from;
                }
                Rloc::WireGuard {
                    endpoint: SocketAddr::new(address, 51_820 + changes),
                    key: PublicKey(key),
                }
            }
        };
        let locator = Locator {
            priority: 1,
            weight: 100,
            local: true,
            probed: false,
            reachable: true,
            rloc,
        };
        Record {
            eid,
            ttl: Ttl::from_minutes(TTL_MIN),
            action: Action::NoAction,
            authoritative: true,
            locators: vec![locator],
        }
    }

    /// Appends an encapsulated Map-Request for mapping number `n` from `source`.
    pub(super) fn request(
        self,
        n: u32,
        nonce: u64,
        source: SocketAddr,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let eids = [RequestedEid {
            subscribe: false,
            eid: self.host(n),
        }];
        let params = RequestParams {
            nonce: Nonce(nonce),
            itr_rlocs: &[source.ip()],
            eids: &eids,
            ..RequestParams::default()
        };
        let mut message = Vec::with_capacity(64);
        encode_map_request(&params, &mut message)?;
        // The inner addresses mean nothing to a map server, but both must be of the same family.
        let destination = SocketAddr::new(source.ip(), 4342);
        encode_ecm(source, destination, &message, out)?;
        Ok(())
    }
}

/// Appends a Map-Register to `out`; with the T bit it lasts as long as its records.
pub(super) fn register(
    dialect: Dialect,
    key: &AuthKey,
    nonce: u64,
    records: &[Record],
    out: &mut Vec<u8>,
) -> Result<()> {
    let params = RegisterParams {
        flags: RegisterFlags {
            proxy_reply: true,
            want_notify: true,
            use_ttl: dialect == Dialect::Ours,
            ..RegisterFlags::default()
        },
        nonce: Nonce(nonce),
        records,
        ids: None,
    };
    encode_map_register(&params, key, out)?;
    Ok(())
}

fn v4(bits: u32, length: u8) -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::from(bits), length).into()
}

fn v6_net(bits: u128, length: u8) -> IpNet {
    Ipv6Net::new_assert(Ipv6Addr::from(bits), length).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_number_has_a_prefix_of_its_own_inside_what_is_configured() {
        for plan in [Plan::Mixed, Plan::Hosts4, Plan::Hosts6] {
            let mut seen = BTreeSet::new();
            for n in (0..200_000).chain(9_900_000..10_000_000) {
                let eid = plan.eid(n);
                assert!(seen.insert(eid), "{plan:?} {n}");
                assert!(configured().iter().any(|it| it.covers(&eid)), "{eid}");
                assert!(eid.covers(&plan.host(n)));
            }
        }
    }
}
