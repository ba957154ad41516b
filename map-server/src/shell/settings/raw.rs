//! What may stand in the configuration file?
//!
//! The shape only: every key is optional except where there is no sensible default. Values are
//! checked by [`super::Settings`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use lisp_proto::{Action, Algorithm, EidPrefix, PublicKey};
use serde::Deserialize;
use toml::Spanned;
use wg_device::BackendChoice;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    #[serde(default = "default_state_dir")]
    pub(super) state_dir: PathBuf,
    pub(super) admin_socket: Option<PathBuf>,
    #[serde(default)]
    pub(super) reply_after: RawReplyAfter,
    pub(super) reply_hold_ms: Option<Spanned<u64>>,
    pub(super) negative_action: Option<Action>,
    pub(super) workers: Option<Spanned<usize>>,
    pub(super) control: Option<Spanned<RawControl>>,
    pub(super) plain: Option<RawPlain>,
    #[serde(default)]
    pub(super) limits: RawLimits,
    #[serde(default)]
    pub(super) xtr: Vec<Spanned<RawXtr>>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawReplyAfter {
    Send,
    #[default]
    Ack,
}

/// The WireGuard control tunnel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawControl {
    #[serde(default = "default_interface")]
    pub(super) interface: Spanned<String>,
    #[serde(default = "default_listen_port")]
    pub(super) listen_port: Spanned<u16>,
    pub(super) address: IpAddr,
    #[serde(default)]
    pub(super) data_plane: BackendChoice,
}

/// Sockets on the bare network.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPlain {
    pub(super) listen: Vec<Spanned<SocketAddr>>,
    #[serde(default)]
    pub(super) requests_from: Vec<IpNet>,
}

/// Datagrams per source.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    pub(super) requests_per_s: Option<Spanned<u32>>,
    pub(super) request_burst: Option<Spanned<u32>>,
    pub(super) registers_per_s: Option<Spanned<u32>>,
    pub(super) register_burst: Option<Spanned<u32>>,
}

/// One xTR that may register.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawXtr {
    pub(super) name: Spanned<String>,
    pub(super) public_key: Option<Spanned<PublicKey>>,
    pub(super) control_address: Option<Spanned<IpAddr>>,
    pub(super) xtr_id: Option<Spanned<String>>,
    pub(super) site_id: Option<Spanned<String>>,
    pub(super) algorithm: Option<Spanned<Algorithm>>,
    pub(super) key_id: Option<u8>,
    pub(super) key: Option<Spanned<String>>,
    pub(super) key_file: Option<Spanned<PathBuf>>,
    #[serde(default = "default_replay_check")]
    pub(super) replay_check: bool,
    pub(super) eid_prefixes: Vec<Spanned<EidPrefix>>,
    #[serde(default)]
    pub(super) more_specifics: bool,
    #[serde(default)]
    pub(super) relay: bool,
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/lispwire/map-server")
}

fn default_interface() -> Spanned<String> {
    Spanned::new(0..0, "lispms0".to_owned())
}

fn default_listen_port() -> Spanned<u16> {
    Spanned::new(0..0, 51820)
}

const fn default_replay_check() -> bool {
    true
}
