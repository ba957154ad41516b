//! The configuration files of the standard network, as the daemons read them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::{DataPlane, NetworkOptions};

/// The agents' interface to the map server.
pub const CONTROL_INTERFACE: &str = "lispc0";
/// The map server's interface to the agents.
pub const SERVER_CONTROL_INTERFACE: &str = "lispms0";
/// The map server's address inside the control tunnels.
pub(super) const SERVER_CONTROL_ADDRESS: IpAddr = IpAddr::V6(control_address(1));
/// What the agents' control addresses are counted from: fd4c:1::a is the first.
const FIRST_CONTROL_ADDRESS: u16 = 9;
const SERVER_PORT: u16 = 51_820;
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
    eids: [IpAddr; 2],
}

/// What an agent is told.
pub(super) struct EndpointConfig {
    state_dir: PathBuf,
    data_plane: DataPlane,
    extra: String,
    server_key: String,
    server_endpoint: SocketAddr,
    control_address: IpAddr,
    pub(super) eids: [IpAddr; 2],
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
            eids: [v4.into(), v6.into()],
        }
    }
}

impl XtrEntry {
    pub(super) fn new(name: &str, control_key: &str, config: &EndpointConfig) -> Self {
        Self {
            name: name.into(),
            control_key: control_key.into(),
            control_address: config.control_address,
            eids: config.eids,
        }
    }
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
            writeln!(f, "eid_prefixes = {}", host_prefixes(xtr.eids))?;
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
        writeln!(f, "eid_prefixes = {}", host_prefixes(self.eids))?;
        writeln!(f, "listen_port = {DATA_PORT}")?;
        writeln!(f, "data_plane = \"{}\"", self.data_plane)?;
        writeln!(f, "{}", self.extra)?;
        writeln!(f, "[map_server]")?;
        writeln!(f, "public_key = \"{}\"", self.server_key)?;
        writeln!(f, "endpoint = \"{}\"", self.server_endpoint)?;
        writeln!(f, "address = \"{SERVER_CONTROL_ADDRESS}\"")?;
        writeln!(f, "control_address = \"{}\"", self.control_address)
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

fn host_prefixes(eids: [IpAddr; 2]) -> String {
    let [first, second] = eids.map(ipnet::IpNet::from);
    format!("[\"{first}\", \"{second}\"]")
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
