//! A scan of the overlay, and what becomes of everybody else meanwhile.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use testbed::{CONTROL_INTERFACE, Crowd, Endpoint, monotonic_ns, sleep, sleep_until};

use super::report::Storm;
use super::sender::Sender;
use crate::usage::Usage;

/// Where nobody is: a /16 of the overlay.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 192, 0, 0);
const PER_SECOND: u64 = 50_000;
/// Packets that are sent between two looks at the clock.
const BATCH: u32 = 50;
/// UDP port that is scanned.
const PORT: u16 = 9;
/// Time between two first packets to somebody who is there.
const PAUSE: Duration = Duration::from_millis(500);
/// Time between two looks at the counters.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS_PER_SECOND: usize = 20;

/// Scans a /16 from so many `sockets` for `time`, while `from` sends first packets to `members`,
/// whom it has not met.
pub(super) fn scan(
    from: &Endpoint,
    sender: &Sender,
    sockets: usize,
    time: Duration,
    mut members: impl Iterator<Item = u32>,
) -> Result<Storm> {
    let open = || -> std::io::Result<Vec<UdpSocket>> {
        let address = SocketAddr::new(from.eids[0], 0);
        (0..sockets).map(|_| UdpSocket::bind(address)).collect()
    };
    let scanners = from.namespace().run(open)?.context("open UDP sockets")?;
    let pid = from
        .node
        .daemon()?
        .pid()
        .context("the agent does not run")?;
    let (ended, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = Usage::of(pid)?;
    let start = monotonic_ns();
    let (met, counts) = thread::scope(|scope| {
        scope.spawn(|| send(&scanners, &ended, &sent));
        let counts = scope.spawn(|| count(from, &ended));
        let mut met = Vec::new();
        while Duration::from_nanos(monotonic_ns() - start) < time {
            if let Some(eid) = members.next().map(Crowd::eid) {
                sender.burst(eid);
                met.push(eid);
            }
            sleep(PAUSE);
        }
        sleep(PAUSE);
        ended.store(true, Ordering::Relaxed);
        (met, counts.join())
    });
    let took = Duration::from_nanos(monotonic_ns() - start);
    let after = Usage::of(pid)?;
    let counts = counts.ok().context("counting panicked")??;
    // The last ones may need their second.
    sleep(Duration::from_secs(1));
    let replies = met.iter().map(|eid| sender.reply(*eid));
    let replies: Vec<_> = replies.collect();
    let in_a_second = |first: &u64, last: &u64| last - first;
    let windows = counts.iter().zip(counts.iter().skip(LOOKS_PER_SECOND));
    Ok(Storm {
        sockets,
        packets_per_s: sent.into_inner() as f64 / took.as_secs_f64(),
        control_datagrams_per_s_max: windows
            .map(|(first, last)| in_a_second(first, last))
            .max()
            .unwrap_or_default(),
        cores: (after.cpu - before.cpu).as_secs_f64() / took.as_secs_f64(),
        resident_mib: [before.mib(), after.mib()],
        lost_first_packets: replies.iter().filter(|reply| reply.is_none()).count(),
        first_replies_ms: replies
            .iter()
            .flatten()
            .map(|reply| reply.as_secs_f64() * 1e3)
            .collect(),
    })
}

/// Sends until it has `ended`, to one address after the other.
fn send(scanners: &[UdpSocket], ended: &AtomicBool, sent: &AtomicU64) {
    let start = monotonic_ns();
    let mut packets = (0..=u16::MAX).cycle().zip(scanners.iter().cycle());
    let mut number: u64 = 0;
    while !ended.load(Ordering::Relaxed) {
        sleep_until(start + number * 1_000_000_000 / PER_SECOND);
        for (_, (host, scanner)) in (0..BATCH).zip(packets.by_ref()) {
            let address = Ipv4Addr::from_bits(NOBODY.to_bits() + u32::from(host));
            // The agent's refusals come back as errors: what a scanner expects.
            drop(scanner.send_to(&[0; 8], (address, PORT)));
        }
        number += u64::from(BATCH);
        sent.store(number, Ordering::Relaxed);
    }
}

/// Datagrams that the agent has sent to the map server, every [`LOOK`].
fn count(from: &Endpoint, ended: &AtomicBool) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    let start = monotonic_ns();
    let look = u64::try_from(LOOK.as_nanos())?;
    for number in 0.. {
        sleep_until(start + number * look);
        counts.push(from.namespace().counters(CONTROL_INTERFACE)?.sent_packets);
        if ended.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(counts)
}
