//! A host with an agent: its tunnels, its disk, its clock, its life.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lisp_proto::{Nonce, PublicKey, Timestamp};
use rand::{Rng, RngCore};
use xtr_agent::agent::{Actions, Agent, Input, Snapshot};

use super::addresses::{self, CONTROL_TUNNEL_PORT, DATA_PORT, Role};
use super::data_plane::DataPlane;
use super::enrolment::agent_config;
use super::former::Former;
use super::net::Host;
use super::sabotage::Sabotage;
use super::uplinks::{Second, uplinks};
use super::wireguard::{Context, Interface};
use super::world::{Event, World};

/// What wall clocks show at the start, in microseconds since 1970.
pub(super) const WALL_START_US: u64 = 1_800_000_000_000_000;
/// Nonces that an agent reserves on its disk at a time.
const NONCE_BLOCK: u64 = 1 << 20;
/// How long an agent that stops waits for its farewell to be acknowledged.
const GOODBYE: Duration = Duration::from_millis(500);

/// A host with an agent.
#[derive(Debug)]
pub(super) struct AgentHost {
    pub(super) rloc: IpAddr,
    /// Its second uplink.
    pub(super) second: Option<Second>,
    /// By how much its wall clock is ahead, in microseconds.
    pub(super) clock_ahead_us: i64,
    /// What its wall clock has shown at most before it was set back, in microseconds.
    pub(super) clock_peak_us: u64,
    /// First nonce that is not reserved on its disk.
    reserved: u64,
    /// How many data keys it has had before.
    pub(super) generation: u32,
    /// Counts starts.
    pub(super) life: u32,
    pub(super) running: Option<Box<RunningAgent>>,
    /// UDP port of the data interface.
    pub(super) data_port: u16,
    /// What an agent before it had, and what still serves those who send there.
    pub(super) former: Option<Former>,
    /// The next timer event that counts.
    pub(super) wake: Option<Timestamp>,
    /// It is a proxy, and forwards nothing.
    pub(super) is_deaf: bool,
    /// What was kept of its map-cache, and when.
    pub(super) kept: Option<(Timestamp, Snapshot)>,
    /// Since when its mappings are withdrawn, or replaced by those of another key.
    pub(super) stale_since: Option<Timestamp>,
}

/// An agent that is up.
#[derive(Debug)]
pub(super) struct RunningAgent {
    pub(super) agent: Agent,
    pub(super) started: Timestamp,
    pub(super) control: Interface,
    pub(super) plane: DataPlane,
    pub(super) key: PublicKey,
    /// It was told to stop.
    pub(super) stopping: bool,
    /// When somebody in the world has first answered an echo of it.
    pub(super) has_witness: Option<Timestamp>,
}

/// One of the interfaces of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// To the map servers.
    Control,
    /// To other agents.
    Data,
    /// The same of an agent that was replaced.
    Former,
}

impl AgentHost {
    pub(super) const fn new(rloc: IpAddr, second: Option<Second>) -> Self {
        Self {
            rloc,
            second,
            clock_ahead_us: 0,
            clock_peak_us: 0,
            reserved: 0,
            generation: 0,
            life: 0,
            running: None,
            data_port: DATA_PORT,
            former: None,
            wake: None,
            is_deaf: false,
            kept: None,
            stale_since: None,
        }
    }

    pub(super) fn wall_us(&self, now: Timestamp) -> u64 {
        (WALL_START_US + now.0 / 1_000).saturating_add_signed(self.clock_ahead_us)
    }

    /// Whether its wall clock was set back and has not caught up: no peer takes an initiation with
    /// a time stamp that is older than one before.
    pub(super) fn is_behind(&self, now: Timestamp) -> bool {
        self.wall_us(now) < self.clock_peak_us
    }

    /// Keeps a block of nonces reserved on the disk.
    pub(super) fn reserve(&mut self) {
        let next = self
            .running
            .as_ref()
            .map_or(0, |running| running.agent.register_nonce().0);
        if next >= self.reserved {
            self.reserved = next.saturating_add(NONCE_BLOCK);
        }
    }
}

impl World {
    /// Starts an agent with what its disk still has.
    pub(super) fn start_agent(&mut self, number: u32) {
        let now = self.now();
        let (seed, backend) = (self.scenario.seed, self.scenario.backend(number));
        let restarts_nonces = self.sabotaged(Sabotage::NonceRestarts);
        let servers = self.server_endpoints();
        let registers = addresses::eid_prefixes(self.registers_for(number));
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        if host.running.is_some() {
            return;
        }
        let wall_us = host.wall_us(now);
        let key = addresses::key(seed, Role::Data, number, host.generation);
        let first_nonce = if restarts_nonces && host.life > 0 {
            1
        } else {
            wall_us.max(host.reserved)
        };
        host.life += 1;
        host.stale_since = None;
        let second = host.second.as_ref().map(|second| second.address);
        let rlocs = uplinks(host.rloc, second);
        let config = agent_config(
            &self.scenario,
            number,
            &servers,
            registers,
            rlocs,
            (key, host.data_port),
            Nonce(first_nonce),
        );
        let mut agent_seed = [0; 32];
        self.streams.hosts.fill_bytes(&mut agent_seed);
        let control_key = addresses::key(seed, Role::Control, number, 0);
        host.running = Some(Box::new(RunningAgent {
            agent: Agent::new(config, agent_seed),
            started: now,
            control: Interface::new(control_key, backend, now, wall_us),
            plane: DataPlane::new(
                Interface::new(key, backend, now, wall_us),
                addresses::overlay(),
            ),
            key,
            stopping: false,
            has_witness: None,
        }));
        self.keys.insert(key, number);
        self.trace.say(now, || {
            format!("agent {number} starts with key {}", key.short())
        });
        for server in &servers {
            self.with_interface(number, Which::Control, |interface, cx| {
                interface.set_peer(server, cx)
            });
        }
        self.restore_agent(number);
        self.agent_input(number, Input::Start);
    }

    /// Lets an agent that has just been made know what it knew, where proxies or NATs are concerned:
    /// elsewhere agents begin with nothing.
    fn restore_agent(&mut self, number: u32) {
        let now = self.now();
        let mut actions = Actions::default();
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        let (Some(running), Some((at, kept))) = (host.running.as_deref_mut(), &host.kept) else {
            return;
        };
        let agent = &mut running.agent;
        agent.restore(Timestamp::ZERO, kept, now - *at, &[], &mut actions);
        for action in actions.drain() {
            self.agent_action(number, action);
        }
    }

    /// Keeps what agents know on their disks, where proxies or NATs are concerned.
    pub(super) fn keep_caches(&mut self) {
        let now = self.now();
        if self.scenario.proxies.is_none() && !self.scenario.detects_nats() {
            return;
        }
        for host in &mut self.agents {
            if let Some(running) = host.running.as_deref().filter(|it| !it.stopping) {
                let local = Timestamp::ZERO + (now - running.started);
                host.kept = Some((now, running.agent.snapshot(local)));
            }
        }
    }

    /// Forgets the session with a map server; the next datagram makes a new one.
    pub(super) fn renew_control(&mut self, number: u32, index: usize) {
        self.turn_for_server(number, index);
        if let Some(server) = self.server_endpoints().get(index) {
            self.with_interface(number, Which::Control, |interface, cx| {
                interface.remove_peer(&server.key, cx);
                interface.set_peer(server, cx);
            });
        }
    }

    /// Takes an agent's host down. Interfaces, sessions and everything kept are gone.
    pub(super) fn crash_agent(&mut self, number: u32, disk_lost: bool) {
        let now = self.now();
        self.trace.say(now, || format!("agent {number} is down"));
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        if let Some(running) = host.running.take() {
            self.stats.agent_ns += (now - running.started).as_nanos();
        }
        host.wake = None;
        if disk_lost {
            host.kept = None;
            host.generation += 1;
            host.reserved = 0;
        }
        self.ledger.forget(number);
        for flow in self.flows_of.get(&number).into_iter().flatten() {
            if let Some(flow) = self.flows.get_mut(*flow as usize) {
                flow.forget();
            }
        }
    }

    /// Tells an agent to stop in good order.
    pub(super) fn stop_agent(&mut self, number: u32) {
        let now = self.now();
        self.trace
            .say(now, || format!("agent {number} is told to stop"));
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        let Some(running) = host.running.as_mut() else {
            return;
        };
        running.stopping = true;
        host.kept = None;
        host.stale_since = Some(now);
        let life = host.life;
        self.agent_input(number, Input::Shutdown);
        self.queue.after(GOODBYE, Event::Gone(number, life));
    }

    /// An agent that was told to stop is gone.
    pub(super) fn agent_gone(&mut self, number: u32, life: u32) {
        if self.running_agent(number, life).is_some() {
            self.crash_agent(number, false);
        }
    }

    /// Gives an agent's host another address; the agent hears of it a moment later.
    pub(super) fn move_agent(&mut self, number: u32) {
        let behind_nat = self.network.behind_nat(number);
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        if behind_nat {
            // Whoever carries his router along keeps his inner address.
            if self.scenario.detects_nats() {
                self.network.renumber_nat(number);
            } else {
                self.network.restart_nat(number);
            }
            return;
        }
        host.rloc = self.network.renumber(Host::Agent(number), Some(host.rloc));
        let wait = Duration::from_millis(self.streams.hosts.random_range(1..200));
        self.queue.after(wait, Event::Renumbered(number, host.life));
    }

    /// An agent hears of its new address.
    pub(super) fn renumbered(&mut self, number: u32, life: u32) {
        let rloc = self.agents.get(number as usize).map(|host| host.rloc);
        if let Some(rloc) = rloc
            && self.running_agent(number, life).is_some()
        {
            self.agent_input(number, Input::LocalRlocs(&[rloc.into()]));
        }
    }

    /// The agent, if it is still in its life number `life`.
    pub(super) fn running_agent(&mut self, number: u32, life: u32) -> Option<&mut RunningAgent> {
        let host = self.agents.get_mut(number as usize)?;
        if host.life != life {
            return None;
        }
        host.running.as_deref_mut()
    }

    /// Lets `act` work with an interface of an agent, and carries out what follows.
    pub(super) fn with_interface(
        &mut self,
        number: u32,
        which: Which,
        act: impl FnOnce(&mut Interface, &mut Context<'_>),
    ) {
        let now = self.now();
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        let wall_us = host.wall_us(now);
        let (running, former) = (host.running.as_deref_mut(), host.former.as_mut());
        let found = match which {
            Which::Control => running.map(|it| (&mut it.control, CONTROL_TUNNEL_PORT)),
            Which::Data => running.map(|it| (&mut it.plane.interface, host.data_port)),
            Which::Former => former.map(|it| (&mut it.interface, it.port)),
        };
        let Some((interface, port)) = found else {
            return;
        };
        let src = SocketAddr::new(host.rloc, port);
        let mut out = Vec::new();
        let rng = &mut self.streams.wireguard;
        act(
            interface,
            &mut Context {
                now,
                wall_us,
                rng,
                out: &mut out,
            },
        );
        for out in out {
            self.interface_did(number, which, src, out);
        }
        self.tell_of_sessions(number);
        self.wake_agent(number);
    }

    /// Makes sure that the earliest deadline on an agent's host is kept.
    pub(super) fn wake_agent(&mut self, number: u32) {
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        let Some(running) = &host.running else {
            return;
        };
        let core = running
            .agent
            .next_deadline()
            .map(|next| running.started + (next - Timestamp::ZERO));
        let control = running.control.next_deadline();
        let data = running.plane.interface.next_deadline();
        let former = host.former.as_ref();
        let former = former.and_then(|former| former.interface.next_deadline());
        let own = core.into_iter().chain(control).chain(data);
        let next = own.chain(former).min();
        if let Some(next) = next
            && host.wake.is_none_or(|wake| next < wake)
        {
            host.wake = Some(next);
            self.queue.at(next, Event::AgentTimer(number));
        }
    }
}
