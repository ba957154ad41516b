//! What a fault does when it begins, and when it ends.

use std::time::Duration;

use xtr_agent::agent::Input;

use super::addresses;
use super::data_plane::Way;
use super::net::{Cut, Host, Weather};
use super::packet::Probe;
use super::scenario::FaultKind;
use super::world::{Event, World};

/// The flow that the packets of all scans belong to.
pub(super) const SCANS: u32 = u32::MAX;

impl World {
    /// A fault begins.
    pub(super) fn fault_begins(&mut self, number: usize) {
        let Some(fault) = self.scenario.faults.get(number).cloned() else {
            return;
        };
        let now = self.now();
        self.trace.say(now, || {
            format!("FAULT {:?} for {} ms", fault.kind, fault.for_ms)
        });
        self.queue.after(
            Duration::from_millis(fault.for_ms),
            Event::FaultEnds(number),
        );
        match fault.kind {
            FaultKind::Weather {
                loss,
                duplicate,
                reorder,
                delay_cs,
            } => {
                let weather = Weather {
                    loss: share(loss),
                    duplicate: share(duplicate),
                    reorder: share(reorder),
                    delay: Duration::from_millis(u64::from(delay_cs) * 10),
                };
                self.network.set_weather(number, weather);
            }
            FaultKind::Cut { side, one_way } => self.network.set_cut(number, Cut { side, one_way }),
            FaultKind::Crash { agent, disk_lost } => self.crash_agent(agent, disk_lost),
            FaultKind::Stop { agent, .. } => self.stop_agent(agent),
            FaultKind::Replace { agent } => self.replace_agent(agent),
            FaultKind::CrashServer { server, disk } => self.crash_server(server, disk),
            FaultKind::NotForwarding { agent } => self.forwards(agent, false),
            FaultKind::Move { agent } => self.move_agent(agent),
            FaultKind::Uplink {
                agent,
                comes,
                goes,
                carrier,
                ..
            } => self.uplink_fails(number, agent, [comes, goes, carrier]),
            FaultKind::NatRestart { agent } => self.network.restart_nat(agent),
            FaultKind::ClockJump { host, by_ms } => self.set_clock(host, by_ms),
            FaultKind::DataPlane {
                agent,
                refuses,
                slowness,
            } => self.with_plane(agent, |plane| {
                plane.refusals = share(refuses);
                plane.slowness = slowness;
            }),
            FaultKind::Attack {
                host: Host::Agent(agent),
                datagrams,
            } => {
                self.attack_agent(agent, datagrams);
            }
            FaultKind::Attack {
                host: Host::Server(server),
                datagrams,
            } => {
                self.attack_server(server, datagrams);
            }
            FaultKind::Scan { agent, packets } => self.scan(agent, packets),
        }
    }

    /// A fault ends.
    pub(super) fn fault_ends(&mut self, number: usize) {
        let Some(fault) = self.scenario.faults.get(number).cloned() else {
            return;
        };
        let now = self.now();
        match fault.kind {
            FaultKind::Weather { .. } | FaultKind::Cut { .. } => self.network.clear(number),
            FaultKind::Crash { agent, .. }
            | FaultKind::Stop {
                agent,
                for_good: false,
            } => {
                self.start_agent(agent);
            }
            FaultKind::CrashServer { server, .. } => self.start_server(server),
            FaultKind::NotForwarding { agent } => self.forwards(agent, true),
            FaultKind::Replace { agent } => self.former_ends(agent),
            FaultKind::Uplink {
                agent,
                for_good: false,
                ..
            } => self.uplink_is_back(number, agent),
            FaultKind::DataPlane { agent, .. } => self.with_plane(agent, |plane| {
                plane.refusals = 0.0;
                plane.slowness = 1;
            }),
            FaultKind::Stop { for_good: true, .. }
            | FaultKind::Uplink { for_good: true, .. }
            | FaultKind::Move { .. }
            | FaultKind::NatRestart { .. }
            | FaultKind::ClockJump { .. }
            | FaultKind::Attack { .. }
            | FaultKind::Scan { .. } => return,
        }
        self.trace
            .say(now, || format!("end of fault number {number}"));
    }

    fn set_clock(&mut self, host: Host, by_ms: i64) {
        let now = self.now();
        let by_us = by_ms.saturating_mul(1_000);
        match host {
            Host::Agent(agent) => {
                if let Some(host) = self.agents.get_mut(agent as usize) {
                    host.clock_peak_us = host.clock_peak_us.max(host.wall_us(now));
                    host.clock_ahead_us = host.clock_ahead_us.saturating_add(by_us);
                }
            }
            Host::Server(server) => {
                if let Some(host) = self.servers.get_mut(server as usize) {
                    host.clock_ahead_us = host.clock_ahead_us.saturating_add(by_us);
                }
            }
        }
    }

    /// One packet to each of many EIDs that nobody has.
    fn scan(&mut self, number: u32, packets: u32) {
        let src = addresses::eid(number, false, 0);
        for target in 0..packets {
            let dst = addresses::unassigned(target.wrapping_mul(97), false);
            let id = self.ledger.issue();
            let probe = Probe {
                id,
                flow: SCANS,
                sequence: target,
                echo: false,
                about: target,
            };
            let host = self.agents.get(number as usize);
            let misses = host
                .and_then(|host| host.running.as_ref())
                .is_some_and(|running| running.plane.way(dst) == Way::Miss);
            if let Some(packet) = probe.packet(src, dst).filter(|_| misses) {
                let now = self.now();
                self.ledger.caught(now, number, &probe);
                self.agent_input(number, Input::TunPacket(&packet));
            }
        }
    }
}

fn share(percent: u8) -> f64 {
    f64::from(percent) / 100.0
}
