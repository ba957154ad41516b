//! A host with a map server: its control tunnels, its disk, its clock.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{EidPrefix, InstanceId, Nonce, Timestamp};
use map_server::config::{Config, Options, ReplyAfter, XtrConfig};
use map_server::{Action, Actions, Input, MapServer, StoreEvent, Via};
use rand::RngCore;

use super::addresses::{self, CONTROL_PORT, CONTROL_TUNNEL_PORT, Role};
use super::agent_host::WALL_START_US;
use super::net::Host;
use super::sabotage::Sabotage;
use super::scenario::Disk;
use super::wireguard::{Backend, Context, Inner, Interface, Out, PeerSpec, Wire};
use super::world::{Event, World};

/// A host with a map server.
#[derive(Debug)]
pub(super) struct ServerHost {
    rloc: IpAddr,
    /// By how much its wall clock is ahead, in microseconds.
    pub(super) clock_ahead_us: i64,
    /// What it has stored, and when.
    disk: Vec<(Timestamp, StoreEvent)>,
    pub(super) running: Option<RunningServer>,
    /// The next timer event that counts.
    wake: Option<Timestamp>,
}

/// A map server that is up.
#[derive(Debug)]
pub(super) struct RunningServer {
    pub(super) server: MapServer,
    started: Timestamp,
    control: Interface,
}

impl ServerHost {
    pub(super) const fn new(rloc: IpAddr) -> Self {
        Self {
            rloc,
            clock_ahead_us: 0,
            disk: Vec::new(),
            running: None,
            wake: None,
        }
    }

    pub(super) const fn rloc(&self) -> IpAddr {
        self.rloc
    }

    fn wall_us(&self, now: Timestamp) -> u64 {
        (WALL_START_US + now.0 / 1_000).saturating_add_signed(self.clock_ahead_us)
    }
}

impl RunningServer {
    /// What the server's own clock shows.
    pub(super) fn local(&self, now: Timestamp) -> Timestamp {
        Timestamp::ZERO + (now - self.started)
    }
}

impl World {
    /// Starts a map server with what its disk still has.
    pub(super) fn start_server(&mut self, number: u32) {
        let now = self.now();
        let Ok(config) = self.server_config(number, now) else {
            return;
        };
        let mut seed = [0; 32];
        self.streams.hosts.fill_bytes(&mut seed);
        let peers = self.control_peers();
        let sim_seed = self.scenario.seed;
        let Some(host) = self.servers.get_mut(number as usize) else {
            return;
        };
        let wall_us = host.wall_us(now);
        let key = addresses::key(sim_seed, Role::Server, number, 0);
        let mut control = Interface::new(key, Backend::Kernel, now, wall_us);
        let mut out = Vec::new();
        let rng = &mut self.streams.wireguard;
        let mut cx = Context {
            now,
            wall_us,
            rng,
            out: &mut out,
        };
        for peer in &peers {
            control.set_peer(peer, &mut cx);
        }
        let server = MapServer::new(config, seed);
        host.running = Some(RunningServer {
            server,
            started: now,
            control,
        });
        for (at, mut event) in host.disk.clone() {
            if let StoreEvent::Registered { lifetime, .. } = &mut event {
                *lifetime = lifetime.saturating_sub(now - at);
            }
            self.server_input(number, Input::Restore(event));
        }
    }

    /// Takes a map server down, and some of its disk with it.
    pub(super) fn crash_server(&mut self, number: u32, disk: Disk) {
        let Some(host) = self.servers.get_mut(number as usize) else {
            return;
        };
        host.running = None;
        host.wake = None;
        match disk {
            Disk::Kept => {}
            Disk::Torn(facts) => {
                let left = host.disk.len().saturating_sub(facts as usize);
                host.disk.truncate(left);
            }
            Disk::Lost => host.disk.clear(),
        }
    }

    /// Gives a map server an input and carries out what it wants.
    pub(super) fn server_input(&mut self, number: u32, input: Input<'_>) {
        let now = self.now();
        let mut actions = Actions::new();
        let Some(running) = self.running_server(number) else {
            return;
        };
        let local = running.local(now);
        running.server.handle(local, input, &mut actions);
        for action in actions.drain() {
            self.server_action(number, action);
        }
        self.wake_server(number);
    }

    /// A datagram of the underlay arrives at a map server.
    pub(super) fn server_receives(&mut self, number: u32, src: SocketAddr, wire: Wire) {
        self.with_server_interface(number, |interface, cx| interface.receive(src, wire, cx));
    }

    /// Something of a map server is due.
    pub(super) fn server_timer(&mut self, number: u32) {
        let now = self.now();
        let Some(host) = self.servers.get_mut(number as usize) else {
            return;
        };
        if host.wake.is_none_or(|wake| wake > now) {
            return;
        }
        host.wake = None;
        self.with_server_interface(number, Interface::tick);
        let Some(running) = self.running_server(number) else {
            return;
        };
        let due = running
            .server
            .next_deadline()
            .is_some_and(|next| running.started + (next - Timestamp::ZERO) <= now);
        if due {
            self.server_input(number, Input::Tick);
        }
        self.wake_server(number);
    }

    pub(super) fn running_server(&mut self, number: u32) -> Option<&mut RunningServer> {
        self.servers.get_mut(number as usize)?.running.as_mut()
    }

    fn server_action(&mut self, number: u32, action: Action) {
        let now = self.now();
        match action {
            Action::Send {
                dst,
                via: Via::Tunnel,
                bytes,
            } => {
                let Some(bytes) = self.sabotage_push(number, dst, bytes) else {
                    return;
                };
                self.send_to_agent(number, dst, bytes);
            }
            Action::Send {
                via: Via::Plain, ..
            } => {}
            Action::Persist(event) => {
                if let Some(host) = self.servers.get_mut(number as usize) {
                    host.disk.push((now, event));
                }
            }
            Action::Count(reason) => {
                *self.stats.server_drops.entry(reason.name()).or_default() += 1;
                self.trace
                    .say(now, || format!("server {number} dropped: {reason}"));
            }
            Action::Event(event) => self.trace.say(now, || format!("server {number} {event:?}")),
        }
    }

    /// Sends a control message into the tunnel of the agent that has address `dst`.
    pub(super) fn send_to_agent(&mut self, number: u32, dst: SocketAddr, bytes: bytes::Bytes) {
        self.stats.server_sent(&bytes);
        let now = self.now();
        self.trace.say(now, || {
            format!(
                "server {number} -> {dst}: {}",
                super::words::message(&bytes)
            )
        });
        self.overhear(&bytes);
        let src = addresses::server(number).ip();
        let inner = Inner {
            src,
            dst: dst.ip(),
            body: bytes,
        };
        self.with_server_interface(number, |interface, cx| interface.send(inner, cx));
    }

    fn with_server_interface(
        &mut self,
        number: u32,
        act: impl FnOnce(&mut Interface, &mut Context<'_>),
    ) {
        let now = self.now();
        let Some(host) = self.servers.get_mut(number as usize) else {
            return;
        };
        let wall_us = host.wall_us(now);
        let src = SocketAddr::new(host.rloc, CONTROL_TUNNEL_PORT);
        let Some(running) = host.running.as_mut() else {
            return;
        };
        let mut out = Vec::new();
        let rng = &mut self.streams.wireguard;
        act(
            &mut running.control,
            &mut Context {
                now,
                wall_us,
                rng,
                out: &mut out,
            },
        );
        for out in out {
            match out {
                Out::Transmit { dst, wire } => self.transmit(Host::Server(number), src, dst, wire),
                Out::Receive { inner } => {
                    let src = SocketAddr::new(inner.src, CONTROL_PORT);
                    let via = Via::Tunnel;
                    self.server_input(
                        number,
                        Input::Datagram {
                            src,
                            via,
                            bytes: &inner.body,
                        },
                    );
                }
                Out::Lost { .. } => {}
            }
        }
        self.wake_server(number);
    }

    /// Makes sure that the earliest deadline of a map server is kept.
    fn wake_server(&mut self, number: u32) {
        let Some(host) = self.servers.get_mut(number as usize) else {
            return;
        };
        let Some(running) = &host.running else {
            return;
        };
        let core = running
            .server
            .next_deadline()
            .map(|next| running.started + (next - Timestamp::ZERO));
        let next = core
            .into_iter()
            .chain(running.control.next_deadline())
            .min();
        if let Some(next) = next
            && host.wake.is_none_or(|wake| next < wake)
        {
            host.wake = Some(next);
            self.queue.at(next, Event::ServerTimer(number));
        }
    }

    fn server_config(
        &self,
        number: u32,
        now: Timestamp,
    ) -> Result<Config, map_server::config::ConfigError> {
        let wall_us = self
            .servers
            .get(number as usize)
            .map_or(0, |host| host.wall_us(now));
        let reply_first =
            self.sabotaged(Sabotage::ReplyFirst) || self.sabotaged(Sabotage::DropPushes);
        let options = Options {
            reply_after: if reply_first {
                ReplyAfter::Send
            } else {
                ReplyAfter::Ack
            },
            notify_floor: Nonce(wall_us),
            ..Options::default()
        };
        let xtrs = (0..self.scenario.agents)
            .filter(|agent| self.scenario.has(*agent))
            .map(|agent| {
                let eids = addresses::eid_prefixes(self.registers_for(agent))
                    .map(|prefix| EidPrefix::new(InstanceId(0), prefix));
                XtrConfig {
                    name: format!("agent-{agent}").into(),
                    control_address: Some(addresses::control(agent).ip()),
                    xtr_id: None,
                    site_id: None,
                    auth: addresses::secret(self.scenario.seed, agent, number),
                    replay_check: true,
                    eid_prefixes: eids.to_vec(),
                    more_specifics: false,
                }
            });
        Config::new(options, xtrs.collect())
    }

    /// The agents as peers of a map server.
    fn control_peers(&self) -> Vec<PeerSpec> {
        let agents = (0..self.scenario.agents).filter(|agent| self.scenario.has(*agent));
        let peers = agents.map(|agent| PeerSpec {
            key: addresses::key(self.scenario.seed, Role::Control, agent, 0),
            endpoint: None,
            allowed_ips: vec![IpNet::from(addresses::control(agent).ip())],
            keepalive: None::<Duration>,
        });
        peers.collect()
    }
}
