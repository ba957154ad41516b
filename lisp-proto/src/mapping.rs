//! What does the mapping system store: which prefix is reachable where?

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::ParseError;
use crate::types::{PublicKey, Ttl, serde_as_string};

/// Names one copy of the address plan (RFC 8060 §4.1); 0 is the default one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct InstanceId(pub u32);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An EID-prefix within one instance-id: the index of the mapping database.
///
/// Bits beyond the prefix length are always zero. Written `10.0.0.0/8` in instance 0 and
/// `[7]10.0.0.0/8` elsewhere; a bare address reads as a host prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EidPrefix {
    iid: InstanceId,
    net: IpNet,
}

impl EidPrefix {
    /// Builds a prefix; host bits in `net` are cleared.
    #[must_use]
    pub fn new(iid: InstanceId, net: IpNet) -> Self {
        Self {
            iid,
            net: net.trunc(),
        }
    }

    /// Builds the prefix that holds exactly one address.
    #[must_use]
    pub fn host(iid: InstanceId, address: IpAddr) -> Self {
        Self {
            iid,
            net: IpNet::from(address),
        }
    }

    /// Returns the instance-id.
    #[must_use]
    pub const fn iid(&self) -> InstanceId {
        self.iid
    }

    /// Returns the prefix without its instance-id.
    #[must_use]
    pub const fn net(&self) -> IpNet {
        self.net
    }

    /// Whether `address` in instance `iid` lies in this prefix.
    #[must_use]
    pub fn contains(&self, iid: InstanceId, address: IpAddr) -> bool {
        self.iid == iid && self.net.contains(&address)
    }

    /// Whether every address of `other` lies in this prefix; a prefix covers itself.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.iid == other.iid && self.net.contains(&other.net)
    }
}

impl fmt::Display for EidPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.iid != InstanceId::default() {
            write!(f, "[{}]", self.iid)?;
        }
        self.net.fmt(f)
    }
}

impl FromStr for EidPrefix {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (iid, net) = match text.strip_prefix('[') {
            Some(rest) => {
                let (iid, net) = rest.split_once(']').ok_or(ParseError::EidPrefix)?;
                let iid = iid.parse().map_err(|_| ParseError::EidPrefix)?;
                (InstanceId(iid), net)
            }
            None => (InstanceId::default(), text),
        };
        if let Ok(address) = net.parse::<IpAddr>() {
            return Ok(Self::host(iid, address));
        }
        let net = net.parse::<IpNet>().map_err(|_| ParseError::EidPrefix)?;
        Ok(Self::new(iid, net))
    }
}

/// What an ITR does with packets to an EID-prefix that has no locators (RFC 9301 §5.4).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Keeps the entry, encapsulates nothing.
    #[default]
    NoAction,
    /// Forwards the packet without a tunnel.
    NativelyForward,
    /// Asks again for every packet.
    SendMapRequest,
    /// Drops the packet; no reason given.
    Drop,
    /// Drops the packet: policy forbids it.
    PolicyDenied,
    /// Drops the packet: authentication failed.
    AuthFailure,
}

impl Action {
    /// Reads the three ACT bits; the undefined 6 and 7 read as `Drop`.
    pub(crate) const fn from_bits(bits: u16) -> Self {
        match bits {
            0 => Self::NoAction,
            1 => Self::NativelyForward,
            2 => Self::SendMapRequest,
            4 => Self::PolicyDenied,
            5 => Self::AuthFailure,
            _ => Self::Drop,
        }
    }

    /// Returns the three ACT bits.
    pub(crate) const fn bits(self) -> u16 {
        match self {
            Self::NoAction => 0,
            Self::NativelyForward => 1,
            Self::SendMapRequest => 2,
            Self::Drop => 3,
            Self::PolicyDenied => 4,
            Self::AuthFailure => 5,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAction => "no-action",
            Self::NativelyForward => "natively-forward",
            Self::SendMapRequest => "send-map-request",
            Self::Drop => "drop",
            Self::PolicyDenied => "policy-denied",
            Self::AuthFailure => "auth-failure",
        })
    }
}

/// Where an EID-prefix can be reached.
///
/// The order is the one RFC 9301 §5.4 asks of locators on the wire: plain addresses first, IPv4
/// before IPv6, then WireGuard endpoints by address, port and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rloc {
    /// An address without a key: LISP gear that knows no WireGuard.
    Plain(IpAddr),
    /// A WireGuard endpoint and the public key that answers there.
    WireGuard {
        /// Outer address and UDP port.
        endpoint: SocketAddr,
        /// The static public key of the peer.
        key: PublicKey,
    },
}

impl Rloc {
    /// Returns the outer address.
    #[must_use]
    pub const fn ip(&self) -> IpAddr {
        match self {
            Self::Plain(address) => *address,
            Self::WireGuard { endpoint, .. } => endpoint.ip(),
        }
    }
}

/// One locator of a record, with its place in the order of preference (RFC 9301 §5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Locator {
    /// Lower is better; 255 must not be used.
    pub priority: u8,
    /// Share of the traffic among locators of equal priority.
    pub weight: u8,
    /// The locator belongs to the sender (L).
    pub local: bool,
    /// The locator is the one that was probed (p).
    pub probed: bool,
    /// The sender has a route to the locator (R).
    pub reachable: bool,
    /// The locator itself.
    pub rloc: Rloc,
}

/// An EID-prefix and the locators it can be reached at (RFC 9301 §5.4).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Record {
    /// The prefix the record speaks of.
    pub eid: EidPrefix,
    /// How long the record may be used.
    pub ttl: Ttl,
    /// What to do with packets when there are no locators.
    pub action: Action,
    /// The record comes from the ETR itself (A).
    pub authoritative: bool,
    /// In any order: they are sorted when written.
    pub locators: Vec<Locator>,
}

/// One EID-prefix of a Map-Request (RFC 9301 §5.2; RFC 9437 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestedEid {
    /// The requester wants to be told about changes (N).
    pub subscribe: bool,
    /// The prefix asked for.
    pub eid: EidPrefix,
}

serde_as_string!(EidPrefix);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_written_with_their_instance() {
        for text in [
            "10.0.0.0/8",
            "[7]10.0.0.0/8",
            "fd00:1::/48",
            "[4294967295]::/0",
        ] {
            assert_eq!(prefix(text).to_string(), text);
        }
        assert_eq!(prefix("10.0.0.1").to_string(), "10.0.0.1/32");
        assert_eq!(prefix("[7]fd00::1").to_string(), "[7]fd00::1/128");
        assert_eq!(prefix("[0]10.1.2.3/16"), prefix("10.1.0.0/16"));
        assert_eq!(
            serde_json::to_string(&prefix("::1")).unwrap(),
            "\"::1/128\""
        );
        for bad in [
            "",
            "10.0.0.0/33",
            "[7",
            "[x]10.0.0.1",
            "[4294967296]::",
            "10.0.0.0/",
        ] {
            assert_eq!(
                bad.parse::<EidPrefix>(),
                Err(ParseError::EidPrefix),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_prefix_covers_itself_and_what_is_longer_in_the_same_instance() {
        let eight = prefix("10.0.0.0/8");
        assert!(eight.covers(&eight));
        assert!(eight.covers(&prefix("10.1.0.0/16")));
        assert!(!prefix("10.1.0.0/16").covers(&eight));
        assert!(!eight.covers(&prefix("[7]10.1.0.0/16")));
        assert!(!prefix("0.0.0.0/0").covers(&prefix("::/0")));
        assert!(eight.contains(InstanceId(0), "10.9.9.9".parse().unwrap()));
        assert!(!eight.contains(InstanceId(7), "10.9.9.9".parse().unwrap()));
        assert!(!eight.contains(InstanceId(0), "11.0.0.0".parse().unwrap()));
    }

    #[test]
    fn undefined_actions_read_as_drop() {
        for bits in 0..6 {
            assert_eq!(Action::from_bits(bits).bits(), bits);
        }
        assert_eq!(Action::from_bits(6), Action::Drop);
        assert_eq!(Action::from_bits(7), Action::Drop);
        let json = serde_json::to_string(&Action::NativelyForward).unwrap();
        assert_eq!(json, format!("\"{}\"", Action::NativelyForward));
    }

    #[test]
    fn locators_sort_plain_before_keyed_and_ipv4_before_ipv6() {
        let keyed = |endpoint: &str, key: u8| Rloc::WireGuard {
            endpoint: endpoint.parse().unwrap(),
            key: PublicKey([key; 32]),
        };
        let sorted = [
            Rloc::Plain("203.0.113.1".parse().unwrap()),
            Rloc::Plain("2001:db8::1".parse().unwrap()),
            keyed("192.0.2.1:9", 9),
            keyed("192.0.2.2:8", 8),
            keyed("192.0.2.2:9", 7),
            keyed("192.0.2.2:9", 8),
            keyed("[2001:db8::1]:1", 1),
        ];
        assert!(sorted.is_sorted());
    }

    fn prefix(text: &str) -> EidPrefix {
        text.parse().unwrap()
    }
}
