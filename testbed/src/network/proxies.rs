//! Two proxies that share a prefix, the host that both lead to, and their clients.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::{Endpoint, Network, NetworkOptions};
use crate::binaries::Binaries;
use crate::error::{Doing, TestbedError};
use crate::link::{Link, LinkEnd, LinkParams};
use crate::namespace::Namespace;

/// What both proxies serve.
const SERVED: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 200, 0, 0), 16);
/// Their interface towards the host inside.
const UPLINK: &str = "uplink";

/// A network whose first two endpoints are proxies; the others are their clients.
pub struct TwoProxies {
    /// All of it.
    pub network: Network,
    /// The host behind both proxies, with [`INSIDE`](Self::INSIDE).
    pub inside: Namespace,
    _cables: Vec<Link>,
}

impl TwoProxies {
    /// The address that clients reach through the proxies.
    pub const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 10);
    /// How many endpoints are proxies; the first client comes after them.
    pub const PROXIES: usize = 2;

    /// Builds the network and starts nothing. `proxy_toml` are further lines of the proxies'
    /// configuration.
    ///
    /// # Errors
    ///
    /// As [`Network::prepare`].
    pub fn prepare(
        options: &NetworkOptions,
        binaries: Binaries,
        proxy_toml: &str,
    ) -> Result<Self, TestbedError> {
        let network = Network::prepare(options, binaries)?;
        let inside = network.testbed().namespace("inside")?;
        let mut cables = Vec::new();
        for (number, proxy) in (0..).zip(network.endpoints.iter().take(Self::PROXIES)) {
            let own = format!("\"{}/32\"", proxy.eids[0]);
            edit(&proxy.node.config, |text| {
                format!("role = \"proxy\"\nserves = [\"{SERVED}\"]\n{proxy_toml}\n{text}")
            })?;
            edit(&network.server.config, |text| {
                text.replacen(&own, &format!("{own}, \"{SERVED}\""), 1)
            })?;
            let name = format!("{UPLINK}{number}");
            let ends = [(proxy.namespace(), UPLINK), (&inside, name.as_str())];
            let ends = ends.map(|(at, interface)| LinkEnd {
                namespace: at.clone(),
                interface: interface.into(),
            });
            cables.push(Link::new(network.testbed(), ends, LinkParams::default())?);
            proxy
                .namespace()
                .add_address(UPLINK, net(uplink(number, 1)))?;
            inside.add_address(&name, net(uplink(number, 2)))?;
            let host = Ipv4Net::from(Self::INSIDE);
            proxy.namespace().set_route(host, uplink(number, 2))?;
        }
        inside.add_address("lo", IpNet::from(IpAddr::V4(Self::INSIDE)))?;
        Ok(Self {
            network,
            inside,
            _cables: cables,
        })
    }

    /// The first client.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn client(&self) -> Result<&Endpoint, TestbedError> {
        let client = self.network.endpoints.get(Self::PROXIES);
        client.ok_or(TestbedError::Unexpected("there is no client"))
    }

    /// The numbers of the proxy that `client` uses, and of the other one.
    ///
    /// # Errors
    ///
    /// When it uses none or both, or its agent does not answer.
    pub fn used_by(&self, client: &Endpoint) -> Result<[usize; 2], TestbedError> {
        let peers = client.report_peers(&self.network.log)?;
        let served = SERVED.to_string();
        let proxies = self.network.endpoints.iter().take(Self::PROXIES);
        let serves = proxies.map(|proxy| {
            let mut peers = peers.iter();
            let peer = peers.find(|peer| peer.key == proxy.data_key);
            peer.is_some_and(|peer| peer.eids.contains(&served))
        });
        match serves.collect::<Vec<_>>().as_slice() {
            [true, false] => Ok([0, 1]),
            [false, true] => Ok([1, 0]),
            _ => Err(TestbedError::Unexpected(
                "the client uses both proxies, or neither",
            )),
        }
    }

    /// Leads what the host inside sends to `clients` through the proxy with this number.
    ///
    /// # Errors
    ///
    /// When there is no such proxy.
    pub fn return_through(&self, clients: Ipv4Net, proxy: usize) -> Result<(), TestbedError> {
        let number = u8::try_from(proxy).unwrap_or(u8::MAX);
        self.inside.set_route(clients, uplink(number, 1))
    }

    /// The address of the host inside towards a proxy.
    pub fn inside_of(proxy: usize) -> Ipv4Addr {
        uplink(u8::try_from(proxy).unwrap_or(u8::MAX), 2)
    }

    /// The address of a proxy towards the host inside.
    pub fn uplink_of(proxy: usize) -> Ipv4Addr {
        uplink(u8::try_from(proxy).unwrap_or(u8::MAX), 1)
    }
}

/// An address of the cable to the proxy with this number.
const fn uplink(proxy: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 200, proxy.saturating_add(1), host)
}

const fn net(address: Ipv4Addr) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, 24))
}

fn edit(path: &std::path::Path, change: impl FnOnce(String) -> String) -> Result<(), TestbedError> {
    let text = fs::read_to_string(path).doing("read", path.display())?;
    fs::write(path, change(text)).doing("write", path.display())
}
