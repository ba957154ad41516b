//! The loop around the agent: receive, handle, act. One task, no locks.

mod clock;
mod interfaces;
mod narrate;
mod nonce_file;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use lisp_proto::{Algorithm, AuthKey, PublicKey, SiteId, Timestamp, XtrId};
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep_until, timeout};
use tracing::{info, warn};
use wg_device::{PrivateKey, local_address_towards};

use crate::agent::{self, Action, Actions, Agent, Change, Input, PeerStats};
use crate::config::{Access, Config};
use clock::Clock;
use interfaces::Interfaces;
use narrate::Drops;
use nonce_file::NonceFile;

/// Largest control datagram (RFC 9301 fits in one UDP datagram).
const DATAGRAM_MAX: usize = 65_535;
/// Packets read from the TUN in one go before other inputs get their turn.
const TUN_BATCH: usize = 64;
/// How long a stopping agent waits for its withdrawal to be acknowledged.
const GOODBYE: Duration = Duration::from_millis(500);
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

/// Runs the agent until it is told to stop.
///
/// # Errors
/// When interfaces, sockets or keys cannot be set up, or one of them fails.
pub async fn run(config: Config) -> Result<()> {
    let keys = Keys::load_or_create(&config)?;
    let clock = Clock::start();
    let (nonces, first_nonce) = NonceFile::open(&config.state_dir, Clock::unix_micros())
        .with_context(|| format!("state directory {}", config.state_dir.display()))?;
    let rlocs = rlocs(&config)?;
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
    let core = agent::Config {
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
    };
    let mut seed = [0; 32];
    OsRng
        .try_fill_bytes(&mut seed)
        .context("no randomness from the operating system")?;
    let interfaces = Interfaces::create(&config, keys, control_address).await?;
    info!(event = "started", backend = %interfaces.backend());
    let shell = Shell {
        agent: Agent::new(core, seed),
        interfaces,
        clock,
        nonces,
        drops: Drops::default(),
        actions: Actions::default(),
        inbox: VecDeque::new(),
    };
    shell.run().await
}

/// Where the data interface can be reached: as configured, or the address
/// that the kernel uses towards the map server.
fn rlocs(config: &Config) -> Result<Vec<IpAddr>> {
    if !config.rlocs.is_empty() {
        return Ok(config.rlocs.clone());
    }
    let towards = match &config.map_server.access {
        Access::Tunnel { endpoint, .. } => endpoint.ip(),
        Access::Plain { .. } => config.map_server.address.ip(),
    };
    let rloc = local_address_towards(towards).with_context(|| {
        format!("no route to the map server at {towards}; add one, or set `rlocs`")
    })?;
    Ok(vec![rloc])
}

/// An identity that outlives address changes: half of the control key.
fn xtr_id(control: &PublicKey) -> XtrId {
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(control.0) {
        *to = from;
    }
    XtrId(id)
}

struct Shell {
    agent: Agent,
    interfaces: Interfaces,
    clock: Clock,
    nonces: NonceFile,
    drops: Drops,
    actions: Actions,
    /// What actions led to and the agent has not heard of yet.
    inbox: VecDeque<Report>,
}

/// The outcome of an action.
enum Report {
    Applied(agent::ChangeId, bool),
    Stats(Vec<PeerStats>),
    /// A route was set: packets that were on their way into the TUN when it
    /// appeared go out before those that it takes.
    RouteSet(agent::ChangeId, bool),
}

impl Shell {
    async fn run(mut self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut report = signal(SignalKind::user_defined1())?;
        let mut datagram = vec![0; DATAGRAM_MAX];
        let mut packet = vec![0; DATAGRAM_MAX];
        self.step(Input::Start).await?;
        loop {
            let deadline = self.agent.next_deadline();
            let sleep = self
                .clock
                .instant(deadline.unwrap_or(Timestamp(u64::MAX >> 1)));
            tokio::select! {
                biased;
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = report.recv() => self.report_peers().await,
                received = self.interfaces.control.recv_from(&mut datagram) => {
                    // A port unreachable for an earlier datagram is no reason to stop.
                    if let Ok((length, src)) = received {
                        let bytes = datagram.get(..length).unwrap_or_default();
                        self.step(Input::Datagram { src, bytes }).await?;
                    }
                }
                received = self.interfaces.miss.recv(&mut packet) => {
                    let length = received.context("reading captured packets")?;
                    self.step(Input::TunPacket(packet.get(..length).unwrap_or_default())).await?;
                    self.captured(&mut packet, TUN_BATCH).await?;
                }
                () = sleep_until(sleep), if deadline.is_some() => self.step(Input::Tick).await?,
            }
        }
        self.stop(&mut datagram).await
    }

    /// Hands packets that are waiting in the TUN to the agent.
    async fn captured(&mut self, packet: &mut [u8], most: usize) -> Result<()> {
        for _ in 0..most {
            let Some(length) = self.interfaces.miss.try_recv(packet) else {
                break;
            };
            self.step(Input::TunPacket(packet.get(..length).unwrap_or_default()))
                .await?;
        }
        Ok(())
    }

    /// One input, and everything that follows from it.
    async fn step(&mut self, input: Input<'_>) -> Result<()> {
        self.agent
            .handle(self.clock.now(), input, &mut self.actions);
        self.act().await;
        while let Some(report) = self.inbox.pop_front() {
            match report {
                Report::Applied(id, ok) => self.feed(Input::Applied { id, ok }).await,
                Report::Stats(stats) => self.feed(Input::PeerStats(&stats)).await,
                Report::RouteSet(id, ok) => {
                    self.feed(Input::Applied { id, ok }).await;
                    self.drain_miss().await;
                    self.interfaces.data.resume();
                }
            }
        }
        self.nonces
            .reserve(self.agent.register_nonce())
            .context("writing register.nonce")
    }

    async fn feed(&mut self, input: Input<'_>) {
        self.agent
            .handle(self.clock.now(), input, &mut self.actions);
        self.act().await;
    }

    /// Empties the TUN, so that nothing captured before a route was set is
    /// overtaken by what takes the route.
    async fn drain_miss(&mut self) {
        let mut packet = vec![0; DATAGRAM_MAX];
        while let Some(length) = self.interfaces.miss.try_recv(&mut packet) {
            let packet = packet.get(..length).unwrap_or_default();
            self.feed(Input::TunPacket(packet)).await;
        }
    }

    async fn act(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain() {
            self.perform(action).await;
        }
        self.actions = actions;
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Send { dst, bytes } => {
                if let Err(error) = self.interfaces.control.send_to(&bytes, dst).await {
                    warn!(%dst, %error, "control datagram not sent");
                }
            }
            Action::Apply { id, change } => self.apply(id, change).await,
            Action::Kick(key) => self.interfaces.kick(&key).await,
            Action::RenewControlTunnel => self.interfaces.renew_control_tunnel().await,
            Action::ReadPeerStats(keys) => {
                let stats = self.interfaces.stats(&keys).await;
                self.inbox.push_back(Report::Stats(stats));
            }
            Action::Reinject(packet) => self.interfaces.inject(&packet),
            Action::Deliver(packet) => self.interfaces.deliver(&packet).await,
            Action::Count(reason) => self.drops.count(reason),
            Action::Event(event) => narrate::event(&event),
        }
    }

    async fn apply(&mut self, id: agent::ChangeId, change: Change) {
        let is_route = matches!(change, Change::AddRoute(_));
        if is_route {
            self.interfaces.data.pause();
        }
        let done = self.interfaces.apply(&change).await;
        if let Err(error) = &done {
            warn!(?change, %error, "the data plane refused a change");
        }
        self.inbox.push_back(if is_route {
            Report::RouteSet(id, done.is_ok())
        } else {
            Report::Applied(id, done.is_ok())
        });
    }

    async fn report_peers(&mut self) {
        let (count, peers) = self.interfaces.describe_peers(&self.agent).await;
        info!(event = "peers", count, peers, drops = self.drops.summary());
    }

    /// Withdraws, waits a moment for the acknowledgement, and tidies up.
    async fn stop(mut self, datagram: &mut [u8]) -> Result<()> {
        let before = self.agent.acknowledged(0);
        self.step(Input::Shutdown).await?;
        let until = self.clock.instant(self.clock.now() + GOODBYE);
        while self.agent.acknowledged(0) == before {
            tokio::select! {
                received = self.interfaces.control.recv_from(datagram) => {
                    let Ok((length, src)) = received else { break };
                    let bytes = datagram.get(..length).unwrap_or_default();
                    self.step(Input::Datagram { src, bytes }).await?;
                }
                () = sleep_until(until) => break,
            }
        }
        let drops = self.drops.summary();
        let closed = timeout(GOODBYE * 4, self.interfaces.close()).await;
        info!(event = "stopped", drops);
        closed.context("interfaces did not close in time")
    }
}
