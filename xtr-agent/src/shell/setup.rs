//! From configuration and keys to what the agent is told.

use std::net::IpAddr;

use anyhow::{Context, Result};
use lisp_proto::{Algorithm, AuthKey, InstanceId, Nonce, PublicKey, SiteId, XtrId};
use wg_device::{Backend, PrivateKey};

use crate::agent::{self, Translates};
use crate::config::{Access, Config, Instance, Translation};

/// Key ID of the secret that both ends derive from the control tunnel's keys.
const DERIVED_KEY_ID: u8 = 1;

/// The keys of an agent.
#[derive(Debug)]
pub struct Keys {
    /// Of the tunnel to the map server.
    pub control: PrivateKey,
    /// Of the tunnels to other endpoints, one for each instance, in their order.
    pub data: Vec<PrivateKey>,
}

impl Keys {
    /// Reads the keys in the state directory, making them on first use.
    ///
    /// # Errors
    /// When a key file is unreadable, damaged, or readable by others.
    pub fn load_or_create(config: &Config) -> Result<Self> {
        let load = |name: &str| key(config, name);
        Ok(Self {
            control: load("control.key")?,
            data: config
                .instances
                .iter()
                .map(|instance| load(&instance.key_file))
                .collect::<Result<_>>()?,
        })
    }
}

/// Reads a key in the state directory, making it on first use.
///
/// # Errors
/// The key file is unreadable, damaged, or readable by others.
pub(super) fn key(config: &Config, name: &str) -> Result<PrivateKey> {
    let path = config.state_dir.join(name);
    PrivateKey::load_or_create(&path).with_context(|| format!("key file {}", path.display()))
}

/// The map servers of an agent with this control key, as its instances know them.
pub(super) fn map_servers(config: &Config, control_key: &PrivateKey) -> Vec<agent::MapServer> {
    let key = match &config.map_server.access {
        Access::Tunnel { public_key, .. } => {
            let secret = control_key.map_register_secret(public_key);
            AuthKey::new(DERIVED_KEY_ID, Algorithm::Sha256_128Hkdf, &secret)
        }
        Access::Plain { key } => key.clone(),
    };
    let outer = match &config.map_server.access {
        Access::Tunnel {
            public_key,
            endpoint,
            ..
        } => Some((*public_key, *endpoint)),
        Access::Plain { .. } => None,
    };
    let address = config.map_server.address;
    vec![agent::MapServer {
        address,
        key,
        outer,
    }]
}

/// Where map servers answer to.
///
/// # Errors
/// None of `rlocs` can be used with the map server.
pub(super) fn control_address(config: &Config, rlocs: &[agent::Uplink]) -> Result<IpAddr> {
    match &config.map_server.access {
        Access::Tunnel {
            control_address, ..
        } => Ok(*control_address),
        Access::Plain { .. } => {
            let server_is_ipv4 = config.map_server.address.is_ipv4();
            let mut rlocs = rlocs.iter().map(|rloc| rloc.address);
            let rloc = rlocs.find(|rloc| rloc.is_ipv4() == server_is_ipv4);
            rloc.context("no RLOC of the map server's address family; see `rlocs`")
        }
    }
}

/// What the agent of one instance is told.
pub(super) fn core(
    config: &Config,
    instance: &Instance,
    (control_key, data_key): (&PrivateKey, &PrivateKey),
    (control_address, rlocs): (IpAddr, &[agent::Uplink]),
    first_nonce: Nonce,
    backend: Backend,
) -> agent::Config {
    let ids = match &config.map_server.access {
        Access::Tunnel { .. } => {
            let id = xtr_id(&control_key.public(), instance.iid);
            Some((id, SiteId([0; 8])))
        }
        Access::Plain { .. } => None,
    };
    let plain = ids.is_none();
    agent::Config {
        map_servers: map_servers(config, control_key),
        iid: instance.iid,
        eid_prefixes: instance.eid_prefixes.clone(),
        serves: instance.serves.clone(),
        translates: match instance.nat.translation {
            Translation::None => Translates::Nothing,
            Translation::Masquerade => Translates::ToOwn,
            Translation::To(_) => Translates::ToShared,
        },
        shared: instance.shared,
        overlay: instance.overlay.clone(),
        control_address,
        public_key: data_key.public(),
        listen_port: instance.listen_port,
        rlocs: rlocs.to_vec(),
        ids,
        keyless: plain,
        encapsulate_requests: plain,
        ttl: config.ttl,
        register_interval: config.register_interval,
        first_nonce,
        hold: config.hold,
        idle: config.idle,
        tells_handshakes: backend == Backend::Embedded,
        max_peers: config.max_peers,
        subscriptions: instance.subscribe.clone(),
        witnesses: instance.witnesses.clone(),
    }
}

/// An identity that outlives address changes: half of the control key, and the instance-id, so
/// that the map server tells the nonces of several instances apart.
fn xtr_id(control: &PublicKey, iid: InstanceId) -> XtrId {
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(control.0) {
        *to = from;
    }
    for (to, from) in id.iter_mut().zip(iid.0.to_be_bytes()) {
        *to ^= from;
    }
    XtrId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instances_of_one_agent_have_identities_of_their_own() {
        let key = PublicKey([7; 32]);
        let id = |iid| xtr_id(&key, InstanceId(iid));
        assert_eq!(id(0), XtrId([7; 16]));
        let ids: std::collections::BTreeSet<_> = [0, 1, 256, 1 << 24].map(|iid| id(iid).0).into();
        assert_eq!(ids.len(), 4);
    }
}
