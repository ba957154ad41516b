//! The configuration files of the standard network, as the daemons read them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lisp_proto::PublicKey;

use super::{DataPlane, NetworkOptions};
use crate::crowd::Directory;
use crate::error::TestbedError;

/// The agents' interface to the map server.
pub const CONTROL_INTERFACE: &str = "lispc0";
/// The map server's interface to the agents.
pub const SERVER_CONTROL_INTERFACE: &str = "lispms0";
/// The map server's address inside the control tunnels.
pub(super) const SERVER_CONTROL_ADDRESS: IpAddr = IpAddr::V6(control_address(1));
/// What the agents' control addresses are counted from: fd4c:1::a is the first.
const FIRST_CONTROL_ADDRESS: u16 = 9;
const SERVER_PORT: u16 = 51_820;
/// Where map servers listen (RFC 9301).
const MESSAGE_PORT: u16 = 4_342;
const DATA_PORT: u16 = 51_821;
/// Destinations that the agents look up.
const OVERLAY: &str = r#"["10.0.0.0/8", "fd00:1::/48"]"#;

/// What a map server is told.
pub(super) struct ServerConfig {
    state_dir: PathBuf,
    data_plane: DataPlane,
    extra: String,
    pub(super) xtrs: Vec<XtrEntry>,
}

/// What the map server knows of an endpoint.
pub(super) struct XtrEntry {
    name: String,
    control_key: String,
    control_address: IpAddr,
    prefixes: Vec<String>,
}

/// A further instance of an agent, in a network namespace of its own.
pub(super) struct TenantConfig {
    /// The instance-id.
    pub(super) iid: u32,
    /// The name of the namespace.
    pub(super) netns: String,
    /// What lives there: the same addresses as in every other instance, and one of its own.
    pub(super) eids: [IpAddr; 3],
}

/// What an agent is told.
pub(super) struct EndpointConfig {
    state_dir: PathBuf,
    data_plane: DataPlane,
    extra: String,
    server_key: String,
    server_endpoint: SocketAddr,
    control_address: IpAddr,
    number: u16,
    pub(super) eids: [IpAddr; 2],
    /// Networks behind the endpoint.
    pub(super) site: Vec<IpNet>,
    pub(super) tenants: Vec<TenantConfig>,
}

impl ServerConfig {
    pub(super) fn new(options: &NetworkOptions, state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.into(),
            data_plane: options.data_plane,
            extra: options.server_toml.clone(),
            xtrs: Vec::new(),
        }
    }
}

impl EndpointConfig {
    /// The configuration of the endpoint `number`, counted from 1.
    pub(super) fn new(
        options: &NetworkOptions,
        number: usize,
        state_dir: &Path,
        server_key: &str,
        server: IpAddr,
    ) -> Self {
        // Topologies hold fewer hosts than this.
        let number = u16::try_from(number).unwrap_or(u16::MAX - FIRST_CONTROL_ADDRESS);
        let v4 = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + u32::from(number));
        let v6 = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, number);
        Self {
            state_dir: state_dir.into(),
            data_plane: options.data_plane,
            extra: options.agent_toml.clone(),
            server_key: server_key.into(),
            server_endpoint: SocketAddr::new(server, SERVER_PORT),
            control_address: control_address(FIRST_CONTROL_ADDRESS + number).into(),
            number,
            eids: [v4.into(), v6.into()],
            site: if options.sites {
                site(number)
            } else {
                Vec::new()
            },
            tenants: Vec::new(),
        }
    }

    /// Adds an instance in the namespace `netns`.
    pub(super) fn add_tenant(&mut self, iid: u32, netns: &str) {
        let own = u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (iid << 8) + u32::from(self.number);
        let [v4, v6] = self.eids;
        self.tenants.push(TenantConfig {
            iid,
            netns: netns.into(),
            eids: [v4, v6, Ipv4Addr::from_bits(own).into()],
        });
    }
}

impl EndpointConfig {
    /// What lives here, or behind it.
    fn prefixes(&self) -> Vec<String> {
        let mut prefixes = host_prefixes(&self.eids);
        prefixes.extend(self.site.iter().map(ToString::to_string));
        prefixes
    }

    /// The same of all instances, as the map server knows it.
    fn registered(&self) -> Vec<String> {
        let mut prefixes = self.prefixes();
        for tenant in &self.tenants {
            let own = host_prefixes(&tenant.eids);
            prefixes.extend(own.iter().map(|prefix| format!("[{}]{prefix}", tenant.iid)));
        }
        prefixes
    }
}

impl XtrEntry {
    pub(super) fn new(name: &str, control_key: &str, config: &EndpointConfig) -> Self {
        Self {
            name: name.into(),
            control_key: control_key.into(),
            control_address: config.control_address,
            prefixes: config.registered(),
        }
    }

    /// A far end with a single EID.
    pub(super) fn single(
        name: String,
        key: &PublicKey,
        control_address: IpAddr,
        eid: IpAddr,
    ) -> Self {
        Self {
            name,
            control_key: key.to_string(),
            control_address,
            prefixes: host_prefixes(&[eid]),
        }
    }
}

/// The map server of `server_key` at `underlay`, as far ends outside of the standard hosts see it.
pub(super) fn directory(server_key: &str, underlay: IpAddr) -> Result<Directory, TestbedError> {
    let key = server_key.parse();
    let (Ok(key), IpAddr::V4(underlay)) = (key, underlay) else {
        return Err(TestbedError::Unexpected("a crowd needs an IPv4 underlay"));
    };
    let IpAddr::V6(inside) = SERVER_CONTROL_ADDRESS else {
        return Err(TestbedError::Unexpected("control addresses are IPv6"));
    };
    Ok(Directory {
        key,
        endpoint: SocketAddrV4::new(underlay, SERVER_PORT),
        address: SocketAddrV6::new(inside, MESSAGE_PORT, 0, 0),
    })
}

impl fmt::Display for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "state_dir = {:?}", self.state_dir)?;
        writeln!(f, "{}", self.extra)?;
        writeln!(f, "[control]")?;
        writeln!(f, "interface = \"{SERVER_CONTROL_INTERFACE}\"")?;
        writeln!(f, "listen_port = {SERVER_PORT}")?;
        writeln!(f, "address = \"{SERVER_CONTROL_ADDRESS}\"")?;
        writeln!(f, "data_plane = \"{}\"", self.data_plane)?;
        for xtr in &self.xtrs {
            writeln!(f, "\n[[xtr]]")?;
            writeln!(f, "name = \"{}\"", xtr.name)?;
            writeln!(f, "public_key = \"{}\"", xtr.control_key)?;
            writeln!(f, "control_address = \"{}\"", xtr.control_address)?;
            writeln!(f, "eid_prefixes = {:?}", xtr.prefixes)?;
        }
        Ok(())
    }
}

impl fmt::Display for EndpointConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "state_dir = {:?}", self.state_dir)?;
        // The agents share the file system.
        writeln!(f, "admin_socket = {:?}", self.state_dir.join("admin.sock"))?;
        writeln!(f, "overlay = {OVERLAY}")?;
        writeln!(f, "eid_prefixes = {:?}", self.prefixes())?;
        writeln!(f, "listen_port = {DATA_PORT}")?;
        writeln!(f, "data_plane = \"{}\"", self.data_plane)?;
        writeln!(f, "{}", self.extra)?;
        writeln!(f, "[map_server]")?;
        writeln!(f, "public_key = \"{}\"", self.server_key)?;
        writeln!(f, "endpoint = \"{}\"", self.server_endpoint)?;
        writeln!(f, "address = \"{SERVER_CONTROL_ADDRESS}\"")?;
        writeln!(f, "control_address = \"{}\"", self.control_address)?;
        for (tenant, port) in self.tenants.iter().zip(DATA_PORT + 1..) {
            writeln!(f, "\n[[instance]]")?;
            writeln!(f, "instance_id = {}", tenant.iid)?;
            writeln!(f, "netns = \"{}\"", tenant.netns)?;
            writeln!(f, "overlay = {OVERLAY}")?;
            writeln!(f, "eid_prefixes = {:?}", host_prefixes(&tenant.eids))?;
            writeln!(f, "listen_port = {port}")?;
        }
        Ok(())
    }
}

impl fmt::Display for DataPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Embedded => "embedded",
        })
    }
}

const fn control_address(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd4c, 1, 0, 0, 0, 0, 0, number)
}

fn host_prefixes(eids: &[IpAddr]) -> Vec<String> {
    let nets = eids.iter().map(|eid| IpNet::from(*eid).to_string());
    nets.collect()
}

/// The networks behind the endpoint `number`: 10.1.0.0/16 and fd00:1:0:1::/64 for the first.
fn site(number: u16) -> Vec<IpNet> {
    let v4 = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (u32::from(number) << 16));
    let v6 = Ipv6Addr::new(0xfd00, 1, 0, number, 0, 0, 0, 0);
    let v4 = Ipv4Net::new(v4, 16).ok().map(IpNet::V4);
    let v6 = Ipv6Net::new(v6, 64).ok().map(IpNet::V6);
    v4.into_iter().chain(v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_numbered_in_every_address() {
        let options = NetworkOptions::default();
        let server = "2001:db8::1".parse().unwrap();
        let config = EndpointConfig::new(&options, 2, Path::new("/s"), "KEY=", server);
        let text = config.to_string();
        for line in [
            "eid_prefixes = [\"10.0.0.2/32\", \"fd00:1::2/128\"]",
            "endpoint = \"[2001:db8::1]:51820\"",
            "address = \"fd4c:1::1\"",
            "control_address = \"fd4c:1::b\"",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_server_knows_each_endpoint() {
        let options = NetworkOptions::default();
        let server = "192.0.2.1".parse().unwrap();
        let endpoint = EndpointConfig::new(&options, 1, Path::new("/s"), "KEY=", server);
        let mut config = ServerConfig::new(&options, Path::new("/s"));
        config.xtrs.push(XtrEntry::new("alpha", "OWN=", &endpoint));
        let text = config.to_string();
        assert!(
            text.contains(
                "name = \"alpha\"\npublic_key = \"OWN=\"\ncontrol_address = \"fd4c:1::a\""
            )
        );
    }
}
