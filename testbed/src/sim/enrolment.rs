//! Who is enrolled where? The configurations of the daemons, and the peers of their control tunnels.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{EidPrefix, InstanceId, Nonce, PublicKey, Ttl};
use map_server::config::{
    Config as ServerConfig, ConfigError, ControlKeys, Options, ReplyAfter, XtrConfig, XtrName,
};
use xtr_agent::agent::{Config, MapServer, Translates, Uplink};

use super::addresses::{self, CONTROL_TUNNEL_PORT, Role};
use super::sabotage::Sabotage;
use super::scenario::Scenario;
use super::server_disk::ServerDisk;
use super::wireguard::{Backend, PeerSpec};
use super::world::World;

/// Persistent keepalive of the control tunnels.
const CONTROL_KEEPALIVE: Duration = Duration::from_secs(25);

impl World {
    /// The configuration of a map server that starts now.
    pub(super) fn server_config(
        &self,
        number: u32,
        wall_us: u64,
    ) -> Result<ServerConfig, ConfigError> {
        let reply_first =
            self.sabotaged(Sabotage::ReplyFirst) || self.sabotaged(Sabotage::DropPushes);
        let options = Options {
            reply_after: if reply_first {
                ReplyAfter::Send
            } else {
                ReplyAfter::Ack
            },
            notify_floor: Nonce(wall_us.saturating_mul(1_000)),
            relays: self.relays().map(name).collect(),
            ..Options::default()
        };
        let xtrs = (0..self.scenario.agents)
            .filter(|agent| self.scenario.has(*agent))
            .map(|agent| {
                let own = addresses::eid_prefixes(self.registers_for(agent)).into_iter();
                let all = own.chain(self.scenario.serves(agent));
                let eids = all.map(|prefix| EidPrefix::new(InstanceId(0), prefix));
                let (xtr_id, site_id) = addresses::ids(agent);
                XtrConfig {
                    name: name(agent),
                    control_address: Some(addresses::control(agent).ip()),
                    xtr_id: Some(xtr_id),
                    site_id: Some(site_id),
                    auth: addresses::secret(self.scenario.seed, agent, number),
                    replay_check: true,
                    eid_prefixes: eids.collect(),
                    more_specifics: false,
                }
            });
        let config = ServerConfig::new(options, xtrs.collect())?;
        if !self.scenario.detects_nats() {
            return Ok(config);
        }
        let agents = (0..self.scenario.agents).filter(|agent| self.scenario.has(*agent));
        let seed = self.scenario.seed;
        let keys = agents.map(|agent| {
            let key = addresses::key(seed, Role::Control, agent, 0);
            (addresses::control(agent).ip(), key)
        });
        Ok(config.with_control_keys(ControlKeys {
            own: Some(addresses::key(seed, Role::Server, number, 0)),
            agents: keys.collect(),
        }))
    }

    /// Whether a key is one of the control tunnels.
    pub(super) fn is_control_key(&self, key: &PublicKey) -> bool {
        let mut agents = 0..self.scenario.agents;
        let seed = self.scenario.seed;
        agents.any(|agent| addresses::key(seed, Role::Control, agent, 0) == *key)
    }

    /// The agents that may carry the packets of others.
    pub(super) fn relays(&self) -> impl Iterator<Item = u32> {
        (0..self.scenario.agents).filter(|agent| self.scenario.is_relay(*agent))
    }

    /// The agents as peers of a map server, at the endpoints where it has last seen them.
    pub(super) fn control_peers(&self, disk: &ServerDisk) -> Vec<PeerSpec> {
        let agents = (0..self.scenario.agents).filter(|agent| self.scenario.has(*agent));
        let peers = agents.map(|agent| {
            let key = addresses::key(self.scenario.seed, Role::Control, agent, 0);
            PeerSpec {
                key,
                endpoint: disk.endpoint(&key),
                allowed_ips: vec![IpNet::from(addresses::control(agent).ip())],
                keepalive: None,
            }
        });
        peers.collect()
    }

    /// The map servers as peers of an agent's control interface.
    pub(super) fn server_endpoints(&self) -> Vec<PeerSpec> {
        let seed = self.scenario.seed;
        let servers = (0..).zip(&self.servers).map(|(number, host)| PeerSpec {
            key: addresses::key(seed, Role::Server, number, 0),
            endpoint: Some(SocketAddr::new(host.rloc(), CONTROL_TUNNEL_PORT)),
            allowed_ips: vec![IpNet::from(addresses::server(number).ip())],
            keepalive: Some(CONTROL_KEEPALIVE),
        });
        servers.collect()
    }
}

/// What the map servers call an agent.
pub(super) fn name(agent: u32) -> XtrName {
    format!("agent-{agent}").into()
}

/// The agent that the map servers call so.
pub(super) fn named(name: &str) -> Option<u32> {
    name.strip_prefix("agent-")?.parse().ok()
}

/// The configuration of an agent that starts now; `servers` are the peers of its control interface.
pub(super) fn agent_config(
    scenario: &Scenario,
    number: u32,
    servers: &[PeerSpec],
    eid_prefixes: [IpNet; 2],
    rlocs: Vec<Uplink>,
    (public_key, listen_port): (PublicKey, u16),
    first_nonce: Nonce,
) -> Config {
    let detects = scenario.detects_nats();
    let outer = |peer: &PeerSpec| peer.endpoint.map(|at| (peer.key, at));
    let map_servers = (0..).zip(servers).map(|(server, peer)| MapServer {
        address: addresses::server(server),
        key: addresses::secret(scenario.seed, number, server),
        outer: outer(peer).filter(|_| detects),
    });
    Config {
        map_servers: map_servers.collect(),
        iid: InstanceId(0),
        eid_prefixes: eid_prefixes.to_vec(),
        serves: scenario.serves(number),
        shared: scenario.is_proxy(number),
        overlay: addresses::overlay().to_vec(),
        control_address: addresses::control(number).ip(),
        public_key,
        listen_port,
        rlocs,
        ids: Some(addresses::ids(number)),
        keyless: false,
        encapsulate_requests: false,
        ttl: Ttl::from_minutes(scenario.ttl_min),
        register_interval: Duration::from_secs(60),
        first_nonce,
        hold: Duration::from_secs(3),
        idle: Duration::from_secs(300),
        translates: Translates::Nothing,
        tells_handshakes: scenario.backend(number) == Backend::Embedded,
        max_peers: 25_000,
        subscriptions: scenario.subscribed_prefixes(number),
        witnesses: Vec::new(),
    }
}
