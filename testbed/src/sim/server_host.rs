//! A host with a map server: its control tunnels, its disk, its clock.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lisp_proto::{PublicKey, Timestamp};
use map_server::{Action, Actions, Event as Told, Input, MapServer, Via};
use rand::RngCore;

use super::addresses::{self, CONTROL_PORT, CONTROL_TUNNEL_PORT, Role};
use super::agent_host::WALL_START_US;
use super::lookout::Lookout;
use super::net::Host;
use super::scenario::Disk;
use super::server_disk::ServerDisk;
use super::wireguard::{Backend, Context, Inner, Interface, Out, PeerSpec, Wire};
use super::world::{Event, World};

/// A host with a map server.
#[derive(Debug)]
pub(super) struct ServerHost {
    rloc: IpAddr,
    /// By how much its wall clock is ahead, in microseconds.
    pub(super) clock_ahead_us: i64,
    pub(super) disk: ServerDisk,
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
    lookout: Lookout,
}

impl ServerHost {
    pub(super) fn new(rloc: IpAddr) -> Self {
        Self {
            rloc,
            clock_ahead_us: 0,
            disk: ServerDisk::default(),
            running: None,
            wake: None,
        }
    }

    pub(super) const fn rloc(&self) -> IpAddr {
        self.rloc
    }

    pub(super) fn wall_us(&self, now: Timestamp) -> u64 {
        (WALL_START_US + now.0 / 1_000).saturating_add_signed(self.clock_ahead_us)
    }
}

impl RunningServer {
    /// What the server's own clock shows.
    pub(super) fn local(&self, now: Timestamp) -> Timestamp {
        Timestamp::ZERO + self.uptime(now)
    }

    /// How long it has been up.
    pub(super) fn uptime(&self, now: Timestamp) -> Duration {
        now - self.started
    }

    /// Where its agents were last seen.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = (PublicKey, SocketAddr)> {
        self.control.endpoints()
    }
}

impl World {
    /// Starts a map server with what its disk still has.
    pub(super) fn start_server(&mut self, number: u32) {
        let now = self.now();
        let Some(host) = self.servers.get(number as usize) else {
            return;
        };
        let wall_us = host.wall_us(now);
        let (facts, quiet_period) = host.disk.recover(wall_us);
        let peers = self.control_peers(&host.disk);
        let Ok(config) = self.server_config(number, wall_us) else {
            return;
        };
        let mut seed = [0; 32];
        self.streams.hosts.fill_bytes(&mut seed);
        let key = addresses::key(self.scenario.seed, Role::Server, number, 0);
        let control = Interface::new(key, Backend::Kernel, now, wall_us);
        let Some(host) = self.servers.get_mut(number as usize) else {
            return;
        };
        host.running = Some(RunningServer {
            server: MapServer::new(config.with_quiet_period(quiet_period), seed),
            started: now,
            control,
            lookout: Lookout::new(now),
        });
        for fact in facts {
            self.server_input(number, Input::Restore(fact));
        }
        self.take_snapshot(number);
        self.with_server_interface(number, |interface, cx| {
            for peer in &peers {
                interface.set_peer(peer, cx);
            }
        });
    }

    /// Takes a map server down, and some of its disk with it.
    pub(super) fn crash_server(&mut self, number: u32, disk: Disk) {
        if let Some(host) = self.servers.get_mut(number as usize) {
            host.running = None;
            host.wake = None;
            host.disk.damage(disk);
        }
    }

    /// Replaces the log of a map server by what the server knows.
    fn take_snapshot(&mut self, number: u32) {
        let now = self.now();
        let Some(host) = self.servers.get_mut(number as usize) else {
            return;
        };
        let wall_us = host.wall_us(now);
        if let Some(running) = &host.running {
            let snapshot = running.server.snapshot(running.local(now)).collect();
            host.disk.replace(wall_us, snapshot);
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
        self.look_at_peers(number);
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
                let Some(host) = self.servers.get_mut(number as usize) else {
                    return;
                };
                let wall_us = host.wall_us(now);
                host.disk.append(wall_us, event);
                if host.disk.wants_snapshot() {
                    self.take_snapshot(number);
                }
            }
            Action::Watch(key) => self.watch(number, key, true),
            Action::Unwatch(key) => self.watch(number, key, false),
            Action::Look => self.call_lookout(number),
            Action::Count(reason) => {
                *self.stats.server_drops.entry(reason.name()).or_default() += 1;
                self.trace
                    .say(now, || format!("server {number} dropped: {reason}"));
            }
            Action::Event(event) => {
                if matches!(event, Told::Registered { .. }) {
                    self.look_for_agents(number);
                    self.call_lookout(number);
                }
                if let Told::Relayed { one, other, .. } = &event {
                    self.note_relayed(one, other);
                }
                self.trace.say(now, || format!("server {number} {event:?}"));
            }
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

    /// Lets the holder of a key shake hands with a map server, who is no agent, or no longer.
    fn watch(&mut self, number: u32, key: PublicKey, watch: bool) {
        let now = self.now();
        let is_enrolled = self.is_control_key(&key);
        let Some(running) = self.running_server(number) else {
            return;
        };
        running.lookout.note(now, key, watch);
        if is_enrolled {
            return;
        }
        let peer = PeerSpec {
            key,
            endpoint: None,
            allowed_ips: Vec::new(),
            keepalive: None,
        };
        self.with_server_interface(number, |interface, cx| match watch {
            true => interface.set_peer(&peer, cx),
            false => interface.remove_peer(&key, cx),
        });
    }

    fn call_lookout(&mut self, number: u32) {
        if let Some(running) = self.running_server(number) {
            running.lookout.call();
        }
    }

    /// Looks where the peers of a map server are, if it is time to, and tells it.
    fn look_at_peers(&mut self, number: u32) {
        let now = self.now();
        if !self.scenario.detects_nats() {
            return;
        }
        let Some(running) = self.running_server(number) else {
            return;
        };
        if running.lookout.next() > now {
            return;
        }
        let peers = running.lookout.found(now, running.control.sights());
        let began = running.local(now);
        let peers = &peers;
        self.server_input(number, Input::Seen { began, peers });
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
        let looks = self.scenario.detects_nats();
        let next = core
            .into_iter()
            .chain(running.control.next_deadline())
            .chain(looks.then(|| running.lookout.next()))
            .min();
        if let Some(next) = next
            && host.wake.is_none_or(|wake| next < wake)
        {
            host.wake = Some(next);
            self.queue.at(next, Event::ServerTimer(number));
        }
    }
}
