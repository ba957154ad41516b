//! Agents that lead the others out of the overlay, and the world behind them, which answers.
//!
//! Whoever sends packets to the world is a client of one of them. Clients are moved by an operator,
//! and leave a proxy that fails by themselves. What must be true of them is in `proxied.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lisp_proto::{PublicKey, Timestamp};
use map_server::{Clients, Command, Input as ServerInput};
use rand::Rng;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};
use xtr_agent::agent::{Input, PeerSpec};

use super::addresses;
use super::agent_host::{AgentHost, RunningAgent};
use super::data_plane::{Task, Way};
use super::packet::Probe;
use super::sabotage::Sabotage;
use super::scenario::{Fault, FaultKind, Flow, Scenario, Target, millis};
use super::seeds::stream;
use super::wireguard::Inner;
use super::world::{Event, World};

/// The flow that all echoes belong to.
const ECHOES: u32 = u32::MAX - 1;
/// The position of an echo that an agent sends itself, and whose answer it learns of from its counters only.
const GREETING: u32 = u32::MAX;
/// The number of whoever lives in the world.
pub(super) const WORLD: u32 = u32::MAX - 1;
/// Addresses of the world that are used.
const PLACES: u32 = 4;

/// The agents that lead the others out of the overlay, and who moves from one to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proxies {
    /// How many there are: the first agents.
    pub count: u32,
    /// Whether they are relays: they serve all of the overlay, and pass on what is for others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relays: bool,
    /// What an operator does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<Moving>,
}

/// All clients of a proxy move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moving {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// The proxy that they leave.
    pub from: u32,
    /// The one that they go to; without one the first is drained, and nobody else is any more.
    pub to: Option<u32>,
}

/// What the proxies serve: a part of the overlay in which no agent has anything.
pub(super) fn served() -> [IpNet; 2] {
    let v4 = Ipv4Net::new_assert(Ipv4Addr::new(10, 224, 0, 0), 12);
    let v6 = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0xbeef, 0, 0), 96);
    [v4.into(), v6.into()]
}

/// An address of the world.
pub(super) fn outside(number: u32, ipv6: bool) -> IpAddr {
    let low = u16::try_from(number & 0xffff).unwrap_or(0);
    if ipv6 {
        return Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0xbeef, 0, low).into();
    }
    Ipv4Addr::from(0x0ae0_0000 | u32::from(low)).into()
}

pub(super) fn is_outside(address: IpAddr) -> bool {
    served().iter().any(|net| net.contains(&address))
}

impl Scenario {
    /// Turns this run into one with proxies: the first two or three agents. The others send packets
    /// to the world all the time, proxies fail, and an operator moves clients, all as the seed says.
    #[must_use]
    pub fn proxied(mut self, failures: bool, moves: bool) -> Self {
        let mut rng = stream(self.seed, "proxies");
        let rng = &mut rng;
        self.servers = 1;
        self.nat_percent = 0;
        self.subscriptions.clear();
        let count = rng.random_range(2..=3);
        self.agents = self.agents.max(count + 2);
        let (warm, end) = (self.start_within_ms + 4_000, self.duration_ms);
        let busy = end.saturating_sub(100_000).max(warm + 30_000);
        self.duration_ms = busy + 100_000;
        self.flows.retain(|flow| match flow.to {
            Target::Agent(to, _) => flow.from >= count && to >= count,
            Target::Nobody(_) | Target::Outside(_) => flow.from >= count,
        });
        for from in count..self.agents {
            let interval_us = rng.random_range(20_000..400_000);
            let start_ms = warm + rng.random_range(0..5_000);
            let packets = (self.duration_ms - 3_000 - start_ms) * 1_000 / interval_us;
            self.flows.push(Flow {
                from,
                to: Target::Outside(rng.random_range(0..PLACES)),
                ipv6: rng.random_bool(0.4),
                echo: rng.random_bool(0.7),
                start_ms,
                packets: u32::try_from(packets).unwrap_or(u32::MAX),
                interval_us,
            });
        }
        let kinds: [fn(u32) -> FaultKind; 3] = [
            |agent| FaultKind::Crash {
                agent,
                disk_lost: false,
            },
            |agent| FaultKind::NotForwarding { agent },
            |agent| FaultKind::Cut {
                side: [super::net::Host::Agent(agent)].into(),
                one_way: false,
            },
        ];
        for _ in 0..if failures { rng.random_range(1..=4) } else { 0 } {
            let kind = kinds
                .choose(rng)
                .map(|kind| kind(rng.random_range(0..count)));
            self.faults.extend(kind.map(|kind| Fault {
                at_ms: rng.random_range(warm + 10_000..busy),
                for_ms: rng.random_range(2_000..40_000),
                kind,
            }));
        }
        self.faults.sort_by_key(|fault| fault.at_ms);
        let moves = (0..if moves { rng.random_range(1..=6) } else { 0 }).map(|_| {
            let from = rng.random_range(0..count);
            Moving {
                at_ms: rng.random_range(warm + 8_000..busy),
                from,
                to: rng
                    .random_bool(0.8)
                    .then_some((from + rng.random_range(1..count)) % count),
            }
        });
        let moves = moves.collect();
        self.proxies = Some(Proxies {
            count,
            relays: false,
            moves,
        });
        self
    }

    /// Whether an agent is a proxy.
    pub(super) fn is_proxy(&self, agent: u32) -> bool {
        let proxies = self.proxies.as_ref();
        proxies.is_some_and(|proxies| agent < proxies.count)
    }

    /// What an agent serves besides its own EIDs.
    pub(super) fn serves(&self, agent: u32) -> Vec<IpNet> {
        match (self.is_proxy(agent), self.is_relay(agent)) {
            (_, true) => addresses::overlay().to_vec(),
            (true, false) => served().to_vec(),
            (false, false) => Vec::new(),
        }
    }

    /// What an operator does, in the order of the numbers of the events.
    pub(super) fn moves(&self) -> &[Moving] {
        self.proxies.as_ref().map_or(&[], |proxies| &proxies.moves)
    }
}

impl World {
    /// Lets the operator do what is planned.
    pub(super) fn plan_moves(&mut self) {
        for (number, moving) in (0..).zip(self.scenario.moves()) {
            self.queue.at(millis(moving.at_ms), Event::Operator(number));
        }
    }

    /// An operator moves clients.
    pub(super) fn operate(&mut self, number: u32) {
        let Some(moving) = self.scenario.moves().get(number as usize).copied() else {
            return;
        };
        let now = self.now();
        self.trace.say(now, || format!("OPERATOR {moving:?}"));
        let name = |agent: u32| format!("agent-{agent}").into();
        let from = name(moving.from);
        if let Some(to) = moving.to {
            let command = Command::Migrate {
                from,
                to: name(to),
                clients: Clients::All,
                dry_run: false,
            };
            return self.server_input(0, ServerInput::Operator(command));
        }
        let count = self.scenario.proxies.as_ref().map_or(0, |it| it.count);
        for other in (0..count).filter(|other| *other != moving.from) {
            let from = name(other);
            self.server_input(0, ServerInput::Operator(Command::Undrain { from }));
        }
        let command = Command::Drain {
            from,
            dry_run: false,
        };
        self.server_input(0, ServerInput::Operator(command));
    }

    /// Whether a proxy forwards; it answers for itself all the same.
    pub(super) fn forwards(&mut self, agent: u32, forwards: bool) {
        if let Some(host) = self.agents.get_mut(agent as usize) {
            host.is_deaf = !forwards;
        }
    }

    /// An agent asks somebody whether he is there.
    pub(super) fn echo(&mut self, number: u32, to: IpAddr, sequence: u16) {
        let src = addresses::eid(number, to.is_ipv6(), 0);
        if !self.send_echo(number, src, to, sequence.into(), false) {
            self.agent_input(number, Input::EchoNotSent(sequence));
        }
    }

    /// An agent hears where packets go from its host: to places of the world.
    pub(super) fn hear(&mut self, number: u32) {
        let flows = self.scenario.flows.iter();
        let went = flows.filter_map(|flow| match flow.to {
            Target::Outside(place) if flow.from == number => Some(outside(place, flow.ipv6)),
            Target::Outside(_) | Target::Agent(..) | Target::Nobody(_) => None,
        });
        let went: Vec<_> = went.collect();
        self.agent_input(number, Input::Heard(&went));
    }

    /// An agent sends a packet that asks somebody for an echo.
    pub(super) fn greet(&mut self, number: u32, (src, dst): (IpAddr, IpAddr)) {
        if let Some(packet) = echo(GREETING, false).packet(src, dst) {
            self.task(number, Task::Reinject(packet));
        }
    }

    /// Sends an echo, or the answer to one; says whether there was a way.
    fn send_echo(
        &mut self,
        number: u32,
        src: IpAddr,
        dst: IpAddr,
        sequence: u32,
        is_answer: bool,
    ) -> bool {
        let probe = echo(sequence, is_answer);
        let host = self.agents.get(number as usize);
        let running = host.and_then(|host| host.running.as_deref());
        let has_way = running.is_some_and(|it| it.plane.way(dst) == Way::Data);
        // The host answers whatever the way is.
        let has_way = has_way || is_answer && sequence == GREETING;
        if let Some(packet) = probe.packet(src, dst).filter(|_| has_way) {
            self.local_send(number, &probe, packet, dst);
            return true;
        }
        false
    }

    /// Takes in a packet that came out of the tunnel, if it is an echo or one for the world; false
    /// if it is another one.
    pub(super) fn comes_out(&mut self, number: u32, probe: &Probe, inner: &Inner) -> bool {
        let host = self.agents.get(number as usize);
        let is_deaf = host.is_some_and(|host| host.is_deaf);
        // A proxy that does not forward gives nothing to the world, nor what comes from there.
        let stops_here = is_deaf && is_outside(inner.dst);
        if probe.flow == ECHOES {
            if self.is_passed_on(number, inner.dst) {
                self.send_echo(number, inner.src, inner.dst, probe.sequence, probe.echo);
            } else if probe.echo {
                if let Ok(sequence) = u16::try_from(probe.sequence) {
                    let from = inner.src;
                    self.note_witness(number, from);
                    let input = Input::EchoAnswered {
                        from,
                        number: sequence,
                    };
                    self.agent_input(number, input);
                }
            } else if !stops_here {
                self.send_echo(number, inner.dst, inner.src, probe.sequence, true);
            }
            return true;
        }
        stops_here
    }
}

impl World {
    /// An agent hears that somebody answers, if he lives in the world.
    fn note_witness(&mut self, number: u32, from: IpAddr) {
        let now = self.now();
        let host = self.agents.get_mut(number as usize);
        if let Some(running) = host.and_then(|host| host.running.as_deref_mut())
            && is_outside(from)
        {
            running.has_witness.get_or_insert(now);
        }
    }

    /// Whether a client could not tell at `sent` that a proxy forwarded nothing: nobody in the world had answered it yet.
    pub(super) fn is_blind(&self, client: u32, sent: Timestamp) -> bool {
        let host = self.agents.get(client as usize);
        let running = host.and_then(|host| host.running.as_deref());
        let is_young = |running: &RunningAgent| running.has_witness.is_none_or(|at| at > sent);
        let mut faults = self.scenario.faults.iter();
        running.is_some_and(is_young)
            && faults.any(|fault| {
                let span = millis(fault.at_ms)..=millis(fault.at_ms + fault.for_ms);
                matches!(fault.kind, FaultKind::NotForwarding { .. }) && span.contains(&sent)
            })
    }
}

const fn echo(sequence: u32, echo: bool) -> Probe {
    Probe {
        id: u64::MAX,
        flow: ECHOES,
        sequence,
        echo,
        about: sequence,
    }
}

/// Whether a packet is one of the echoes, of which no books are kept.
pub(super) const fn is_echo(probe: &Probe) -> bool {
    probe.flow == ECHOES
}

impl World {
    /// Whether a bug on purpose keeps a message of an agent from the map server: it says which proxy
    /// it cannot use.
    pub(super) fn sabotage_word(&self, bytes: &[u8]) -> bool {
        if !self.sabotaged(Sabotage::SufferInSilence) {
            return false;
        }
        let Ok(lisp_proto::Message::MapRequest(request)) = lisp_proto::decode(bytes) else {
            return false;
        };
        let record = request.source_record().and_then(|it| it.to_record(0));
        record.is_some_and(|record| !record.locators.is_empty())
    }

    /// Whether a bug on purpose keeps a message from a proxy: it is to forget a client.
    pub(super) fn sabotage_dismissal(&self, agent: u32, bytes: &[u8]) -> bool {
        if !self.sabotaged(Sabotage::KeepClients) || !self.scenario.is_proxy(agent) {
            return false;
        }
        let Ok(lisp_proto::Message::MapNotify(notify)) = lisp_proto::decode(bytes) else {
            return false;
        };
        notify.records().any(|record| record.ttl().is_withdrawal())
    }

    /// Whether a bug on purpose keeps a change from a client: with IPv6 it stays where it is. Gives the
    /// change as it is made.
    pub(super) fn sabotage_move(&self, number: u32, spec: &mut PeerSpec) -> bool {
        if !self.sabotaged(Sabotage::HalfMoves) {
            return false;
        }
        let Some(holder) = self.holder(number, true) else {
            return false;
        };
        if holder == spec.key {
            // It would shrink.
            let [_, v6] = served();
            return !spec.allowed_ips.iter().any(|net| v6.contains(net));
        }
        spec.allowed_ips
            .retain(|net| !is_outside(net.addr()) || net.addr().is_ipv4());
        false
    }

    /// Whether a bug on purpose keeps a peer of a client: see [`Self::sabotage_move`].
    pub(super) fn sabotage_leave(&self, number: u32, key: &PublicKey) -> bool {
        self.sabotaged(Sabotage::HalfMoves) && self.holder(number, true) == Some(*key)
    }

    /// Whom an agent gives packets to the world.
    pub(super) fn holder(&self, number: u32, ipv6: bool) -> Option<PublicKey> {
        let host: &AgentHost = self.agents.get(number as usize)?;
        let running = host.running.as_deref()?;
        let mut places = (0..PLACES).map(|place| outside(place, ipv6));
        places.find_map(|place| running.plane.interface.table().lookup(place))
    }
}

/// So long after the last change among proxies every client uses one that is there: a lost proxy is not
/// tried again for 10 s, and another verdict may come 5 s later.
pub(super) const LEFT_WITHIN: Duration = Duration::from_secs(20);
