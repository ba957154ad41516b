//! From configuration and keys to what the agent is told.

use std::net::IpAddr;

use anyhow::{Context, Result};
use lisp_proto::{Algorithm, AuthKey, Nonce, PublicKey, SiteId, XtrId};
use wg_device::PrivateKey;

use crate::agent;
use crate::config::{Access, Config};

/// Key ID of the secret that both ends derive from the control tunnel's keys.
const DERIVED_KEY_ID: u8 = 1;

/// The keys of an agent.
#[derive(Debug)]
pub struct Keys {
    /// Of the tunnel to the map server.
    pub control: PrivateKey,
    /// Of the tunnels to other endpoints.
    pub data: PrivateKey,
}

impl Keys {
    /// Reads the keys in the state directory, making them on first use.
    ///
    /// # Errors
    /// When a key file is unreadable, damaged, or readable by others.
    pub fn load_or_create(config: &Config) -> Result<Self> {
        let load = |name: &str| {
            let path = config.state_dir.join(name);
            PrivateKey::load_or_create(&path)
                .with_context(|| format!("key file {}", path.display()))
        };
        Ok(Self {
            control: load("control.key")?,
            data: load("data.key")?,
        })
    }
}

/// What the agent is told.
///
/// # Errors
/// None of `rlocs` can be used with the map server.
pub(super) fn core(
    config: &Config,
    keys: &Keys,
    rlocs: Vec<IpAddr>,
    first_nonce: Nonce,
) -> Result<agent::Config> {
    let public_key = keys.data.public();
    let (auth_key, control_address, ids) = match &config.map_server.access {
        Access::Tunnel {
            public_key,
            control_address,
            ..
        } => {
            let secret = keys.control.map_register_secret(public_key);
            let key = AuthKey::new(DERIVED_KEY_ID, Algorithm::Sha256_128Hkdf, &secret);
            (
                key,
                *control_address,
                Some((xtr_id(&keys.control.public()), SiteId([0; 8]))),
            )
        }
        Access::Plain { key } => {
            let like_server =
                |rloc: &&IpAddr| rloc.is_ipv4() == config.map_server.address.is_ipv4();
            let rloc = rlocs.iter().find(like_server);
            let rloc = rloc.context("no RLOC of the map server's address family; see `rlocs`")?;
            (key.clone(), *rloc, None)
        }
    };
    let plain = ids.is_none();
    Ok(agent::Config {
        map_servers: vec![agent::MapServer {
            address: config.map_server.address,
            key: auth_key,
        }],
        iid: config.iid,
        eid_prefixes: config.eid_prefixes.clone(),
        overlay: config.overlay.clone(),
        control_address,
        public_key,
        listen_port: config.listen_port,
        rlocs,
        ids,
        keyless: plain,
        encapsulate_requests: plain,
        ttl: config.ttl,
        register_interval: config.register_interval,
        first_nonce,
        hold: config.hold,
        idle: config.idle,
        max_peers: config.max_peers,
        subscriptions: config.subscribe.clone(),
    })
}

/// An identity that outlives address changes: half of the control key.
fn xtr_id(control: &PublicKey) -> XtrId {
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(control.0) {
        *to = from;
    }
    XtrId(id)
}
