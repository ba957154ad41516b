//! The applications on the hosts: they send packets, answer them, and judge the service.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use lisp_proto::Timestamp;
use rand::Rng;
use xtr_agent::agent::limits::SILENCE_BACKOFF_MAX;

use super::addresses;
use super::agent_host::Which;
use super::checks::RECOVERY;
use super::data_plane::Way;
use super::faults::SCANS;
use super::invariant::Invariant;
use super::ledger::Misdeed;
use super::nat;
use super::net::Host;
use super::packet::{Probe, addresses as packet_addresses};
use super::proxies;
use super::scenario::{Flow, Target, millis};
use super::stats::SetUp;
use super::wireguard::{Backend, Inner, Lost};
use super::world::{Event, World};

/// The first packet to a new destination is answered within this time.
pub(super) const COLD_START_MAX: Duration = Duration::from_secs(1);

impl World {
    /// The next packet of a flow is due.
    pub(super) fn packet_due(&mut self, number: u32) {
        let now = self.now();
        self.judge(number);
        let Some(state) = self.flows.get(number as usize) else {
            return;
        };
        if !state.goes_on() {
            return;
        }
        self.queue.after(state.interval(), Event::Packet(number));
        let flow = state.flow;
        let src = addresses::eid(flow.from, flow.ipv6, 0);
        let dst = destination(&flow);
        let cold = self.is_cold(&flow);
        let up = self.is_up(flow.from);
        let nat = self.is_behind_nat(&flow);
        let Some(state) = self.flows.get_mut(number as usize) else {
            return;
        };
        if !up {
            state.next += 1;
            return;
        }
        let sequence = match flow.to {
            Target::Agent(to, _) => {
                let met = self.met.get(&pair(flow.from, to));
                let silent = met.is_none_or(|met| *met < self.bounds.quiet_from);
                if silent && !cold && now > self.bounds.quiet_from {
                    state.woken.get_or_insert(now);
                }
                let forgotten = met.filter(|met| nat && now - **met >= nat::IDLE);
                if let Some(met) = forgotten
                    && state.reopened.is_none_or(|(_, before)| before != *met)
                {
                    state.reopened = Some((now, *met));
                }
                state.send(now, cold)
            }
            Target::Outside(_) => state.send(now, false),
            Target::Nobody(_) => {
                state.next += 1;
                state.next - 1
            }
        };
        let probe = Probe {
            id: self.ledger.issue(),
            flow: number,
            sequence,
            echo: false,
            about: sequence,
        };
        if let Some(packet) = probe.packet(src, dst) {
            self.trace.say(now, || {
                format!(
                    "agent {} sends packet {sequence} of flow {number}",
                    flow.from
                )
            });
            self.local_send(flow.from, &probe, packet, dst);
        }
    }

    /// An application on an agent's host sends a packet.
    pub(super) fn local_send(&mut self, number: u32, probe: &Probe, packet: Bytes, dst: IpAddr) {
        let now = self.now();
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        let life = host.life;
        let Some(running) = host.running.as_deref_mut() else {
            return;
        };
        match running.plane.way(dst) {
            Way::Data => {
                if let Some(packet) = running.plane.wait(packet) {
                    self.enter_interface(number, packet);
                }
            }
            Way::Miss => {
                let wakes = running.plane.miss(packet);
                if !proxies::is_echo(probe) {
                    self.ledger.caught(now, number, probe);
                }
                if wakes {
                    let wait = Duration::from_micros(self.streams.data_plane.random_range(5..50));
                    self.queue.after(wait, Event::Missed(number, life));
                }
            }
            Way::Elsewhere => {}
        }
    }

    /// A packet goes into the data interface.
    pub(super) fn enter_interface(&mut self, number: u32, packet: Bytes) {
        let (Some(probe), Some((src, dst))) =
            (Probe::of_packet(&packet), packet_addresses(&packet))
        else {
            return;
        };
        let sent = if proxies::is_echo(&probe) {
            Ok(())
        } else {
            self.ledger.sent(number, &probe)
        };
        // Two proxies answer for the world, and neither knows what the other one has sent.
        let flow = self.flows.get(probe.flow as usize);
        let by_proxies = flow.is_some_and(|it| matches!(it.flow.to, Target::Outside(_)));
        match sent {
            Ok(()) => {}
            Err(Misdeed::Overtook) if by_proxies && probe.echo || probe.flow == SCANS => {}
            Err(Misdeed::Overtook) => {
                self.broken(Invariant::Order, || format!("agent {number}: {probe:?}"));
            }
            Err(misdeed) => {
                self.broken(Invariant::Once, || {
                    format!("agent {number}: {probe:?} {misdeed:?}")
                });
            }
        }
        let inner = Inner {
            src,
            dst,
            body: packet,
        };
        self.with_interface(number, Which::Data, |interface, cx| {
            interface.send(inner, cx)
        });
    }

    /// A packet came out of the tunnel.
    pub(super) fn deliver(&mut self, number: u32, inner: &Inner) {
        let now = self.now();
        let Some(probe) = Probe::of_packet(&inner.body) else {
            return;
        };
        if self.comes_out(number, &probe, inner) || self.passes_on(number, &probe, inner) {
            return;
        }
        let (probe, via) = self.unwrap_carried(number, &probe);
        let Some(state) = self.flows.get(probe.flow as usize) else {
            return;
        };
        let flow = state.flow;
        let far_end = match flow.to {
            Target::Agent(agent, _) => agent,
            Target::Nobody(_) => u32::MAX,
            Target::Outside(_) => proxies::WORLD,
        };
        let (from, to) = if probe.echo {
            (far_end, flow.from)
        } else {
            (flow.from, far_end)
        };
        let owner = |address| match proxies::is_outside(address) {
            true => Some(proxies::WORLD),
            false => addresses::owner(address, self.scenario.agents),
        };
        let is_there = to == number || to == proxies::WORLD && self.scenario.is_proxy(number);
        if !is_there || owner(inner.dst) != Some(to) || owner(inner.src) != Some(from) {
            self.broken(Invariant::Delivery, || {
                format!("agent {number} got {probe:?} of {flow:?}")
            });
        }
        if via.is_none() {
            self.comes_through(number, &probe);
        }
        self.note_way(from, to, via);
        self.met.insert(pair(from, to), now);
        self.trace.say(now, || {
            let what = if probe.echo { "answer" } else { "packet" };
            format!(
                "agent {number} gets {what} {} of flow {}",
                probe.about, probe.flow
            )
        });
        if flow.echo && !probe.echo {
            self.answer(number, &probe, inner);
        } else {
            self.confirm(&probe, &flow);
        }
    }

    /// A packet has come through a tunnel: it may do so once, after it was sent.
    pub(super) fn comes_through(&mut self, number: u32, probe: &Probe) {
        match self.ledger.delivered(probe) {
            Ok(()) => {}
            Err(Misdeed::FromNowhere) => {
                self.broken(Invariant::Delivery, || {
                    format!("agent {number} got {probe:?}, which nobody sent")
                });
            }
            Err(misdeed) => {
                self.broken(Invariant::Once, || {
                    format!("agent {number} got {probe:?} {misdeed:?}")
                });
            }
        }
    }

    /// WireGuard gave a packet up.
    pub(super) fn packet_lost(&mut self, number: u32, inner: &Inner, why: Lost) {
        let now = self.now();
        if why == Lost::JustSent {
            if let Some(probe) = Probe::of_packet(&inner.body) {
                self.ledger.just_sent(&probe);
            }
            return;
        }
        *self.stats.lost.entry(why).or_default() += 1;
        self.trace.say(now, || {
            format!("agent {number} loses a packet to {}: {why:?}", inner.dst)
        });
        if why == Lost::PeerRemoved
            && let Some(probe) = Probe::of_packet(&inner.body)
        {
            self.ledger.taken_out(&probe);
        }
        if why == Lost::NoPeer && !self.refusers.contains(&number) {
            self.broken(Invariant::BlackHole, || {
                format!("agent {number} has no peer for {}", inner.dst)
            });
        }
    }

    /// Looks for packets of a flow that nobody confirmed in time.
    pub(super) fn judge(&mut self, number: u32) {
        let now = self.now();
        let Some(state) = self.flows.get_mut(number as usize) else {
            return;
        };
        let (mut last, mut failed) = (None, false);
        while let Some(failure) = state.fail(now) {
            failed = true;
            if failure.counts {
                last = Some(failure.sent);
            }
        }
        let flow = state.flow;
        let woken = state.woken.unwrap_or(Timestamp::ZERO);
        let reopened = state.reopened.map(|(at, _)| at);
        if failed {
            self.lost_on_the_way(number, &flow);
            self.lost_by_client(number, &flow);
        }
        if let Some(sent) = last {
            self.judge_client(number, &flow, sent);
        }
        let (bound, deafness) = (self.bounds.convergence, self.deafness(&flow));
        if let Some(sent) = last
            && self.is_healthy(sent)
            && sent > woken.max(self.bounds.quiet_from) + bound + deafness
            && reopened.is_none_or(|at| sent > at + RECOVERY + deafness)
            && self.can_work(&flow)
            && !self.is_between_ways(number, sent)
            && !self.is_crossing(number, sent)
        {
            let late = (sent - self.bounds.quiet_from).as_secs();
            self.broken(Invariant::Convergence, || {
                let Flow { from, to, .. } = flow;
                format!("flow {number} from agent {from} to {to:?} still fails {late} s after the last fault")
            });
        }
    }

    /// How much later a fault is noticed by whoever only sends, through a data plane that counts no
    /// keepalives: silence looks the same to it as a far end that has nothing to say.
    fn deafness(&self, flow: &Flow) -> Duration {
        let deaf = !flow.echo && self.scenario.backend(flow.from) == Backend::Embedded;
        if deaf && !self.scenario.faults.is_empty() {
            SILENCE_BACKOFF_MAX
        } else {
            Duration::ZERO
        }
    }

    /// Whether one of the two hosts is behind a NAT, and does not know.
    fn is_behind_nat(&self, flow: &Flow) -> bool {
        let Target::Agent(to, _) = flow.to else {
            return false;
        };
        let is_kept_open = self.scenario.detects_nats();
        !is_kept_open && (self.network.behind_nat(flow.from) || self.network.behind_nat(to))
    }

    /// Whether two hosts can reach each other at all, and are up.
    pub(super) fn can_work(&self, flow: &Flow) -> bool {
        let Target::Agent(to, _) = flow.to else {
            return false;
        };
        self.is_up(flow.from)
            && self.is_up(to)
            && self.has_way(flow.from, to)
            && !self.is_unheard(flow.from)
            && !self.is_unheard(to)
    }

    /// Whether others ignore the handshakes of an agent because its wall clock was set back.
    ///
    /// The kernel's WireGuard stamps its initiations with the wall clock; the embedded one does so
    /// with a clock that it starts from the wall clock, so that a restart is what it takes.
    pub(super) fn is_unheard(&self, number: u32) -> bool {
        let now = self.now();
        let host = self.agents.get(number as usize);
        host.is_some_and(|host| {
            let restarted = host
                .running
                .as_ref()
                .is_some_and(|running| running.started > millis(self.scenario.start_within_ms));
            let stamps = self.scenario.backend(number) == Backend::Kernel || restarted;
            stamps && host.is_behind(now)
        })
    }

    /// Whether an agent is up and has not been told to stop.
    pub(super) fn is_up(&self, number: u32) -> bool {
        let host = self.agents.get(number as usize);
        host.and_then(|host| host.running.as_ref())
            .is_some_and(|running| !running.stopping)
    }

    fn answer(&mut self, number: u32, probe: &Probe, inner: &Inner) {
        let Some(state) = self.flows.get_mut(probe.flow as usize) else {
            return;
        };
        let echo = Probe {
            id: self.ledger.issue(),
            flow: probe.flow,
            sequence: state.next_echo,
            echo: true,
            about: probe.about,
        };
        state.next_echo += 1;
        if let Some(packet) = echo.packet(inner.dst, inner.src) {
            self.local_send(number, &echo, packet, inner.src);
        }
    }

    fn confirm(&mut self, probe: &Probe, flow: &Flow) {
        let now = self.now();
        let Some(state) = self.flows.get_mut(probe.flow as usize) else {
            return;
        };
        let Some(since) = state.confirm(now, probe.about) else {
            return;
        };
        let Target::Agent(to, _) = flow.to else {
            return;
        };
        let most = self.scenario.cold_start_max(flow.from, to);
        let (from, to, server) = (Host::Agent(flow.from), Host::Agent(to), Host::Server(0));
        let path = self.network.delay(from, to);
        let resolve = (self.network.delay(from, server) + self.network.delay(to, server)) * 2;
        let set_up = SetUp {
            took: now - since,
            rtt: path * 2,
            floor: resolve + path * if flow.echo { 4 } else { 3 },
        };
        if !self.is_healthy(since) {
            self.stats.troubled_set_ups.push(set_up);
            return;
        }
        self.stats.set_ups.push(set_up);
        if set_up.took > most && self.can_work(flow) {
            self.broken(Invariant::ColdStart, || {
                let took = set_up.took.as_millis();
                format!(
                    "flow {} from {from:?} to {to:?} took {took} ms to set up",
                    probe.flow
                )
            });
        }
    }

    /// Whether neither end of a flow knows the other one.
    fn is_cold(&self, flow: &Flow) -> bool {
        let Target::Agent(to, _) = flow.to else {
            return false;
        };
        let knows = |agent: u32, eid: IpAddr| {
            let host = self.agents.get(agent as usize);
            let running = host.and_then(|host| host.running.as_ref());
            running.is_some_and(|running| running.plane.interface.table().lookup(eid).is_some())
        };
        !knows(flow.from, destination(flow)) && !knows(to, addresses::eid(flow.from, flow.ipv6, 0))
    }
}

/// Two agents in the order of their numbers.
pub(super) fn pair(one: u32, other: u32) -> (u32, u32) {
    (one.min(other), one.max(other))
}

fn destination(flow: &Flow) -> IpAddr {
    match flow.to {
        Target::Agent(agent, host) => addresses::eid(agent, flow.ipv6, host),
        Target::Nobody(number) => addresses::unassigned(number, flow.ipv6),
        Target::Outside(number) => proxies::outside(number, flow.ipv6),
    }
}
