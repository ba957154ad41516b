//! The keys of the file, as they are written.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use lisp_proto::{Algorithm, PublicKey};
use serde::Deserialize;
use toml::Spanned;
use wg_device::BackendChoice;

use super::Interfaces;

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) state_dir: Option<PathBuf>,
    pub(super) overlay: Spanned<Vec<IpNet>>,
    pub(super) eid_prefixes: Spanned<Vec<IpNet>>,
    #[serde(default)]
    pub(super) instance_id: u32,
    pub(super) listen_port: Option<Spanned<u16>>,
    pub(super) rlocs: Option<Spanned<Vec<IpAddr>>>,
    #[serde(default)]
    pub(super) data_plane: BackendChoice,
    pub(super) mtu: Option<Spanned<u16>>,
    pub(super) ttl_min: Option<Spanned<u32>>,
    pub(super) register_s: Option<Spanned<u64>>,
    pub(super) hold_ms: Option<Spanned<u64>>,
    pub(super) idle_s: Option<Spanned<u64>>,
    pub(super) max_peers: Option<Spanned<u64>>,
    pub(super) subscribe: Option<Spanned<Vec<IpNet>>>,
    pub(super) interfaces: Option<Spanned<Interfaces>>,
    pub(super) map_server: RawMapServer,
}

/// The table `map_server`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMapServer {
    pub(super) address: Spanned<IpAddr>,
    pub(super) public_key: Option<PublicKey>,
    pub(super) endpoint: Option<Spanned<SocketAddr>>,
    pub(super) control_address: Option<Spanned<IpAddr>>,
    pub(super) algorithm: Option<Algorithm>,
    pub(super) key_id: Option<u8>,
    pub(super) key: Option<String>,
}
