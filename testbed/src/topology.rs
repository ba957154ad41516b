//! Hosts around a switch.
//!
//! ```text
//!   host a ──link a──┐
//!   host b ──link b──┤ switch (a bridge in its own namespace)
//!   host c ──link c──┘
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::error::TestbedError;
use crate::link::{Link, LinkEnd, LinkParams};
use crate::namespace::Namespace;
use crate::netlink::Mac;
use crate::settle::wait_until_settled;
use crate::testbed::Testbed;

/// Name of the interface towards the switch in every host.
pub const HOST_INTERFACE: &str = "eth0";
const BRIDGE: &str = "switch";
/// The IPv4 underlay (TEST-NET-1, RFC 5737).
const UNDERLAY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 0);
const UNDERLAY_V4_LENGTH: u8 = 24;
/// The IPv6 underlay (RFC 3849).
const UNDERLAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0);
const UNDERLAY_V6_LENGTH: u8 = 64;

/// Which addresses hosts have on the underlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underlay {
    /// IPv4 and IPv6.
    #[default]
    Dual,
    /// IPv4 only.
    Ipv4Only,
    /// IPv6 only.
    Ipv6Only,
}

/// Hosts around a switch, each on a link of its own.
pub struct Topology {
    testbed: Testbed,
    underlay: Underlay,
    switch: Namespace,
    neighbours: Vec<Neighbour>,
}

/// What hosts need to know of each other.
struct Neighbour {
    namespace: Namespace,
    mac: Mac,
    addresses: Vec<IpAddr>,
}

/// A host: a namespace with an interface `eth0` on a link to the switch.
pub struct Host {
    /// The host's name in the topology.
    pub role: String,
    /// Where its programs run.
    pub namespace: Namespace,
    /// Its link; the first end is the host.
    pub link: Link,
    addresses: Vec<IpAddr>,
}

impl Topology {
    /// Makes the switch.
    ///
    /// # Errors
    ///
    /// When namespaces are not permitted.
    pub fn new(testbed: &Testbed, underlay: Underlay) -> Result<Self, TestbedError> {
        let switch = testbed.namespace("switch")?;
        switch.add_bridge(BRIDGE)?;
        Ok(Self {
            testbed: testbed.clone(),
            underlay,
            switch,
            neighbours: Vec::new(),
        })
    }

    /// Adds a host. The first one has the addresses 192.0.2.1 and 2001:db8::1, and so on.
    ///
    /// All hosts know each other's hardware addresses: a path's first packet takes as long as
    /// the others, as between hosts with a router in front of them.
    ///
    /// # Errors
    ///
    /// When the role is taken or longer than 15 bytes.
    pub fn add_host(&mut self, role: &str, params: LinkParams) -> Result<Host, TestbedError> {
        let namespace = self.testbed.namespace(role)?;
        let ends =
            [(&namespace, HOST_INTERFACE), (&self.switch, role)].map(|(at, interface)| LinkEnd {
                namespace: at.clone(),
                interface: interface.into(),
            });
        let link = Link::new(&self.testbed, ends, params)?;
        self.switch.attach(role, BRIDGE)?;
        let mut addresses = Vec::new();
        for net in self.underlay.nets(self.neighbours.len()) {
            namespace.add_address(HOST_INTERFACE, net)?;
            addresses.push(net.addr());
        }
        wait_until_settled(namespace.netlink(), HOST_INTERFACE)?;
        let [mac, _] = link.macs();
        let own = Neighbour {
            namespace: namespace.clone(),
            mac,
            addresses: addresses.clone(),
        };
        for other in &self.neighbours {
            other.learn(&own)?;
            own.learn(other)?;
        }
        self.neighbours.push(own);
        Ok(Host {
            role: role.into(),
            namespace,
            link,
            addresses,
        })
    }

    /// Gives `host` the address `to` instead of its other one of that family, as if it had moved to
    /// another network. Everybody knows the way.
    ///
    /// # Errors
    ///
    /// When the host has no address of that family.
    pub fn move_host(&mut self, host: &mut Host, to: IpAddr) -> Result<(), TestbedError> {
        let mut own = host.addresses.iter_mut();
        let old = own.find(|address| address.is_ipv4() == to.is_ipv4());
        let old = old.ok_or(TestbedError::Unexpected("no address to move from"))?;
        let [mac, _] = host.link.macs();
        for other in &mut self.neighbours {
            if other.namespace.name() == host.namespace.name() {
                for address in other.addresses.iter_mut().filter(|address| *address == old) {
                    *address = to;
                }
            } else {
                let namespace = &other.namespace;
                namespace.add_neighbour(HOST_INTERFACE, to, mac)?;
            }
        }
        let net = |address: IpAddr| match address {
            IpAddr::V4(_) => IpNet::new(address, UNDERLAY_V4_LENGTH),
            IpAddr::V6(_) => IpNet::new(address, UNDERLAY_V6_LENGTH),
        };
        let (Ok(before), Ok(after)) = (net(*old), net(to)) else {
            return Err(TestbedError::Unexpected("a prefix length out of range"));
        };
        // Away with it first: all others of its subnet would go with it.
        host.namespace.delete_address(HOST_INTERFACE, before)?;
        host.namespace.add_address(HOST_INTERFACE, after)?;
        *old = to;
        Ok(())
    }

    /// Plugs a port of the switch in again that was taken out of it.
    ///
    /// # Errors
    ///
    /// When there is no such port.
    pub(crate) fn attach(&self, port: &str) -> Result<(), TestbedError> {
        self.switch.attach(port, BRIDGE)
    }

    /// The namespace of the switch.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }
}

impl Host {
    /// The host's underlay addresses, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }
}

impl Neighbour {
    fn learn(&self, other: &Self) -> Result<(), TestbedError> {
        other
            .addresses
            .iter()
            .try_for_each(|at| self.namespace.add_neighbour(HOST_INTERFACE, *at, other.mac))
    }
}

impl Underlay {
    /// The addresses of the host that comes after `hosts` others.
    fn nets(self, hosts: usize) -> Vec<IpNet> {
        let number = u32::try_from(hosts).unwrap_or(u32::MAX).saturating_add(1);
        let v4 = Ipv4Addr::from_bits(UNDERLAY_V4.to_bits().saturating_add(number));
        let v6 = Ipv6Addr::from_bits(UNDERLAY_V6.to_bits().saturating_add(number.into()));
        let v4 = Ipv4Net::new(v4, UNDERLAY_V4_LENGTH).ok().map(IpNet::V4);
        let v6 = Ipv6Net::new(v6, UNDERLAY_V6_LENGTH).ok().map(IpNet::V6);
        let (v4, v6) = match self {
            Self::Dual => (v4, v6),
            Self::Ipv4Only => (v4, None),
            Self::Ipv6Only => (None, v6),
        };
        v4.into_iter().chain(v6).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_numbered_from_one() {
        let text = |nets: Vec<IpNet>| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            text(Underlay::Dual.nets(0)),
            ["192.0.2.1/24", "2001:db8::1/64"]
        );
        assert_eq!(text(Underlay::Ipv6Only.nets(1)), ["2001:db8::2/64"]);
        assert_eq!(text(Underlay::Ipv4Only.nets(9)), ["192.0.2.10/24"]);
    }
}
