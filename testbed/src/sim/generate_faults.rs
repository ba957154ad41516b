//! Which faults does a seed bring?

use std::collections::BTreeSet;
use std::ops::Range;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::net::Host;
use super::options::FaultClass;
use super::scenario::{Disk, Fault, FaultKind, Scenario, Target};

/// Longest time that a host is down, in milliseconds.
const DOWN_MS: u64 = 10_000;
/// Longest time that anything else lasts, in milliseconds.
const TROUBLE_MS: u64 = 40_000;

/// Adds one fault of one of `classes` that begins and ends within `span`, in milliseconds.
pub(super) fn add_fault(
    scenario: &mut Scenario,
    span: Range<u64>,
    classes: &BTreeSet<FaultClass>,
    rng: &mut StdRng,
) {
    let classes: Vec<FaultClass> = classes.iter().copied().collect();
    let Some(class) = classes.choose(rng).copied() else {
        return;
    };
    let end = span.end;
    let at_ms = rng.random_range(span);
    let left = (end - at_ms).max(1_500);
    let mut lasts = |most: u64| rng.random_range(1_000..=most).min(left);
    let (down, trouble) = (lasts(DOWN_MS), lasts(TROUBLE_MS));
    let agent = rng.random_range(0..scenario.agents);
    let server = rng.random_range(0..scenario.servers);
    let percent = rng.random_range(2..=50);
    let (for_ms, kind) = match class {
        FaultClass::Loss => (trouble, weather(|weather| weather.0 = percent)),
        FaultClass::Duplicate => (trouble, weather(|weather| weather.1 = percent)),
        FaultClass::Reorder => (trouble, weather(|weather| weather.2 = percent)),
        FaultClass::Delay => (trouble, weather(|weather| weather.3 = percent)),
        FaultClass::Partition => (trouble, cut(scenario, false, rng)),
        FaultClass::Cut => (trouble, cut(scenario, true, rng)),
        FaultClass::Crash => (down, crash(agent, false)),
        FaultClass::Disk => (down, crash(agent, !goes_back(scenario, Host::Agent(agent)))),
        FaultClass::Stop => stop(agent, down, rng),
        FaultClass::Server => (
            down,
            FaultKind::CrashServer {
                server,
                disk: Disk::Kept,
            },
        ),
        FaultClass::ServerDisk => (down, damage(scenario, server, rng)),
        FaultClass::Move => return add_moves(scenario, at_ms, agent, rng),
        FaultClass::Nat => (0, FaultKind::NatRestart { agent }),
        FaultClass::Clock => match clock_jump(scenario, rng) {
            Some(kind) => (0, kind),
            None => return,
        },
        FaultClass::Refuse => (trouble, data_plane(agent, percent, 1)),
        FaultClass::Slow => (trouble, data_plane(agent, 0, rng.random_range(10..1_000))),
        FaultClass::Attack => {
            let (host, datagrams) = (host(scenario, rng), rng.random_range(1..40));
            (0, FaultKind::Attack { host, datagrams })
        }
        FaultClass::Scan => (
            0,
            FaultKind::Scan {
                agent,
                packets: rng.random_range(1..2_000),
            },
        ),
    };
    scenario.faults.push(Fault {
        at_ms,
        for_ms,
        kind,
    });
}

/// Loss, duplication, reordering and delay, of which `set` sets one.
fn weather(set: impl FnOnce(&mut (u8, u8, u8, u8))) -> FaultKind {
    let mut amounts = (0, 0, 0, 0);
    set(&mut amounts);
    let (loss, duplicate, reorder, delay_cs) = amounts;
    FaultKind::Weather {
        loss,
        duplicate,
        reorder,
        delay_cs,
    }
}

/// Separates a share of the hosts from the others.
fn cut(scenario: &Scenario, one_way: bool, rng: &mut StdRng) -> FaultKind {
    let share = rng.random_range(0.02..0.5);
    let agents = (0..scenario.agents).map(Host::Agent);
    let servers = (0..scenario.servers).map(Host::Server);
    let mut side: BTreeSet<Host> = agents
        .chain(servers)
        .filter(|_| rng.random_bool(share))
        .collect();
    if side.is_empty() {
        side.insert(host(scenario, rng));
    }
    FaultKind::Cut { side, one_way }
}

const fn data_plane(agent: u32, refuses: u8, slowness: u32) -> FaultKind {
    FaultKind::DataPlane {
        agent,
        refuses,
        slowness,
    }
}

const fn crash(agent: u32, disk_lost: bool) -> FaultKind {
    FaultKind::Crash { agent, disk_lost }
}

fn stop(agent: u32, down: u64, rng: &mut StdRng) -> (u64, FaultKind) {
    let for_good = rng.random_bool(0.3);
    let for_ms = if for_good { 0 } else { down };
    (for_ms, FaultKind::Stop { agent, for_good })
}

fn damage(scenario: &Scenario, server: u32, rng: &mut StdRng) -> FaultKind {
    let torn = Disk::Torn(rng.random_range(1..9));
    let all = rng.random() && !goes_back(scenario, Host::Server(server));
    let disk = if all { Disk::Lost } else { torn };
    FaultKind::CrashServer { server, disk }
}

/// Gives an agent a new address, and sometimes the far end of one of its flows at the same time.
fn add_moves(scenario: &mut Scenario, at_ms: u64, agent: u32, rng: &mut StdRng) {
    let mut moves = vec![agent];
    let far_end = scenario.flows.iter().find_map(|flow| match flow.to {
        Target::Agent(to, _) if flow.from == agent => Some(to),
        Target::Agent(..) | Target::Nobody(_) | Target::Outside(_) => None,
    });
    if rng.random() {
        moves.extend(far_end);
    }
    for agent in moves {
        let at_ms = at_ms + rng.random_range(0..30);
        let kind = FaultKind::Move { agent };
        scenario.faults.push(Fault {
            at_ms,
            for_ms: 0,
            kind,
        });
    }
}

/// Sets a clock by a millisecond to a day, forward or back.
fn clock_jump(scenario: &Scenario, rng: &mut StdRng) -> Option<FaultKind> {
    let host = host(scenario, rng);
    let size: f64 = rng.random_range(0.0..8.0);
    #[expect(clippy::cast_possible_truncation, reason = "10^8 ms at most")]
    let by_ms = 10f64.powf(size) as i64;
    let by_ms = if rng.random() { by_ms } else { -by_ms };
    // Whoever loses his disk and has his clock set back has nothing left to make growing nonces
    // from: RFC 9301 §5.6 has no answer to that.
    let possible = by_ms > 0 || !loses_disk(scenario, host);
    possible.then_some(FaultKind::ClockJump { host, by_ms })
}

fn host(scenario: &Scenario, rng: &mut StdRng) -> Host {
    if rng.random_bool(0.7) {
        Host::Agent(rng.random_range(0..scenario.agents))
    } else {
        Host::Server(rng.random_range(0..scenario.servers))
    }
}

/// Whether the wall clock of `host` is set back at some time.
fn goes_back(scenario: &Scenario, host: Host) -> bool {
    let back = |kind: &FaultKind| matches!(kind, FaultKind::ClockJump { host: whose, by_ms } if *whose == host && *by_ms < 0);
    scenario.faults.iter().any(|fault| back(&fault.kind))
}

/// Whether `host` loses its disk at some time.
fn loses_disk(scenario: &Scenario, host: Host) -> bool {
    let lost = |kind: &FaultKind| match host {
        Host::Agent(number) => {
            matches!(kind, FaultKind::Crash { agent, disk_lost: true } if *agent == number)
        }
        Host::Server(number) => {
            matches!(kind, FaultKind::CrashServer { server, disk: Disk::Lost } if *server == number)
        }
    };
    scenario.faults.iter().any(|fault| lost(&fault.kind))
}
