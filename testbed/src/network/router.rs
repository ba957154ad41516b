//! Routers with NAT, and endpoints that are moved behind them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::process::{Command, Stdio};

use ipnet::{IpNet, Ipv4Net};

use super::{Network, NetworkOptions};
use crate::error::{Doing, TestbedError};
use crate::link::{Link, LinkEnd, LinkParams};
use crate::namespace::Namespace;
use crate::topology::{HOST_INTERFACE, Host};

/// The router's side towards those behind it.
const INSIDE: &str = "lan";
/// The endpoints' interface towards the router.
const UPLINK: &str = "lan0";
/// Length of the prefixes inside, and of the IPv4 underlay.
const PREFIX_LENGTH: u8 = 24;

/// A router that lets those behind it out under its own address, and lets in only what answers.
pub struct Router {
    /// Its host on the underlay.
    pub host: Host,
    _cables: Vec<Link>,
}

/// Which ports a NAT gives to those behind it.
enum Ports {
    /// Their own.
    Same,
    /// Some of these.
    Of(RangeInclusive<u16>),
    /// Any, and others towards each destination.
    OfEachDestination,
}

impl Network {
    /// Moves endpoints, by their indices, behind a router of this name. Before anything is started.
    ///
    /// Behind the `number`th router they have addresses in 192.168.`number`.0/24.
    ///
    /// # Errors
    ///
    /// When there is no such endpoint, the underlay has no IPv4, or the kernel has no NAT.
    pub fn hide(
        &mut self,
        name: &str,
        number: u8,
        endpoints: &[usize],
        options: &NetworkOptions,
    ) -> Result<Router, TestbedError> {
        let host = self.topology.add_host(name, options.links)?;
        let inside = host.namespace.clone();
        inside.add_bridge(INSIDE)?;
        let gateway = Ipv4Addr::new(192, 168, number, 1);
        inside.add_address(INSIDE, within(gateway)?)?;
        let mut cables = Vec::new();
        for index in endpoints {
            let endpoint = self.endpoints.get(*index);
            let endpoint = endpoint.ok_or(TestbedError::Unexpected("no such endpoint"))?;
            let namespace = endpoint.namespace();
            for address in endpoint.node.host.addresses() {
                let length = if address.is_ipv4() { PREFIX_LENGTH } else { 64 };
                let net = IpNet::new(*address, length);
                let net = net.map_err(|_| TestbedError::Unexpected("a prefix length"))?;
                namespace.delete_address(HOST_INTERFACE, net)?;
            }
            let port = format!("{INSIDE}-{index}");
            let ends = [(namespace, UPLINK), (&inside, port.as_str())];
            let ends = ends.map(|(at, interface)| LinkEnd {
                namespace: at.clone(),
                interface: interface.into(),
            });
            cables.push(Link::new(&self.testbed, ends, LinkParams::default())?);
            inside.attach(&port, INSIDE)?;
            let last = u8::try_from(*index).unwrap_or(u8::MAX).saturating_add(10);
            let own = Ipv4Addr::new(192, 168, number, last);
            namespace.add_address(UPLINK, within(own)?)?;
            namespace.set_route(Ipv4Net::default(), gateway)?;
        }
        let router = Router {
            host,
            _cables: cables,
        };
        run(&inside, "sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"])?;
        router.translate(&Ports::Same)?;
        Ok(router)
    }

    /// Gives a router another address on the underlay; it forgets all flows.
    ///
    /// # Errors
    ///
    /// When the address is taken, or of another family.
    pub fn move_router(&mut self, router: &mut Router, to: IpAddr) -> Result<(), TestbedError> {
        self.topology.move_host(&mut router.host, to)
    }
}

impl Router {
    /// Its address on the underlay.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.addresses().first().copied()
    }

    /// Lets those behind it out by such ports.
    fn translate(&self, ports: &Ports) -> Result<(), TestbedError> {
        let mut rules = String::from("flush ruleset\ntable ip nat {\n");
        rules += "  chain out { type nat hook postrouting priority srcnat;\n";
        let to = match ports {
            Ports::Same => String::new(),
            Ports::Of(range) => format!(" to :{}-{}", range.start(), range.end()),
            Ports::OfEachDestination => " random,fully-random".to_owned(),
        };
        // Writing to a string cannot fail.
        writeln!(
            rules,
            "    oifname {HOST_INTERFACE} ip protocol udp masquerade{to}"
        )
        .unwrap_or_default();
        rules += "  }\n}\ntable ip firewall {\n";
        for hook in ["forward", "input"] {
            writeln!(
                rules,
                "  chain {hook} {{ type filter hook {hook} priority filter; policy drop;\n    \
                 iifname {INSIDE} accept\n    ct state established,related accept\n  }}"
            )
            .unwrap_or_default();
        }
        rules += "}\n";
        let mut command = Command::new("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped());
        let mut child = self.host.namespace.spawn(command)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(rules.as_bytes()).doing("feed", "nft")?;
        }
        succeeded(child.wait().doing("run", "nft")?.success(), "nft")
    }

    /// Lets those behind it out by another port for each destination (a "symmetric" NAT). Before anything is started.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn scatter(&self) -> Result<(), TestbedError> {
        self.translate(&Ports::OfEachDestination)
    }

    /// Forgets all flows, as a router does that restarts, and lets later ones out by ports of `range`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn rebind(&self, range: RangeInclusive<u16>) -> Result<(), TestbedError> {
        let Some(IpAddr::V4(address)) = self.address() else {
            return Err(TestbedError::Unexpected("a router without IPv4"));
        };
        // Flows go with the address that they were let out under.
        let namespace = &self.host.namespace;
        namespace.delete_address(HOST_INTERFACE, within(address)?)?;
        self.translate(&Ports::Of(range))?;
        namespace.add_address(HOST_INTERFACE, within(address)?)
    }
}

fn within(address: Ipv4Addr) -> Result<IpNet, TestbedError> {
    let net = Ipv4Net::new(address, PREFIX_LENGTH);
    net.map(IpNet::V4)
        .map_err(|_| TestbedError::Unexpected("a prefix length"))
}

fn run(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<(), TestbedError> {
    let mut command = Command::new(program);
    command.args(arguments);
    let mut child = namespace.spawn(command)?;
    succeeded(child.wait().doing("run", program)?.success(), program)
}

fn succeeded(success: bool, program: &str) -> Result<(), TestbedError> {
    match success {
        true => Ok(()),
        false => Err(TestbedError::Output {
            program: program.into(),
            output: String::new(),
            expected: "success",
        }),
    }
}
