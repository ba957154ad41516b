//! The configuration file: read, checked once, and never invalid afterwards.
//!
//! | question | file |
//! |---|---|
//! | What can be run? | `mod.rs` |
//! | Which keys does the file have? | `raw.rs` |
//! | Which values make sense for all instances? | `check.rs` |
//! | Which values make sense for one instance? | `instance.rs` |
//! | Which values make sense for a proxy? | `proxy.rs` |
//! | At which addresses is this host reached? | `uplinks.rs` |
//! | What is left of an overlay without what is excluded? | `without.rs` |
//! | What does a complaint look like? | `error.rs` |
//! | Where is a key that cannot change now? | `place.rs` |
//! | Can others read what is secret? | `secrets.rs` |

mod check;
mod error;
mod instance;
mod place;
mod proxy;
mod raw;
mod secrets;
mod uplinks;
mod without;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{AuthKey, InstanceId, PublicKey, Ttl};
use toml::Spanned;
use wg_device::{BackendChoice, UNDERLAY_MARK};

pub use error::ConfigError;
pub use place::Section;
pub use uplinks::Uplink;

use error::Source;
use raw::{RawConfig, RawMapServer};

/// UDP port of the LISP control plane (RFC 9301 5).
const LISP_CONTROL_PORT: u16 = 4342;

/// A configuration that can be run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the agent's keys, nonces and map-cache.
    pub state_dir: PathBuf,
    /// Unix socket for `status`, `trace` and `stop`.
    pub admin_socket: PathBuf,
    /// Addresses to be reached at; empty: the one towards the map server.
    pub rlocs: Vec<Uplink>,
    /// Which WireGuard to use.
    pub data_plane: BackendChoice,
    /// MTU of the control interface, bytes.
    pub mtu: u16,
    /// How long others may keep our mappings.
    pub ttl: Ttl,
    /// Time between registrations, before jitter.
    pub register_interval: Duration,
    /// How long packets wait for an answer of the map server.
    pub hold: Duration,
    /// How long a peer is not used before it is removed.
    pub idle: Duration,
    /// Peers in each data plane; when more are wanted, those used longest ago go.
    pub max_peers: usize,
    /// Name of the WireGuard interface to the map server.
    pub control_interface: String,
    /// The map server and the way to it.
    pub map_server: MapServer,
    /// The overlays that are served, at least one, each with another instance-id.
    pub instances: Vec<Instance>,
}

/// One overlay.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Which copy of the address plan this is.
    pub iid: InstanceId,
    /// Destinations that are looked up: all that is not excluded.
    pub overlay: Vec<IpNet>,
    /// Prefixes that live here.
    pub eid_prefixes: Vec<IpNet>,
    /// Whether the overlay has a default route in it, and the tunnels run beside: the routing rules
    /// must tell their packets apart.
    pub is_everything: bool,
    /// What a proxy serves; empty: this is none.
    pub serves: Vec<IpNet>,
    /// What becomes of the addresses of its clients.
    pub nat: Nat,
    /// Whether others register the same prefixes, and all are answered together.
    pub shared: bool,
    /// UDP port of the data interface.
    pub listen_port: u16,
    /// MTU of the data interface, bytes.
    pub mtu: u16,
    /// Destinations that are kept ready before the first packet.
    pub subscribe: Vec<IpNet>,
    /// Addresses beyond proxies that answer echoes.
    pub witnesses: Vec<IpAddr>,
    /// The network namespace of its interfaces and routes; `None`: that of the agent.
    pub netns: Option<String>,
    /// The routing table of its routes.
    pub table: u32,
    /// Whether forwarding is switched on for networks in `eid_prefixes`.
    pub forward: bool,
    /// Names of its interfaces.
    pub interfaces: Interfaces,
    /// Name of its key file in the state directory.
    pub key_file: String,
}

/// What becomes of the addresses of packets that leave a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    /// Which ones they get.
    pub translation: Translation,
    /// Only there; `None`: wherever that is.
    pub uplink: Option<String>,
}

/// Which source addresses packets have that leave a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Translation {
    /// Those of the clients.
    #[default]
    None,
    /// One of the interface that packets leave by.
    Masquerade,
    /// These, at most one of each address family, which other proxies may have as well.
    To(Vec<IpAddr>),
}

/// Names of the interfaces that the agent makes for one overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interfaces {
    /// WireGuard to the other endpoints.
    pub data: String,
    /// TUN that catches packets to unknown destinations.
    pub miss: String,
}

/// The map server and the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is reached and how registrations are authenticated.
    pub access: Access,
}

/// The way to a map server.
#[derive(Clone, Debug, PartialEq, Eq)]
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

impl MapServer {
    /// Where it is on the underlay.
    #[must_use]
    pub const fn underlay(&self) -> IpAddr {
        match &self.access {
            Access::Tunnel { endpoint, .. } => endpoint.ip(),
            Access::Plain { .. } => self.address.ip(),
        }
    }

    /// Whether `other` is the same one, though it may be reached in another way.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.access, &other.access) {
            (
                Access::Tunnel { public_key, .. },
                Access::Tunnel {
                    public_key: other, ..
                },
            ) => public_key == other,
            (Access::Plain { .. }, Access::Plain { .. }) => self == other,
            (Access::Tunnel { .. }, Access::Plain { .. })
            | (Access::Plain { .. }, Access::Tunnel { .. }) => false,
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line, the key and a remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &read(path)?)
    }

    /// Reads the file at `path` for an agent that runs with `self`: `fixed` names what differs from
    /// that and cannot change now.
    ///
    /// # Errors
    /// As [`load`](Self::load), or what `fixed` has named, with where it is in the file.
    pub fn reload(
        &self,
        path: &Path,
        fixed: impl FnOnce(&Self, &Self) -> Vec<(Section, &'static str)>,
    ) -> Result<Self, Vec<ConfigError>> {
        let text = read(path).map_err(|error| vec![error])?;
        let wanted = Self::parse(path, &text).map_err(|error| vec![error])?;
        let source = Source { path, text: &text };
        let changed = fixed(self, &wanted).into_iter();
        let errors: Vec<_> = changed
            .map(|(section, key)| source.fixed(section, key))
            .collect();
        if errors.is_empty() {
            Ok(wanted)
        } else {
            Err(errors)
        }
    }

    /// The mark of the packets that carry tunnels; 0: none is needed.
    #[must_use]
    pub fn mark(&self) -> u32 {
        let mut instances = self.instances.iter();
        if instances.any(|instance| instance.is_everything) || self.has_uplinks() {
            UNDERLAY_MARK
        } else {
            0
        }
    }

    /// Whether there are uplinks with routes of their own.
    #[must_use]
    pub fn has_uplinks(&self) -> bool {
        self.rlocs.iter().any(|rloc| rloc.interface.is_some())
    }

    /// Checks the configuration `text` that came from `path`.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line, the key and a remedy.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut raw: RawConfig =
            toml::from_str(text).map_err(|source| ConfigError::parse(path, text, source))?;
        let source = Source { path, text };
        let outer = raw.take_outer().map_err(|incomplete| {
            let remedy = "give both `overlay` and `eid_prefixes`, here or in each [[instance]]";
            source.error_at(incomplete.at, incomplete.key, "is missing".into(), remedy)
        })?;
        check::all(&source, &raw)?;
        let mtu = raw.mtu.as_ref().map_or(1420, |mtu| *mtu.get_ref());
        let drafts = instance::Drafts {
            outer,
            tables: std::mem::take(&mut raw.instance),
            mtu,
        };
        let instances = drafts.checked(&source, &raw)?;
        let number = |value: &Option<Spanned<u64>>, default| {
            value.as_ref().map_or(default, |value| *value.get_ref())
        };
        let is_tunnel = |name: &str| {
            let mut names = instances.iter().map(|it| &it.interfaces);
            let is_of_instance = names.any(|it| name == it.data || name == it.miss);
            is_of_instance || name == raw.control_interface()
        };
        let rlocs = uplinks::uplinks(&source, raw.rlocs.as_ref(), is_tunnel)?;
        let map_server = MapServer {
            address: SocketAddr::new(*raw.map_server.address.get_ref(), LISP_CONTROL_PORT),
            access: access(&source, &raw.map_server)?,
        };
        Ok(Self {
            state_dir: raw
                .state_dir
                .clone()
                .unwrap_or_else(|| "/var/lib/lispwire/agent".into()),
            admin_socket: raw
                .admin_socket
                .clone()
                .unwrap_or_else(|| "/run/lispwire/xtr-agent.sock".into()),
            control_interface: raw.control_interface().to_owned(),
            rlocs,
            data_plane: raw.data_plane,
            mtu,
            ttl: Ttl::from_minutes(raw.ttl_min.map_or(15, Spanned::into_inner)),
            register_interval: Duration::from_secs(number(&raw.register_s, 60)),
            hold: Duration::from_millis(number(&raw.hold_ms, 3000)),
            idle: Duration::from_secs(number(&raw.idle_s, 300)),
            max_peers: usize::try_from(number(&raw.max_peers, 25_000)).unwrap_or(usize::MAX),
            map_server,
            instances,
        })
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
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

#[cfg(test)]
mod tests;
