//! The keys of the file, as they are written.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use lisp_proto::{Algorithm, PublicKey};
use serde::Deserialize;
use toml::Spanned;
use wg_device::BackendChoice;

use super::uplinks::RawRloc;

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) state_dir: Option<PathBuf>,
    pub(super) admin_socket: Option<PathBuf>,
    pub(super) overlay: Option<Spanned<Vec<IpNet>>>,
    pub(super) eid_prefixes: Option<Spanned<Vec<IpNet>>>,
    pub(super) instance_id: Option<Spanned<u32>>,
    pub(super) listen_port: Option<Spanned<u16>>,
    pub(super) rlocs: Option<Spanned<Vec<Spanned<RawRloc>>>>,
    #[serde(default)]
    pub(super) data_plane: BackendChoice,
    pub(super) mtu: Option<Spanned<u16>>,
    pub(super) ttl_min: Option<Spanned<u32>>,
    pub(super) register_s: Option<Spanned<u64>>,
    pub(super) hold_ms: Option<Spanned<u64>>,
    pub(super) idle_s: Option<Spanned<u64>>,
    pub(super) max_peers: Option<Spanned<u64>>,
    pub(super) subscribe: Option<Spanned<Vec<IpNet>>>,
    pub(super) witnesses: Option<Spanned<Vec<IpAddr>>>,
    pub(super) exclude: Option<Spanned<Vec<IpNet>>>,
    pub(super) netns: Option<Spanned<String>>,
    pub(super) table: Option<Spanned<u32>>,
    pub(super) forward: Option<Spanned<bool>>,
    pub(super) shared: Option<Spanned<bool>>,
    pub(super) role: Option<Spanned<Role>>,
    pub(super) serves: Option<Spanned<Vec<IpNet>>>,
    pub(super) nat: Option<Spanned<RawNat>>,
    pub(super) uplink: Option<Spanned<String>>,
    pub(super) interfaces: Option<Spanned<RawInterfaces>>,
    #[serde(default)]
    pub(super) instance: Vec<RawInstance>,
    pub(super) map_server: RawMapServer,
}

/// What an agent is for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// What lives there, or behind it, is reached there.
    Endpoint,
    /// It leads its clients on.
    Proxy,
}

/// What a proxy does to addresses.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "is `\"none\"`, `\"masquerade\"` or `{ address = \"203.0.113.9\" }`"
)]
pub(super) enum RawNat {
    /// What needs no further word.
    Named(NamedNat),
    /// What leaves has addresses of its own.
    Fixed(FixedNat),
}

/// What a proxy does to addresses, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum NamedNat {
    /// They stay: the hosts on the uplink have routes to the clients.
    None,
    /// What leaves has an address of the uplink.
    Masquerade,
}

/// The addresses that what leaves has, another proxy of the same maybe.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FixedNat {
    pub(super) address: OneOrMore,
}

/// A value, or a list.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    /// One.
    One(IpAddr),
    /// All of them.
    More(Vec<IpAddr>),
}

/// The table `interfaces` of the whole file.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawInterfaces {
    pub(super) data: Option<String>,
    pub(super) control: Option<String>,
    pub(super) miss: Option<String>,
}

/// One of the tables `instance`, or the keys of the same names outside of all tables.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawInstance {
    pub(super) instance_id: Spanned<u32>,
    pub(super) overlay: Spanned<Vec<IpNet>>,
    pub(super) eid_prefixes: Spanned<Vec<IpNet>>,
    pub(super) listen_port: Option<Spanned<u16>>,
    pub(super) mtu: Option<Spanned<u16>>,
    pub(super) subscribe: Option<Spanned<Vec<IpNet>>>,
    pub(super) witnesses: Option<Spanned<Vec<IpAddr>>>,
    pub(super) exclude: Option<Spanned<Vec<IpNet>>>,
    pub(super) netns: Option<Spanned<String>>,
    pub(super) table: Option<Spanned<u32>>,
    pub(super) forward: Option<Spanned<bool>>,
    pub(super) shared: Option<Spanned<bool>>,
    pub(super) role: Option<Spanned<Role>>,
    pub(super) serves: Option<Spanned<Vec<IpNet>>>,
    pub(super) nat: Option<Spanned<RawNat>>,
    pub(super) uplink: Option<Spanned<String>>,
    pub(super) interfaces: Option<Spanned<RawOwnInterfaces>>,
}

/// The table `interfaces` of one instance.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOwnInterfaces {
    pub(super) data: Option<String>,
    pub(super) miss: Option<String>,
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

/// What is wrong with the keys of an instance outside of all tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Incomplete {
    /// The key that is missing.
    pub(super) key: &'static str,
    /// Where another one is that needs it, bytes from the start of the file.
    pub(super) at: usize,
}

impl RawConfig {
    /// The name of the interface to the map server.
    pub(super) fn control_interface(&self) -> &str {
        let names = self.interfaces.as_ref();
        let name = names.and_then(|names| names.get_ref().control.as_deref());
        name.unwrap_or("lispc0")
    }

    /// Takes out the keys of the instance that has no table, if the file has them.
    ///
    /// # Errors
    /// A part of them is there.
    pub(super) fn take_outer(&mut self) -> Result<Option<RawInstance>, Incomplete> {
        let overlay = self.overlay.as_ref().map(|at| at.span().start);
        let eids = self.eid_prefixes.as_ref().map(|at| at.span().start);
        let iid = self.instance_id.as_ref().map(|at| at.span().start);
        let port = self.listen_port.as_ref().map(|at| at.span().start);
        let subscribe = self.subscribe.as_ref().map(|at| at.span().start);
        let witnesses = self.witnesses.as_ref().map(|at| at.span().start);
        let exclude = self.exclude.as_ref().map(|at| at.span().start);
        let netns = self.netns.as_ref().map(|at| at.span().start);
        let table = self.table.as_ref().map(|at| at.span().start);
        let forward = self.forward.as_ref().map(|at| at.span().start);
        let shared = self.shared.as_ref().map(|at| at.span().start);
        let role = self.role.as_ref().map(|at| at.span().start);
        let serves = self.serves.as_ref().map(|at| at.span().start);
        let nat = self.nat.as_ref().map(|at| at.span().start);
        let uplink = self.uplink.as_ref().map(|at| at.span().start);
        let names = self.interfaces.as_ref().filter(|names| {
            let names = names.get_ref();
            names.data.is_some() || names.miss.is_some()
        });
        let names = names.map(|at| at.span().start);
        let keys = [
            overlay, eids, iid, port, subscribe, witnesses, exclude, netns, table, forward, shared,
            role, serves, nat, uplink, names,
        ];
        let first = keys.into_iter().flatten().next();
        let (overlay, eid_prefixes) = match (self.overlay.take(), self.eid_prefixes.take(), first) {
            (Some(overlay), Some(eid_prefixes), _) => (overlay, eid_prefixes),
            (None, _, None) if !self.instance.is_empty() => return Ok(None),
            (overlay, _, first) => {
                return Err(Incomplete {
                    key: overlay.map_or("overlay", |_| "eid_prefixes"),
                    at: first.unwrap_or(0),
                });
            }
        };
        let span = overlay.span();
        Ok(Some(RawInstance {
            instance_id: self
                .instance_id
                .take()
                .unwrap_or_else(|| Spanned::new(span, 0)),
            overlay,
            eid_prefixes,
            listen_port: self.listen_port.take(),
            mtu: None,
            subscribe: self.subscribe.take(),
            witnesses: self.witnesses.take(),
            exclude: self.exclude.take(),
            netns: self.netns.take(),
            table: self.table.take(),
            forward: self.forward.take(),
            shared: self.shared.take(),
            role: self.role.take(),
            serves: self.serves.take(),
            nat: self.nat.take(),
            uplink: self.uplink.take(),
            interfaces: self.interfaces.as_ref().map(|interfaces| {
                let RawInterfaces { data, miss, .. } = interfaces.get_ref().clone();
                Spanned::new(interfaces.span(), RawOwnInterfaces { data, miss })
            }),
        }))
    }
}
