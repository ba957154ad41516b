//! A second uplink for an endpoint, by another provider, and ways in which the first one fails.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use ipnet::{IpNet, Ipv4Net};

use super::{Network, NetworkOptions};
use crate::error::{Doing, TestbedError};
use crate::link::{Link, LinkEnd, LinkParams};
use crate::namespace::Namespace;
use crate::topology::{HOST_INTERFACE, Host};

/// The endpoint's second interface.
const SECOND: &str = "eth1";
/// The provider's interface towards it.
const CUSTOMER: &str = "customer";
/// The network between the two (TEST-NET-2, RFC 5737).
const NETWORK: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 0);
const PREFIX_LENGTH: u8 = 24;

/// The second uplink of an endpoint: a router of its own leads to everybody.
pub struct SecondUplink {
    /// The endpoint's address there.
    pub address: IpAddr,
    /// The router's.
    pub gateway: IpAddr,
    /// The endpoint's first address.
    pub first: IpAddr,
    /// Name of the endpoint, and of its port at the switch.
    name: String,
    endpoint: Namespace,
    _router: Host,
    _cable: Link,
}

/// A way in which the first uplink fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UplinkFailure {
    /// The cable is out: the interface has no carrier.
    Cut,
    /// Everything is lost beyond it, in both directions.
    BlackHole,
    /// What comes is lost; what goes arrives.
    OneWay,
}

impl UplinkFailure {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Cut, Self::BlackHole, Self::OneWay];
}

impl Network {
    /// Gives an endpoint a second uplink, by a router of the name `provider`. Before anything is started.
    ///
    /// # Errors
    ///
    /// When there is no such endpoint, or the underlay has no IPv4.
    pub fn second_uplink(
        &mut self,
        provider: &str,
        index: usize,
        options: &NetworkOptions,
    ) -> Result<SecondUplink, TestbedError> {
        let router = self.topology.add_host(provider, options.links)?;
        let endpoint = self.endpoints.get(index);
        let endpoint = endpoint.ok_or(TestbedError::Unexpected("no such endpoint"))?;
        let namespace = endpoint.namespace();
        let ends = [(namespace, SECOND), (&router.namespace, CUSTOMER)];
        let ends = ends.map(|(at, interface)| LinkEnd {
            namespace: at.clone(),
            interface: interface.into(),
        });
        let cable = Link::new(&self.testbed, ends, LinkParams::default())?;
        let [gateway, own] = [1, 2].map(|last| Ipv4Addr::from_bits(NETWORK.to_bits() + last));
        namespace.add_address(SECOND, within(own)?)?;
        router.namespace.add_address(CUSTOMER, within(gateway)?)?;
        let forward = ["-q", "-w", "net.ipv4.ip_forward=1"];
        run(&router.namespace, "sysctl", &forward)?;
        let [first, via] = [&endpoint.node.host, &router].map(|host| host.addresses().first());
        let (Some(first), Some(IpAddr::V4(via))) = (first.copied(), via) else {
            return Err(TestbedError::Unexpected("an underlay without IPv4"));
        };
        let net = Ipv4Net::new(NETWORK, PREFIX_LENGTH);
        let net = net.map_err(|_| TestbedError::Unexpected("a prefix length"))?;
        for node in self.nodes() {
            if node.name() != endpoint.name() {
                node.host.namespace.set_route(net, *via)?;
            }
        }
        Ok(SecondUplink {
            address: own.into(),
            gateway: gateway.into(),
            first,
            name: endpoint.name().to_owned(),
            endpoint: namespace.clone(),
            _router: router,
            _cable: cable,
        })
    }

    /// Lets the first uplink of an endpoint with a second one fail; nobody is told.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn fail_first(
        &self,
        uplink: &SecondUplink,
        failure: UplinkFailure,
    ) -> Result<(), TestbedError> {
        let (switch, port) = (self.topology.switch(), uplink.name.as_str());
        match failure {
            UplinkFailure::Cut => run(switch, "ip", &["link", "set", port, "down"]),
            UplinkFailure::BlackHole => run(switch, "ip", &["link", "set", port, "nomaster"]),
            UplinkFailure::OneWay => {
                let hook = "{ type filter hook input priority 0; }";
                run(&uplink.endpoint, "nft", &["add", "table", "ip", HOLE])?;
                run(
                    &uplink.endpoint,
                    "nft",
                    &["add", "chain", "ip", HOLE, CHAIN, hook],
                )?;
                let lost = ["iifname", HOST_INTERFACE, "drop"];
                let rule = [&["add", "rule", "ip", HOLE, CHAIN][..], &lost].concat();
                run(&uplink.endpoint, "nft", &rule)
            }
        }
    }

    /// Undoes [`fail_first`](Self::fail_first).
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn heal_first(
        &self,
        uplink: &SecondUplink,
        failure: UplinkFailure,
    ) -> Result<(), TestbedError> {
        let (switch, port) = (self.topology.switch(), uplink.name.as_str());
        match failure {
            UplinkFailure::Cut => run(switch, "ip", &["link", "set", port, "up"]),
            UplinkFailure::BlackHole => self.topology.attach(port),
            UplinkFailure::OneWay => run(&uplink.endpoint, "nft", &["delete", "table", "ip", HOLE]),
        }
    }
}

fn within(address: Ipv4Addr) -> Result<IpNet, TestbedError> {
    let net = Ipv4Net::new(address, PREFIX_LENGTH);
    net.map(IpNet::V4)
        .map_err(|_| TestbedError::Unexpected("a prefix length"))
}

fn run(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<(), TestbedError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let mut child = namespace.spawn(command)?;
    let status = child.wait().doing("run", program)?;
    match status.success() {
        true => Ok(()),
        false => Err(TestbedError::Output {
            program: program.into(),
            output: arguments.join(" "),
            expected: "success",
        }),
    }
}

const HOLE: &str = "hole";
const CHAIN: &str = "drops";
