//! Which uplinks are there?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{SETTING, UplinkSpec};
use crate::error::DeviceError;
use crate::netlink::link::Links;

/// An uplink that is there: its interface is up and has the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) spec: UplinkSpec,
    pub(super) index: u32,
    /// The network that it is in.
    pub(super) network: IpNet,
    /// Its place among all that are configured.
    pub(super) place: u32,
}

#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) present: Vec<Present>,
    /// The networks of all uplinks, whether their interfaces are up or not.
    pub(super) networks: BTreeSet<IpNet>,
    /// Why others are not there.
    pub(super) missing: BTreeMap<IpAddr, Missing>,
}

/// Why an uplink is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Interface,
    Address,
    Carrier,
    /// Of an IPv6 address it is looked first whether somebody else has it, or somebody has.
    Confirmation,
    /// It is there, and held back.
    HeldBack,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interface => "there is no such interface",
            Self::Address => "the interface has no such address",
            Self::Carrier => "the interface is down or has no carrier",
            Self::Confirmation => "others may have the address (duplicate address detection)",
            Self::HeldBack => "it comes and goes; it is used again when it has stayed for a while",
        })
    }
}

impl Present {
    /// Whether its gateway is none of the network that it is in, as far as that can be told: one of which
    /// only the own address is at the interface has none, and routers have link-local addresses as well.
    pub(super) fn has_gateway_elsewhere(&self) -> bool {
        let is_alone = self.network.prefix_len() == self.network.max_prefix_len();
        self.spec.gateway.is_some_and(|gateway| {
            let is_link_local = match gateway {
                IpAddr::V4(gateway) => gateway.is_link_local(),
                IpAddr::V6(gateway) => gateway.is_unicast_link_local(),
            };
            !is_alone && !is_link_local && !self.network.contains(&gateway)
        })
    }
}

impl Looked {
    /// Those of `wanted` that are there.
    ///
    /// # Errors
    /// The system does not tell.
    pub(super) fn at(links: &mut Links, wanted: &[UplinkSpec]) -> Result<Self, DeviceError> {
        let mut looked = Self::default();
        for (place, spec) in (0..).zip(wanted) {
            let found = find(links, spec, place);
            let found = found.map_err(|e| DeviceError::system(SETTING, &spec.interface, e))?;
            let missing = match found {
                Err(missing) => Some(missing),
                Ok((uplink, missing)) => {
                    looked.networks.insert(uplink.network);
                    if missing.is_none() {
                        looked.present.push(uplink);
                    }
                    missing
                }
            };
            let missing = missing.map(|missing| (spec.address, missing));
            looked.missing.extend(missing);
        }
        Ok(looked)
    }

    /// The addresses of those that are there.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.present.iter().map(|it| it.spec.address)
    }

    /// Those with these addresses count as if they were not there.
    pub(super) fn hold_back(&mut self, held: &BTreeSet<IpAddr>) {
        self.present.retain(|it| !held.contains(&it.spec.address));
        let held = held.iter().map(|it| (*it, Missing::HeldBack));
        self.missing.extend(held);
    }
}

/// The uplink `spec` if its interface has the address, and why packets cannot leave from it, if so.
fn find(
    links: &mut Links,
    spec: &UplinkSpec,
    place: u32,
) -> io::Result<Result<(Present, Option<Missing>), Missing>> {
    let Some(link) = links.find(&spec.interface)? else {
        return Ok(Err(Missing::Interface));
    };
    let addresses = links.addresses(link.index)?;
    let mut addresses = addresses.into_iter();
    let own = addresses.find(|own| own.net.addr() == spec.address);
    let Some(own) = own else {
        return Ok(Err(Missing::Address));
    };
    let uplink = Present {
        spec: spec.clone(),
        index: link.index,
        network: own.net.trunc(),
        place,
    };
    let missing = match (link.is_running, own.is_ready) {
        (false, _) => Some(Missing::Carrier),
        (true, false) => Some(Missing::Confirmation),
        (true, true) => None,
    };
    Ok(Ok((uplink, missing)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_the_network_does_not_have_is_elsewhere() {
        let is_elsewhere = |net: &str, gateway: &str| {
            let net: IpNet = net.parse().unwrap();
            let uplink = Present {
                spec: UplinkSpec {
                    address: net.addr(),
                    interface: "eth0".into(),
                    gateway: gateway.parse().ok(),
                    rank: 0,
                },
                index: 1,
                network: net.trunc(),
                place: 0,
            };
            uplink.has_gateway_elsewhere()
        };
        assert!(is_elsewhere("192.0.2.1/24", "198.51.100.254"));
        assert!(is_elsewhere("2001:db8::1/64", "2001:db8:1::1"));
        for (net, gateway) in [
            ("192.0.2.1/24", "192.0.2.254"),
            ("192.0.2.1/24", ""),
            ("192.0.2.1/32", "198.51.100.254"),
            ("192.0.2.1/24", "169.254.0.1"),
            ("2001:db8::1/64", "fe80::1"),
        ] {
            assert!(!is_elsewhere(net, gateway), "{net} {gateway}");
        }
    }
}
