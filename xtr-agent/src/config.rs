//! The configuration file: read, checked once, and never invalid afterwards.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{Algorithm, AuthKey, InstanceId, PublicKey, Ttl};
use serde::Deserialize;
use toml::Spanned;
use wg_device::BackendChoice;

/// UDP port of the LISP control plane (RFC 9301 5).
const LISP_CONTROL_PORT: u16 = 4342;
/// Smallest MTU that carries IPv6 (RFC 8200 5).
const SMALLEST_MTU: u16 = 1280;
/// Most prefixes that fit one Map-Register with room to spare.
const MOST_EID_PREFIXES: usize = 64;

/// A configuration that can be run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the agent's keys and nonces.
    pub state_dir: PathBuf,
    /// Destinations that are looked up.
    pub overlay: Vec<IpNet>,
    /// Prefixes that live here.
    pub eid_prefixes: Vec<IpNet>,
    /// Which copy of the address plan this is.
    pub iid: InstanceId,
    /// UDP port of the data interface.
    pub listen_port: u16,
    /// Addresses to be reached at; empty: the one towards the map server.
    pub rlocs: Vec<IpAddr>,
    /// Which WireGuard to use.
    pub data_plane: BackendChoice,
    /// MTU of the data interface, bytes.
    pub mtu: u16,
    /// How long others may keep our mappings.
    pub ttl: Ttl,
    /// Time between registrations, before jitter.
    pub register_interval: Duration,
    /// How long packets wait for a mapping.
    pub hold: Duration,
    /// Names of the interfaces.
    pub interfaces: Interfaces,
    /// The map server and the way to it.
    pub map_server: MapServer,
}

/// Names of the interfaces that the agent makes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Interfaces {
    /// WireGuard to the other endpoints.
    pub data: String,
    /// WireGuard to the map server.
    pub control: String,
    /// TUN that catches packets to unknown destinations.
    pub miss: String,
}

impl Default for Interfaces {
    fn default() -> Self {
        Self {
            data: "lisp0".into(),
            control: "lispc0".into(),
            miss: "lispm0".into(),
        }
    }
}

/// The map server and the way to it.
#[derive(Clone, Debug)]
pub struct MapServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is reached and how registrations are authenticated.
    pub access: Access,
}

/// The way to a map server.
#[derive(Clone, Debug)]
pub enum Access {
    /// Through a WireGuard tunnel of its own.
    Tunnel {
        /// Key of the map server's control interface.
        public_key: PublicKey,
        /// Where that interface lives.
        endpoint: SocketAddr,
        /// Our address inside the tunnel.
        control_address: IpAddr,
    },
    /// In the clear, for map servers that know no WireGuard: mappings are
    /// registered without keys.
    Plain {
        /// The secret shared with it.
        key: AuthKey,
    },
}

/// What is wrong with a configuration file, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}; give the path of a readable file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not TOML, or has an unknown, missing or ill-typed key.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where, with the offending line.
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{}:{line}: {key}: {problem}; {remedy}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Line of the value, from 1.
        line: usize,
        /// Its key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    state_dir: Option<PathBuf>,
    overlay: Spanned<Vec<IpNet>>,
    eid_prefixes: Spanned<Vec<IpNet>>,
    #[serde(default)]
    instance_id: u32,
    listen_port: Option<Spanned<u16>>,
    rlocs: Option<Spanned<Vec<IpAddr>>>,
    #[serde(default)]
    data_plane: BackendChoice,
    mtu: Option<Spanned<u16>>,
    ttl_min: Option<Spanned<u32>>,
    register_s: Option<Spanned<u64>>,
    hold_ms: Option<Spanned<u64>>,
    interfaces: Option<Spanned<Interfaces>>,
    map_server: RawMapServer,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMapServer {
    address: Spanned<IpAddr>,
    public_key: Option<PublicKey>,
    endpoint: Option<Spanned<SocketAddr>>,
    control_address: Option<Spanned<IpAddr>>,
    algorithm: Option<Algorithm>,
    key_id: Option<u8>,
    key: Option<String>,
}

/// The file being read, to say where a value is.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn error<T>(
        &self,
        at: &Spanned<T>,
        key: &'static str,
        problem: String,
        remedy: &'static str,
    ) -> ConfigError {
        let before = self.text.get(..at.span().start).unwrap_or_default();
        ConfigError::Value {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            key,
            problem,
            remedy,
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line, the key and a remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Checks the configuration `text` that came from `path`.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line, the key and a remedy.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let source = Source { path, text };
        check_prefixes(&source, &raw)?;
        check_addresses(&source, &raw)?;
        check_numbers(&source, &raw)?;
        if let Some(interfaces) = &raw.interfaces {
            check_interfaces(&source, interfaces)?;
        }
        let number = |value: &Option<Spanned<u64>>, default| {
            value.as_ref().map_or(default, |value| *value.get_ref())
        };
        let map_server = MapServer {
            address: SocketAddr::new(*raw.map_server.address.get_ref(), LISP_CONTROL_PORT),
            access: access(&source, &raw.map_server)?,
        };
        Ok(Self {
            state_dir: raw
                .state_dir
                .unwrap_or_else(|| "/var/lib/lispwire/agent".into()),
            overlay: truncated(raw.overlay.into_inner()),
            eid_prefixes: truncated(raw.eid_prefixes.into_inner()),
            iid: InstanceId(raw.instance_id),
            listen_port: raw.listen_port.map_or(51820, Spanned::into_inner),
            rlocs: raw.rlocs.map(Spanned::into_inner).unwrap_or_default(),
            data_plane: raw.data_plane,
            mtu: raw.mtu.map_or(1420, Spanned::into_inner),
            ttl: Ttl::from_minutes(raw.ttl_min.map_or(15, Spanned::into_inner)),
            register_interval: Duration::from_secs(number(&raw.register_s, 60)),
            hold: Duration::from_millis(number(&raw.hold_ms, 3000)),
            interfaces: raw.interfaces.map(Spanned::into_inner).unwrap_or_default(),
            map_server,
        })
    }
}

/// Tells a tunnelled map server from a plain one; half of either is an error.
fn access(source: &Source<'_>, raw: &RawMapServer) -> Result<Access, ConfigError> {
    let tunnel = (raw.public_key, &raw.endpoint, &raw.control_address);
    let plain = (raw.algorithm, &raw.key);
    match (tunnel, plain) {
        ((Some(public_key), Some(endpoint), Some(control_address)), (None, None)) => {
            Ok(Access::Tunnel {
                public_key,
                endpoint: *endpoint.get_ref(),
                control_address: *control_address.get_ref(),
            })
        }
        ((None, None, None), (Some(algorithm), Some(key))) => {
            let key = AuthKey::new(raw.key_id.unwrap_or(0), algorithm, key.as_bytes());
            // Such map servers want tags of full length.
            Ok(Access::Plain {
                key: key.with_tag_len(true),
            })
        }
        _ => Err(source.error(
            &raw.address,
            "map_server",
            "is neither a tunnelled nor a plain map server".into(),
            "give public_key, endpoint and control_address, or algorithm and key",
        )),
    }
}

fn truncated(prefixes: Vec<IpNet>) -> Vec<IpNet> {
    prefixes.iter().map(IpNet::trunc).collect()
}

fn check_prefixes(source: &Source<'_>, raw: &RawConfig) -> Result<(), ConfigError> {
    let overlay = raw.overlay.get_ref();
    if overlay.is_empty() {
        return Err(source.error(
            &raw.overlay,
            "overlay",
            "is empty".into(),
            "name the prefixes whose destinations shall be looked up",
        ));
    }
    let eids = raw.eid_prefixes.get_ref();
    if eids.is_empty() || eids.len() > MOST_EID_PREFIXES {
        return Err(source.error(
            &raw.eid_prefixes,
            "eid_prefixes",
            format!("has {} prefixes", eids.len()),
            "name between 1 and 64 prefixes that live here",
        ));
    }
    for (index, prefix) in overlay.iter().enumerate() {
        let others = overlay.iter().take(index);
        let clash = |other: &&IpNet| other.contains(prefix) || prefix.contains(*other);
        if let Some(other) = others.clone().find(clash) {
            return Err(source.error(
                &raw.overlay,
                "overlay",
                format!("{prefix} and {other} overlap"),
                "keep the shorter one",
            ));
        }
    }
    for eid in eids {
        if !overlay.iter().any(|net| net.contains(eid)) {
            return Err(source.error(
                &raw.eid_prefixes,
                "eid_prefixes",
                format!("{eid} is outside the overlay"),
                "add it to `overlay`, or correct it",
            ));
        }
    }
    Ok(())
}

fn check_addresses(source: &Source<'_>, raw: &RawConfig) -> Result<(), ConfigError> {
    let overlay = raw.overlay.get_ref();
    let inside = |addr: IpAddr| overlay.iter().find(|net| net.contains(&addr));
    let remedy = "an address that carries the tunnels cannot be reached through them";
    let server = &raw.map_server;
    if let Some(endpoint) = &server.endpoint
        && let Some(net) = inside(endpoint.get_ref().ip())
    {
        let problem = format!("lies within the overlay {net}");
        return Err(source.error(endpoint, "map_server.endpoint", problem, remedy));
    }
    for (at, key) in [
        (Some(&server.address), "map_server.address"),
        (
            server.control_address.as_ref(),
            "map_server.control_address",
        ),
    ] {
        let Some(at) = at else { continue };
        if let Some(net) = inside(*at.get_ref()) {
            let problem = format!("lies within the overlay {net}");
            return Err(source.error(at, key, problem, "use a prefix apart from the overlay"));
        }
        if server.address.get_ref().is_ipv4() != at.get_ref().is_ipv4() {
            return Err(source.error(
                at,
                key,
                "is of another address family than map_server.address".into(),
                "use two IPv4 or two IPv6 addresses",
            ));
        }
    }
    if let Some(rlocs) = &raw.rlocs {
        for rloc in rlocs.get_ref() {
            if let Some(net) = inside(*rloc) {
                let problem = format!("{rloc} lies within the overlay {net}");
                return Err(source.error(rlocs, "rlocs", problem, remedy));
            }
        }
    }
    Ok(())
}

fn check_numbers(source: &Source<'_>, raw: &RawConfig) -> Result<(), ConfigError> {
    if let Some(port) = raw.listen_port.as_ref().filter(|port| *port.get_ref() == 0) {
        let remedy = "others must know the port: choose one from 1 to 65535";
        return Err(source.error(port, "listen_port", "is 0".into(), remedy));
    }
    if let Some(mtu) = raw.mtu.as_ref().filter(|mtu| *mtu.get_ref() < SMALLEST_MTU) {
        let problem = format!("{} is too small for IPv6", mtu.get_ref());
        return Err(source.error(mtu, "mtu", problem, "use at least 1280"));
    }
    if let Some(ttl) = raw
        .ttl_min
        .as_ref()
        .filter(|ttl| matches!(*ttl.get_ref(), 0 | u32::MAX))
    {
        let remedy = "give minutes from 1; 0 would withdraw the mapping";
        return Err(source.error(ttl, "ttl_min", format!("is {}", ttl.get_ref()), remedy));
    }
    let range = |value: &Option<Spanned<u64>>, key, low: u64, high: u64, remedy| match value {
        Some(at) if !(low..=high).contains(at.get_ref()) => {
            Err(source.error(at, key, format!("is {}", at.get_ref()), remedy))
        }
        Some(_) | None => Ok(()),
    };
    range(
        &raw.register_s,
        "register_s",
        5,
        120,
        "use 5 to 120 seconds: a registration expires after 180",
    )?;
    range(
        &raw.hold_ms,
        "hold_ms",
        100,
        30_000,
        "use 100 to 30000 milliseconds",
    )
}

fn check_interfaces(
    source: &Source<'_>,
    interfaces: &Spanned<Interfaces>,
) -> Result<(), ConfigError> {
    let names = interfaces.get_ref();
    let all = [&names.data, &names.control, &names.miss];
    for (index, name) in all.iter().enumerate() {
        let bad = name.is_empty() || name.len() > 15 || name.contains(['/', ' ']);
        if bad || all.iter().skip(index + 1).any(|other| other == name) {
            return Err(source.error(
                interfaces,
                "interfaces",
                format!("`{name}` is not a usable name"),
                "use three different names of 1 to 15 characters",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
overlay = ["10.0.0.0/8", "fd00:1::/48"]
eid_prefixes = ["10.0.0.1/32", "fd00:1::1/128"]
listen_port = 51821
[map_server]
public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
endpoint = "203.0.113.1:51820"
address = "fd4c:1::1"
control_address = "fd4c:1::a"
"#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("agent.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_fill_what_is_not_said() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.interfaces.data, "lisp0");
        assert_eq!(config.mtu, 1420);
        assert_eq!(config.register_interval, Duration::from_secs(60));
        assert_eq!(config.map_server.address.port(), 4342);
    }

    #[test]
    fn errors_name_file_line_key_and_remedy() {
        for (from, to, expected) in [
            (
                "10.0.0.1/32",
                "192.168.0.1/32",
                "agent.toml:3: eid_prefixes: 192.168.0.1/32 is outside",
            ),
            (
                "\"fd00:1::/48\"",
                "\"10.1.0.0/16\"",
                "agent.toml:2: overlay: 10.1.0.0/16 and 10.0.0.0/8 overlap",
            ),
            (
                "51821",
                "0",
                "agent.toml:4: listen_port: is 0; others must know",
            ),
            (
                "203.0.113.1:",
                "10.9.9.9:",
                "agent.toml:7: map_server.endpoint: lies within",
            ),
            (
                "control_address = \"fd4c:1::a\"",
                "control_address = \"192.0.2.1\"",
                "agent.toml:9: map_server.control_address: is of another",
            ),
            (
                "listen_port",
                "mtu = 900\nlisten_port",
                "agent.toml:4: mtu: 900 is too small",
            ),
            (
                "listen_port",
                "register_s = 600\nlisten_port",
                "register_s: is 600; use 5 to 120",
            ),
            (
                "endpoint = ",
                "#endpoint = ",
                "agent.toml:8: map_server: is neither",
            ),
            ("listen_port", "ttl_min = 0\nlisten_port", "ttl_min: is 0"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_plain_map_server_needs_an_algorithm_and_a_key() {
        let (head, _) = GOOD.split_once("public_key").unwrap();
        let plain = "address = \"192.0.2.1\"\nalgorithm = \"sha1\"\nkey = \"password\"\n";
        let config = parse(&format!("{head}{plain}")).unwrap();
        assert!(matches!(config.map_server.access, Access::Plain { .. }));
        assert!(
            !format!("{config:?}").contains("password"),
            "secrets are never printed"
        );
        let error = parse(&format!("{head}address = \"192.0.2.1\"\n")).unwrap_err();
        assert!(error.contains("give public_key, endpoint"), "{error}");
    }

    #[test]
    fn unknown_keys_and_bad_values_show_their_line() {
        let error = parse(&GOOD.replace("listen_port", "listn_port")).unwrap_err();
        assert!(
            error.contains("listn_port") && error.contains("line 4"),
            "{error}"
        );
        let error = parse(&GOOD.replace("hSDw", "!!!!")).unwrap_err();
        assert!(error.contains("line 6"), "{error}");
    }
}
