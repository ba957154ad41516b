//! What goes into an agent, and what becomes of what it wants.

use std::net::SocketAddr;
use std::time::Duration;

use lisp_proto::{PublicKey, Timestamp};
use xtr_agent::agent::limits::KEEPALIVE_S;
use xtr_agent::agent::{Action, Actions, Change, ChangeId, DropReason, Input, PeerStats};

use super::addresses::CONTROL_PORT;
use super::agent_host::Which;
use super::data_plane::Task;
use super::invariant::Invariant;
use super::net::Host;
use super::packet::Probe;
use super::wireguard::{self, Inner, Interface, Out, Wire};
use super::world::{Event, World};
use super::{addresses, words};

use rand::Rng;

impl World {
    /// Gives an agent an input and carries out what it wants.
    pub(super) fn agent_input(&mut self, number: u32, input: Input<'_>) {
        let now = self.now();
        let mut actions = Actions::default();
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        let Some(running) = host.running.as_deref_mut() else {
            return;
        };
        let local = Timestamp::ZERO + (now - running.started);
        running.agent.handle(local, input, &mut actions);
        host.reserve();
        for action in actions.drain() {
            self.agent_action(number, action);
        }
        self.wake_agent(number);
    }

    /// A datagram of the underlay arrives at an agent's host.
    pub(super) fn agent_receives(&mut self, number: u32, port: u16, src: SocketAddr, wire: Wire) {
        let Some(which) = self
            .agents
            .get(number as usize)
            .map(|host| host.which(port))
        else {
            return;
        };
        self.with_interface(number, which, |interface, cx| {
            interface.receive(src, wire, cx)
        });
    }

    /// Something on an agent's host is due.
    pub(super) fn agent_timer(&mut self, number: u32) {
        let now = self.now();
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        if host.wake.is_none_or(|wake| wake > now) {
            return;
        }
        host.wake = None;
        self.with_interface(number, Which::Control, Interface::tick);
        self.with_interface(number, Which::Data, Interface::tick);
        self.with_interface(number, Which::Former, Interface::tick);
        let running = self
            .agents
            .get(number as usize)
            .and_then(|host| host.running.as_ref());
        let due = running.is_some_and(|running| {
            let next = running.agent.next_deadline();
            next.is_some_and(|next| running.started + (next - Timestamp::ZERO) <= now)
        });
        if due {
            self.agent_input(number, Input::Tick);
        }
        self.wake_agent(number);
    }

    /// Carries out what an interface wants.
    pub(super) fn interface_did(&mut self, number: u32, which: Which, src: SocketAddr, out: Out) {
        match (out, which) {
            (Out::Transmit { dst, wire }, _) => self.transmit(Host::Agent(number), src, dst, wire),
            (Out::Receive { inner }, Which::Control) => {
                let src = SocketAddr::new(inner.src, CONTROL_PORT);
                self.agent_input(
                    number,
                    Input::Datagram {
                        src,
                        bytes: &inner.body,
                    },
                );
            }
            (Out::Receive { inner }, Which::Data | Which::Former) => self.deliver(number, &inner),
            (Out::Lost { .. }, Which::Control) => {}
            (Out::Lost { inner, why }, Which::Data | Which::Former) => {
                self.packet_lost(number, &inner, why);
            }
        }
    }

    pub(super) fn agent_action(&mut self, number: u32, action: Action) {
        let now = self.now();
        match action {
            Action::Send { dst, bytes } => {
                if self.sabotage_agent_send(&bytes) || self.sabotage_word(&bytes) {
                    return;
                }
                let bytes = self.sabotage_question(number, bytes);
                self.stats.agent_sent(&bytes);
                self.note_registration(number, &bytes);
                self.note_subscription(number, &bytes);
                self.trace.say(now, || {
                    format!("agent {number} -> {dst}: {}", words::message(&bytes))
                });
                self.overhear(&bytes);
                let src = addresses::control(number).ip();
                let inner = Inner {
                    src,
                    dst: dst.ip(),
                    body: bytes,
                };
                self.with_interface(number, Which::Control, |interface, cx| {
                    interface.send(inner, cx)
                });
            }
            Action::Apply { id, change } => {
                if let Change::SetPeer(spec) = &change
                    && let Some(endpoint) = spec.endpoint
                    && let Some(second) = self.second_of(number)
                {
                    second.is_told(endpoint);
                }
                self.task(number, Task::Apply(id, change));
            }
            Action::Kick(key) if self.sabotage_hello(number, &key) => {}
            Action::Kick(key) => self.task(number, Task::Kick(key)),
            Action::AwaitHandshake(key) => self.task(number, Task::AwaitHandshake(key)),
            Action::RenewControlTunnel(index) => self.renew_control(number, index),
            Action::ReadPeerStats(keys) | Action::ReadPeerStatsAnew(keys) => {
                self.task(number, Task::Stats(keys));
            }
            Action::Echo {
                to,
                number: sequence,
            } => self.echo(number, to, sequence),
            Action::LeaveFrom { to, from } => {
                if let Some(second) = self.second_of(number) {
                    second.choose(to, from);
                }
            }
            // No agent here translates addresses.
            Action::Carry(_) | Action::Listen => {}
            Action::Hear => self.hear(number),
            Action::Reinject(packet) => self.sabotage_reinject(number, packet),
            Action::Deliver(packet) => {
                if let Some(probe) = Probe::of_icmp_error(&packet) {
                    self.refused(number, &probe);
                }
            }
            Action::Count(reason) => self.agent_dropped(number, reason),
            Action::Event(event) => self.trace.say(now, || format!("agent {number} {event:?}")),
        }
    }

    fn agent_dropped(&mut self, number: u32, reason: DropReason) {
        let now = self.now();
        if matches!(
            reason,
            DropReason::IcmpLimited | DropReason::TooManyDestinations
        ) {
            self.ledger.refused_silently(number);
        }
        self.trace
            .say(now, || format!("agent {number} dropped: {reason:?}"));
        *self
            .stats
            .agent_drops
            .entry(format!("{reason:?}"))
            .or_default() += 1;
    }

    /// Hands a task to the data plane.
    pub(super) fn task(&mut self, number: u32, task: Task) {
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        let life = host.life;
        let Some(running) = host.running.as_deref_mut() else {
            return;
        };
        if let Some(wait) = running.plane.push(task, &mut self.streams.data_plane) {
            self.queue.after(wait, Event::DataPlane(number, life));
        }
    }

    /// The data plane has come to its next task.
    pub(super) fn data_plane(&mut self, number: u32, life: u32) {
        let Some(running) = self.running_agent(number, life) else {
            return;
        };
        let Some(task) = running.plane.pop() else {
            return;
        };
        // The task after this one begins now, and this one may add more.
        let wait = self.agents.get(number as usize).and_then(|host| {
            let plane = &host.running.as_ref()?.plane;
            plane.next_after(&mut self.streams.data_plane)
        });
        if let Some(wait) = wait {
            self.queue.after(wait, Event::DataPlane(number, life));
        }
        match task {
            Task::Apply(id, change) => self.apply(number, id, change),
            Task::Kick(key) => {
                self.with_interface(number, Which::Data, |interface, cx| {
                    interface.kick(&key, cx)
                });
            }
            Task::AwaitHandshake(key) => {
                let now = self.now();
                self.with_plane(number, |plane| plane.await_session(key, now));
                self.with_interface(number, Which::Data, |interface, cx| {
                    interface.kick(&key, cx)
                });
            }
            Task::Stats(keys) => self.read_stats(number, &keys),
            Task::Reinject(packet) => self.enter_interface(number, packet),
            Task::Resume => self.resume(number),
        }
    }

    /// An agent reads what was caught.
    pub(super) fn missed(&mut self, number: u32, life: u32) {
        let Some(running) = self.running_agent(number, life) else {
            return;
        };
        for packet in running.plane.take_missed() {
            self.agent_input(number, Input::TunPacket(&packet));
        }
    }

    fn apply(&mut self, number: u32, id: ChangeId, change: Change) {
        let now = self.now();
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        let life = host.life;
        let Some(running) = host.running.as_deref_mut() else {
            return;
        };
        let refusals = running.plane.refusals;
        let refused = refusals > 0.0 && self.streams.data_plane.random_bool(refusals);
        self.trace.say(now, || {
            format!(
                "agent {number} {} {change:?}",
                if refused { "refuses" } else { "does" }
            )
        });
        let mut is_route = false;
        if refused {
            self.refusers.insert(number);
        } else {
            is_route = matches!(change, Change::AddRoute(_));
            self.change(number, change);
        }
        self.agent_input(number, Input::Applied { id, ok: !refused });
        if is_route {
            // What was caught before the route was there goes before what takes it.
            self.missed(number, life);
            self.task(number, Task::Resume);
        }
    }

    fn change(&mut self, number: u32, change: Change) {
        if self.sabotage_change(&change) {
            return;
        }
        match change {
            Change::SetPeer(mut spec) => {
                self.check_authority(number, &spec);
                if self.sabotage_move(number, &mut spec) {
                    return;
                }
                // The first keepalive says hello as well.
                let keep_open = spec.keep_open && !self.sabotage_hello(number, &spec.key);
                let spec = wireguard::PeerSpec {
                    key: spec.key,
                    endpoint: spec.endpoint,
                    allowed_ips: spec.allowed_ips,
                    keepalive: keep_open.then(|| Duration::from_secs(KEEPALIVE_S.into())),
                };
                self.with_interface(number, Which::Data, |interface, cx| {
                    interface.set_peer(&spec, cx)
                });
            }
            Change::RemovePeer(key) if self.sabotage_leave(number, &key) => {}
            Change::RemovePeer(key) => {
                self.with_plane(number, |plane| plane.forget_readings(&key));
                self.with_interface(number, Which::Data, |interface, cx| {
                    interface.remove_peer(&key, cx)
                });
            }
            Change::AddRoute(prefix) => self.with_plane(number, |plane| plane.add_route(prefix)),
            Change::RemoveRoute(prefix) => {
                self.with_plane(number, |plane| plane.remove_route(&prefix))
            }
        }
    }

    fn read_stats(&mut self, number: u32, keys: &[PublicKey]) {
        let Some(running) = self
            .agents
            .get(number as usize)
            .and_then(|host| host.running.as_ref())
        else {
            return;
        };
        let read_at = Timestamp::ZERO + (self.now() - running.started);
        let stats: Vec<PeerStats> = keys
            .iter()
            .filter_map(|key| {
                let stats = running.plane.interface.stats(key)?;
                Some(PeerStats {
                    key: *key,
                    endpoint: stats.endpoint,
                    handshake_seen: stats.handshake_seen,
                    rx_bytes: stats.rx_bytes,
                    tx_bytes: stats.tx_bytes,
                    read_at,
                })
            })
            .collect();
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        let life = host.life;
        if let Some(running) = host.running.as_deref_mut() {
            let wait = running.plane.read(stats, &mut self.streams.data_plane);
            self.queue.after(wait, Event::Counted(number, life));
        }
    }

    /// Passes on what the data plane tells of sessions, a moment later.
    pub(super) fn tell_of_sessions(&mut self, number: u32) {
        let now = self.now();
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        let life = host.life;
        let Some(running) = host.running.as_deref_mut() else {
            return;
        };
        for key in running.plane.take_told(now) {
            let wait = self.streams.data_plane.random_range(10..100);
            let wait = Duration::from_micros(wait);
            self.queue
                .after(wait, Event::ShakenHands(number, life, key));
        }
    }

    /// The agent hears of a session.
    pub(super) fn shaken_hands(&mut self, number: u32, life: u32, key: PublicKey) {
        if self.running_agent(number, life).is_some() {
            self.agent_input(number, Input::Handshake(key));
        }
    }

    /// Counters that were read are there.
    pub(super) fn counted(&mut self, number: u32, life: u32) {
        let Some(running) = self.running_agent(number, life) else {
            return;
        };
        let stats = running.plane.take_reading();
        self.agent_input(number, Input::PeerStats(&stats));
    }

    fn resume(&mut self, number: u32) {
        let mut packets = Default::default();
        self.with_plane(number, |plane| packets = plane.resume());
        for packet in packets {
            self.enter_interface(number, packet);
        }
    }

    /// Lets `act` work with the data plane of an agent that is up.
    pub(super) fn with_plane(
        &mut self,
        number: u32,
        act: impl FnOnce(&mut super::data_plane::DataPlane),
    ) {
        let host = self.agents.get_mut(number as usize);
        if let Some(running) = host.and_then(|host| host.running.as_deref_mut()) {
            act(&mut running.plane);
        }
    }

    /// The application was told that its packet was not sent.
    fn refused(&mut self, number: u32, probe: &Probe) {
        let now = self.now();
        self.trace.say(now, || {
            format!(
                "agent {number} refuses packet {} of flow {}",
                probe.sequence, probe.flow
            )
        });
        let host = self.agents.get(number as usize);
        let running = host.and_then(|host| host.running.as_deref());
        let is_it =
            |inner: &Inner| Probe::of_packet(&inner.body).is_some_and(|it| it.id == probe.id);
        let is_waiting = running.is_some_and(|it| it.plane.interface.holds(is_it));
        if let Err(misdeed) = self.ledger.refused(number, probe, is_waiting) {
            self.broken(Invariant::Once, || {
                format!("agent {number}: {probe:?} {misdeed:?}")
            });
        }
    }
}
